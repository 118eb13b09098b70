"""From samples to the batch that a network takes: normalised, padded right and bottom."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from d2go_fbnetv5.tasks.base import Sample
from d2go_fbnetv5.utils.errors import InputError

SIZE_DIVISIBILITY = 32  # the stride of Path 3
Output = TypeVar("Output")
_MOST_SCORES = 2**26  # enlarged at once, 256 MB


def image_size(image: Tensor) -> tuple[int, int]:
    """Return the (height, width) of ... x H x W."""
    height, width = image.shape[-2:]
    return height, width


def image_sizes(batch: Sequence[Sample]) -> list[tuple[int, int]]:
    """(height, width) of each sample's own, unpadded image."""
    return [image_size(sample["image"]) for sample in batch]


def label_size(sample: Sample) -> tuple[int, int]:
    """Return the ``height`` and ``width`` that a sample's labels lie in, its image's own where it has none."""
    height, width = sample["image"].shape[-2:]
    return int(sample.get("height", height)), int(sample.get("width", width))


def label_map(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the best-scored class of each pixel, H x W int64, of K x h x w scores enlarged to ``size`` first.

    Bilinear, as Detectron2 and MaskFormer enlarge what they compare with the original's labels.
    """
    if image_size(scores) == size:
        return scores.argmax(0)
    step = max(1, _MOST_SCORES // (size[0] * size[1]))
    for first in range(0, len(scores), step):
        part = scores[None, first : first + step].float()
        part = F.interpolate(part, size, mode="bilinear", align_corners=False)[0]
        highest, place = part.max(0)
        if first == 0:
            best, labels = highest, place
        else:
            labels = torch.where(highest > best, place + first, labels)
            best = torch.maximum(highest, best)
    return labels


def run_in_groups(keys: Sequence[Hashable], run: Callable[[list[int]], Iterable[Output]]) -> list[Output]:
    """Return what ``run`` gives for each index of ``keys``, called once for all that have the same key.

    With sizes as keys, no image is padded for another's sake, and its output depends on no other image.
    """
    groups: dict[Hashable, list[int]] = {}
    for i, key in enumerate(keys):
        groups.setdefault(key, []).append(i)
    outputs: dict[int, Output] = {}
    for indices in groups.values():
        outputs.update(zip(indices, run(indices), strict=True))
    return [outputs[i] for i in range(len(keys))]


def padded_size(batch: Sequence[Sample], size_divisibility: int = SIZE_DIVISIBILITY) -> tuple[int, int]:
    """Return the smallest (height, width) that holds every image and is a multiple of ``size_divisibility``.

    Raises:
        ValueError: the batch is empty.
    """
    if not batch:
        raise InputError("the batch is empty; it must hold at least one sample")
    sizes = image_sizes(batch)
    largest = (max(size[axis] for size in sizes) for axis in (0, 1))
    height, width = (-(-side // size_divisibility) * size_divisibility for side in largest)
    return height, width


def padded_maps(
    batch: Sequence[Sample], key: str, size: tuple[int, int], fill: float, dtype: torch.dtype
) -> Tensor:
    """Return N x H x W: each sample's map under ``key``, padded right and bottom to ``size`` with ``fill``.

    Raises:
        ValueError: a map is not as large as its image.
    """
    device = batch[0][key].device  # where the maps are, so that none of them has to come from a GPU
    maps = torch.full((len(batch), *size), fill, dtype=dtype, device=device)
    for padded, sample, (h, w) in zip(maps, batch, image_sizes(batch), strict=True):
        if tuple(sample[key].shape) != (h, w):
            raise InputError(
                f"{key} of image {sample.get('image_id')} is {tuple(sample[key].shape)}, its image {(h, w)}"
            )
        padded[:h, :w] = sample[key]
    return maps


def upsample_bilinear(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Map N x C x h x w -> N x C x H x W as ``F.interpolate`` has it with ``align_corners=False``, by matrix products.

    The gradient of ``interpolate`` takes a CPU longer than all else that a head of one convolution does.
    """
    with torch.autocast(maps.device.type, enabled=False):
        rows, columns = (
            F.interpolate(torch.eye(old, device=maps.device, dtype=maps.dtype)[None], new, mode="linear")[0]
            for old, new in zip(maps.shape[2:], size, strict=True)
        )
        return rows.T @ maps.contiguous() @ columns


def batch_images(
    batch: Sequence[Sample],
    pixel_mean: Tensor | Sequence[float],
    pixel_std: Tensor | Sequence[float],
    size_divisibility: int = SIZE_DIVISIBILITY,
) -> Tensor:
    """Normalises the images and pads them right and bottom to one size.

    Args:
        batch: N samples whose ``image`` is a C x h x w tensor with values in 0..255; sizes may differ.
        pixel_mean: C values in 0..255. If a tensor, the result lies on its device, else on the first image's.
        pixel_std: C positive values.
        size_divisibility: the common size is a multiple of it.

    Returns:
        N x C x H x W float32 with (H, W) = ``padded_size(batch, size_divisibility)``. Padding is 0, the mean's value.

    Raises:
        ValueError: the batch is empty, or an image has another number of channels than the mean and deviation.
    """
    size = padded_size(batch, size_divisibility)
    device = pixel_mean.device if isinstance(pixel_mean, Tensor) else batch[0]["image"].device
    mean, std = (
        torch.as_tensor(values, dtype=torch.float32).view(-1, 1, 1).to(device, non_blocking=True)
        for values in (pixel_mean, pixel_std)
    )
    for sample in batch:
        image = sample["image"]
        if image.dim() != 3 or len(image) != len(mean) or len(image) != len(std):
            raise InputError(
                f"image {sample.get('image_id')} has shape {tuple(image.shape)}; it must be C x H x W with as many "
                f"channels as pixel_mean ({len(mean)}) and pixel_std ({len(std)}) have"
            )
    # Padded with the mean, and all normalised at once: few calls, whatever the number of images.
    images = mean.expand(len(batch), len(mean), *size).clone(memory_format=torch.contiguous_format)
    sizes = image_sizes(batch)
    if len(set(sizes)) == 1:
        height, width = sizes[0]
        images[:, :, :height, :width] = torch.stack([sample["image"] for sample in batch])
    else:
        for padded, sample, (height, width) in zip(images, batch, sizes, strict=True):
            padded[:, :height, :width] = sample["image"]
    return images.sub_(mean).div_(std)
