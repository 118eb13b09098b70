"""The built-in sets that every config can name without any options. The readers register themselves."""

from d2go_fbnetv5.data.digits import DigitScenes
from d2go_fbnetv5.data.fashion import FashionScenes
from d2go_fbnetv5.data.registry import register_dataset


@register_dataset("digit_scenes_train")
def digit_scenes_train(
    size: int | tuple[int, int] = 128, num_images: int = 8192, seed: int = 0, max_digits: int = 5
) -> DigitScenes:
    """Make the training images of `DigitScenes`."""
    return DigitScenes("train", size, num_images, seed, max_digits)


@register_dataset("digit_scenes_val")
def digit_scenes_val(
    size: int | tuple[int, int] = 128, num_images: int = 512, seed: int = 0, max_digits: int = 5
) -> DigitScenes:
    """Make the validation images of `DigitScenes`."""
    return DigitScenes("val", size, num_images, seed, max_digits)


@register_dataset("fashion_scenes_train")
def fashion_scenes_train(
    size: int | tuple[int, int] = 112,
    num_images: int = 65536,
    seed: int = 0,
    max_objects: int = 6,
    folder: str = "",
) -> FashionScenes:
    """Make the training images of `FashionScenes`."""
    return FashionScenes("train", size, num_images, seed, max_objects, folder)


@register_dataset("fashion_scenes_val")
def fashion_scenes_val(
    size: int | tuple[int, int] = 112,
    num_images: int = 2048,
    seed: int = 0,
    max_objects: int = 6,
    folder: str = "",
) -> FashionScenes:
    """Make the validation images of `FashionScenes`."""
    return FashionScenes("val", size, num_images, seed, max_objects, folder)
