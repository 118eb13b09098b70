"""Images per second of pseudo_label with a teacher that does nothing, against torchvision's ImageFolder and DataLoader.

    python benchmarks/pseudo_label_speed.py --images 2000 --workers 2

Both read the same JPEG files (500 x 375, as ImageNet's often are) with the same decoder, batch size and number of
workers; they take turns, and the ratio is that of their best rounds. pseudo_label also writes its chunks.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from d2go_fbnetv5.data.images import read_image
from d2go_fbnetv5.pseudo_labels.job import label_chunks, prepare
from d2go_fbnetv5.pseudo_labels.settings import SETTINGS, open_images
from d2go_fbnetv5.pseudo_labels.teacher import Teacher, register_teacher
from d2go_fbnetv5.utils.rules import add_keys

_CLASSES = 10


@register_teacher("nothing")
class _Nothing(Teacher):
    box_names = ("thing",)

    def __init__(self, device: torch.device) -> None:
        pass

    def __call__(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        empty = {
            "boxes": torch.zeros(0, 4),
            "scores": torch.zeros(0),
            "labels": torch.zeros(0, dtype=torch.long),
        }
        return [empty for _ in images]


def write_images(folder: Path, count: int) -> None:
    """Smoothed noise, which compresses about as photographs do."""
    rng = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"class{number % _CLASSES}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = cv2.resize(rng.integers(0, 256, (94, 125, 3), dtype=np.uint8), (500, 375))
        cv2.imwrite(str(path), noise)


def image_folder_rate(folder: Path, batch_size: int, workers: int) -> float:
    start = time.perf_counter()
    loader = DataLoader(
        ImageFolder(str(folder), loader=read_image), batch_size, num_workers=workers, collate_fn=list
    )
    return sum(len(batch) for batch in loader) / (time.perf_counter() - start)


def pseudo_label_rate(folder: Path, output: Path, batch_size: int, workers: int) -> float:
    settings = add_keys(CfgNode(), SETTINGS.values())
    settings.IMAGES.folders = str(folder)
    settings.CLS.SOURCE = "dataset"
    settings.DET.SOURCE, settings.DET.TEACHER = "teacher", "nothing"
    settings.BATCH_SIZE, settings.NUM_WORKERS, settings.CHUNK_SIZE = batch_size, workers, 1024
    settings.DEVICE, settings.OUTPUT_DIR = "cpu", str(output)
    shutil.rmtree(output, ignore_errors=True)
    start = time.perf_counter()
    count = prepare(settings).num_chunks
    label_chunks(settings, range(count))
    seconds = time.perf_counter() - start
    return len(open_images(settings)) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        images, output = Path(temporary, "images"), Path(temporary, "output")
        write_images(images, args.images)
        theirs, ours = [], []
        for _ in range(args.rounds):
            theirs.append(image_folder_rate(images, args.batch_size, args.workers))
            ours.append(pseudo_label_rate(images, output, args.batch_size, args.workers))
            print(f"ImageFolder {theirs[-1]:.0f} images/s, pseudo_label {ours[-1]:.0f}", flush=True)
        print(f"ratio of the best: {max(ours) / max(theirs):.2f}")


if __name__ == "__main__":
    main()
