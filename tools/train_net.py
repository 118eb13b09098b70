"""Train, resume or evaluate what a configuration describes: `train_net.py --config-file search_digits.yaml`."""

import argparse
import sys
from collections.abc import Sequence

from fvcore.common.config import CfgNode

from d2go_fbnetv5.engine.config import load_cfg
from d2go_fbnetv5.engine.launch import launch, total_processes
from d2go_fbnetv5.engine.log import setup_logging
from d2go_fbnetv5.engine.train import prepare, train
from d2go_fbnetv5.utils.arguments import ToolParser
from d2go_fbnetv5.utils.errors import run_tool


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = ToolParser(
        "train_net",
        "Train, resume or evaluate what a configuration describes.",
        epilog="Example: d2go_fbnetv5.train_net --config-file search_digits.yaml OUTPUT_DIR output/demo",
    )
    parser.add_argument(
        "--config-file", required=True, metavar="FILE", help="a YAML file, or the name of one that ships"
    )
    parser.add_argument("--output-dir", metavar="DIR", help="short for OUTPUT_DIR DIR")
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run in OUTPUT_DIR, if there is one"
    )
    parser.add_argument(
        "--eval-only", action="store_true", help="evaluate the run in OUTPUT_DIR, rewrite its report"
    )
    parser.add_argument(
        "--num-processes", type=int, default=1, metavar="N", help="on this machine (default 1)"
    )
    parser.add_argument("--num-machines", type=int, default=1, metavar="N", help="(default 1)")
    parser.add_argument(
        "--machine-rank", type=int, default=0, metavar="R", help="which machine this is, from 0"
    )
    parser.add_argument("--dist-url", default="auto", metavar="URL", help="tcp://host:port of machine 0")
    parser.add_argument(
        "opts", nargs="*", type=str, metavar="KEY VALUE", help="configuration keys to override"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 after one sentence about what the user can mend, or 130 or 143 if interrupted."""
    # Flags may stand before, between and after KEY VALUE pairs.
    args = build_parser().parse_intermixed_args(argv)
    setup_logging(is_main=True)
    return run_tool("train_net", lambda: _run(args), "go on with --resume")


def _run(args: argparse.Namespace) -> None:
    cfg = load_cfg(args.config_file, args.opts)
    if args.output_dir:
        cfg.OUTPUT_DIR = args.output_dir
    world_size = total_processes(args.num_processes, args.num_machines)
    cfg = prepare(cfg, world_size, resume=args.resume, eval_only=args.eval_only)
    launch(
        _train,
        (cfg, args.resume, args.eval_only),
        num_processes=args.num_processes,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        device=cfg.MODEL.DEVICE.split(":")[0],
        timeout_minutes=cfg.DISTRIBUTED.TIMEOUT_MINUTES,
    )


def _train(cfg: CfgNode, resume: bool, eval_only: bool) -> None:
    train(cfg, resume=resume, eval_only=eval_only)


def cli() -> None:
    """The console script."""
    sys.exit(main())


if __name__ == "__main__":
    cli()
