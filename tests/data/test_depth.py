"""Depth in files: PNGs of 16 bits, arrays, folders, NYU Depth v2's, an index; and how it moves with its image."""

import io
import json
import logging
import math

import numpy as np
import pytest
import torch

from d2go_fbnetv5.data import MultitaskDataset, TrainTransform, build_dataset, look_at_sets
from d2go_fbnetv5.data.images import encode_png, read_depth
from d2go_fbnetv5.data.index_files import open_index, save_index

MILLIMETRES = np.array([[0, 1000, 2500], [500, 40000, 65535]], np.uint16)
METRES = [[0, 1, 2.5], [0.5, 40, 65.535]]
IMAGE = encode_png(np.zeros((2, 3, 3), np.uint8))


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, np.ndarray):
        stream = io.BytesIO()
        np.save(stream, content)
        content = stream.getvalue()
    path.write_bytes(content)


def test_a_png_is_divided_by_its_scale_and_what_is_no_depth_is_0(tmp_path):
    write(tmp_path / "a.png", encode_png(MILLIMETRES))
    depth = read_depth(tmp_path / "a.png", 1000, (2, 3))
    assert depth.dtype == np.float32
    np.testing.assert_allclose(depth, METRES, rtol=1e-6)
    write(tmp_path / "a.npy", np.array([[math.nan, -1.0, 2.5], [math.inf, 0.0, 7.0]]))
    assert read_depth(tmp_path / "a.npy", 1000).tolist() == [[0, 0, 2.5], [0, 0, 7.0]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "d.png",
            encode_png(np.ones((2, 3), np.uint8)),
            "has mode L, expected one channel of 16 bits: a label map",
        ),
        (
            "d.npy",
            np.ones((2, 3), np.int64),
            r"is an array of int64 and shape \(2, 3\), .* a label map is no depth",
        ),
        ("d.npy", np.ones((2, 3, 1)), r"is an array of float64 and shape \(2, 3, 1\), expected H x W"),
        ("d.npy", np.ones((3, 3)), "is 3x3 .*, expected 3x2"),
        ("d.npy", b"no array", "is broken or cut short"),
        ("d.png", encode_png(MILLIMETRES.T), "is 2x3 .*, expected 3x2"),
    ],
)
def test_what_is_no_depth_of_its_image_is_refused(tmp_path, name, content, message):
    write(tmp_path / name, content)
    with pytest.raises(ValueError, match=f"depth .*{name} {message}"):
        read_depth(tmp_path / name, 1000, (2, 3))


def test_folders_and_nyu_depth_v2_pair_images_with_their_depth(tmp_path):
    write(tmp_path / "images/a/1.png", IMAGE)
    write(tmp_path / "depths/a/1.npy", np.full((2, 3), 3.0, np.float32))
    apart = build_dataset(
        "depth_folder", image_root=tmp_path / "images", depth_root=tmp_path / "depths", unit="relative"
    )
    assert apart.info.depth_units == ("relative",) and (apart[0]["depth"] == 3).all()
    for folder in ("sync/kitchen", "official_splits/test/bath"):
        write(tmp_path / folder / "rgb_00007.png", IMAGE)
        write(tmp_path / folder / "sync_depth_00007.png", encode_png(MILLIMETRES))
    for split in ("train", "test"):
        dataset = build_dataset("nyu_depth_v2", root=tmp_path, split=split)
        assert len(dataset) == 1 and dataset.info.depth_units == ("metres",)
        np.testing.assert_allclose(dataset[0]["depth"], METRES, rtol=1e-6)
    write(tmp_path / "sync/kitchen/rgb_00008.png", IMAGE)
    with pytest.raises(FileNotFoundError, match="rgb_00008.png has no depth .*sync_depth_00008.png or .npy"):
        build_dataset("nyu_depth_v2", root=tmp_path, split="train")
    with pytest.raises(ValueError, match="unit is 'feet', allowed are metres, relative"):
        build_dataset("depth_folder", image_root=tmp_path, unit="feet")
    with pytest.raises(ValueError, match="image_part and depth_part must say how depths differ"):
        build_dataset("depth_folder", image_root=tmp_path)


def index_of(tmp_path, **changes):
    write(tmp_path / "1.png", IMAGE)
    write(tmp_path / "d.png", encode_png(MILLIMETRES))
    images = [{"id": 1, "file_name": "1.png", "height": 2, "width": 3, "depth_file_name": "d.png"}]
    images.append({"id": 2, "file_name": "2.png", "height": 2, "width": 3})
    path = tmp_path / "index.json"
    path.write_text(json.dumps({"images": images, "depth_units": ["metres"], "depth_scale": 500, **changes}))
    return path


def test_an_index_names_depths_and_their_scale_in_both_of_its_forms(tmp_path):
    dataset = MultitaskDataset(index_of(tmp_path))
    assert dataset.label_counts["depth"] == 1
    np.testing.assert_allclose(dataset[0]["depth"], 2 * np.array(METRES), rtol=1e-6)
    save_index(dataset.index, tmp_path / "arrays")
    again = open_index(tmp_path / "arrays")
    assert again.info.depth_units == ("metres",) and again.depth_scale == 500
    assert list(again.depth_names) == ["d.png", ""]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth_units": ["feet"]}, r"'depth_units' is \['feet'\], allowed is one of metres, relative"),
        ({"depth_units": []}, "has depth_file_name, but the index has no 'depth_units'"),
        ({"depth_scale": 0}, "depth_scale is 0, it must be a number above 0"),
    ],
)
def test_a_wrong_index_of_depths_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        MultitaskDataset(index_of(tmp_path, **changes))


def test_depth_moves_with_its_image_and_keeps_its_values():
    rows = torch.arange(1.0, 41)[:, None].expand(40, 40)
    sample = {"image": rows.byte().expand(3, 40, 40).contiguous(), "depth": rows.contiguous(), "image_id": 0}
    moved = TrainTransform(80, crop=(60, 100), flip=1.0, color=0)(sample, 3)
    depth, there = moved["depth"], moved["depth"] > 0
    assert depth.shape == (60, 100) and set(depth.unique().tolist()) <= set(range(41))
    assert there.any() and not there.all()  # beyond the image there is none
    assert (depth[there] - moved["image"][0][there]).abs().max() <= 1.5
    with pytest.raises(ValueError, match=r"'depth' of image 0 is \(20, 40\), its image \(40, 40\)"):
        TrainTransform(80)({**sample, "depth": sample["depth"][:20]}, 0)


def test_depths_that_can_hardly_be_metres_are_warned_of(tmp_path, caplog):
    changes = {
        "images": [{"id": 1, "file_name": "1.png", "height": 2, "width": 3, "depth_file_name": "d.png"}]
    }
    for scale, warned in ((1, True), (1000, False)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            look_at_sets(
                "DATASETS.TRAIN", {"s": MultitaskDataset(index_of(tmp_path, depth_scale=scale, **changes))}
            )
        assert ("half of the depths that were looked at are above 2500 metres" in caplog.text) == warned
