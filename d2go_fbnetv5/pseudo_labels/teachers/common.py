"""The teachers' common ground: class lists with gaps, bounded scores, checks of what a user names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from d2go_fbnetv5.utils.errors import InputError

GAP = "N/A"  # the entry of published class lists that stands for no class


class ClassList:
    """A model's class names, of which some stand for nothing, and what they make of its outputs.

    Args:
        entries: what the model's output k means: a name, or ``GAP`` or None, which are left out.

    Attributes:
        names: those left, in the model's order.
    """

    def __init__(self, entries: Sequence[str | None]) -> None:
        kept = [k for k, entry in enumerate(entries) if entry not in (None, GAP)]
        self.names = tuple(str(entries[k]) for k in kept)
        self._kept = torch.tensor(kept, dtype=torch.int64)
        self._label = torch.full((len(entries),), -1)
        self._label[self._kept] = torch.arange(len(kept))

    def boxes(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Map M boxes with the model's labels -> those of named classes, with labels into ``names``.

        Raises:
            ValueError: a label that the list does not have.
        """
        labels = labels.to(torch.int64)
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < len(self._label):
            raise InputError(
                f"the model gave labels {int(labels.min())} to {int(labels.max())}, its list of classes has 0 to "
                f"{len(self._label) - 1}"
            )
        labels = self._label.to(labels.device)[labels]
        kept = labels >= 0
        return {"boxes": boxes[kept], "scores": scores[kept], "labels": labels[kept]}

    def scores(self, scores: Tensor) -> Tensor:
        """K x ..., one entry for each output of the model -> the same of the named classes.

        Raises:
            ValueError: another number of outputs than of entries.
        """
        if len(scores) != len(self._label):
            raise InputError(
                f"the model gave scores of {len(scores)} classes, its list of classes has {len(self._label)}"
            )
        return scores if len(self._kept) == len(scores) else scores[self._kept.to(scores.device)]


def bounded(scores: Tensor) -> Tensor:
    """K x h x w scores of at least 0, such as MaskFormer's sums, scaled down where the greatest is above 1.

    What is below stays as it is, so a threshold means what it means for the sums themselves.
    """
    return scores / scores.amax(0, keepdim=True).clamp(min=1)


def class_names(given: Sequence[str] | None, own: Sequence[str], what: str) -> tuple[str, ...]:
    """Return the names that a user gives in place of the model's own.

    Raises:
        ValueError: not as many as the model has.
    """
    if given is None:
        return tuple(own)
    names = name_list("names", given)
    if len(names) != len(own):
        raise InputError(f"{what}: {len(names)} names are given, the model has {len(own)} classes")
    return names


def name_list(option: str, given: Sequence[str | int]) -> tuple[str, ...]:
    """An option that is a list of names; YAML reads a class named 7 as a number. ValueError if it is anything else."""
    if not isinstance(given, list | tuple) or not all(
        isinstance(name, str | int | float) and not isinstance(name, bool) for name in given
    ):
        raise InputError(f"{option} is {given!r}, it must be a list of names")
    return tuple(map(str, given))


def require_finite(model: nn.Module, what: str) -> None:
    """ValueError if a weight is not finite: detectors drop boxes that are not, so every image would be without any."""
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise InputError(f"{what}: weight {name!r} is not finite")
