"""Decides which topology a search has found for a task, where its probabilities leave a few blocks undecided."""

from __future__ import annotations

import contextlib
import heapq
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
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
        topology: as it was judged, pruned; the most likely one as it is where there are no others to take.
        candidates: how many were compared.
        undecided: blocks that the head can see with a probability between `UNDECIDED` and 1 - `UNDECIDED`.
    """

    topology: Topology
    candidates: int
    undecided: int


@dataclass(frozen=True)
class Limit:
    """A bound on what the network of a task may cost.

    Attributes:
        fits: whether a pruned topology is within it; that without a block is.
        costs: S x P, of each block, in any unit.
    """

    fits: Callable[[Topology], bool]
    costs: Tensor


def likeliest(
    probs: Tensor, count: int, outputs: Collection[str], limit: Limit | None = None
) -> list[Topology]:
    """Return the likeliest topologies, likeliest first, pruned, each a network of its own for what a head reads.

    Args:
        probs: S x P probabilities of keeping each block, in (0, 1).
        count: how many at most, >= 1. Fewer come back where there are no more among the 20 000 likeliest masks.
        outputs: names of the paths that the head reads.
        limit: that all keep. Where the most likely topology does not, its blocks that are likely for what they cost
            come first, as many as there is room for, and then what differs from these by blocks of about that worth.
    """
    odds = torch.logit(probs.double()).cpu()
    kept = odds > 0
    if limit is not None:
        kept, odds = _fitted(odds, outputs, limit)
    mode = kept.flatten().tolist()
    losses, blocks = (values.tolist() for values in odds.abs().flatten().sort())
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
        network = Topology(torch.tensor(mask).view(probs.shape)).prune(outputs)
        if limit is None or limit.fits(network):
            found.setdefault(network)
        following = places[-1] + 1 if places else 0
        if following < len(blocks):
            heapq.heappush(queue, (lost + losses[following], (*places, following)))
            if places:
                moved = lost + losses[following] - losses[places[-1]]
                heapq.heappush(queue, (moved, (*places[:-1], following)))
    return list(found)


def _fitted(odds: Tensor, outputs: Collection[str], limit: Limit) -> tuple[Tensor, Tensor]:
    """Return the most likely topology within a limit, S x P booleans not pruned, and the log odds around it.

    Those that are likely but too much are given up in the order of their odds by their cost, as many as it takes, and
    then put back, the last first, where there is room: the greedy way to fill a knapsack. The log odds are less the
    price of costs at which the last one went.
    """
    kept, costs, price = odds > 0, limit.costs.double().cpu(), 0.0
    fits = lambda: limit.fits(Topology(kept).prune(outputs))  # noqa: E731
    by_worth = torch.where(kept & (costs > 0), odds / costs, torch.inf).flatten().sort()
    given_up: list[int] = []
    for worth, block in zip(by_worth.values.tolist(), by_worth.indices.tolist(), strict=True):
        if fits() or not math.isfinite(worth):
            break
        kept.view(-1)[block], price = False, worth
        given_up.append(block)
    for block in reversed(given_up):
        kept.view(-1)[block] = True
        kept.view(-1)[block] = fits()
    return kept, odds - price * costs


@torch.no_grad()
def decide(
    search: Search,
    rough: Iterable[Batch],
    fine: Iterable[Batch],
    count: int,
    limits: Mapping[str, Limit] | None = None,
) -> dict[str, Decision]:
    """Return what was found for each task that has learnt: of its likeliest topologies the best by what the search
    minimises.

    The loss is that of training, with the batch's statistics, on the same images for all; the price is that of the
    pruned network. All are compared on a few batches, and the best quarter on more, as of many that are nearly alike
    the one that chance favours would be taken (two rounds of sequential halving, Karnin et al. 2013, by quarters).
    Every rank must call it.

    Args:
        search: its weights and statistics stay as they are.
        rough: this rank's batches for all, of samples with labels, their images where the search's weights are; run
            through once, as ``fine`` is.
        fine: those that only the best quarter sees, after these.
        count: of topologies of each task, or of tasks that share a network; 1 for the most likely one, for which no
            batch is asked. So it is of a search that does not learn.
        limits: what the networks of some tasks may cost; of tasks that share a network, the first one's.
    """
    modes = search.most_likely()
    rows = dict(zip(search.learning, search.distribution.learning.cpu(), strict=True))
    choices = []
    for group in search.groups:
        first = group[0]
        outputs = search.outputs(first)
        likely = (
            likeliest(rows[first], count, outputs, (limits or {}).get(first)) if search.estimators else []
        )
        only_mode = not likely or likely == [modes[first].prune(outputs)]
        choices.append(_Choice(search, group, [modes[first]] if only_mode else likely))
    counts = {choice.group: len(choice.candidates) for choice in choices}
    open_choices = [choice for choice in choices if len(choice.candidates) > 1]
    if open_choices:
        with _training(search):
            for batches in (rough, fine):
                _compare(search, open_choices, batches)
    found: dict[str, Decision] = {}
    for choice in choices:
        probs = rows[choice.group[0]]
        seen = torch.tensor(Topology.full(*probs.shape).prune(search.outputs(choice.group[0])).mask)
        undecided = (probs > UNDECIDED) & (probs < 1 - UNDECIDED) & seen
        decision = Decision(choice.candidates[0], counts[choice.group], int(undecided.sum()))
        found |= dict.fromkeys(choice.group, decision)
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


class _Choice:
    """The candidates of the tasks that share a network, the best first once they have been compared."""

    def __init__(self, search: Search, group: Sequence[str], candidates: list[Topology]) -> None:
        self.search, self.group, self.candidates = search, tuple(group), candidates
        # Of each task (rows) and candidate the loss summed over images, and the images that have labels for the task.
        self.sums = torch.zeros((len(group), len(candidates)), dtype=torch.double)
        self.images = torch.zeros(len(group), dtype=torch.double)

    def add(self, inputs: Tensor, batch: Batch) -> None:
        """Meet a batch, ``inputs`` being its preprocessed images."""
        search = self.search
        losses: dict[str, list[Tensor | None]] = {name: [] for name in self.group}
        for start in range(0, len(self.candidates), _AT_ONCE):
            for features in search.supernet.forward_each(inputs, self.candidates[start : start + _AT_ONCE]):
                for name in self.group:
                    torch.manual_seed(search.seed)  # for heads that sample, such as regions of detectors
                    losses[name].append(search.task_loss(name, features, batch))
        for place, name in enumerate(self.group):
            given = [loss for loss in losses[name] if loss is not None]
            if given:
                self.sums[place] += torch.stack(given).double().cpu() * len(batch)
                self.images[place] += len(batch)

    def keep_the_best_quarter(self) -> None:
        """Drop all but that quarter, by loss and price; of several tasks in units of their losses' deviation."""
        gathered = gather((self.sums, self.images))
        objectives = torch.stack([each for each, _ in gathered]).sum(dim=0)
        objectives /= torch.stack([number for _, number in gathered]).sum(dim=0).clamp_min(1)[:, None]
        places = [self.search.learning.index(name) for name in self.group]
        if self.search.cost is not None:
            objectives += self.search.cost.prices(self.candidates, places[0]) / len(self.group)
        if len(self.group) > 1:
            objectives /= self.search.window.scale().cpu()[places, None]
        order = objectives.sum(dim=0).argsort(stable=True)[: max(2, -(-len(self.candidates) // 4))]
        self.sums = self.sums[:, order]
        self.candidates = [self.candidates[i] for i in order.tolist()]


def _compare(search: Search, choices: Sequence[_Choice], batches: Iterable[Batch]) -> None:
    """Have each of the choices meet the batches, and keep the best."""
    for batch in batches:
        inputs = search.preprocess(batch)
        for choice in choices:
            choice.add(inputs, batch)
    for choice in choices:
        choice.keep_the_best_quarter()
