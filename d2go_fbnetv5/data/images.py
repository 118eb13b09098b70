"""Reading images and label maps, with errors that name the file."""

from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from d2go_fbnetv5.utils.errors import InputError


def read_image(path: str | Path, size: tuple[int, int] | None = None) -> torch.Tensor:
    """The image as 3 x H x W uint8 RGB; grey becomes three equal channels, transparency is dropped.

    A camera's EXIF orientation is applied, so height and width, and all labels, are those of the upright picture
    (as in Detectron2).

    Args:
        size: the height and width it must have.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be decoded, is cut short, or has another size.
    """
    data = _read(path, "image")
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # our error says more than OpenCV's log
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    except cv2.error:
        image = None
    finally:
        cv2.utils.logging.setLogLevel(level)
    if image is None:
        raise InputError(f"image {path} is broken, cut short or in a format that OpenCV cannot read")
    _check_size(path, "image", image, size)
    return torch.from_numpy(cv2.cvtColor(image, cv2.COLOR_BGR2RGB).transpose(2, 0, 1).copy())


def read_label_map(path: str | Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """The label map as H x W int64: the pixel values of an 8 or 16 bit grey image, or the indices of a palette.

    Args:
        size: the height and width it must have.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be decoded, has several channels, or another size.
    """
    _check_exists(path, "label map")
    try:
        # Pillow, because OpenCV turns a palette's indices into colours.
        with Image.open(path) as image:
            mode, labels = image.mode, np.asarray(image)
    except (OSError, SyntaxError, ValueError):
        raise InputError(f"label map {path} is broken, cut short or not an image") from None
    if mode not in ("L", "P", "I", "I;16", "I;16B"):
        raise InputError(
            f"label map {path} has mode {mode}, expected one channel of 8 or 16 bits, or a palette"
        )
    _check_size(path, "label map", labels, size)
    return labels.astype(np.int64)


def encode_png(pixels: np.ndarray) -> bytes:
    """A PNG file of H x W values of 8 or 16 bits, or of H x W x 3 uint8 RGB.

    Raises:
        ValueError: no such array.
    """
    if pixels.ndim == 3:
        pixels = pixels[..., ::-1]
    try:
        return cv2.imencode(".png", np.ascontiguousarray(pixels))[1].tobytes()
    except cv2.error as error:
        raise InputError(f"an array of {pixels.dtype} {pixels.shape} is no image ({error})") from error


def check_labels(path: str | Path, labels: np.ndarray, num_classes: int, ignore: int) -> None:
    """ValueError if an H x W label map holds anything but 0 .. num_classes - 1 and ``ignore``."""
    wrong = labels[(labels >= num_classes) & (labels != ignore) | (labels < 0)]
    if wrong.size:
        raise InputError(
            f"label map {path} has the value {wrong[0]}, allowed are 0 to {num_classes - 1}, and {ignore} (don't care)"
        )


def _read(path: str | Path, kind: str) -> np.ndarray:
    _check_exists(path, kind)
    return np.fromfile(path, dtype=np.uint8)


def _check_exists(path: str | Path, kind: str) -> None:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{kind} {path} does not exist")


def _check_size(path: str | Path, kind: str, array: np.ndarray, size: tuple[int, int] | None) -> None:
    if size is not None and array.shape[:2] != tuple(size):
        height, width = array.shape[:2]
        raise InputError(f"{kind} {path} is {width}x{height} (width x height), expected {size[1]}x{size[0]}")
