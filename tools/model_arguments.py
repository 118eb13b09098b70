"""The arguments by which `predict` and `export` name a trained model."""

from __future__ import annotations

import argparse
from pathlib import Path

from d2go_fbnetv5.engine.predictor import Predictor, from_run
from d2go_fbnetv5.utils.arguments import add_budget, parse_budget
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.zoo import from_zoo, list_models


def add_model_arguments(parser: argparse.ArgumentParser, model: str, weights: str) -> None:
    """Adds --run, --model and what belongs to them; ``model`` and ``weights`` are the help of these two."""
    parser.add_argument("--run", metavar="DIR", help="OUTPUT_DIR of a training")
    parser.add_argument("--model", metavar="NAME", help=model)
    parser.add_argument("--weights", metavar="FILE", help=weights)
    parser.add_argument(
        "--pretrained",
        action="store_true",
        help=f"take --model with the weights that come with the package ({', '.join(list_models(pretrained=True))})",
    )
    parser.add_argument(
        "--topology", metavar="FILE", help="the topologies.json or front.json that --model was trained with"
    )
    add_budget(parser)
    parser.add_argument(
        "--num-classes", type=int, metavar="K", help="of --model, if not as many as in the paper"
    )
    parser.add_argument("--names", metavar="FILE", help="class names of --model, one a line")


def check_model_arguments(args: argparse.Namespace) -> None:
    """ValueError unless exactly one of --run and --model is there."""
    if (args.run is None) == (args.model is None):
        raise InputError("one of --run DIR and --model NAME is needed")


def open_model(args: argparse.Namespace) -> Predictor:
    """Open the model that checked arguments name.

    Raises:
        FileNotFoundError, ValueError: names the argument that is wrong.
    """
    if args.run is None:
        names = _names(args.names) if args.names is not None else None
        budget = parse_budget(args.budget)
        return from_zoo(
            args.model, args.weights, args.topology, args.num_classes, names, budget, args.pretrained
        )
    if args.pretrained:
        raise InputError("--pretrained: --run brings its own weights")
    for flag, value in (
        ("--topology", args.topology),
        ("--budget", " ".join(args.budget) or None),
        ("--num-classes", args.num_classes),
        ("--names", args.names),
    ):
        if value is not None:
            raise InputError(f"{flag} {value}: --run brings its own")
    return from_run(args.run, args.weights)


def _names(file: str) -> list[str]:
    try:
        lines = Path(file).read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"--names {file}: not a text file ({error.reason} at byte {error.start})") from error
    return [line.strip() for line in lines if line.strip()]
