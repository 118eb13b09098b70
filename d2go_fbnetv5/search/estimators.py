"""Importance weights (Eq. 8, 11) and loss normalisation (Appendix E)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from d2go_fbnetv5.utils.errors import InputError


def importance_weights(ratios: Tensor, valid: Tensor, self_normalize: bool) -> Tensor:
    """Return what each of N samples contributes to the estimate of E_{a ~ p_t} of task t's loss.

    Args:
        ratios: T x N, r = p_t(a) / q(a) of samples a ~ q. (Eq. 11 prints a ~ p.)
        valid: T x N booleans: whether the sample has a loss for the task.
        self_normalize: weights that sum to one (Eq. 11); otherwise r / N (Eq. 8). Of a single sample the raw
            ratio is used in any case: normalised it would always be one, and the tasks could not be told
            apart.

    Returns:
        T x N; zero where not valid.
    """
    ratios = ratios * valid
    count = valid.sum(dim=1, keepdim=True)
    total = ratios.sum(dim=1, keepdim=True) if self_normalize and ratios.shape[1] > 1 else count
    return torch.where(total > 0, ratios / total.clamp_min(torch.finfo(ratios.dtype).tiny), 0.0)


def effective_sample_size(weights: Tensor) -> Tensor:
    """Kish's (sum w)^2 / sum w^2 of weights T x N: T values in [0, N]; 0 where all weights are 0."""
    squares = weights.square().sum(dim=1)
    return torch.where(squares > 0, weights.sum(dim=1).square() / squares.clamp_min(1e-30), 0.0)


def compare(losses: Tensor, valid: Tensor, group: int) -> Tensor:
    """Return each loss less the mean of the others of its group: samples on the same images.

    A baseline that does not depend on the sample itself leaves the expectation of REINFORCE as it is (leave-one-out).

    Args:
        losses, valid: T x N, groups side by side.
        group: samples in each.

    Returns:
        T x N; 0 where not valid or alone.
    """
    shape = (losses.shape[0], -1, group)
    seen = valid.reshape(shape)
    values = torch.where(seen, losses.reshape(shape), 0.0)
    others = seen.sum(dim=2, keepdim=True) - 1
    means = (values.sum(dim=2, keepdim=True) - values) / others.clamp_min(1)
    return torch.where(seen & (others > 0), values - means, 0.0).reshape(losses.shape)


class LossWindow(nn.Module):
    """Mean and standard deviation of each task's loss over the last steps (Appendix E, "Loss normalization").

    All samples of all ranks count. The state is in buffers, so that it is in every checkpoint.

    Args:
        num_tasks: T.
        num_steps: how many steps back; 0 turns the normalisation off.

    Attributes:
        deviation: T, what ``normalize`` divided by last.
    """

    sums: Tensor

    def __init__(self, num_tasks: int, num_steps: int) -> None:
        super().__init__()
        if num_steps < 0:
            raise InputError(f"loss_window is {num_steps}, allowed is 0 or more")
        self.num_steps = num_steps
        self.deviation = torch.ones(num_tasks)
        # Per step and task: number, sum and sum of squares of the losses.
        self.register_buffer("sums", torch.zeros(max(1, num_steps), num_tasks, 3, dtype=torch.float64))

    @torch.no_grad()
    def normalize(self, losses: Tensor, valid: Tensor, step: int) -> Tensor:
        """(loss - mean) / standard deviation by the steps before, then takes these losses in.

        A task without two losses in the past is normalised by those of the present step.

        Args:
            losses, valid: T x N, of all ranks.
            step: counts the calls; says which old step is forgotten.

        Returns:
            T x N; where not valid, without meaning.
        """
        if self.num_steps == 0:
            self.deviation = torch.ones_like(losses[:, 0])
            return losses
        values = torch.where(valid, losses, 0.0).double()
        present = torch.stack(
            [valid.sum(dim=1).double(), values.sum(dim=1), values.square().sum(dim=1)], dim=1
        )
        past = self.sums.sum(dim=0)
        mean, scale = _moments(torch.where(past[:, :1] >= 2, past, present))
        self.sums[step % self.num_steps] = present
        self.deviation = scale.to(losses.dtype)
        return ((losses.double() - mean[:, None]) / scale[:, None]).to(losses.dtype)

    def scale(self) -> Tensor:
        """Return the T standard deviations of the steps in the window; 1 where there are no two losses in it."""
        past = self.sums.sum(dim=0)
        return torch.where(past[:, 0] >= 2, _moments(past)[1], 1.0)


def _moments(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of T tasks' losses from their number, sum and sum of squares, T x 3."""
    count, total, squares = sums.unbind(dim=1)
    mean = total / count.clamp_min(1)
    variance = (squares / count.clamp_min(1) - mean.square()).clamp_min(0)
    # Losses that never differ leave only rounding noise, which must not be blown up to a signal.
    return mean, variance.sqrt().clamp_min(1e-6 * mean.abs() + 1e-12)
