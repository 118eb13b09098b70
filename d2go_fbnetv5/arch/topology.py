"""The searched object: which blocks of the supernet are kept (section 3.1)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch

from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.options import shown

Node = tuple[int, int]
"""(stage, path); stage 0 is the always-on Stage 0."""

_NUM_PATHS = 4
_CLIMB, _DESCEND = (2, 1, 0), (1, 2, 3)
# The path whose block each stage keeps (Appendix C, Figure 5).
_SCHEDULES: dict[str, tuple[int, ...]] = {
    "linear": (),
    "unet": _CLIMB,
    "fpn": _CLIMB,
    "panet": (3, *_CLIMB, *_DESCEND),
    "bifpn": (*_CLIMB, *_DESCEND),
}
MOST_STAGES = 100  # the paper's search spaces have 7 or so; what exceeds it is a slip


class Topology:
    """The choice of searchable blocks, of S x P, that a network keeps; immutable and hashable.

    Row s of the mask is Stage s + 1: Stage 0 is always on and not part of the mask. What a kept or skipped
    block means is Eq. 2 and Appendix B: a skipped block passes its path's feature on unchanged, and fusions
    between different paths exist only where the blocks at both ends are kept.

    Args:
        mask: S x P of 0/1 or booleans; nested sequences, an array or a tensor.

    Raises:
        ValueError: the mask is empty, ragged, or holds something else than 0 and 1.
    """

    __slots__ = ("mask",)
    mask: tuple[tuple[bool, ...], ...]

    def __init__(self, mask: Any) -> None:
        rows = mask.tolist() if hasattr(mask, "tolist") else mask
        if not isinstance(rows, Iterable) or isinstance(rows, (str, bytes)):
            raise InputError(f"a topology's mask is S x P of 0 and 1, found {shown(rows)}")
        rows = [list(row) if isinstance(row, Iterable) and not isinstance(row, str) else row for row in rows]
        if (
            not rows
            or not all(isinstance(row, list) and row for row in rows)
            or len({len(r) for r in rows}) != 1
        ):
            raise InputError(
                f"a topology's mask is S x P of 0 and 1 with equally long rows, found {shown(rows)}"
            )
        if len(rows) > MOST_STAGES:
            raise InputError(f"a topology's mask has {len(rows)} stages, allowed are at most {MOST_STAGES}")
        values = [value for row in rows for value in row]
        wrong = [value for value in values if isinstance(value, str) or value not in (0, 1)]
        if wrong:
            raise InputError(f"a topology's mask holds 0 and 1 only, found {shown(wrong[0])}")
        object.__setattr__(self, "mask", tuple(tuple(bool(value) for value in row) for row in rows))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a Topology is immutable")

    def __eq__(self, other: object) -> bool:
        return self.mask == other.mask if isinstance(other, Topology) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.mask)

    def __reduce__(self) -> tuple[Any, ...]:
        return Topology, (self.mask,)

    def __repr__(self) -> str:
        return f"Topology({self.text(', ')})"

    def text(self, between: str) -> str:
        """Return the mask as digits, such as 0100 for a stage that keeps Path 1, with ``between`` between stages."""
        return between.join("".join("01"[kept] for kept in row) for row in self.mask)

    @property
    def num_stages(self) -> int:
        """S, the searchable stages (without Stage 0)."""
        return len(self.mask)

    @property
    def num_paths(self) -> int:
        """P."""
        return len(self.mask[0])

    @property
    def num_kept(self) -> int:
        """Return how many searchable blocks are kept."""
        return sum(map(sum, self.mask))

    @property
    def kept_per_path(self) -> tuple[int, ...]:
        """Return how many blocks each path keeps."""
        return tuple(sum(column) for column in zip(*self.mask, strict=True))

    def keeps(self, stage: int, path: int) -> bool:
        """Return whether the block is in the network; Stage 0 always is."""
        return stage == 0 or self.mask[stage - 1][path]

    def fused(self, stage: int, path: int) -> list[int]:
        """The paths whose features are added to a kept block's own: others, with a kept block in the stage before."""
        return [p for p in range(self.num_paths) if p != path and self.keeps(stage - 1, p)]

    def sources(self, stage: int, path: int) -> tuple[Node, ...]:
        """The blocks whose outputs are summed into a kept block's input (Appendix B): the path's own latest
        kept block, and the kept blocks of the previous stage on the other paths."""
        own = next((s, path) for s in range(stage - 1, -1, -1) if self.keeps(s, path))
        others = [(stage - 1, p) for p in self.fused(stage, path)]
        return tuple(sorted([own, *others], key=lambda node: node[1]))

    def edges(self) -> tuple[tuple[Node, Node], ...]:
        """All connections between blocks, as ((stage, path) from, (stage, path) to)."""
        return tuple(
            (source, (stage, path))
            for stage in range(1, self.num_stages + 1)
            for path in range(self.num_paths)
            if self.keeps(stage, path)
            for source in self.sources(stage, path)
        )

    def live_nodes(self, outputs: Collection[str]) -> frozenset[Node]:
        """The blocks, those of Stage 0 among them, from which a wanted output can be reached.

        Args:
            outputs: names of paths, such as ``{"path3"}``.
        """
        paths = self._paths(outputs)
        stack = [next((s, p) for s in range(self.num_stages, -1, -1) if self.keeps(s, p)) for p in paths]
        live: set[Node] = set()
        while stack:
            stage, path = stack.pop()
            if (stage, path) in live:
                continue
            live.add((stage, path))
            if stage > 0:
                stack.extend(self.sources(stage, path))
            elif path > 0:
                stack.append((0, path - 1))  # a partition of Stage 0 reads the one before it
        return frozenset(live)

    def prune(self, outputs: Collection[str]) -> Topology:
        """Drops the blocks from which no wanted output can be reached; the wanted outputs stay the same.

        Args:
            outputs: names of the paths that the head reads, such as ``{"path1", "path3"}``.

        Raises:
            ValueError: no output is named, or an unknown one.
        """
        live = self.live_nodes(outputs)
        return Topology(
            [[(s, p) in live for p in range(self.num_paths)] for s in range(1, self.num_stages + 1)]
        )

    def _paths(self, outputs: Collection[str]) -> list[int]:
        names = {f"path{p}": p for p in range(self.num_paths)}
        unknown = sorted(set(outputs) - set(names))
        if unknown or not outputs or isinstance(outputs, str):
            raise InputError(f"outputs {outputs!r}: allowed is a set of some of {', '.join(names)}")
        return [names[name] for name in outputs]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; ``from_dict`` reads it back."""
        return {
            "num_stages": self.num_stages,
            "num_paths": self.num_paths,
            "mask": [[int(kept) for kept in row] for row in self.mask],
        }

    @classmethod
    def from_dict(cls, data: Any) -> Topology:
        """Reads what ``to_dict`` wrote.

        Raises:
            ValueError: a key is missing, or the mask is not of the shape that the other keys name.
        """
        if not isinstance(data, Mapping) or "mask" not in data:
            raise InputError(f"a topology is a mapping with the key 'mask', found {shown(data)}")
        topology = cls(data["mask"])
        for key, found in (("num_stages", topology.num_stages), ("num_paths", topology.num_paths)):
            if data.get(key, found) != found:
                raise InputError(f"topology: {key} is {shown(data[key])}, but the mask has {found}")
        return topology

    @classmethod
    def full(cls, stages: int, paths: int = _NUM_PATHS) -> Topology:
        """Every block kept."""
        return cls([[True] * paths] * stages)

    @classmethod
    def random(
        cls, stages: int, paths: int = _NUM_PATHS, prob: float = 0.5, generator: torch.Generator | None = None
    ) -> Topology:
        """Each block kept independently with probability ``prob`` in [0, 1]."""
        if not 0 <= prob <= 1:
            raise InputError(f"prob is {prob}, allowed is 0 to 1")
        return cls(torch.rand(stages, paths, generator=generator) < prob)

    @classmethod
    def named(cls, name: str, stages: int = 7) -> Topology:
        """A mainstream topology as the search space expresses it (Appendix C, Figure 5), with four paths.

        Stage 0 is the encoder, or bottom-up, part of each. "linear", the classifiers' topology, keeps nothing
        else. "unet" and "fpn" climb from Path 2 to Path 0, a block a stage; the paths' own features are the
        skip connections. "bifpn" (one layer, without the extra edge) climbs and descends again, and "panet" is
        the same with the top-down part's node on Path 3, which BiFPN drops.

        Raises:
            ValueError: an unknown name, or too few stages for it.
        """
        if name not in _SCHEDULES:
            raise InputError(f"unknown topology {name!r}: allowed are {', '.join(_SCHEDULES)}")
        schedule = _SCHEDULES[name]
        least = max(1, len(schedule))
        if not least <= stages <= MOST_STAGES:
            raise InputError(f"topology {name!r} needs {least} to {MOST_STAGES} stages, found {stages}")
        mask = [[False] * _NUM_PATHS for _ in range(stages)]
        for stage, path in enumerate(schedule):
            mask[stage][path] = True
        return cls(mask)

    @classmethod
    def hand_made(cls, stages: int) -> dict[str, Topology]:
        """Return those of `named` that so many stages have room for, by name; of two that are equal the later one."""
        found = {cls.named(name, stages): name for name, path in _SCHEDULES.items() if len(path) <= stages}
        return {name: topology for topology, name in found.items()}


def joint_topology(topologies: Mapping[str, Topology], outputs: Mapping[str, Collection[str]]) -> Topology:
    """Return the topology of one network that has the blocks of several tasks' networks.

    Args:
        topologies: of tasks, by their names; of one size.
        outputs: the paths that the head of each reads, by which it is pruned first.

    Returns:
        where all are the same, as for tasks that were searched for together, that one, unpruned.
    """
    found = list(dict.fromkeys(topologies.values()))
    if len(found) == 1:
        return found[0]
    pruned = [topology.prune(outputs[name]).mask for name, topology in topologies.items()]
    return Topology([[any(kept) for kept in zip(*rows, strict=True)] for rows in zip(*pruned, strict=True)])
