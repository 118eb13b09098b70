"""What blocks and networks cost: FLOPs, parameters, measured latency (Appendix E, section 3.3.1).

One multiply-add is one FLOP, of convolutions, linear layers and matrix products; batch norm, activations and
fusion are not counted.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from d2go_fbnetv5.arch.families import PATHS, Family, build_family
from d2go_fbnetv5.arch.topology import Topology

METRICS = ("flops", "params", "latency")


def count_flops(module: nn.Module, *inputs: Tensor) -> int:
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
    """The number of trainable values."""
    return sum(p.numel() for p in module.parameters())


def measure_latency(module: nn.Module, *inputs: Tensor, repeats: int = 20) -> float:
    """Median milliseconds of ``module(*inputs)`` in eval mode on the inputs' device."""
    device = inputs[0].device
    synchronize: Callable[[], None] = (
        (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)
    )
    module.eval()
    times = []
    with torch.inference_mode():
        for _ in range(repeats + 3):
            synchronize()
            start = time.perf_counter()
            module(*inputs)
            synchronize()
            times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[3:])


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
    if len(size) != 2 or any(int(side) != side or side < least for side in size):
        raise ValueError(
            f"size {tuple(size)}: allowed are height and width of {least} pixels or more (family {family.name})"
        )
    return int(size[0]), int(size[1])


def block_costs(
    family: str | Family, size: Sequence[int], metric: str = "flops", device: str | torch.device = "cpu"
) -> BlockCosts:
    """The cost of every part of a family.

    Args:
        family: name of a family, or the family.
        size: height and width of the input in pixels. For detection, pad to multiples of 32 first, as the
            paper's Table 7 does.
        metric: "flops", "params" or "latency"; latency is measured at batch 1 on ``device``.
    """
    family = build_family(family)
    if metric not in METRICS:
        raise ValueError(f"cost metric {metric!r}: allowed are {', '.join(METRICS)}")
    size = check_size(size, family)
    measure: dict[str, Callable[..., float]] = {
        "flops": count_flops,
        "params": lambda module, _: count_params(module),
        "latency": measure_latency,
    }
    where = torch.device(device if metric == "latency" else "meta")
    inputs = [(3, *size)] + [
        (c, *s) for c, s in zip(family.channels, family.feature_sizes(size), strict=True)
    ]
    stage0, blocks = [], []
    with where:
        for path in range(len(PATHS)):
            x, feature = torch.randn(1, *inputs[path]), torch.randn(1, *inputs[path + 1])
            stage0.append(float(measure[metric](family.build_partition(path), x)))
            blocks.append(float(measure[metric](family.build_stage_block(path), feature)))
    return BlockCosts(metric, tuple(stage0), tuple(blocks))
