"""Images as exported models take them, and those that int8 is calibrated with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode
from torch import Tensor
from torch.utils.data import ConcatDataset

from d2go_fbnetv5.data import build_dataset, list_datasets
from d2go_fbnetv5.data.image_files import find_images
from d2go_fbnetv5.data.images import read_image
from d2go_fbnetv5.engine.build import open_dataset
from d2go_fbnetv5.engine.config import load_cfg
from d2go_fbnetv5.engine.predictor import Predictor
from d2go_fbnetv5.engine.train import CONFIG_FILE
from d2go_fbnetv5.models import SearchedModel
from d2go_fbnetv5.utils.errors import InputError

CALIBRATION_IMAGES = 128  # by default


def padded_image(model: SearchedModel, image: Tensor) -> Tensor:
    """3 x h x w in 0..255 -> 1 x 3 x H x W float: of the size that the model pads it to, right and bottom, with the
    mean colour, which is zero once normalised."""
    height, width = image.shape[-2:]
    padded_height, padded_width = model.padded_size((height, width))
    padded = model.pixel_mean.view(1, -1, 1, 1).repeat(1, 1, padded_height, padded_width)
    padded[0, :, :height, :width] = image
    return padded


def calibration_images(
    sources: Sequence[str], predictor: Predictor, count: int, cfg: CfgNode | None = None
) -> Iterator[Tensor]:
    """`padded_image` of at most ``count`` images, spread evenly over folders and data sets.

    Args:
        sources: each a folder of images, searched to any depth, or the name of a data set.
        predictor: whose images they are; they are resized as it resizes them for evaluation, without augmentation.
        cfg: of a training, whose FBNETV5_DATA.DATASETS the name may be one of.

    Raises:
        ValueError, FileNotFoundError: no such folder or data set, or no image in it.
    """
    if count < 1:
        raise InputError(f"{count} calibration images; allowed is 1 or more")
    sets: list[Any] = [_Folder(name) if Path(name).is_dir() else _open(name, cfg) for name in sources]
    images: ConcatDataset[Any] = ConcatDataset(sets)
    total = len(images)
    count = min(count, total)
    if count == 0:
        raise InputError(f"calibration data {', '.join(sources)}: there is no image in it")
    for i in range(count):
        yield padded_image(predictor.model, predictor.sample(images[i * total // count]["image"])["image"])


def run_images(
    run: str, predictor: Predictor, which: str, count: int, named: str | None = None
) -> tuple[list[Tensor], str]:
    """`calibration_images` of a training's own data, and the names of the data sets.

    Args:
        run: its OUTPUT_DIR, whose config.yaml says where the data were.
        which: "TRAIN" for DATASETS.TRAIN, "TEST" for the first of DATASETS.TEST.
        named: one of its FBNETV5_DATA.DATASETS, or of those that are built in, in place of these.

    Raises:
        FileNotFoundError, InputError: config.yaml or a data set is not there any more, or cannot be read.
    """
    try:
        cfg = load_cfg(Path(run, CONFIG_FILE))
        own = cfg.DATASETS.TRAIN if which == "TRAIN" else cfg.DATASETS.TEST[:1]
        sources = [named] if named else list(own)
        return list(calibration_images(sources, predictor, count, cfg)), ", ".join(sources)
    except (InputError, FileNotFoundError) as error:
        raise type(error)(f"the images of run {run}: {error}") from error


class _Folder:
    """The images of a folder as samples, in the order of their names."""

    def __init__(self, folder: str) -> None:
        self._paths = find_images(folder)[0]

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": read_image(self._paths[index])}


def _open(name: str, cfg: CfgNode | None) -> Any:
    configured = sorted(cfg.FBNETV5_DATA.DATASETS) if cfg is not None else []
    if name in configured and cfg is not None:
        return open_dataset(cfg, name)
    if name not in list_datasets():
        allowed = ", ".join([*configured, *list_datasets()])
        raise InputError(f"calibration data {name!r}: neither a folder nor a data set, which are {allowed}")
    return build_dataset(name)
