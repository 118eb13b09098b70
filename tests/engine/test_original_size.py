"""Metrics of data sets of other sizes than the model's, against computations of others on the original files."""

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn
from torch.nn import functional as F

from d2go_fbnetv5.data import EvalTransform, build_dataset, build_eval_loader
from d2go_fbnetv5.engine.evaluation import evaluate
from d2go_fbnetv5.tasks.coco_metrics import AveragePrecision
from d2go_fbnetv5.tasks.images import label_map, label_size
from d2go_fbnetv5.tasks.metrics import SemSegMetrics

SIZES = [(70, 110), (131, 64), (40, 40), (97, 210), (300, 55), (64, 96), (240, 320)]
KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
CLASSES = ("a", "b", "c", "never")


def write_sem_seg(folder, seed=0):
    """Images with label maps of their size; the third one's is don't care alone."""
    random = np.random.default_rng(seed)
    maps = []
    for name in ("images", "maps"):
        (folder / name).mkdir()
    for number, (height, width) in enumerate(SIZES):
        coarse = random.integers(0, 3, (5, 4)).astype(np.uint8)
        labels = np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST))
        labels[random.random(labels.shape) < 0.1] = 255
        if number == 2:
            labels[:] = 255
        colours = random.integers(0, 256, (256, 3))[labels] + random.integers(-20, 20, (height, width, 3))
        Image.fromarray(colours.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{number}.png")
        Image.fromarray(labels).save(folder / "maps" / f"{number}.png")
        maps.append(labels)
    options = {"image_root": str(folder / "images"), "map_root": str(folder / "maps"), "names": list(CLASSES)}
    return build_dataset("sem_seg_folder", **options), maps


class Segmenter(nn.Module):
    """Scores of the image's own colours at its own size, as Lite MaskFormer's; keeps them."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weights = nn.Parameter(torch.randn(len(CLASSES), 3, generator=generator), requires_grad=False)
        self.scores = {}

    def forward(self, batch):
        outputs = []
        for sample in batch:
            scores = torch.einsum("kc,chw->khw", self.weights, sample["image"].float() - 128)
            self.scores[sample["image_id"]] = scores
            outputs.append({"sem_seg": label_map(scores, label_size(sample))})
        return outputs


def confusion_miou(maps, predictions):
    matrix = np.zeros((4, 4))
    for truth, prediction in zip(maps, predictions, strict=True):
        counted = truth != 255
        np.add.at(matrix, (truth[counted], prediction[counted]), 1)
    union = matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
    return (matrix.diagonal() / union)[matrix.sum(1) > 0].mean()


@pytest.mark.parametrize("short_side", [48, 128, None])
def test_miou_is_that_of_the_original_maps(tmp_path, short_side):
    dataset, maps = write_sem_seg(tmp_path)
    model = Segmenter()
    batches = build_eval_loader(dataset, EvalTransform(short_side, max_size=160 if short_side else None), 2)
    found = evaluate(model, batches, SemSegMetrics(CLASSES))
    predictions = []
    for number, truth in enumerate(maps):
        enlarged = F.interpolate(
            model.scores[number][None], truth.shape, mode="bilinear", align_corners=False
        )
        predictions.append(enlarged[0].argmax(0).numpy())
    assert found["mIoU"] == pytest.approx(confusion_miou(maps, predictions), abs=1e-6)
    assert 0.05 < found["mIoU"] < 0.95 and "IoU-never" not in found


def test_a_crop_is_compared_with_what_it_shows(tmp_path):
    dataset, maps = write_sem_seg(tmp_path)
    model = Segmenter()
    found = evaluate(model, build_eval_loader(dataset, EvalTransform(48, 32), 2), SemSegMetrics(CLASSES))
    shown, predictions = [], []
    for number, truth in enumerate(maps):
        parts = []
        for side in truth.shape:
            resized = int(48 * side / min(truth.shape))
            first = round((resized - 32) / 2)
            parts.append(slice(*(round(place * side / resized) for place in (first, first + 32))))
        shown.append(truth[tuple(parts)])
        enlarged = F.interpolate(
            model.scores[number][None], shown[-1].shape, mode="bilinear", align_corners=False
        )
        predictions.append(enlarged[0].argmax(0).numpy())
    assert found["mIoU"] == pytest.approx(confusion_miou(shown, predictions), abs=1e-6)


def write_coco(folder, seed=0):
    """Masks smaller than their boxes, crowds, an image and a category without boxes, ids with gaps."""
    random = np.random.default_rng(seed)
    images, annotations = [], []
    for number, (height, width) in enumerate(SIZES):
        name = f"{number}.png"
        Image.fromarray(random.integers(0, 256, (height, width, 3)).astype(np.uint8)).save(folder / name)
        images.append({"id": 7 * number + 3, "file_name": name, "height": height, "width": width})
        for _ in range(0 if number == 2 else 9):
            w, h = random.uniform(6, [width * 0.9, height * 0.9])
            x, y = random.uniform(0, [width - w, height - h])
            box = [round(float(v), 2) for v in (x, y, w, h)]
            annotations.append(
                {
                    "id": len(annotations) + 10,
                    "image_id": images[-1]["id"],
                    "category_id": int(random.choice([2, 5, 17])),
                    "bbox": box,
                    "area": float(box[2] * box[3] * random.uniform(0.2, 1)),
                    "iscrowd": int(random.random() < 0.15),
                }
            )
    categories = [{"id": i, "name": name} for i, name in ((17, "c"), (2, "a"), (5, "b"), (40, "never"))]
    path = folder / "coco.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


class Detector(nn.Module):
    """Noisy copies of what the file holds, 130 an image, in pixels of the resized image; keeps them in the file's."""

    def __init__(self, path):
        super().__init__()
        self.places = {image["id"]: image for image in json.loads(path.read_text())["images"]}
        self.boxes = {i: [] for i in self.places}
        for annotation in json.loads(path.read_text())["annotations"]:
            self.boxes[annotation["image_id"]].append((annotation["bbox"], annotation["category_id"]))
        self.results = []

    def forward(self, batch):
        outputs = []
        for sample in batch:
            number, (height, width) = sample["image_id"], sample["image"].shape[-2:]
            generator = torch.Generator().manual_seed(number)
            whole = self.places[number]
            known = self.boxes[number] or [([5, 5, 20, 20], 2)]
            chosen = torch.randint(0, len(known), (130,), generator=generator).tolist()
            xywh = torch.tensor([known[i][0] for i in chosen], dtype=torch.float32)
            xywh += torch.randn(130, 4, generator=generator) * torch.rand(130, 1, generator=generator) * 5
            xywh[:, 2:].clamp_(min=1)
            labels = torch.tensor([(2, 5, 17).index(known[i][1]) for i in chosen])
            scores = torch.rand(130, generator=generator)
            scale = torch.tensor([width / whole["width"], height / whole["height"]] * 2)
            boxes = torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1) * scale
            outputs.append({"boxes": boxes, "labels": labels, "scores": scores})
            x0, y0, x1, y1 = (boxes.double() / scale.double()).T
            kept = torch.stack([x0, y0, x1 - x0, y1 - y0], 1).tolist()
            for box, label, score in zip(kept, labels.tolist(), scores.tolist(), strict=True):
                category = (2, 5, 17)[label]
                self.results.append(
                    {"image_id": number, "category_id": category, "bbox": box, "score": score}
                )
        return outputs


