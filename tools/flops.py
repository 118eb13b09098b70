"""Count the FLOPs and parameters of a family's blocks, of a searched network, or of a whole model.

    python tools/flops.py --family A --size 224x224
    python tools/flops.py --topology output/demo/topologies.json --task det --json
    python tools/flops.py --topology output/demo/front/front.json --task det --budget flops=9e6 --with-head
    python tools/flops.py --model FBNetV5-A-DET --size 213x320
    python tools/flops.py --model FBNetV5-A-DET --size 213x320 --coco-sizes instances_val2017.json

One multiply-add is one FLOP; convolutions, linear layers and matrix products are counted. Of a family or a topology
it is the backbone alone; of a model each part of Tables 2, 6 and 7, and with --coco-sizes Appendix H's average.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from d2go_fbnetv5.tools.model_flops import model_costs, model_table
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from d2go_fbnetv5.arch import PATHS, BlockCosts, block_costs, build_family, list_families
from d2go_fbnetv5.arch.cost import METRICS
from d2go_fbnetv5.arch.topology_file import TopologyEntry, TopologyFile, load_topologies
from d2go_fbnetv5.utils.arguments import ToolParser, add_budget, parse_budget, parse_size
from d2go_fbnetv5.utils.errors import InputError, run_tool
from d2go_fbnetv5.utils.formatting import format_count, format_share


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit status, 2 for wrong input."""
    args = _parser().parse_args(argv)
    return run_tool("flops", lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    whole = args.model or args.with_head
    costs = _model_costs(args) if whole else _costs(args)
    if args.json:
        print(json.dumps(costs, indent=2))
    else:
        Console().print(model_table(costs) if whole else _table(costs))


def cli() -> None:
    """The console script."""
    sys.exit(main())


def _parser() -> argparse.ArgumentParser:
    parser = ToolParser("flops", __doc__)
    parser.add_argument(
        "--family", help=f"one of {', '.join(list_families())}; default: the topology file's, or A"
    )
    parser.add_argument(
        "--size", help="HEIGHTxWIDTH in pixels; default: the topology file's, or the family's own"
    )
    parser.add_argument(
        "--topology", metavar="FILE", help="a topologies.json or front.json: cost a searched network as well"
    )
    parser.add_argument("--task", help="which of the file's tasks; may be left out if there is one")
    add_budget(parser)
    parser.add_argument(
        "--with-head",
        action="store_true",
        help="count the whole model that --task names, as --model does",
    )
    parser.add_argument("--model", metavar="NAME", help="count a whole model, such as FBNetV5-A-DET")
    parser.add_argument("--num-classes", type=int, metavar="K", help="of a whole model; default: the paper's")
    parser.add_argument(
        "--coco-sizes",
        metavar="FILE",
        help="COCO annotations, or a JSON list of [height, width]: the average FLOPs",
    )
    parser.add_argument(
        "--coco-resize",
        metavar="SHORTxLONG",
        default="224x320",
        help="short side and bound on the long one for that average (default 224x320)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def _model_costs(args: argparse.Namespace) -> dict[str, Any]:
    name, size = args.model, parse_size(args.size) if args.size else None
    if name:
        for flag, value in (
            ("--family", args.family),
            ("--task", args.task),
            ("--with-head", args.with_head),
        ):
            if value:
                raise InputError(f"{flag} {value}: the name of --model says it already")
    else:
        file, task = _read(args)
        if file is None:
            raise InputError("--with-head needs --topology FILE")
        name, size = f"FBNetV5-{args.family or file.family}-{task.upper()}", size or file.size
    resize, budget = parse_size(args.coco_resize, "--coco-resize"), parse_budget(args.budget)
    return model_costs(name, size, args.topology, args.coco_sizes, resize, budget, args.num_classes)


def _read(args: argparse.Namespace) -> tuple[TopologyFile | None, str]:
    """Return the file of --topology, if it is given, and the task that is asked for."""
    if not args.topology:
        for flag, value in (("--task", args.task), ("--budget", " ".join(args.budget))):
            if value:
                raise InputError(f"{flag} {value} needs --topology FILE")
        return None, ""
    file = load_topologies(args.topology)
    if args.task is None and len(file.tasks) > 1:
        raise InputError(f"--task is missing; {file.path} has {', '.join(file.tasks)}")
    return file, args.task or next(iter(file.tasks))


def _costs(args: argparse.Namespace) -> dict[str, Any]:
    for flag, value in (("--coco-sizes", args.coco_sizes), ("--num-classes", args.num_classes)):
        if value:
            raise InputError(f"{flag} {value} needs --model NAME or --with-head")
    file, task = _read(args)
    family = build_family(args.family or (file.family if file else "A"))
    size = (
        parse_size(args.size) if args.size else file.size if file else (family.input_size, family.input_size)
    )
    costs = {metric: block_costs(family, size, metric) for metric in METRICS}
    answer: dict[str, Any] = {
        "family": family.name,
        "size": list(size),
        "stage0": {metric: sum(costs[metric].stage0) for metric in METRICS},
        "stage0_partitions": _per_path(costs, "stage0"),
        "blocks": _per_path(costs, "blocks"),
    }
    if file is not None:
        entry = file.task(task, parse_budget(args.budget), family.name)
        answer["network"] = {"task": task, **_network(entry, costs)}
    return answer


def _per_path(costs: dict[str, BlockCosts], part: str) -> dict[str, dict[str, float]]:
    return {
        name: {metric: getattr(costs[metric], part)[path] for metric in METRICS}
        for path, name in enumerate(PATHS)
    }


def _network(entry: TopologyEntry, costs: dict[str, BlockCosts]) -> dict[str, Any]:
    pruned = entry.topology.prune(entry.outputs)
    answer: dict[str, Any] = {
        "outputs": list(entry.outputs),
        "num_stages": entry.topology.num_stages,
        "blocks_kept": entry.topology.num_kept,
        "blocks_kept_pruned": pruned.num_kept,
        "relative_cost": costs["flops"].relative(entry.topology),
        "relative_cost_pruned": costs["flops"].relative(pruned),
    }
    for metric in METRICS:
        answer[metric] = costs[metric].network(entry.topology)
        answer[f"{metric}_pruned"] = costs[metric].network(entry.topology, entry.outputs)
    return answer


def _table(costs: dict[str, Any]) -> Table:
    height, width = costs["size"]
    table = Table(title=Text(f"Family {costs['family']} at {height}x{width}"), box=SIMPLE_HEAD)
    table.add_column("part")
    table.add_column("FLOPs", justify="right")
    table.add_column("parameters", justify="right")
    rows = [("Stage 0", costs["stage0"])]
    rows += [(f"block on Path {path}", costs["blocks"][name]) for path, name in enumerate(PATHS)]
    for name, row in rows:
        table.add_row(name, *(format_count(row[metric]) for metric in METRICS))
    if "network" in costs:
        network = costs["network"]
        table.add_section()
        for label, suffix in (("", ""), (", pruned", "_pruned")):
            blocks = network[f"blocks_kept{suffix}"]
            share = format_share(network[f"relative_cost{suffix}"])
            name = f"{network['task']}{label}: {blocks} blocks, {share} of their cost"
            table.add_row(Text(name), *(format_count(network[f"{metric}{suffix}"]) for metric in METRICS))
    return table


if __name__ == "__main__":
    cli()
