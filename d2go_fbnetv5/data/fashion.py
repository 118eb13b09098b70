"""FashionScenes: photographs of clothes (Fashion-MNIST) on photographs, among clutter, in many sizes."""

import gzip
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from d2go_fbnetv5.data.digits import glyphs
from d2go_fbnetv5.data.registry import register_dataset
from d2go_fbnetv5.data.scenes import Item, Scenes, log_uniform, tight
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.opencv import opencv

FASHION_NAMES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
# Where Debian's package puts the files, and where torchvision's FashionMNIST("datasets") does.
FOLDERS = ("/usr/share/datasets/fashion-mnist", "datasets/FashionMNIST/raw")
_FILES = {"train": "train", "val": "t10k"}

# Brighter than this is the object: the photographs' backgrounds are black.
_BACKGROUND = 12 / 255
_TURN = 35.0  # degrees, either way
_CLUTTER = 5  # pieces at most


@lru_cache(maxsize=4)
def load_fashion(split: str, folder: str) -> tuple[np.ndarray, np.ndarray]:
    """Read Fashion-MNIST's images, N x 28 x 28 uint8, and labels, N int64.

    Args:
        split: "train" (60000) or "val" (10000, its test set).
        folder: with its four files, gzipped or not; "" looks in `FOLDERS`.

    Raises:
        FileNotFoundError: says how to get them.
        InputError: a file is not what it should be.
    """
    part = _FILES[split]
    images = _read_idx(_find(f"{part}-images-idx3-ubyte", folder), 3)
    labels = _read_idx(_find(f"{part}-labels-idx1-ubyte", folder), 1)
    if images.shape[1:] != (28, 28) or len(images) != len(labels):
        raise InputError(f"{folder}: {images.shape} images and {len(labels)} labels are not Fashion-MNIST's")
    return images, labels.astype(np.int64)


def _find(name: str, folder: str) -> Path:
    folders = [folder] if folder else FOLDERS
    for path in (Path(each, name + end).expanduser() for each in folders for end in (".gz", "")):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"FashionScenes: {name}[.gz] is not in {' or '.join(folders)}; Debian's package dataset-fashion-mnist brings "
        'it, as does torchvision.datasets.FashionMNIST("datasets", download=True); the option `folder` names another'
    )


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    """An array in MNIST's format: two zero bytes, type (8: uint8), number of dimensions, their lengths, the data."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile) as error:
        raise InputError(f"{path} is broken or cut short ({error})") from error
    start = 4 + 4 * dimensions
    shape = np.frombuffer(content[4:start], ">u4").astype(int)
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) - start != shape.prod():
        raise InputError(f"{path} is not a whole file of MNIST's format with {dimensions} dimensions")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


class FashionScenes(Scenes):
    """Scenes of 1 to ``max_objects`` clothes, turned, dimmed and tinted, on photographs with clutter.

    ``train`` draws from Fashion-MNIST's training set, ``val`` from its test set. At 112 pixels clothes are about 14 to
    70 pixels tall. The clutter, digits and ellipses, lies under the clothes and is not labelled.

    Args:
        split, size, num_images, seed: as `Scenes` has them.
        max_objects: most clothes in a scene.
        folder: of Fashion-MNIST's files, see `load_fashion`.
    """

    names = FASHION_NAMES
    heights = (14 / 112, 35 / 112, 70 / 112)
    dimmed = (0.4, 1.0)

    def __init__(
        self,
        split: str = "train",
        size: int | tuple[int, int] = 112,
        num_images: int = 8192,
        seed: int = 0,
        max_objects: int = 6,
        folder: str = "",
    ) -> None:
        super().__init__(split, size, num_images, seed, max_objects)
        self.folder = folder
        load_fashion(split, folder)  # an error now rather than in a worker

    def render(self, rng: np.random.Generator, height: float) -> Item:
        images, labels = load_fashion(self.split, self.folder)
        index = int(rng.integers(len(images)))
        photograph = images[index].astype(np.float32) / 255
        covered = _silhouette(photograph > _BACKGROUND)
        window = tight(covered > 0)
        photograph, covered = photograph[window], covered[window]
        scale = height / max(photograph.shape)
        angle = rng.uniform(-_TURN, _TURN)
        alpha, texture = (_turned(image, scale, angle) for image in (covered, photograph))
        # What the interpolation blends with black outside of the object is taken back.
        texture = np.clip(texture / np.maximum(alpha, 0.2), 0, 1)
        mask = alpha >= 0.5
        window = tight(mask)
        height_limit, width_limit = self.size
        rows = slice(window[0].start, min(window[0].stop, window[0].start + height_limit))
        columns = slice(window[1].start, min(window[1].stop, window[1].start + width_limit))
        return Item(
            int(labels[index]), 0, 0, alpha[rows, columns], mask[rows, columns], texture[rows, columns]
        )

    def paint(self, image: np.ndarray, items: list[Item], rng: np.random.Generator) -> None:
        for _ in range(int(rng.integers(_CLUTTER + 1))):
            self._clutter(image, rng)
        for item in items:
            tint = rng.uniform(0.5, 1.0, 3).astype(np.float32)
            light = np.float32(log_uniform(rng, 0.35, 1.0))
            texture = 1.0 if item.texture is None else item.texture[..., None]
            window = image[item.window]
            window += item.alpha[..., None] * (255 * light * texture * tint - window)

    def _clutter(self, image: np.ndarray, rng: np.random.Generator) -> None:
        """Draw a digit, or an ellipse of one colour, of the size of clothes."""
        cv2, short = opencv(), min(self.size)
        side = int(log_uniform(rng, short * self.heights[0], short * self.heights[1]))
        if rng.random() < 0.5:
            shapes, _ = glyphs()
            alpha = cv2.resize(shapes[int(rng.integers(len(shapes)))], (side, side))
        else:
            alpha = np.zeros((side, side), np.float32)
            axes = (side // 2, max(int(side * rng.uniform(0.2, 0.5)), 1))
            cv2.ellipse(alpha, (side // 2, side // 2), axes, rng.uniform(0, 180), 0, 360, 1.0, -1)
        top, left = (int(rng.integers(length - side + 1)) for length in self.size)
        window = image[top : top + side, left : left + side]
        window += alpha[..., None] * (rng.uniform(0, 255, 3).astype(np.float32) - window)


def _silhouette(bright: np.ndarray) -> np.ndarray:
    """The mask without holes, h x w float32: what is dark in the midst of clothes belongs to them."""
    cv2 = opencv()
    outlines, _ = cv2.findContours(bright.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.zeros(bright.shape, np.float32), outlines, -1, 1.0, cv2.FILLED)


def _turned(image: np.ndarray, scale: float, degrees: float) -> np.ndarray:
    """An image enlarged and turned about its centre, with room for its corners."""
    cv2 = opencv()
    height, width = image.shape
    side = int(np.ceil(scale * np.hypot(height, width))) + 4
    matrix: np.ndarray = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, scale)
    matrix[:, 2] += (side - 1) / 2 - np.array([(width - 1) / 2, (height - 1) / 2])
    method = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    return np.clip(cv2.warpAffine(image, matrix, (side, side), flags=method), 0, 1)


register_dataset("fashion_scenes_train")(partial(FashionScenes, "train", num_images=65536))
register_dataset("fashion_scenes_val")(partial(FashionScenes, "val", num_images=2048))
