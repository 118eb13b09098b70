"""Each task's distribution over topologies (Eq. 3, 4) and the proxy that is sampled instead (section 3.3.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from d2go_fbnetv5.arch import Topology
from d2go_fbnetv5.utils.errors import InputError


def relax(masks: Tensor, probs: Tensor) -> Tensor:
    """Masks of exactly 0 and 1 whose gradient is passed on to ``probs`` as it is (straight-through, section 3.3.1)."""
    return masks.to(probs.dtype) + (probs - probs.detach())


@dataclass(frozen=True)
class Drawn:
    """Sampled architectures, as the distribution draws them: all that the search knows of a sample but its loss.

    Attributes:
        topologies: of N samples that all tasks share, or task by task of T x N that each has of its own.
        masks: N x S x P or T x N x S x P of 0/1 on the probabilities' device, in the same order.
        log_prob: T x N, log p_t of each sample, differentiable in the probabilities.
        ratios: T x N, how much likelier a sample is under the task's distribution than where it came from.
        resting_ratios: the same of the tasks that rest, where topologies are drawn for these, too; else None.
    """

    topologies: list[Topology]
    masks: Tensor
    log_prob: Tensor
    ratios: Tensor
    resting_ratios: Tensor | None = None


class ArchDistribution(nn.Module):
    """Independent Bernoulli probabilities pi of keeping each block, for each task.

    Every decision of the search about architectures is in ``probs``; nothing in a task is. T are the tasks that learn:
    all but the first ``num_resting``.

    Args:
        num_tasks, num_stages, num_paths: tasks, S, P.
        init_prob: the start of every probability.
        prob_min: ``project`` keeps probabilities in [prob_min, 1 - prob_min], so that no block is ever decided
            beyond return and Eq. 10 stays finite.
        num_resting: of how many tasks, the first ones, the probabilities were found earlier and stay as they are.
        leaders: for each task that learns the place, among these, of the one whose distribution it shares, which may be
            its own; () where no task shares one.

    Attributes:
        probs: tasks x S x P parameter. Of a distribution that tasks share the leader's row learns, and the others are
            copies of it.
    """

    def __init__(
        self,
        num_tasks: int,
        num_stages: int,
        num_paths: int,
        init_prob: float = 0.5,
        prob_min: float = 0.02,
        num_resting: int = 0,
        leaders: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if not 0 < prob_min < 0.5:
            raise InputError(f"prob_min is {prob_min}, allowed is more than 0 and less than 0.5")
        if not prob_min <= init_prob <= 1 - prob_min:
            raise InputError(f"init_prob is {init_prob}, allowed is {prob_min} to {1 - prob_min}")
        self.init_prob, self.prob_min, self.num_resting = init_prob, prob_min, num_resting
        self.leaders = list(leaders)
        self.probs = nn.Parameter(torch.full((num_tasks, num_stages, num_paths), init_prob))
        self._copied: tuple[int, Tensor] | None = None

    @property
    def learning(self) -> Tensor:
        """Return the T x S x P probabilities of the tasks that learn, differentiable in ``probs``."""
        rows = self.probs[self.num_resting :]
        return rows[self.leaders] if self.leaders else rows

    def log_prob(self, masks: Tensor) -> Tensor:
        """log p_t(a) of Eq. 4: masks N x S x P of 0/1, or each task's own T x N x S x P -> T x N, differentiable in
        ``probs``.

        Its gradient is a_b / pi_b - (1 - a_b) / (1 - pi_b); Eq. 10 as printed lacks the second sign.
        """
        return _log_likelihood(masks.to(self.probs.dtype), self.learning[:, None])

    def log_proxy(self, log_prob: Tensor) -> Tensor:
        """log q(a) with q = mean of the p_t (section 3.3.3): log_prob T x N -> N."""
        return torch.logsumexp(log_prob, dim=0) - math.log(len(log_prob))

    def _over_proxy(self, log_prob: Tensor) -> Tensor:
        """Return how much likelier samples are under each distribution than under their mean, of log_prob: R x N."""
        return (log_prob - self.log_proxy(log_prob)).exp().detach()

    def draw_proxy(self, num_samples: int, generator: torch.Generator | None = None) -> Drawn:
        """Draw N samples from q for all tasks to share, see `sample_proxy`."""
        drawn = self._drawn(self.sample_proxy(num_samples, generator))
        return replace(drawn, ratios=self._over_proxy(drawn.log_prob))

    def draw_proxy_of_all(self, num_samples: int, generator: torch.Generator | None = None) -> Drawn:
        """Draw N samples from the mean of all tasks' distributions, those that rest among them."""
        drawn = self._drawn(_mixed(self._on_host(), num_samples, generator))
        log_prob = _log_likelihood(drawn.masks.to(self.probs.dtype), self.probs.detach()[:, None])
        ratios = self._over_proxy(log_prob)
        return replace(drawn, ratios=ratios[self.num_resting :], resting_ratios=ratios[: self.num_resting])

    def draw_densities(self, num_samples: int, generator: torch.Generator | None = None) -> Drawn:
        """Draw N samples for all tasks to share, each with a probability of its own of keeping a block.

        That probability is uniform in [0, 1], so that a sample keeps 0, 1, ... or all of its B blocks equally often,
        and the supernet learns sparse and dense topologies alike. With one probability for all samples, dense ones of
        many blocks are never seen, and a supernet ranks them last. A sample is as likely for every task.
        """
        shape = self.probs.shape[1:]
        densities = torch.rand((num_samples, 1, 1), generator=generator)
        return self._drawn(torch.rand((num_samples, *shape), generator=generator) < densities)

    def draw_around_resting(self, num_samples: int, generator: torch.Generator | None = None) -> Drawn:
        """Draw N samples, half of them from the mean of the resting tasks' distributions, half with the first
        probability for every block. A sample is as likely for every task that learns.
        """
        found = self._on_host()[: self.num_resting]
        rows = torch.cat([found, torch.full_like(found, self.init_prob)])
        drawn = self._drawn(_mixed(rows, num_samples, generator))
        rows = rows.to(self.probs.device)
        log_prob = _log_likelihood(drawn.masks.to(rows.dtype), rows[:, None])
        ratios = self._over_proxy(log_prob)
        return replace(drawn, resting_ratios=ratios[: self.num_resting])

    def draw_own(self, num_samples: int, generator: torch.Generator | None = None) -> Drawn:
        """Draw N samples from each task's own distribution, see `sample`."""
        return self._drawn(self.sample(num_samples, generator))

    def _drawn(self, sampled: Tensor) -> Drawn:
        """Make Drawn of sampled masks, N x S x P or T x N x S x P on the CPU, with ratios of one."""
        masks = sampled.to(self.probs.device, non_blocking=True)
        log_prob = self.log_prob(masks)
        topologies = [Topology(mask) for mask in sampled.flatten(0, -3)]
        return Drawn(topologies, masks, log_prob, torch.ones(log_prob.shape, device=masks.device))

    @torch.no_grad()
    def sample_proxy(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Samples from q: for each sample a task is drawn uniformly, then a mask from its distribution.

        Args:
            generator: a CPU generator.

        Returns:
            N x S x P booleans on the CPU.
        """
        return _mixed(self._on_host()[self.num_resting :], num_samples, generator)

    @torch.no_grad()
    def sample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Samples from each task's own distribution.

        Args:
            generator: a CPU generator.

        Returns:
            T x N x S x P booleans on the CPU.
        """
        probs = self._on_host()[self.num_resting :, None]
        shape = (probs.shape[0], num_samples, *probs.shape[2:])
        return torch.rand(shape, generator=generator) < probs

    def _on_host(self) -> Tensor:
        """The probabilities on the CPU, read back only when they have changed: a GPU has to catch up for that."""
        if self._copied is None or self._copied[0] != self.probs._version:
            self._copied = (self.probs._version, self.probs.detach().cpu())
        return self._copied[1]

    @torch.no_grad()
    def project(self) -> None:
        """Put every probability that learns back into [prob_min, 1 - prob_min], and copy those that tasks share."""
        rows = self.probs[self.num_resting :].clamp_(self.prob_min, 1 - self.prob_min)
        if self.leaders:
            rows.copy_(rows[self.leaders])

    @torch.no_grad()
    def entropy(self) -> Tensor:
        """Mean entropy of a block's decision in bits, per task: T values in [0, 1]."""
        p = self.learning.double()
        bits = -(p * p.log2() + (1 - p) * (1 - p).log2())
        return bits.mean(dim=(1, 2)).to(self.probs.dtype)

    @torch.no_grad()
    def most_likely(self) -> list[Topology]:
        """Per task, also of those that rest, the blocks whose probability is over 0.5, not pruned."""
        return [Topology(mask) for mask in (self.probs > 0.5).cpu()]


def _mixed(probs: Tensor, num_samples: int, generator: torch.Generator | None) -> Tensor:
    """Sample N x S x P booleans from the mean of distributions R x S x P: one is drawn for each sample."""
    which = torch.randint(len(probs), (num_samples,), generator=generator)
    return torch.rand((num_samples, *probs.shape[1:]), generator=generator) < probs[which]


def _log_likelihood(kept: Tensor, probs: Tensor) -> Tensor:
    """Sum log probabilities of masks of 0/1 over blocks: [R x] N x S x P and R x 1 x S x P -> R x N."""
    return (kept * probs.log() + (1 - kept) * (1 - probs).log()).sum(dim=(2, 3))
