"""Depth from images and maps of depth that lie in folders, side by side or apart; NYU Depth v2 among them."""

from pathlib import Path, PurePath
from typing import Any

import torch

from d2go_fbnetv5.data.image_files import file_names, image_names, require_folder, warn_of_unread
from d2go_fbnetv5.data.images import read_depth, read_image
from d2go_fbnetv5.data.registry import register_dataset
from d2go_fbnetv5.tasks.base import DEPTH_UNITS, DatasetInfo
from d2go_fbnetv5.utils.errors import InputError

_SUFFIXES = (".png", ".npy")
_NYU = {"train": "sync", "test": "official_splits/test"}


@register_dataset("depth_folder")
class DepthFolder(torch.utils.data.Dataset[dict[str, Any]]):
    """``image_root/**/<name>.jpg`` with ``depth_root/**/<name>.png`` or ``.npy`` (`read_depth`).

    Args:
        image_root: folder of the images; ``image_id`` is an image's place in its sorted list.
        depth_root: folder of the depths, with the same folders; by default the images' own.
        unit: "metres", or "relative" for what is known up to scale and shift.
        scale: a PNG's value of one unit; 1000 where it has millimetres.
        image_part, depth_part: an image is what has the first in its name, and its depth has the second in its place.

    Raises, on opening:
        FileNotFoundError: a folder does not exist, has no images, or an image has no depth.
        ValueError: an option is not what it may be.
    ``dataset[i]`` raises FileNotFoundError and ValueError for files that are missing or broken, and a depth of another
    size than its image.
    """

    def __init__(
        self,
        image_root: str | Path,
        depth_root: str | Path | None = None,
        unit: str = "metres",
        scale: float = 1000.0,
        image_part: str = "",
        depth_part: str = "",
    ) -> None:
        if unit not in DEPTH_UNITS:
            raise InputError(f"depth_folder: unit is {unit!r}, allowed are {', '.join(DEPTH_UNITS)}")
        if not 0 < scale < float("inf"):
            raise InputError(f"depth_folder: scale is {scale}, it must be a number above 0")
        image_root = Path(image_root)
        depth_root = image_root if depth_root is None else Path(depth_root)
        if depth_root == image_root and image_part == depth_part:
            raise InputError(
                "depth_folder: without a depth_root of their own, image_part and depth_part must say how depths differ "
                "in name, such as _colors and _depth"
            )
        for kind, folder in (("images", image_root), ("depths", depth_root)):
            require_folder(kind, folder)
        found, unread = image_names(image_root)
        images = sorted(
            (name for name in found if image_part in PurePath(name).name),
            key=lambda name: PurePath(name).parts,
        )
        there = set(file_names(depth_root))
        if depth_root == image_root and not image_part:  # the depths are images, too
            depths = {_depth_name(name, image_part, depth_part) for name in images}
            images = [name for name in images if str(PurePath(name).with_suffix("")) not in depths]
        if not images:
            raise FileNotFoundError(
                f"folder of images {image_root} has no images with {image_part!r} in their name"
            )
        warn_of_unread(image_root, unread)
        self.info = DatasetInfo(depth_units=(unit,))
        self.scale = scale
        self._images = [image_root / name for name in images]
        self._depths = []
        for name in images:
            stem = _depth_name(name, image_part, depth_part)
            own = next((stem + suffix for suffix in _SUFFIXES if stem + suffix in there), None)
            if own is None:
                raise FileNotFoundError(
                    f"image {image_root / name} has no depth {depth_root / stem}.png or .npy"
                )
            self._depths.append(depth_root / own)

    def __len__(self) -> int:
        return len(self._images)

    def image_path(self, index: int) -> Path:
        return self._images[index]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The sample: ``image`` 3 x H x W uint8, ``depth`` H x W float32, ``image_id``, ``height``, ``width``."""
        index = range(len(self))[index]
        image = read_image(self._images[index])
        height, width = image.shape[-2:]
        depth = read_depth(self._depths[index], self.scale, (height, width))
        return {
            "image": image,
            "depth": torch.from_numpy(depth),
            "image_id": index,
            "height": height,
            "width": width,
        }


def _depth_name(image: str, image_part: str, depth_part: str) -> str:
    """Return the path of an image's depth without its suffix."""
    path = PurePath(image)
    stem = path.stem.replace(image_part, depth_part) if image_part else path.stem + depth_part
    return str(path.with_name(stem))


@register_dataset("nyu_depth_v2")
def nyu_depth_v2(root: str | Path, split: str) -> DepthFolder:
    """Open NYU Depth v2 as its usual PNGs of millimetres lie: ``sync/**/rgb_00000.jpg`` with ``sync_depth_00000.png``,
    and the official test images the same in ``official_splits/test``.

    Args:
        root: the folder that has these.
        split: "train" or "test".
    """
    if split not in _NYU:
        raise InputError(f"nyu_depth_v2: split is {split!r}, allowed are {', '.join(_NYU)}")
    return DepthFolder(Path(root, _NYU[split]), image_part="rgb_", depth_part="sync_depth_")
