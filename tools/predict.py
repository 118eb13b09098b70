"""Show what a trained model sees in images: classes, boxes or a label map, drawn on them and as JSON.

    python tools/predict.py photo.jpg --run output/det_digits
    python tools/predict.py *.jpg --model FBNetV5-A-DET --weights model_final.pth --output predictions

--run names the OUTPUT_DIR of a finished training; the model, its weights (the averaged ones if there are any), the
class names and the images' size at evaluation are taken from it. Pictures and predictions.json are written to --output.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from d2go_fbnetv5.tools.model_arguments import add_model_arguments, check_model_arguments, open_model
from d2go_fbnetv5.tools.predictions import draw, label_map_at, to_json

from d2go_fbnetv5.data import EvalTransform
from d2go_fbnetv5.data.images import encode_png, read_image
from d2go_fbnetv5.engine.predictor import Predictor
from d2go_fbnetv5.utils.errors import InputError, run_tool
from d2go_fbnetv5.utils.files import write_atomically


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit status, 2 for wrong input."""
    args = _parser().parse_args(argv)
    return run_tool("predict", lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    predictor = _predictor(args)
    found = [_predict(Path(image), predictor, Path(args.output)) for image in _different(args.images)]
    path = Path(args.output, "predictions.json")
    write_atomically(path, json.dumps(found, indent=1) + "\n")
    print(f"{path}: {len(found)} image{'' if len(found) == 1 else 's'}")


def cli() -> None:
    """The console script."""
    sys.exit(main())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="d2go_fbnetv5.predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    add_model_arguments(
        parser,
        model="a model of the zoo, such as FBNetV5-A-DET, with --weights",
        weights="its checkpoint; with --run another one than the run's last",
    )
    parser.add_argument(
        "--size",
        metavar="SHORT[xLONG]",
        help="resize to this short side and, for boxes, bound on the long one",
    )
    parser.add_argument(
        "--threshold", type=float, default=0.5, help="least score of a box that is shown (0.5)"
    )
    parser.add_argument("--output", default="predictions", metavar="DIR", help="(default: predictions)")
    return parser


def _predictor(args: argparse.Namespace) -> Predictor:
    check_model_arguments(args)
    if not 0 <= args.threshold <= 1:
        raise InputError(f"--threshold {args.threshold}: allowed is 0 to 1")
    transform = EvalTransform(*_parse_size(args.size)) if args.size else None
    if args.model is not None and not args.weights:
        raise InputError(f"--model {args.model} needs --weights FILE: without them it is not trained")
    predictor = open_model(args)
    predictor.threshold = args.threshold
    predictor.transform = transform or predictor.transform
    return predictor


def _parse_size(text: str) -> tuple[int, None, int | None]:
    sides = text.lower().split("x")
    if len(sides) not in (1, 2) or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise InputError(f"--size {text}: expected SHORT or SHORTxLONG in pixels, such as 224x320")
    return int(sides[0]), None, int(sides[1]) if len(sides) == 2 else None


def _different(images: Sequence[str]) -> Sequence[str]:
    stems = [Path(image).stem for image in images]
    again = next((stem for stem in stems if stems.count(stem) > 1), None)
    if again is not None:
        raise InputError(f"two images are named {again!r}, and their pictures would be, too")
    return images


def _predict(path: Path, predictor: Predictor, output: Path) -> dict[str, Any]:
    image = read_image(path)
    height, width = image.shape[-2:]
    found = predictor(image)
    output.mkdir(parents=True, exist_ok=True)
    entry: dict[str, Any] = {"image": str(path), "height": height, "width": width}
    if predictor.task == "seg":
        labels = label_map_at(found, (height, width))
        entry["sem_seg_file_name"] = f"{path.stem}_sem_seg.png"
        # More than 255 classes do not fit into a byte.
        pixels = labels.to(torch.uint16 if labels.max() > 255 else torch.uint8)
        write_atomically(output / entry["sem_seg_file_name"], encode_png(pixels.numpy()))
    entry |= to_json(predictor, found, (height, width))
    picture = draw(predictor, image, found)
    write_atomically(output / f"{path.stem}.png", encode_png(picture.permute(1, 2, 0).numpy()))
    return entry


if __name__ == "__main__":
    cli()
