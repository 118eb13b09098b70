"""The latency of a family's parts on this machine: what `SEARCH.COST.TABLE` holds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from d2go_fbnetv5.arch import Backbone, BlockCosts, Topology
from d2go_fbnetv5.arch.cost import build_parts
from d2go_fbnetv5.arch.families import Family
from d2go_fbnetv5.arch.latency_table import BLOCKS, STAGE0
from d2go_fbnetv5.export.formats.base import get_format
from d2go_fbnetv5.export.image_sizes import is_whole
from d2go_fbnetv5.export.measure.timing import Latency, measure_in_turns
from d2go_fbnetv5.export.network.flat_backbone import FlatBackbone
from d2go_fbnetv5.export.network.fold import folded

# Called alone, a small block is mostly the call. Blocks of a network follow each other, so a few in a row are measured.
CHAIN = 4


@dataclass(frozen=True)
class FamilyLatency:
    """Milliseconds on one thread.

    Attributes:
        costs: of the parts.
        spreads: between the quartiles, by the part's name.
        networks: (sum of the parts, the network as a whole) of random topologies.
    """

    costs: BlockCosts
    spreads: dict[str, float]
    networks: tuple[tuple[float, float], ...]

    @property
    def correlation(self) -> float | None:
        """Pearson's, of the sums and the networks; None with less than three of them."""
        if len(self.networks) < 3:
            return None
        sums, wholes = zip(*self.networks, strict=True)
        return statistics.correlation(sums, wholes)


def measure_family(
    family: Family,
    size: tuple[int, int],
    format: str,
    rounds: int = 50,
    networks: int = 0,
    num_stages: int = 7,
    progress: Callable[[str], Any] = lambda name: None,
) -> FamilyLatency:
    """Measures every part of a family, batch norm folded, in turns.

    Args:
        size: height and width of the image.
        format: that runs parts, such as "executorch".
        rounds: of measurements.
        networks: whole networks of random topologies to measure beside the parts, of ``num_stages`` stages.
        progress: is told what is made ready next.

    Raises:
        ValueError: an unknown format, one that does not run parts, or one that is not installed.
    """
    kind = get_format(format, parts=True)
    kind.require()
    torch.set_num_threads(1)
    kind.use_threads(1)
    modules = family_modules(family, size)
    topologies = _random_topologies(networks, num_stages)
    image = torch.randn(1, 3, *size)
    for index, topology in enumerate(topologies):
        backbone = FlatBackbone(folded(Backbone(family, topology)), any_size=not is_whole(size))
        modules[f"network {index + 1}"] = (backbone.eval(), image)
    calls = {}
    for name, (module, x) in modules.items():
        progress(name)
        calls[name] = kind.compiled(module, x)
    progress("measuring")
    measured = measure_in_turns(calls, rounds)
    measured |= {
        name: Latency(measured[name].median / CHAIN, measured[name].spread / CHAIN) for name in BLOCKS
    }
    costs = BlockCosts(
        "latency", *(tuple(measured[name].median for name in names) for names in (STAGE0, BLOCKS))
    )
    wholes = [measured[f"network {index + 1}"].median for index in range(networks)]
    return FamilyLatency(
        costs,
        {name: measured[name].spread for name in (*STAGE0, *BLOCKS)},
        tuple(zip(map(costs.network, topologies), wholes, strict=True)),
    )


def family_modules(family: Family, size: tuple[int, int]) -> dict[str, tuple[nn.Module, Tensor]]:
    """Return each part of a family with an input, batch norm folded, by its name in a table; of a block `CHAIN`."""
    stage0, blocks = build_parts(family, size)
    modules: dict[str, tuple[nn.Module, Tensor]] = {}
    for names, parts, length in ((STAGE0, stage0, 1), (BLOCKS, blocks, CHAIN)):
        for name, (part, x) in zip(names, parts, strict=True):
            modules[name] = (nn.Sequential(*(folded(part) for _ in range(length))), x)
    return modules


def _random_topologies(count: int, num_stages: int) -> Sequence[Topology]:
    """Draw topologies of few to many blocks, the same every time."""
    generator = torch.Generator().manual_seed(0)
    probs = torch.linspace(0.1, 0.9, count).tolist()
    return [Topology.random(num_stages, prob=prob, generator=generator) for prob in probs]
