"""Export a trained model to a file that phones and servers load without this package, and check it.

    python tools/export.py --run output/det_digits --format executorch
    python tools/export.py --run output/cls_digits --format executorch --int8
    python tools/export.py --model FBNetV5-A-SEG --weights model_final.pth --format onnx --output deploy
    python tools/export.py --model FBNetV5-N-DET --pretrained --format onnx

--run names the OUTPUT_DIR of a training. The folder --output gets the file and its model.json: inputs,
preprocessing, outputs, classes, topology, FLOPs, versions, and how far the file was from the model when it was checked.
Exit status: 0, or 2 for wrong input, or 1 if the file does not compute what the model does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from d2go_fbnetv5.tools.model_arguments import add_model_arguments, check_model_arguments, open_model
from torch import Tensor

from d2go_fbnetv5.engine.predictor import Predictor
from d2go_fbnetv5.export import (
    Calibration,
    CheckFailedError,
    Exported,
    export_model,
    get_format,
    list_formats,
)
from d2go_fbnetv5.export.formats.base import INT8
from d2go_fbnetv5.export.images import CALIBRATION_IMAGES, calibration_images, run_images
from d2go_fbnetv5.utils.arguments import ToolParser, parse_size
from d2go_fbnetv5.utils.errors import InputError, run_tool, sentence

_CHECK_IMAGES = 8


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit status."""
    args = _parser().parse_args(argv)
    return run_tool("export", lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    try:
        exported = _export(args)
    except CheckFailedError as error:
        print(f"export: the check failed: {sentence(error)}", file=sys.stderr)
        return 1
    print(_summary(exported))
    return 0


def cli() -> None:
    """The console script."""
    sys.exit(main())


def _parser() -> argparse.ArgumentParser:
    parser = ToolParser("export", __doc__)
    parser.add_argument(
        "--format",
        required=True,
        help=f"{', '.join(list_formats())}, or what IMPORTS of the run brings",
    )
    add_model_arguments(
        parser,
        model="a model of the zoo, such as FBNetV5-A-DET",
        weights="its checkpoint, without which it is exported untrained, to be timed; "
        "with --run another one than the run's last",
    )
    parser.add_argument(
        "--size",
        metavar="HxW",
        help="pixels of the images; formats that can take any multiples of 32 (default: as evaluated)",
    )
    parser.add_argument(
        "--fixed-size",
        action="store_true",
        help=f"the file takes that size alone ({', '.join(list_formats('fixed_size'))}): faster in ExecuTorch",
    )
    parser.add_argument(
        "--int8",
        action="store_true",
        help=f"weights and activations in 8 bits ({', '.join(list_formats('int8'))})",
    )
    parser.add_argument(
        "--calibration-data",
        metavar="DATA",
        help="a folder of images or the name of a data set, resized as for evaluation and not augmented: what --int8 "
        "is calibrated and the file is checked with (default: calibrated with the run's training set, checked with its "
        "test set)",
    )
    parser.add_argument(
        "--calibration-images",
        type=int,
        default=CALIBRATION_IMAGES,
        metavar="N",
        help=f"for --int8, spread over that data (default: {CALIBRATION_IMAGES})",
    )
    parser.add_argument(
        "--output", metavar="DIR", help="(default: RUN/FORMAT or NAME-FORMAT, with -int8 at its end)"
    )
    return parser


def _export(args: argparse.Namespace) -> Exported:
    size = parse_size(args.size) if args.size else None
    check_model_arguments(args)
    predictor = open_model(args)  # a run's IMPORTS may bring the format
    get_format(args.format, suffix=True, int8=args.int8, fixed_size=args.fixed_size)
    calibration = _calibration(args, predictor) if args.int8 else None
    pictures = _pictures(args, predictor)
    suffix = f"{args.format}{INT8}" if args.int8 else args.format
    folder = args.output or (Path(args.run, suffix) if args.run else f"{args.model}-{suffix}")
    return export_model(
        predictor.model,
        args.format,
        folder,
        size,
        names=predictor.names,
        transform=predictor.transform,
        calibration=calibration,
        pictures=pictures,
        fixed_size=args.fixed_size,
    )


def _calibration(args: argparse.Namespace, predictor: Predictor) -> Calibration:
    if not (args.calibration_data or args.run):
        raise InputError("--int8 needs --calibration-data, images like those that the model will see")
    try:
        images, data = _images(args, predictor, "TRAIN", args.calibration_images)
    except (InputError, FileNotFoundError) as error:
        raise type(error)(
            f"--int8 is calibrated with images, which --calibration-data names: {error}"
        ) from error
    return Calibration(images, f"{data}, resized as for evaluation, not augmented")


def _pictures(args: argparse.Namespace, predictor: Predictor) -> list[Tensor]:
    """Return what the file is checked with; none for made up ones."""
    try:
        return [image[0] for image in _images(args, predictor, "TEST", _CHECK_IMAGES)[0]]
    except (InputError, FileNotFoundError) as error:
        if args.calibration_data:
            raise
        # A run may be far from its data.
        print(f"export: the file is checked with made-up images: {sentence(error)}", file=sys.stderr)
        return []


def _images(
    args: argparse.Namespace, predictor: Predictor, which: str, count: int
) -> tuple[list[Tensor], str]:
    """At most ``count`` images of --calibration-data, else of the run's own data, and what they are called."""
    given = args.calibration_data
    if args.run and not (given and Path(given).is_dir()):
        return run_images(args.run, predictor, which, count, given)
    return list(calibration_images([given], predictor, count)) if given else [], given or ""


def _summary(exported: Exported) -> str:
    report, megabytes = exported.report, exported.path.stat().st_size / 1e6
    sizes = " and ".join(f"{height}x{width}" for height, width in sorted(report.sizes))
    line = (
        f"{exported.path}: {megabytes:.1f} MB; on {report.images} images of {sizes} at most {report.worst:.2g} from "
        f"the model, {report.agreement:.1%} of the same class"
    )
    if report.detections is not None:
        least, most = report.detections
        line += f", boxes of IoU {report.overlap:.4f} or more, {least} to {most} an image"
    return line


if __name__ == "__main__":
    cli()
