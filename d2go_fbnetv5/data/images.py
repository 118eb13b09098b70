"""Reading images, label maps and depth, with errors that name the file."""

import io
import logging
import mmap
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile

from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.opencv import opencv

logger = logging.getLogger(__name__)

# A picture of more pixels takes gigabytes once it is decoded, though its file may be small.
MAX_PIXELS = 2**27
# Kinds of files of which Pillow knows whether they hold several pictures that differ. (A telephone's JPEG does, too,
# but its second one is a small copy.)
_SEQUENCES = ("GIF", "PNG", "TIFF", "WEBP")
# PNG has grey of 2 and 4 bits, which Pillow spreads over 0 to 255.
_SPREAD = {"L;2": 85, "L;4": 17}
_SIXTEEN_BITS = ("I", "I;16", "I;16B")  # Pillow's modes
# How H x W pixels become upright, by their EXIF orientation.
_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).T,
    8: np.rot90,
}


def read_image(path: str | Path, size: tuple[int, int] | None = None) -> torch.Tensor:
    """Read the image as 3 x H x W uint8 RGB; grey becomes three equal channels, transparency is dropped.

    A camera's EXIF orientation is applied, so height and width, and all labels, are those of the upright picture
    (as in Detectron2). Of 16 bits the upper 8 are kept; where no value has more than 12 or 8, those are taken for all
    there are, with a warning. Of several frames or pages the first is read, with a warning. Either warning comes once.

    Args:
        size: the height and width it must have.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it cannot be decoded, is cut short, has another size or more than `MAX_PIXELS` pixels; or OpenCV is
            too old.
    """
    cv2 = opencv()
    data = _read(path, "image")
    header = _open(path, "image", data)
    if header is not None:
        _check_header(path, "image", header, size)
        if header.format in _SEQUENCES and getattr(header, "is_animated", False):
            _warn_once("frames", f"image {path} has several frames or pages, of which the first is read")
    image = _decode(data, cv2.IMREAD_COLOR) if _is_safe(data, header) else None
    if image is None:
        raise InputError(f"image {path} is broken, cut short or in a format that cannot be read")
    _require_size(path, "image", image.shape[:2], size)
    if image.max() <= 16:  # of 255: as good as black, or less than 16 bits in a file of 16
        image = _few_bits(path, data, image)
    return torch.from_numpy(cv2.cvtColor(image, cv2.COLOR_BGR2RGB).transpose(2, 0, 1).copy())


def _is_safe(data: np.ndarray, header: Image.Image | None) -> bool:
    """Return whether OpenCV will not take gigabytes for what a broken header says."""
    if header is None:  # of all that OpenCV reads, Pillow lacks some kinds of TIFF alone
        return data[:2].tobytes() in (b"II", b"MM")
    if header.format != "PNG":
        return True
    # OpenCV makes room for a chunk of any length that stands before it, and only then looks how much there is.
    place, kind = 8, b""
    while place + 8 <= len(data) and kind != b"IEND":
        length, kind = struct.unpack(">I4s", data[place : place + 8].tobytes())
        place += 12 + length
    return place <= len(data)


def _decode(data: np.ndarray, flags: int) -> np.ndarray | None:
    cv2 = opencv()
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # our error says more than OpenCV's log
    try:
        return cv2.imdecode(data, flags) if data.size else None
    except cv2.error:
        return None
    finally:
        cv2.utils.logging.setLogLevel(level)


