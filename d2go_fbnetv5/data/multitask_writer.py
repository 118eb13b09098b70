"""Writes any data set of samples in the multitask format."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from d2go_fbnetv5.data.images import encode_png
from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.files import replacing_folder


def write_multitask(dataset: Any, folder: str | Path) -> Path:
    """Writes a data set's samples to a new folder that ``MultitaskDataset`` reads back exactly.

    The folder holds ``index.json``, ``images/*.png``, ``sem_seg/*.png`` and ``depth/*.npy``. It appears
    complete or not at all.

    Args:
        dataset: ``len()``, ``[index] -> sample``, ``.info``. A sample's image has the size its labels refer to.
        folder: must not exist yet, or be empty.

    Returns:
        The path of the index.

    Raises:
        ValueError: the folder holds something already, or two samples have the same ``image_id``.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists already and is not an empty folder")
    with replacing_folder(folder) as partial:
        _write(dataset, partial)
    return folder / "index.json"


def _write(dataset: Any, folder: Path) -> None:
    info = dataset.info
    (folder / "images").mkdir()
    for name, labelled in (("sem_seg", info.sem_seg_names), ("depth", info.depth_units)):
        if labelled:
            (folder / name).mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(len(dataset)):
        sample = dataset[number]
        name = f"{number:06d}.png"
        height, width = sample["image"].shape[-2:]
        entry = {"id": sample["image_id"], "file_name": f"images/{name}", "height": height, "width": width}
        (folder / "images" / name).write_bytes(encode_png(sample["image"].permute(1, 2, 0).numpy()))
        if "class_label" in sample:
            entry["class_label"] = sample["class_label"]
        if "sem_seg" in sample:
            entry["sem_seg_file_name"] = f"sem_seg/{name}"
            (folder / "sem_seg" / name).write_bytes(encode_png(sample["sem_seg"].numpy().astype(np.uint8)))
        if "depth" in sample:
            entry["depth_file_name"] = f"depth/{number:06d}.npy"
            stream = io.BytesIO()
            np.save(stream, sample["depth"].numpy().astype(np.float32), allow_pickle=False)
            (folder / entry["depth_file_name"]).write_bytes(stream.getvalue())
        if "boxes" in sample:
            annotations += _annotations(sample, len(annotations))
        elif info.box_names:
            entry["has_boxes"] = False
        images.append(entry)
    if len({image["id"] for image in images}) < len(images):
        raise InputError("the data set has the same image_id more than once, so it cannot be written")

    index: dict[str, Any] = {"images": images}
    if info.box_names:
        index["annotations"] = annotations
        index["categories"] = [{"id": label + 1, "name": name} for label, name in enumerate(info.box_names)]
    if info.class_names:
        index["class_names"] = list(info.class_names)
    if info.sem_seg_names:
        index["sem_seg_names"] = list(info.sem_seg_names)
    if info.depth_units:
        index["depth_units"] = list(info.depth_units)
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")


def _annotations(sample: dict[str, Any], first: int) -> list[dict[str, Any]]:
    boxes, labels = sample["boxes"].double(), sample["box_labels"].tolist()
    sizes = boxes[:, 2:] - boxes[:, :2]
    areas = sample.get("box_areas", sizes.prod(1))
    rows = zip(boxes[:, :2].tolist(), sizes.tolist(), labels, areas.tolist(), strict=True)
    annotations = [
        {
            "id": first + number + 1,
            "image_id": sample["image_id"],
            "category_id": label + 1,
            "bbox": [*corner, *size],
            "area": area,
        }
        for number, (corner, size, label, area) in enumerate(rows)
    ]
    if "box_is_crowd" in sample:
        for annotation, crowd in zip(annotations, sample["box_is_crowd"].tolist(), strict=True):
            annotation["iscrowd"] = int(crowd)
    return annotations
