"""How much memory a step of a search takes, as an estimate that needs neither a GPU nor the memory.

    python benchmarks/memory.py [--family A] [--stages 7] [--side 224] [--images 48]

The supernet is run on torch's meta device, which has shapes and no numbers, and what autograd saves for the backward
pass is added up: nearly all that a step holds. Weights, their gradients and momenta come on top. Not counted are the
heads, kernels' workspaces, and what torch's allocator loses between blocks: a GPU should have a quarter more.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import finish, parser

from d2go_fbnetv5.arch import Supernet, Topology

PRECISIONS = {"float32": torch.float32, "half": torch.bfloat16}


def saved_bytes(run: Callable[[], Any], left_out: torch.nn.Module) -> int:
    """Return the bytes that autograd saves while ``run`` runs, but for a module's own weights."""
    own = {weight.untyped_storage()._cdata for weight in left_out.parameters()}
    found: dict[int, torch.Tensor] = {}  # kept, so that no storage takes another's place

    def take(tensor: torch.Tensor) -> torch.Tensor:
        found.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(take, lambda tensor: tensor):
        result = run()
    del result
    return sum(x.untyped_storage().nbytes() for key, x in found.items() if key not in own)


def step_bytes(
    family: str, stages: int, side: int, images: int, kind: torch.dtype, topologies: list[Topology]
) -> dict[str, float]:
    """Return the bytes of one step: what is saved for each topology alone, and for all of them on the same images."""
    with torch.device("meta"):
        network = Supernet(family, stages).to(dtype=kind, memory_format=torch.channels_last).train()
        batch = torch.empty(images, 3, side, side, dtype=kind).contiguous(memory_format=torch.channels_last)
    alone = [
        saved_bytes(lambda topology=topology: network(batch, topology), network) for topology in topologies
    ]
    together = saved_bytes(lambda: network.forward_each(batch, topologies), network)
    soft = saved_bytes(
        lambda: network.forward_soft(batch, torch.ones(stages, 4, device="meta", requires_grad=True)), network
    )
    return {"mean": sum(alone) / len(alone), "most": max(alone), "together": together, "soft": soft}


def rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each precision, in GiB but for the image's MiB."""
    generator = torch.Generator().manual_seed(0)
    random = [Topology(torch.rand(args.stages, 4, generator=generator) < 0.5) for _ in range(args.samples)]
    sizes, gib = (args.family, args.stages, args.side, args.images), 2**30
    weights = sum(weight.numel() for weight in Supernet(args.family, args.stages).parameters())
    found = []
    for name, kind in PRECISIONS.items():
        drawn = step_bytes(*sizes, kind, random)
        full = step_bytes(*sizes, kind, [Topology.full(args.stages)])
        found.append(
            {
                "precision": name,
                "a topology of half the blocks": drawn["mean"] / gib,
                "all blocks": full["most"] / gib,
                "all blocks, MiB an image": full["most"] / args.images / 2**20,
                f"{args.samples} topologies on the same images": drawn["together"] / gib,
                "straight-through": full["soft"] / gib,
                "weights, gradients, momenta": 3 * 4 * weights / gib,
            }
        )
    return found


def main() -> None:
    arguments = parser(__doc__, "output/benchmarks/memory.json")
    arguments.add_argument("--family", default="A")
    arguments.add_argument("--stages", type=int, default=7)
    arguments.add_argument("--side", type=int, default=224, help="of the images in pixels")
    arguments.add_argument("--images", type=int, default=48, help="that a topology sees")
    arguments.add_argument("--samples", type=int, default=4, help="topologies that see the same images")
    args = arguments.parse_args()
    if args.quick:
        args.family, args.stages, args.side, args.images = "N", 2, 96, 4
    table = rows(args)
    title = f"{args.family}, {args.stages} stages, {args.side} x {args.side}, {args.images} images: GiB"
    finish(Path(args.output), {title: (table, list(table[0]))})


if __name__ == "__main__":
    main()
