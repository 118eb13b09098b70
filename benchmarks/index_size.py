"""What an index of ImageNet's size costs: time and memory to open it, and with loader workers.

    python benchmarks/index_size.py                      # 1.3 million images, 6 million boxes, 8 workers
    python benchmarks/index_size.py --images 100000 --boxes 500000 --workers 2

Each measurement is a process of its own. Memory is what the index adds: to a process that has imported this package,
and to the main process with its workers, against the same with an index of a thousand images (proportional set size,
so that what processes share counts once). That last difference is small against the processes' own memory, and the
kernel may drop pages of the files in between: repeat it, and take the size of the files as the bound. Linux only.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np

from d2go_fbnetv5.data import MultitaskDataset, build_train_loader
from d2go_fbnetv5.data.index_arrays import BoxArrays, MultitaskIndex, Strings
from d2go_fbnetv5.data.index_files import save_index
from d2go_fbnetv5.tasks.base import DatasetInfo

_BATCHES, _BATCH_SIZE = 200, 256


def generate(folder: Path, num_images: int, num_boxes: int) -> None:
    """An index with names, classes, maps and scored boxes such as ImageNet's would have."""
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 1000, num_images)
    sizes = rng.integers(200, 600, (num_images, 2))
    owners = np.sort(rng.integers(0, num_images, num_boxes))
    corners = np.sort(rng.random((num_boxes, 2, 2), dtype=np.float32), axis=1)
    corners[:, 1] = np.maximum(corners[:, 1], corners[:, 0] + 1e-3)
    boxes = (corners / 1.01 * sizes[owners][:, None, ::-1]).reshape(-1, 4)
    index = MultitaskIndex(
        DatasetInfo(
            tuple(f"n{k:08d}" for k in range(1000)), tuple(map(str, range(80))), tuple(map(str, range(171)))
        ),
        np.arange(num_images),
        sizes,
        Strings.of(f"../train/n{k:08d}/n{k:08d}_{i}.JPEG" for i, k in enumerate(classes.tolist())),
        class_labels=classes,
        map_names=Strings.of(f"chunks/{i // 1024:05d}/sem_seg/{i:06d}.png" for i in range(num_images)),
        boxes=BoxArrays(
            np.searchsorted(owners, np.arange(num_images + 1)),
            boxes,
            rng.integers(0, 80, num_boxes),
            scores=rng.uniform(0.5, 1, num_boxes),
        ),
    )
    save_index(index, folder)


class Entries:
    """The labels of an index without the images, which would measure the images."""

    def __init__(self, dataset: MultitaskDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def sizes(self) -> np.ndarray:
        return self.dataset.sizes

    def __getitem__(self, place: int) -> dict:
        index = self.dataset.index
        names = str(self.dataset.image_path(place)), index.map_names[place]
        return {"names": names, "class_label": int(index.class_labels[place]), **index.boxes[place]}


def measure(folder: Path, workers: int) -> dict[str, float]:
    """Seconds and MB in this process and, if there are any, in its workers."""
    before = _memory("self", "Rss")
    start, cpu = time.perf_counter(), time.process_time()
    dataset = MultitaskDataset(folder)
    found = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
    found |= {"rss": _memory("self", "Rss") - before, "peak": _peak() - before}
    if workers:
        batches = build_train_loader(
            Entries(dataset), None, _BATCH_SIZE, seed=0, num_workers=workers, group_by_orientation=True
        )
        read = sum(len(batch) for batch in islice(batches, _BATCHES))
        children = Path(f"/proc/self/task/{_thread()}/children").read_text().split()
        found["read"] = read
        found["pss"] = sum(_memory(process, "Pss") for process in ["self", *children])
        found["private"] = max(
            _memory(child, "Private_Clean") + _memory(child, "Private_Dirty") for child in children
        )
    return found


def _peak() -> float:
    """Of this process' resident memory, in MB."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def _thread() -> int:
    return int(Path("/proc/self").resolve().name)


def _memory(process: str, key: str) -> float:
    text = Path(f"/proc/{process}/smaps_rollup").read_text()
    return sum(int(value) for value in re.findall(rf"^{key}:\s+(\d+) kB", text, re.MULTILINE)) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1_300_000)
    parser.add_argument("--boxes", type=int, default=6_000_000)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--measure", metavar="FOLDER", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(Path(args.measure), args.workers)))
        return

    with tempfile.TemporaryDirectory() as temporary:
        large, small = Path(temporary, "large"), Path(temporary, "small")
        generate(large, args.images, args.boxes)
        generate(small, 1000, 4000)
        size = sum(file.stat().st_size for file in large.iterdir()) / 2**20
        print(f"{args.images} images, {args.boxes} boxes: {size:.0f} MB of files")
        opened = _in_process(large, 0)
        print(
            f"opened in {opened['seconds']:.2f} s ({opened['cpu']:.2f} s of CPU time): {opened['rss']:.0f} MB more "
            f"resident memory, "
            f"{opened['peak']:.0f} MB at the peak"
        )
        if args.workers:
            with_large, with_small = (_in_process(folder, args.workers) for folder in (large, small))
            print(
                f"with {args.workers} workers, after {with_large['read']:.0f} samples in random order: "
                f"{with_large['pss'] - with_small['pss']:.0f} MB more in all processes together; a worker's own memory "
                f"{with_large['private']:.0f} MB, with 1000 images {with_small['private']:.0f} MB"
            )


def _in_process(folder: Path, workers: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", str(folder), "--workers", str(workers)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    main()
