"""Hard distillation: a teacher's choice of class is one more label (LeViT, DeiT; Appendix F.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2go_fbnetv5.models.base import PIXEL_MEAN, PIXEL_STD
from d2go_fbnetv5.utils.checkpoints import read_tensors
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.extras import require_extra


class TeacherClassifier:
    """A trained classifier that names the class of images. No module: its weights belong to no checkpoint.

    Args:
        model: N x 3 x H x W, normalised by ``mean`` and ``std`` -> N x K logits.
        size: height and width that it expects.
        mean, std: its own normalisation, of pixels in 0..255.
    """

    def __init__(
        self,
        model: nn.Module,
        size: tuple[int, int],
        mean: Sequence[float] = PIXEL_MEAN,
        std: Sequence[float] = PIXEL_STD,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.size = size
        self.mean = torch.tensor(mean).view(3, 1, 1)
        self.std = torch.tensor(std).view(3, 1, 1)
        self._device: torch.device | None = None  # where they are, once they were asked

    def __deepcopy__(self, memo: dict[int, Any]) -> TeacherClassifier:
        return self  # it never changes, so an averaged copy of its student asks the same one

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Logits N x K of images N x 3 x H x W in 0..255."""
        if self._device != pixels.device:  # once: a copy in each step would make the host wait for a GPU
            self._device = pixels.device
            self.model.to(pixels.device)
            self.mean, self.std = self.mean.to(pixels.device), self.std.to(pixels.device)
        if tuple(pixels.shape[-2:]) != self.size:
            pixels = F.interpolate(pixels, self.size, mode="bicubic", align_corners=False, antialias=True)
        return self.model((pixels - self.mean) / self.std)


def timm_teacher(name: str, num_classes: int, weights: str = "") -> TeacherClassifier:
    """Open a teacher from timm, which is not among our requirements.

    Args:
        name: of a timm model.
        num_classes: the student's; the teacher must have as many.
        weights: a checkpoint's path; empty for the ones that timm downloads.

    Raises:
        ValueError: timm is missing, it has no such model or weights, or another number of classes.
    """
    timm = require_extra(f"the teacher {name!r}", "timm", "distillation")
    if not timm.is_model(name):
        raise InputError(f"timm {timm.__version__} has no model {name!r} to be the teacher")
    if weights and not weights.endswith(".safetensors"):
        read_tensors(weights)  # timm itself does not see damage
    try:
        model = timm.create_model(name, pretrained=not weights, checkpoint_path=weights)
    except (RuntimeError, OSError) as error:
        raise InputError(f"the teacher {name!r} cannot be loaded: {error}") from error
    if model.num_classes != num_classes:
        raise InputError(f"the teacher {name!r} has {model.num_classes} classes, the data set {num_classes}")
    config = timm.data.resolve_model_data_config(model)
    return TeacherClassifier(
        model,
        tuple(config["input_size"][1:]),
        [255 * value for value in config["mean"]],
        [255 * value for value in config["std"]],
    )
