"""What a labelling came to: figures counted by hand, and a contact sheet whose pixels are looked at."""

import io
import json

import cv2
import numpy as np
import pytest
import torch
from rich.console import Console

from d2go_fbnetv5.data.multitask import MultitaskDataset
from d2go_fbnetv5.pseudo_labels import Teacher, preview
from d2go_fbnetv5.pseudo_labels.job import label_chunks, prepare
from d2go_fbnetv5.pseudo_labels.output import Output, merge
from d2go_fbnetv5.pseudo_labels.settings import load_settings
from d2go_fbnetv5.pseudo_labels.summary import histogram_bars, summarize, summary_tables, write_summary
from d2go_fbnetv5.reports.overlays import class_color

CONFIG = """
IMAGES: {{READER: image_folders, folders: [{images}]}}
CLS: {{SOURCE: teacher, TEACHER: "{module}:build"}}
DET: {{SOURCE: teacher, TEACHER: "{module}:build"}}
SEG: {{SOURCE: teacher, TEACHER: "{module}:build"}}
CHUNK_SIZE: 2
NUM_WORKERS: 0
DEVICE: cpu
OUTPUT_DIR: {output}
"""


class Known(Teacher):
    """Labels by the image's first pixel: 0 is an empty image of which nothing is sure, 2 makes it fail."""

    class_names, box_names, sem_seg_names = ("indoors", "outdoors"), ("cat", "dog"), ("sky", "sea", "sand")

    def __call__(self, images):
        return [self.label(image, int(image[0, 0, 0])) for image in images]

    def label(self, image, kind):
        height, width = image.shape[-2:]
        if kind == 2:
            raise RuntimeError("no")
        probabilities = torch.full((3, height, width), 0.3)
        if kind == 0:
            return {
                "class_scores": torch.tensor([0.4, 0.3]),
                "boxes": torch.tensor([[0.0, 0, 5, 5]]),
                "scores": torch.tensor([0.12]),
                "labels": torch.tensor([1]),
                "probabilities": probabilities,
            }
        probabilities[1, :, : width // 2] = 0.7
        return {
            "class_scores": torch.tensor([0.2, 0.8]),
            "boxes": torch.tensor([[10.0, 20, 30, 40], [0, 0, 8, 8], [1, 1, 9, 9]]),
            "scores": torch.tensor([0.97, 0.5, 0.01]),
            "labels": torch.tensor([0, 0, 1]),
            "probabilities": probabilities,
        }


def printed(parts, width):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(*parts, sep="\n")
    return console.export_text()


def build(device):
    return Known()


@pytest.fixture
def labelled(tmp_path):
    """Four images, 40 high and 60 wide (the last 120 x 30): two that are labelled, an empty one, a failing one, and a
    file that is no image."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name, kind, size in (("a", 1, (40, 60)), ("b", 0, (40, 60)), ("c", 2, (40, 60)), ("d", 1, (120, 30))):
        pixels = np.full((*size, 3), 100, dtype=np.uint8)
        pixels[0, 0] = kind
        cv2.imwrite(str(folder / f"{name}.png"), pixels)
    (folder / "e.png").write_bytes(b"nothing")
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(images=folder, output=tmp_path / "out", module=__name__))
    settings = load_settings(config)
    count = prepare(settings).num_chunks
    label_chunks(settings, range(count))
    output = Output(settings.OUTPUT_DIR)
    merge(output, count)
    return output


def test_figures_are_those_counted_by_hand(labelled, tmp_path):
    dataset = MultitaskDataset(labelled.index)
    summary = summarize(dataset.index, json.loads(labelled.statistics.read_text()))
    assert (summary["images"], summary["skipped"], summary["unlabelled"]) == (4, 1, 1)
    cls, det, seg = (summary[task] for task in ("CLS", "DET", "SEG"))
    assert (cls["images"], cls["problems"]) == (2, 1)
    assert cls["classes"] == {"indoors": 0, "outdoors": 2}
    assert [place for place, count in enumerate(cls["scores"]) if count] == [
        8,
        16,
    ]  # 0.4 and 0.8 of twentieths

    assert (det["images"], det["problems"], det["empty"]) == (3, 1, 1)
    assert (det["given"], det["below_threshold"], det["kept"]) == (7, 3, 4)
    assert det["classes"] == {"cat": 4, "dog": 0}
    assert {place: count for place, count in enumerate(det["scores"]) if count} == {0: 2, 2: 1, 10: 2, 19: 2}
    assert sum(det["class_scores"]["cat"]) == 4 and sum(det["class_scores"]["dog"]) == 3

    # Images a and d are sea in their left halves, 40 x 30 and 120 x 15; image b is nothing that is sure.
    assert seg["images"] == 3
    assert seg["classes"] == {"sky": 0, "sea": 1200 + 1800, "sand": 0}
    assert seg["ignored"] == 1200 + 1800 + 2400
    assert seg["ignored_share"] == pytest.approx(5400 / 8400)
    assert {place: count for place, count in enumerate(seg["scores"]) if count} == {6: 5400, 14: 3000}

    write_summary(summary, tmp_path / "summary.json")
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    text = printed(summary_tables(summary), width=120)
    assert "4 images, of which 1 have no label of any task; 1 more file could not be read" in text
    assert "64% don't care" in text and "3 boxes; empty images: 1" in text and "outdoors" in text


def test_bars():
    assert histogram_bars([0, 1, 4, 8]) == " ▁▄█"
    assert histogram_bars([0, 0]) == "  " and histogram_bars([]) == ""
    assert histogram_bars([1, 10**9]) == "▁█"


def test_classes_beyond_the_first_are_counted_together():
    names = {f"class {i}": 2 * (i < 22) for i in range(30)}
    task = {
        "images": 1,
        "problems": 0,
        "classes": names,
        "ignored": 0,
        "ignored_share": 0.0,
        "scores": [9] * 20,
    }
    tables = summary_tables({"images": 1, "skipped": 0, "unlabelled": 0, "SEG": task})
    text = printed(tables, width=80)
    assert "10 more, 8 of them without any" in text and "class 21" not in text
    assert 20 * "█" in text
    task["classes"] = {"some": 3, "none": 0}
    tables = summary_tables({"images": 1, "skipped": 0, "unlabelled": 0, "SEG": task})
    assert "1 more, 1 of them without any" in printed(tables, width=80)


def test_the_sheet_shows_maps_boxes_and_what_is_not_labelled(labelled, tmp_path):
    dataset = MultitaskDataset(labelled.index)
    tile = preview.draw_tile(dataset, 0)
    side = preview._SIDE
    assert tile.shape[1] > side and tile.shape[2] == side
    scale, grey = side / 60, torch.tensor([100, 100, 100])
    # The box of (10, 20) to (30, 40) has its upper edge at y = 20; the class of its colour is 0.
    edge = tile[:, round(20 * scale), round(20 * scale)]
    assert torch.equal(edge, torch.tensor(class_color(0), dtype=torch.uint8))
    # The left half is veiled by the colour of class 1, the right one is don't care.
    left, right = tile[:, round(15 * scale), round(25 * scale)], tile[:, round(15 * scale), round(45 * scale)]
    veiled = 0.4 * grey + 0.6 * torch.tensor(class_color(1))
    assert (left.float() - veiled).abs().max() < 3 and (right.int() - grey).abs().max() < 3
    # Of the image on which the teacher failed there is the image alone.
    failed = preview.draw_tile(dataset, 2)[:, 16 : round(40 * scale) - 4, 16:-8].int()
    assert (failed - 100).abs().max() < 3

    path = tmp_path / "preview.png"
    assert preview.write_preview(dataset, 9, path) == 4
    sheet = cv2.imread(str(path))
    assert sheet.shape[1] > 2 * side and sheet.std() > 1
    assert preview.write_preview(dataset, 1, path) == 1
    with pytest.raises(ValueError, match="a preview of 0 of 4 images"):
        preview.write_preview(dataset, 0, path)


def test_words_below_an_image(labelled):
    dataset = MultitaskDataset(labelled.index)
    words = [preview._in_words(dataset[place], dataset)[0] for place in range(4)]
    assert words == [
        "outdoors, 2 boxes, 50% don't care",
        "no class, 0 boxes, 100% don't care",
        "no class, boxes not labelled, no map",
        "outdoors, 2 boxes, 50% don't care",
    ]
