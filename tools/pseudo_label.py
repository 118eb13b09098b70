"""Label images by teachers, for every task of a search (the paper's section 3.2).

    python tools/pseudo_label.py --config-file configs/pseudo_label/imagenet_paper.yaml --num-processes 8
    python tools/pseudo_label.py --config-file digits.yaml --preview 16

OUTPUT_DIR/index is then what `READER: multitask` opens. Killed at any time, the same command goes on. On several
machines give each --num-shards and its own --shard-index, and afterwards run the command once with --merge.
"""

import argparse
import io
import json
import logging
import sys
from collections.abc import Sequence

from fvcore.common.config import CfgNode
from rich.console import Console

from d2go_fbnetv5.data import MultitaskDataset
from d2go_fbnetv5.engine.launch import launch, under_torchrun
from d2go_fbnetv5.engine.log import setup_logging
from d2go_fbnetv5.engine.validate import check_device
from d2go_fbnetv5.pseudo_labels.job import Images, label_chunks, prepare, unlabelled
from d2go_fbnetv5.pseudo_labels.output import Output, merge
from d2go_fbnetv5.pseudo_labels.preview import write_preview
from d2go_fbnetv5.pseudo_labels.settings import load_settings
from d2go_fbnetv5.pseudo_labels.summary import summarize, summary_tables, write_summary
from d2go_fbnetv5.utils.arguments import ToolParser
from d2go_fbnetv5.utils.errors import InputError, run_tool
from d2go_fbnetv5.utils.watching import watched

logger = logging.getLogger("d2go_fbnetv5")

_GOES_ON = "the same command goes on"


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = ToolParser("pseudo_label", __doc__)
    parser.add_argument(
        "--config-file", required=True, metavar="FILE", help="a YAML file, or the name of one that ships"
    )
    parser.add_argument("--output-dir", metavar="DIR", help="short for OUTPUT_DIR DIR")
    parser.add_argument("--num-shards", type=int, default=1, metavar="N", help="of the images, one a machine")
    parser.add_argument("--shard-index", type=int, default=0, metavar="I", help="which to label, from 0")
    parser.add_argument(
        "--num-processes", type=int, default=1, metavar="N", help="on this machine, one a GPU (default 1)"
    )
    parser.add_argument(
        "--merge", action="store_true", help="label nothing, join what all shards have labelled"
    )
    parser.add_argument(
        "--preview", type=int, default=0, metavar="N", help="draw the labels of N images into preview.png"
    )
    parser.add_argument(
        "opts", nargs="*", type=str, metavar="KEY VALUE", help="configuration keys to override"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 after one sentence about what the user can mend, or 130 or 143 if interrupted."""
    args = build_parser().parse_intermixed_args(argv)
    setup_logging(is_main=True)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a class may be named by what is no character
    return run_tool("pseudo_label", lambda: _run(args), _GOES_ON)


def _run(args: argparse.Namespace) -> None:
    opts = [*args.opts, *(("OUTPUT_DIR", args.output_dir) if args.output_dir else ())]
    settings = load_settings(args.config_file, opts)
    if args.num_shards < 1 or not 0 <= args.shard_index < args.num_shards:
        raise InputError(
            f"--shard-index is {args.shard_index} and --num-shards {args.num_shards}, allowed: 0 to --num-shards - 1"
        )
    check_device("DEVICE", settings.DEVICE, args.num_processes)
    if under_torchrun():
        raise InputError("torchrun is not needed: --num-processes starts the processes of this machine")
    if args.preview < 0:
        raise InputError(f"--preview is {args.preview}, allowed: 0 or more")
    if args.preview and args.num_shards > 1 and not args.merge:
        raise InputError("--preview needs all shards, allowed with --num-shards: only together with --merge")
    output, images = Output(settings.OUTPUT_DIR), prepare(settings)
    count = images.num_chunks
    mine = range(count) if args.merge else range(args.shard_index, count, args.num_shards)
    with output.claimed(mine):
        if not args.merge:
            _label(settings, images, output, mine, args.num_processes)
        if args.merge or args.num_shards == 1:
            _finish(output, count, args.preview)


def _label(settings: CfgNode, images: Images, output: Output, chunks: range, num_processes: int) -> None:
    todo = unlabelled(images, output, chunks)
    logger.info("%d of %d chunks are to be labelled here", len(todo), images.num_chunks)
    if todo:
        launch(
            label_chunks,
            (settings, todo),
            num_processes=num_processes,
            device=settings.DEVICE.split(":")[0],
        )


def _finish(output: Output, count: int, preview: int) -> None:
    """Show what there is to see, once all chunks are there."""
    index = merge(output, count)
    summary = summarize(index, json.loads(output.statistics.read_text(encoding="utf-8")))
    write_summary(summary, output.folder / "summary.json")
    Console().print(*summary_tables(summary), sep="\n")
    if not len(index):
        raise InputError(f"none of {summary['skipped']} images could be read; {output.skipped} says why")
    if preview:
        path = output.folder / "preview.png"
        drawn = write_preview(MultitaskDataset(output.index), preview, path)
        print(f"{path}: {drawn} images")
    print(f"{output.index}: {len(index)} images, not read: {summary['skipped']}")
    if summary["missing"]:
        logger.warning(
            "%d of the images that were not read are missing or cannot be opened; when they are there, the same "
            "command labels them",
            summary["missing"],
        )
    for task, found in summary.items():
        if isinstance(found, dict) and found["problems"]:
            logger.warning(
                "%s: a teacher failed on %d images; %s says why", task, found["problems"], output.skipped
            )


def cli() -> None:
    """The console script."""
    sys.exit(watched("pseudo_label", main, _GOES_ON))


if __name__ == "__main__":
    cli()
