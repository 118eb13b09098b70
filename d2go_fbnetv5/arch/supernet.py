"""The supernet and the searched network (section 3.1, Appendices A and B)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from torch import Tensor, nn

from d2go_fbnetv5.arch.families import PATHS, Family, build_family
from d2go_fbnetv5.arch.feature_info import FeatureInfo
from d2go_fbnetv5.arch.fusion import Fusion, weigh
from d2go_fbnetv5.arch.topology import Node, Topology
from d2go_fbnetv5.utils.errors import InputError


class _PathNetwork(nn.Module):
    """Stage 0, searchable blocks and fusion, with only the blocks that ``nodes`` names."""

    def __init__(self, family: str | Family, num_stages: int, nodes: Collection[Node]) -> None:
        super().__init__()
        self.family = build_family(family)
        self.num_stages = num_stages
        self.num_paths = self.family.num_paths
        self.strides = dict(zip(PATHS, self.family.strides, strict=True))
        self._min_size = self.family.min_input_size
        self.fusion = Fusion(self.family.channels, self.family.strides, self.family.offsets)
        self.stage0 = nn.ModuleDict(
            {PATHS[p]: self.family.build_partition(p) for p in range(self.num_paths) if (0, p) in nodes}
        )
        # Named by stage and path, so that a pruned network's names are a part of its supernet's.
        self.stages = nn.ModuleDict(
            {
                f"stage{s}": nn.ModuleDict(
                    {
                        PATHS[p]: self.family.build_stage_block(p)
                        for p in range(self.num_paths)
                        if (s, p) in nodes
                    }
                )
                for s in range(1, num_stages + 1)
            }
        )

    def run_stage0(self, images: Tensor) -> list[Tensor]:
        """Return each path's feature after Stage 0, as ``forward`` gives them where nothing else is kept."""
        if min(images.shape[-2:]) < self._min_size:
            raise InputError(
                f"images of {images.shape[-2]} x {images.shape[-1]} pixels: family {self.family.name} needs "
                f"{self._min_size} x {self._min_size} or more"
            )
        features, x = [], images
        for partition in self.stage0.values():
            x = partition(x)
            features.append(x)
        return features

    def _run(self, images: Tensor, topology: Topology) -> list[Tensor]:
        """Features of the paths that Stage 0 has, under a topology whose kept blocks all exist here."""
        features = self.run_stage0(images)
        for stage in range(1, self.num_stages + 1):
            features = self._run_stage(stage, features, topology)
        return features

    def _run_stage(self, stage: int, features: list[Tensor], topology: Topology) -> list[Tensor]:
        """Features of a stage from those of the one before."""
        paths = [path for path in range(len(features)) if topology.keeps(stage, path)]
        # All sums first, while the features that they share are in the processor's cache.
        sums = [self._sum(stage, path, features, topology) for path in paths]
        features = list(features)
        for path, x in zip(paths, sums, strict=True):
            features[path] = self._block(stage, path)(x)
        return features

    def run_block(self, stage: int, path: int, features: Sequence[Tensor], topology: Topology) -> Tensor:
        """Return the feature of a kept block.

        Args:
            stage: from 1.
            path: from 0.
            features: of each path after the stage before.
            topology: which of its blocks the stage before keeps says what is fused.
        """
        return self._block(stage, path)(self._sum(stage, path, features, topology))

    def _block(self, stage: int, path: int) -> nn.Module:
        return self.stages.get_submodule(f"stage{stage}.{PATHS[path]}")

    def _sum(self, stage: int, path: int, features: Sequence[Tensor], topology: Topology) -> Tensor:
        """Return the input of a stage and path's block: its path's feature, and those of the kept blocks before it."""
        return self.fusion.add_all(features, topology.fused(stage, path), path)