@pytest.mark.parametrize(("reader", "option"), [("coco", "annotations_json"), ("multitask", "index")])
@pytest.mark.parametrize("short_side", [48, 224])
def test_average_precision_is_that_of_pycocotools_on_the_original_file(tmp_path, reader, option, short_side):
    path = write_coco(tmp_path)
    dataset = build_dataset(reader, **{option: str(path), "image_root": str(tmp_path)})
    model = Detector(path)
    batches = build_eval_loader(dataset, EvalTransform(short_side, max_size=320), 4)
    found = evaluate(model, batches, AveragePrecision(dataset.info.box_names))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        direct = COCOeval(truth, truth.loadRes(model.results), "bbox")
        direct.evaluate()
        direct.accumulate()
        direct.summarize()
    assert [found[key] for key in KEYS] == pytest.approx(direct.stats[:6].tolist(), abs=1e-6)
    assert all(0.01 < found[key] < 0.99 for key in KEYS) and "AP-never" not in found


@pytest.mark.slow
def test_two_processes_find_what_one_does(tmp_path):
    for name in ("seg", "det"):
        (tmp_path / name).mkdir()
    write_sem_seg(tmp_path / "seg")
    write_coco(tmp_path / "det")
    ranks = [
        subprocess.Popen(
            [sys.executable, str(Path(__file__)), str(tmp_path), str(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    for rank in ranks:
        output, _ = rank.communicate(timeout=300)
        assert rank.returncode == 0 and "equal" in output, output


def main(folder: Path, rank: int) -> None:
    """One of two processes: what both find together is what one finds alone."""
    names = {
        "image_root": str(folder / "seg/images"),
        "map_root": str(folder / "seg/maps"),
        "names": list(CLASSES),
    }
    coco = {"annotations_json": str(folder / "det/coco.json"), "image_root": str(folder / "det")}
    index = folder / "det/coco.json"
    cases = [
        (build_dataset("sem_seg_folder", **names), Segmenter, SemSegMetrics(CLASSES)),
        (build_dataset("coco", **coco), lambda: Detector(index), AveragePrecision(CLASSES)),
    ]
    transform = EvalTransform(48, max_size=160)
    alone = [evaluate(make(), build_eval_loader(data, transform, 2), metric) for data, make, metric in cases]
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    for (data, make, metric), expected in zip(cases, alone, strict=True):
        found = evaluate(make(), build_eval_loader(data, transform, 2, rank, 2), metric)
        if repr(found) != repr(expected):
            sys.exit(f"{found} in two processes, {expected} in one")
    torch.distributed.destroy_process_group()
    print("equal")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
