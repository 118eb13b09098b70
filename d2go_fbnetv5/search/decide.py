"""Decides which topology a search has found for a task, where its probabilities leave a few blocks undecided."""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from d2go_fbnetv5.arch import Topology
from d2go_fbnetv5.search.base import Batch, Search
from d2go_fbnetv5.utils.ranks import gather

UNDECIDED = 0.1  # a block whose probability is nearer to 0 and to 1 than this is decided
_MOST = 20_000  # masks that are looked at for different networks
_AT_ONCE = 16  # networks whose features are held in memory


@dataclass(frozen=True)
class Decision:
    """The best of a task's likely topologies.

    Attributes:
        topology: as it was judged, pruned; the most likely one as it is where there are no others.
        candidates: how many were compared.
        undecided: blocks that the head can see with a probability between `UNDECIDED` and 1 - `UNDECIDED`.
    """

    topology: Topology
    candidates: int
    undecided: int


def likeliest(probs: Tensor, count: int, outputs: Collection[str]) -> list[Topology]:
    """Return the likeliest topologies, likeliest first, pruned, each a network of its own for what a head reads.

    Args:
        probs: S x P probabilities of keeping each block, in (0, 1).
        count: how many at most, >= 1. Fewer come back where there are no more among the 20 000 likeliest masks.
        outputs: names of the paths that the head reads.
    """
    mode = (probs > 0.5).flatten().tolist()
    odds = torch.logit(probs.double()).abs().flatten()
    losses, blocks = (values.tolist() for values in odds.sort())
    # Masks in the order of the log likelihood that they lose by the blocks that differ from the mode: each set of
    # them, as places in `blocks`, follows from one that loses less by moving its last place on, or by adding the next.
    found: dict[Topology, None] = {}
    queue: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for _ in range(_MOST):
        if not queue or len(found) >= count:
            break
        lost, places = heapq.heappop(queue)
        mask = list(mode)
        for place in places:
            mask[blocks[place]] = not mask[blocks[place]]
        found.setdefault(Topology(torch.tensor(mask).view(probs.shape)).prune(outputs))
        following = places[-1] + 1 if places else 0
        if following < len(blocks):
            heapq.heappush(queue, (lost + losses[following], (*places, following)))
            if places:
                moved = lost + losses[following] - losses[places[-1]]
                heapq.heappush(queue, (moved, (*places[:-1], following)))
    return list(found)


@torch.no_grad()
def decide(search: Search, batches: Sequence[Batch], count: int) -> dict[str, Decision]:
    """Return what was found for each task that has learnt: of its likeliest topologies the best by what the search
    minimises.

    The loss is that of training, with the batch's statistics, on the same images for all; the price is that of the
    pruned network. Every rank must call it.

    Args:
        search: its weights and statistics stay as they are.
        batches: this rank's, of samples with labels, their images where the search's weights are.
        count: of topologies of each task, or of tasks that share a network; 1 for the most likely one. So it is of a
            search that does not learn.
    """
    found: dict[str, Decision] = {}
    modes = search.most_likely()
    rows = dict(zip(search.learning, search.distribution.learning.cpu(), strict=True))
    for group in search.groups:
        mode, probs, outputs = modes[group[0]], rows[group[0]], search.outputs(group[0])
        candidates = likeliest(probs, count, outputs) if count > 1 and search.estimators else [mode]
        best = mode
        if len(candidates) > 1:
            with _training(search):
                best = _best(search, group, candidates, batches)
        seen = torch.tensor(Topology.full(*probs.shape).prune(outputs).mask)
        undecided = (probs > UNDECIDED) & (probs < 1 - UNDECIDED) & seen
        found |= dict.fromkeys(group, Decision(best, len(candidates), int(undecided.sum())))
    return {name: found[name] for name in search.learning}


@contextlib.contextmanager
def _training(search: Search) -> Iterator[None]:
    """Inside, the search is in training mode; afterwards its mode and its statistics are as before."""
    state = {name: value.clone() for name, value in search.named_buffers()}
    was_training = search.training
    search.train()
    try:
        yield
    finally:
        search.train(was_training)
        for name, value in search.named_buffers():
            value.copy_(state[name])


def _best(
    search: Search, group: Sequence[str], candidates: Sequence[Topology], batches: Sequence[Batch]
) -> Topology:
    """Return the candidate with the least loss and price; of several tasks each in units of its losses' deviation."""
    shape = len(group), len(candidates)
    sums, images = torch.zeros(shape, dtype=torch.double), torch.zeros(shape[0], dtype=torch.double)
    for batch in batches:
        inputs = search.preprocess(batch)
        losses: dict[str, list[Tensor | None]] = {name: [] for name in group}
        for start in range(0, len(candidates), _AT_ONCE):
            for features in search.supernet.forward_each(inputs, candidates[start : start + _AT_ONCE]):
                for name in group:
                    torch.manual_seed(search.seed)  # for heads that sample, such as regions of detectors
                    losses[name].append(search.task_loss(name, features, batch))
        for place, name in enumerate(group):
            given = [loss for loss in losses[name] if loss is not None]
            if given:
                sums[place] += torch.stack(given).double().cpu() * len(batch)
                images[place] += len(batch)
    gathered = gather((sums, images))
    objectives = torch.stack([each for each, _ in gathered]).sum(dim=0)
    objectives /= torch.stack([number for _, number in gathered]).sum(dim=0).clamp_min(1)[:, None]
    places = [search.learning.index(name) for name in group]
    if search.cost is not None:
        objectives += search.cost.prices(candidates, places[0]) / len(group)
    if len(group) > 1:
        objectives /= search.window.scale().cpu()[places, None]
    return candidates[int(objectives.sum(dim=0).argmin())]
