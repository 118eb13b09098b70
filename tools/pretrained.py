"""Put the network of a finished training among the trained models that come with the package.

    python tools/pretrained.py output/det_digits

It becomes the folder FBNetV5-FAMILY-TASK of d2go_fbnetv5/pretrained, or of --output: the network, its weights (the
averaged ones, where there are any) in half precision and its card, as `d2go_fbnetv5.save_pretrained` writes them. What
is written is opened and judged on the training's validation set before it gets there, and has to reach what the
training did. Data sets are those of digit scenes alone, whose pictures allow weights to be given on under the package's
licence.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from d2go_fbnetv5.engine.build import build_data
from d2go_fbnetv5.engine.card import describe_training
from d2go_fbnetv5.engine.config import load_cfg
from d2go_fbnetv5.engine.continuing import CONFIG_FILE
from d2go_fbnetv5.engine.evaluation import evaluate
from d2go_fbnetv5.engine.predictor import open_network
from d2go_fbnetv5.engine.recipes.models import model_recipe
from d2go_fbnetv5.hub import from_pretrained, save_pretrained
from d2go_fbnetv5.utils.arguments import ToolParser
from d2go_fbnetv5.utils.errors import InputError, run_tool
from d2go_fbnetv5.utils.files import replacing_folder
from d2go_fbnetv5.utils.shipped import pretrained_folder
from d2go_fbnetv5.zoo import CLASSES

_LICENCE = "Apache-2.0"
_SETS = ("digit_scenes_train", "digit_scenes_val")
_MOST_BYTES = 2_500_000  # the wheel has room for 10 MB in all
_TOLERANCE = 0.005  # of a metric, between machines


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit status, 2 for wrong input."""
    parser = ToolParser("pretrained", __doc__)
    parser.add_argument("run", metavar="RUN", help="OUTPUT_DIR of a finished training")
    parser.add_argument("--output", metavar="DIR", help="(default: d2go_fbnetv5/pretrained)")
    args = parser.parse_args(argv)
    return run_tool("pretrained", lambda: _run(Path(args.run), Path(args.output or pretrained_folder())))


def _run(run: Path, output: Path) -> None:
    if not (run / "model_final.pth").is_file():
        raise InputError(f"{run} has no model_final.pth, allowed: the folder of a finished training")
    network, training = open_network(run), describe_training(run)
    task = network.task(model_recipe(network.model).kind).upper()
    if task not in CLASSES:
        raise InputError(f"{run} is of a {network.model}, allowed: models for {', '.join(CLASSES)}")
    cfg = load_cfg(run / CONFIG_FILE)
    others = [name for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST) if name not in _SETS]
    if others:
        raise InputError(f"{run} has the data set {others[0]}, allowed: {', '.join(_SETS)}")
    if not training.get("metrics"):
        raise InputError(f"{run} has no metrics of its end, allowed: one that has been judged")
    target = output / f"FBNetV5-{network.family}-{task}"
    with replacing_folder(target) as folder:
        save_pretrained(run, folder, licence=_LICENCE, half=True)
        size = sum(path.stat().st_size for path in folder.iterdir())
        if size > _MOST_BYTES:
            raise InputError(f"{run} makes {size} bytes, allowed: {_MOST_BYTES}")
        model, data = from_pretrained(folder).model, build_data(cfg, cfg.SEED)
        found = evaluate(model, data.eval_batches(), model.evaluator(data.info))
        for name, expected in training["metrics"].items():
            if not abs(found[name] - expected) <= _TOLERANCE:
                raise InputError(
                    f"{run}: {name} is {found[name]:.4f} now, allowed: {expected:.4f}, as after its training"
                )
    print(
        f"{target}: {size / 1e6:.1f} MB, " + ", ".join(f"{k} {v:.3f}" for k, v in training["metrics"].items())
    )


def cli() -> None:
    """The console script."""
    sys.exit(main())


if __name__ == "__main__":
    cli()
