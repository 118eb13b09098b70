"""Costs of blocks and networks: FLOPs and parameters (Appendix E, section 3.3.1). Latency comes from a table.

One multiply-add is one FLOP, of convolutions, linear layers and matrix products; batch norm, activations and
fusion are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from d2go_fbnetv5.arch.families import PATHS, Family, build_family
from d2go_fbnetv5.arch.topology import Topology
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.formatting import MOST_PIXELS, format_least, format_most

METRICS = ("flops", "params")
Part = tuple[nn.Module, Tensor]


def count_flops(module: nn.Module, *inputs: Any) -> int:
    """Multiply-adds of ``module(*inputs)``. Nothing is computed if both live on the meta device."""
    counter = FlopCounterMode(display=False)
    was_training = module.training
    module.eval()
    try:
        with counter, torch.no_grad():
            module(*inputs)
    finally:
        module.train(was_training)
    return counter.get_total_flops() // 2  # torch counts a multiply-add as two


def count_params(module: nn.Module) -> int:
    """Return the number of trainable values."""
    return sum(p.numel() for p in module.parameters())


@dataclass(frozen=True)
class BlockCosts:
    """The cost of a family's parts at one input size; blocks of one path cost the same at every stage.

    Attributes:
        metric: "flops" (multiply-adds), "params" or "latency" (milliseconds).
        stage0: of the four partitions of Stage 0.
        blocks: of a searchable block on each of the four paths.
    """

    metric: str
    stage0: tuple[float, ...]
    blocks: tuple[float, ...]

    def network(self, topology: Topology, outputs: Collection[str] | None = None) -> float:
        """Stage 0 and the kept blocks; with ``outputs``, only what these paths need."""
        if outputs is None:
            return sum(self.stage0) + self._kept(topology)
        live = topology.live_nodes(outputs)
        return sum((self.stage0 if stage == 0 else self.blocks)[path] for stage, path in live)

    def relative(self, topology: Topology) -> float:
        """sum_b a_b c_b / sum_b c_b over the searchable blocks, in [0, 1] (Appendix E)."""
        return self._kept(topology) / (topology.num_stages * sum(self.blocks))

    def target(self, budget: float, num_stages: int, outputs: Collection[str]) -> float:
        """Return the relative cost of the searchable blocks, in [0, 1], with which a network costs a budget.

        Args:
            budget: of the network with Stage 0, in the unit of the costs.
            outputs: of the head that the network is pruned for.

        Raises:
            InputError: no network costs that; the message says what the least and the most are, and where it lies.
        """
        full = Topology.full(num_stages)
        least = self.network(Topology([[False] * len(self.blocks)] * num_stages), outputs)
        most = self.network(full, outputs)
        if not least <= budget <= most:
            place = (budget - least) / (most - least) if most > least else math.inf
            raise InputError(
                f"is {budget:g} {self.unit}, allowed is {format_least(least)}, what the head needs of Stage 0, to "
                f"{format_most(most)}, all blocks that it sees; found is {place:.0%} of the way"
            )
        return min(1.0, max(0.0, (budget - sum(self.stage0)) / self._kept(full)))

    @property
    def unit(self) -> str:
        """Return the unit of the costs in words."""
        return {"flops": "FLOPs", "params": "parameters", "latency": "ms"}[self.metric]

    def matrix(self, num_stages: int) -> Tensor:
        """c_b as S x P."""
        return torch.tensor([self.blocks] * num_stages, dtype=torch.float64)

    def _kept(self, topology: Topology) -> float:
        return sum(n * c for n, c in zip(topology.kept_per_path, self.blocks, strict=True))


def check_size(size: Sequence[int], family: Family) -> tuple[int, int]:
    """(height, width) as integers.

    Raises:
        ValueError: not two sides, or one under the family's minimum.
    """
    least = family.min_input_size
    if len(size) != 2 or not all(type(side) is int and least <= side <= MOST_PIXELS for side in size):
        raise InputError(
            f"size {tuple(size)}: allowed are height and width of {least} to {MOST_PIXELS} pixels "
            f"(family {family.name})"
        )
    return int(size[0]), int(size[1])


def build_parts(family: Family, size: tuple[int, int]) -> tuple[list[Part], list[Part]]:
    """The four partitions of Stage 0, and a searchable block of each path, with an input as it has it at an image of
    ``size`` (height, width), batch 1. They are made on torch's current default device.
    """
    features = [(1, c, *s) for c, s in zip(family.channels, family.feature_sizes(size), strict=True)]
    inputs = [(1, 3, *size), *features[:-1]]
    stage0: list[Part] = [
        (family.build_partition(path), torch.randn(inputs[path])) for path in range(len(PATHS))
    ]
    blocks: list[Part] = [
        (family.build_stage_block(path), torch.randn(features[path])) for path in range(len(PATHS))
    ]
    return stage0, blocks


def block_costs(family: str | Family, size: Sequence[int], metric: str = "flops") -> BlockCosts:
    """Return the cost of every part of a family, counted; milliseconds come from `read_latency_table`.

    Args:
        family: name of a family, or the family.
        size: height and width of the input in pixels. For detection, pad to multiples of 32 first, as the
            paper's Table 7 does.
        metric: "flops" or "params".
    """
    family = build_family(family)
    if metric not in METRICS:
        raise InputError(f"cost metric {metric!r}: allowed are {', '.join(METRICS)}")
    size = check_size(size, family)
    count = count_flops if metric == "flops" else (lambda module, _: count_params(module))
    with torch.device("meta"):
        stage0, blocks = (
            tuple(float(count(module, x)) for module, x in parts) for parts in build_parts(family, size)
        )
    return BlockCosts(metric, stage0, blocks)