def _few_bits(path: str | Path, data: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Read the image by the 12 or 8 bits that its file of 16 makes use of, as cameras and scanners write them."""
    cv2 = opencv()
    deep = _decode(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    if deep is None or deep.dtype != np.uint16 or not 0 < deep.max() < 2**12:
        return image
    bits = 8 if deep.max() < 2**8 else 12
    _warn_once(
        "bits",
        f"image {path} has 16 bits and no value above {deep.max()}: it and others of its kind are read as images of "
        f"{bits} bits; save them with 8 bits, or scaled to 65535, if that is wrong",
    )
    return (deep >> (bits - 8)).astype(np.uint8)


def read_label_map(path: str | Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read the label map as H x W int64: the values of a grey image of 1 to 16 bits, or the indices of a palette.

    An EXIF orientation of its own is applied, as an image's is (and as in Detectron2), with one warning.

    Args:
        size: the height and width it must have.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it cannot be decoded, is a JPEG, has several channels, another size, or more than `MAX_PIXELS`
            pixels.
    """
    labels, spread = _read_values(
        path,
        "label map",
        size,
        ("1", "L", "P", *_SIXTEEN_BITS),
        "one channel of up to 16 bits whose values are the classes, or a palette whose indices are",
    )
    return labels.astype(np.int64) // spread


def read_depth(path: str | Path, scale: float, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read a map of depth as H x W float32, 0 where there is none: where it is 0, negative, infinite or NaN.

    Args:
        path: of a grey PNG of 16 bits, or of a ``.npy`` file of H x W floats, which are in the unit themselves.
        scale: a PNG's value of one unit, such as 1000 where it has millimetres and the unit is metres.
        size: the height and width it must have.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it cannot be decoded, or is not what ``path`` has to be, such as a label map of 8 bits.
    """
    if Path(path).suffix == ".npy":
        data = _read(path, "depth").tobytes()
        try:
            values = np.load(io.BytesIO(data), allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise InputError(f"depth {path} is broken or cut short ({error})") from None
        if not np.issubdtype(values.dtype, np.floating) or values.ndim != 2:
            raise InputError(
                f"depth {path} is an array of {values.dtype} and shape {values.shape}, expected H x W floating-point "
                "numbers: a label map is no depth"
            )
        _require_size(path, "depth", values.shape, size)
        values = values.astype(np.float32)
    else:
        expected = "one channel of 16 bits: a label map is no depth"
        values = _read_values(path, "depth", size, _SIXTEEN_BITS, expected)[0] / np.float32(scale)
    return np.where(np.isfinite(values) & (values > 0), values, 0).astype(np.float32)


def _read_values(
    path: str | Path, kind: str, size: tuple[int, int] | None, modes: tuple[str, ...], expected: str
) -> tuple[np.ndarray, int]:
    """Return the values of a grey image, or a palette's indices, and what they are spread by."""
    # Pillow, because OpenCV turns a palette's indices into colours.
    image = _open(path, kind, _read(path, kind))
    if image is None:
        raise InputError(f"{kind} {path} is broken, cut short or not an image")
    _check_header(path, kind, image, size)
    if image.format in ("JPEG", "MPO"):
        raise InputError(f"{kind} {path} is a JPEG, which changes the values; it must be a PNG")
    if image.mode not in modes:
        raise InputError(f"{kind} {path} has mode {image.mode}, expected {expected}")
    spread = _SPREAD.get(str(image.tile[0][3]), 1) if image.format == "PNG" else 1
    try:
        values = np.asarray(image)
    except Exception:  # Pillow raises whatever a broken file makes it trip over
        raise InputError(f"{kind} {path} is broken or cut short") from None
    orientation = _orientation(image)
    if orientation is not None:
        values = _TURNS[orientation](values)
        _warn_once(
            "turned",
            f"{kind} {path} has the EXIF orientation {orientation}: it and others of its kind are turned as that "
            "says, as images are; save them without it if their pixels are upright already",
        )
    _require_size(path, kind, values.shape, size)
    return values, spread


def encode_png(pixels: np.ndarray) -> bytes:
    """Make a PNG file of H x W values of 8 or 16 bits, or of H x W x 3 uint8 RGB.

    Raises:
        ValueError: no such array.
    """
    cv2 = opencv()
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
    if not Path(path).is_file():
        raise FileNotFoundError(f"{kind} {path} does not exist")
    return np.fromfile(path, dtype=np.uint8)


def _open(path: str | Path, kind: str, data: np.ndarray) -> ImageFile.ImageFile | None:
    """The image, of which only the header is read; None if Pillow does not know it."""
    try:
        return Image.open(io.BytesIO(data.tobytes()))
    except Image.DecompressionBombError:
        raise InputError(
            f"{kind} {path} has more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels, allowed are {MAX_PIXELS}"
        ) from None
    except Exception:  # Pillow raises whatever a broken file makes it trip over
        return None


def _orientation(image: Image.Image) -> int | None:
    """The EXIF orientation of a picture that is not upright; Pillow itself turns a TIFF."""
    try:
        found = None if image.format == "TIFF" else image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow raises whatever it trips over; OpenCV takes no notice of a broken EXIF either
        return None
    return found if found in _TURNS else None


def _check_header(path: str | Path, kind: str, image: Image.Image, size: tuple[int, int] | None) -> None:
    """InputError if it has more than `MAX_PIXELS`, or another size even when it is turned."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{kind} {path} is {width}x{height} (width x height), allowed are {MAX_PIXELS} pixels; make it smaller"
        )
    if size is not None and image.size not in (tuple(size), tuple(size)[::-1]):
        _require_size(path, kind, (height, width), size)


def _require_size(path: str | Path, kind: str, found: tuple[int, ...], size: tuple[int, int] | None) -> None:
    if size is not None and tuple(found) != tuple(size):
        height, width = found
        turned = "; was it turned upright after its size was noted?" if (width, height) == tuple(size) else ""
        raise InputError(
            f"{kind} {path} is {width}x{height} (width x height), expected {size[1]}x{size[0]}{turned}"
        )


_WARNINGS = ("frames", "bits", "turned")
_warned = mmap.mmap(
    -1, len(_WARNINGS)
)  # workers, which are forks, share it: a warning is one of the whole run


def _warn_once(kind: str, message: str) -> None:
    place = _WARNINGS.index(kind)
    if not _warned[place]:
        _warned[place] = 1
        logger.warning(message)