class Supernet(_PathNetwork):
    """All S x P blocks behind Stage 0; a topology chooses which of them run.

    Args:
        family: name of a family, or the family.
        num_stages: S, the searchable stages. The paper does not say how many it has; Table 5 implies about 7.

    Attributes:
        channels, strides: per path name, such as ``{"path0": 24, ...}`` and ``{"path0": 4, ...}``.
    """

    def __init__(self, family: str | Family, num_stages: int = 7) -> None:
        if num_stages < 1:
            raise InputError(f"num_stages is {num_stages}, allowed is 1 or more")
        num_paths = build_family(family).num_paths
        super().__init__(
            family, num_stages, {(s, p) for s in range(num_stages + 1) for p in range(num_paths)}
        )
        self.channels = dict(zip(PATHS, self.family.channels, strict=True))

    def forward(self, images: Tensor, topology: Topology) -> dict[str, Tensor]:
        """Runs the kept blocks only; a skipped one costs nothing (Eq. 2, Appendix B).

        Args:
            images: N x 3 x H x W, normalised; H and W need not be multiples of anything.
            topology: of the supernet's S stages and P paths.

        Returns:
            "path0" to "path3": N x C_p x about H/4 x W/4 to H/32 x W/32.
        """
        self._check(topology)
        return dict(zip(PATHS, self._run(images, topology), strict=True))

    def forward_each(self, images: Tensor, topologies: Sequence[Topology]) -> list[dict[str, Tensor]]:
        """Run several topologies on the same images, what they have in common only once.

        A block's feature depends on the blocks that it can be reached from alone, and Stage 0 is everyone's.

        Args:
            images: as ``forward`` takes them.

        Returns:
            of each topology what ``forward`` gives. Where two are the same network as far as a path is concerned, its
            feature is the same tensor.
        """
        for topology in topologies:
            self._check(topology)
        rows = [self.run_stage0(images)] * len(topologies)
        for stage in range(1, self.num_stages + 1):
            run: dict[tuple[int, Topology], Tensor] = {}
            after = [list(features) for features in rows]
            for topology, before, features in zip(topologies, rows, after, strict=True):
                begun = Topology(topology.mask[:stage])
                for path in range(self.num_paths):
                    if topology.keeps(stage, path):
                        key = (path, begun.prune((PATHS[path],)))
                        if key not in run:
                            run[key] = self.run_block(stage, path, before, topology)
                        features[path] = run[key]
            rows = after
        return [dict(zip(PATHS, features, strict=True)) for features in rows]

    def _check(self, topology: Topology) -> None:
        if (topology.num_stages, topology.num_paths) != (self.num_stages, self.num_paths):
            raise InputError(
                f"a topology of {topology.num_stages} x {topology.num_paths} stages x paths: "
                f"this supernet has {self.num_stages} x {self.num_paths}"
            )

    def forward_soft(self, images: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Runs every block, each weighted by its entry of a mask that can have a gradient (Eq. 2, Appendix B).

        With a mask of zeros and ones the features are those of ``forward``. The output is linear in each entry as
        far as this block and the fusions from it are concerned: a block's own weight also stands for the fusions
        to it, which reach nothing but its output.

        Args:
            images: as ``forward`` takes them.
            mask: S x P, in [0, 1].
        """
        if tuple(mask.shape) != (self.num_stages, self.num_paths):
            raise InputError(
                f"a mask of {tuple(mask.shape)} stages x paths: this supernet has "
                f"{(self.num_stages, self.num_paths)}"
            )
        features = self.run_stage0(images)
        for stage, blocks in enumerate(self.stages.values()):
            weights = dict(enumerate(mask[stage - 1])) if stage > 0 else None
            updated = []
            for path in range(len(features)):
                others = (source for source in range(len(features)) if source != path)
                total = self.fusion.add_all(features, others, path, weights)
                weight = mask[stage, path]
                x = blocks.get_submodule(PATHS[path])(total)
                updated.append((weigh(x, weight) + weigh(features[path], 1 - weight)).to(x.dtype))
            features = updated
        return dict(zip(PATHS, features, strict=True))


class Backbone(_PathNetwork):
    """The searched network alone: the blocks of a topology from which the wanted outputs can be reached.

    Its outputs equal the supernet's under the same topology and weights. A topology found with one family
    makes a network of any other: ``Backbone("F", topology)``.

    Args:
        family: name of a family, or the family.
        topology: the searched topology; it need not be pruned.
        outputs: names of the paths that the head reads.

    Attributes:
        topology: the topology, pruned for ``outputs``.
        channels, strides: per output's name.
    """

    def __init__(self, family: str | Family, topology: Topology, outputs: Collection[str] = PATHS) -> None:
        num_paths = build_family(family).num_paths
        if topology.num_paths != num_paths:
            raise InputError(f"a topology of {topology.num_paths} paths: families have {num_paths}")
        super().__init__(family, topology.num_stages, topology.live_nodes(outputs))
        self.topology = topology.prune(outputs)
        self.outputs = tuple(name for name in PATHS if name in outputs)
        channels = dict(zip(PATHS, self.family.channels, strict=True))
        self.channels = {name: channels[name] for name in self.outputs}
        self.strides = {name: self.strides[name] for name in self.outputs}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """N x 3 x H x W, normalised -> the features of ``outputs``, as ``Supernet.forward`` gives them."""
        features = dict(zip(PATHS, self._run(images, self.topology), strict=False))
        return {name: features[name] for name in self.outputs}

    @property
    def feature_info(self) -> FeatureInfo:
        """Return channels, reduction and last block of each output, as timm's models do with ``features_only``."""
        last = {}
        for stage, path in sorted(self.topology.live_nodes(self.outputs)):
            last[PATHS[path]] = f"stages.stage{stage}.{PATHS[path]}" if stage else f"stage0.{PATHS[path]}"
        return FeatureInfo(
            [
                {"num_chs": self.channels[name], "reduction": self.strides[name], "module": last[name]}
                for name in self.outputs
            ]
        )

    def load_supernet(self, supernet: Supernet | Mapping[str, Tensor]) -> None:
        """Takes over the weights of a supernet of the same family by name.

        Args:
            supernet: the supernet or its ``state_dict``.

        Raises:
            ValueError: a weight is missing or has another shape; the message names it.
        """
        theirs = supernet.state_dict() if isinstance(supernet, nn.Module) else supernet
        ours = self.state_dict()
        for name, value in ours.items():
            if name not in theirs:
                raise InputError(f"the supernet has no {name!r}: is it of family {self.family.name}?")
            if theirs[name].shape != value.shape:
                raise InputError(
                    f"{name!r} is {tuple(theirs[name].shape)} in the supernet, {tuple(value.shape)} in family "
                    f"{self.family.name}"
                )
        self.load_state_dict({name: theirs[name] for name in ours})
