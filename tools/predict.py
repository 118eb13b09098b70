"""Show what a trained model sees in images: classes, boxes or a label map, drawn on them and as JSON.

    python tools/predict.py photo.jpg --run output/det_digits
    python tools/predict.py photos --model FBNetV5-A-DET --weights model_final.pth --output predictions
    python tools/predict.py photo.jpg --model FBNetV5-N-DET --pretrained

--run names the OUTPUT_DIR of a training; the model, its weights (the newest, averaged if there are averaged ones), the
class names and the images' size at evaluation are taken from it. A folder is searched for images to any depth; hidden
files and what predict has written are passed over. The folder --output gets NAME.png for an image NAME.jpg, a
segmenter's label map as NAME_sem_seg.png, and predictions.json, which says for every image where its files are. Where
two images would have the same file, the second is NAME_2. Nothing is overwritten but what predict has written before.
Exit status: 0, or 2 for wrong input; if only some images cannot be read, the others are there all the same.
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
from d2go_fbnetv5.tools.prediction_files import PREDICTIONS, Place, plan, write_png
from d2go_fbnetv5.tools.predictions import draw, to_json
from torch import Tensor

from d2go_fbnetv5.data import EvalTransform
from d2go_fbnetv5.data.images import read_image
from d2go_fbnetv5.engine.predictor import Predictor
from d2go_fbnetv5.utils.arguments import ToolParser
from d2go_fbnetv5.utils.errors import InputError, run_tool, sentence
from d2go_fbnetv5.utils.files import write_atomically
from d2go_fbnetv5.utils.formatting import format_plural
from d2go_fbnetv5.utils.text_files import check_local


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit status, 2 for wrong input."""
    args = _parser().parse_args(argv)
    return run_tool("predict", lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    predictor, output = _predictor(args), Path(args.output)
    places = plan(args.images, output, label_maps="seg" in predictor.parts)
    found, failed = [], []
    for place in places:
        try:
            image = read_image(place.image)
            prediction = predictor(image)
        except (InputError, OSError) as error:  # the other images may be good
            failed.append(f"{place.image}: {sentence(error)}")
            continue
        found.append(_write(place, predictor, image, prediction, output))
    if not found:
        raise InputError(
            failed[0] + (f" ({len(failed)} images could not be used)" if len(failed) > 1 else "")
        )
    path = output / PREDICTIONS
    write_atomically(path, json.dumps(found, indent=1, allow_nan=False) + "\n")
    print(f"{path}: {format_plural(len(found), 'image', 'images')}")
    for message in failed:
        print(f"predict: {message}", file=sys.stderr)
    return 2 if failed else 0


def cli() -> None:
    """The console script."""
    sys.exit(main())


def _parser() -> argparse.ArgumentParser:
    parser = ToolParser("predict", __doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="an image, or a folder of them")
    add_model_arguments(
        parser,
        model="a model of the zoo, such as FBNetV5-A-DET, with --weights or --pretrained",
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
    check_local("--output", args.output)
    if not 0 <= args.threshold <= 1:
        raise InputError(f"--threshold {args.threshold}: allowed is 0 to 1")
    transform = EvalTransform(*_parse_size(args.size)) if args.size else None
    if args.model is not None and not (args.weights or args.pretrained):
        raise InputError(
            f"--model {args.model} needs --weights FILE or --pretrained: without them it is not trained"
        )
    predictor = open_model(args)
    predictor.threshold = args.threshold
    predictor.transform = transform or predictor.transform
    return predictor


def _parse_size(text: str) -> tuple[int, None, int | None]:
    sides = text.lower().split("x")
    if len(sides) not in (1, 2) or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise InputError(f"--size {text}: expected SHORT or SHORTxLONG in pixels, such as 224x320")
    return int(sides[0]), None, int(sides[1]) if len(sides) == 2 else None


def _write(
    place: Place, predictor: Predictor, image: Tensor, found: dict[str, Tensor], output: Path
) -> dict[str, Any]:
    """Write an image's files; returns its entry in predictions.json."""
    height, width = image.shape[-2:]
    entry: dict[str, Any] = {
        "image": str(place.image),
        "height": height,
        "width": width,
        "picture_file_name": place.picture.as_posix(),
    }
    if place.label_map is not None:
        labels = found["sem_seg"]
        entry["sem_seg_file_name"] = place.label_map.as_posix()
        # More than 255 classes do not fit into a byte.
        pixels = labels.to(torch.uint16 if labels.max() > 255 else torch.uint8)
        write_png(output / place.label_map, pixels.numpy())
    entry |= to_json(predictor, found, (height, width))
    write_png(output / place.picture, draw(predictor, image, found).permute(1, 2, 0).numpy())
    return entry


if __name__ == "__main__":
    cli()
