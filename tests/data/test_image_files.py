"""What systems and programs leave in folders of images is no image and no class."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from d2go_fbnetv5.data import ImageFolders, ImageNetFolder, SemSegFolder
from d2go_fbnetv5.data.image_files import find_images
from d2go_fbnetv5.utils.errors import InputError

FOREIGN = (
    ".ipynb_checkpoints/1-checkpoint.png",
    "__MACOSX/1.png",
    "@eaDir/1.png",
    "._1.png",
    ".DS_Store",
    "Thumbs.db",
    "lost+found/1.png",
    "$RECYCLE.BIN/1.png",
    "System Volume Information/1.png",
    "#recycle/1.png",
    "@Recycle/1.png",
    "__pycache__/1.png",
)


def image(path, value=7):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((4, 6), value, np.uint8))


def foreign(folder):
    for name in FOREIGN:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\0\5\26\7")


def test_hidden_files_and_folders_are_left_out_by_every_reader(tmp_path):
    for name in ("i/cat/1.png", "i/cat/deep/2.png", "i/dog/1.PNG"):
        image(tmp_path / name)
    for name in ("m/cat/1.png", "m/cat/deep/2.png", "m/dog/1.png"):
        image(tmp_path / name, 1)
    for folder in ("i", "i/cat", "i/cat/deep", "m", "m/cat"):
        foreign(tmp_path / folder)
    readers = (
        ImageNetFolder(tmp_path / "i"),
        ImageFolders(tmp_path / "i"),
        SemSegFolder(tmp_path / "i", tmp_path / "m", ["a", "b"]),
    )
    for dataset in readers:
        found = [dataset.image_path(index).relative_to(tmp_path / "i") for index in range(len(dataset))]
        assert found == [Path("cat/1.png"), Path("cat/deep/2.png"), Path("dog/1.PNG")]
        assert [dataset[index]["image_id"] for index in range(3)] == [0, 1, 2]
    assert [dataset.info.class_names for dataset in readers[:2]] == [("cat", "dog")] * 2


@pytest.mark.parametrize("parts", [("train", "val"), ("Train", "eval"), ("train2017", "val2017")])
def test_folders_of_a_sets_parts_are_no_classes(tmp_path, parts):
    for part in parts:
        image(tmp_path / part / "cat" / "1.png")
    with pytest.raises(
        InputError,
        match=f"its folders {', '.join(parts)} are parts of a set and no classes.*such as .*{parts[0]}",
    ):
        ImageNetFolder(tmp_path)
    image(tmp_path / "Bicycle" / "1.png")
    assert ImageNetFolder(tmp_path).info.class_names == ("Bicycle", *parts)


def test_images_beside_the_class_folders_are_warned_of(tmp_path, caplog):
    for name in ("cat/1.png", "dog/1.png", "3.JPG", "4.png"):
        image(tmp_path / name)
    assert len(ImageNetFolder(tmp_path)) == 2
    assert "2 images lie beside the class folders and are left out, such as 3.JPG" in caplog.text


def test_pictures_that_cannot_be_read_are_counted_once_a_set(tmp_path, caplog):
    for name in ("cat/1.png", "dog/1.png"):
        image(tmp_path / "i" / name)
        image((tmp_path / "m" / name), 1)
    for name in ("cat/2.HEIC", "dog/3.avif", "dog/4.txt"):
        (tmp_path / "i" / name).touch()
    for build in (ImageNetFolder, ImageFolders, lambda root: SemSegFolder(root, tmp_path / "m", ["a", "b"])):
        caplog.clear()
        assert len(build(tmp_path / "i")) == 2
        assert caplog.text.count("WARNING") == 1
        assert "2 pictures are of kinds that cannot be read and are left out, such as" in caplog.text
    (tmp_path / "i" / "dog" / "1.png").unlink()
    with pytest.raises(FileNotFoundError, match="dog has no images that can be read, .*3.avif cannot"):
        ImageNetFolder(tmp_path / "i")


def test_a_folders_images_and_other_files_are_in_the_order_of_their_names(tmp_path):
    for name in ("b/1.png", "a.png", "c.PNG", "b/a/2.png"):
        image(tmp_path / name)
    foreign(tmp_path)
    (tmp_path / "notes.txt").touch()
    (tmp_path / "gone.png").symlink_to("nowhere")
    images, others = find_images(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in images] == [
        "a.png",
        "c.PNG",
        "b/1.png",
        "b/a/2.png",
    ]
    assert [path.name for path in others] == ["Thumbs.db", "gone.png", "notes.txt"]


@pytest.mark.parametrize("inside", [[], ["Thumbs.db"], [".hidden.png"], ["notes.txt"]])
def test_an_empty_class_folder_is_named_with_its_path(tmp_path, inside):
    image(tmp_path / "cat" / "1.png")
    (tmp_path / "dog").mkdir()
    for name in inside:
        (tmp_path / "dog" / name).touch()
    with pytest.raises(FileNotFoundError, match=f"class folder {tmp_path / 'dog'} has no images"):
        ImageNetFolder(tmp_path)


@pytest.mark.parametrize("reader", [ImageNetFolder, ImageFolders])
def test_a_class_whose_link_leads_nowhere_is_told_of(tmp_path, caplog, reader):
    image(tmp_path / "cat" / "1.png")
    (tmp_path / "dog").symlink_to(tmp_path / "unmounted")
    assert reader(tmp_path).info.class_names == ("cat",)
    assert (
        caplog.text.count("1 links lead nowhere and are left out with all that they stand for, such as dog")
        == 1
    )


def test_links_in_circles_end_and_others_are_followed(tmp_path):
    image(tmp_path / "elsewhere" / "3.png")
    image(tmp_path / "set" / "cat" / "1.png")
    os.symlink(tmp_path / "set" / "cat", tmp_path / "set" / "cat" / "again")
    os.symlink("..", tmp_path / "set" / "cat" / "up")
    os.symlink(tmp_path / "elsewhere", tmp_path / "set" / "cat" / "more")
    dataset = ImageNetFolder(tmp_path / "set")
    assert [dataset.image_path(i).relative_to(tmp_path / "set").as_posix() for i in range(len(dataset))] == [
        "cat/1.png",
        "cat/more/3.png",
    ]


@pytest.mark.parametrize("like", ["1 (1).png", "1 - Copy.jpg", "1 copy.png", "1_mask.png", "1_MASK_2.PNG"])
def test_copies_and_masks_are_warned_of_where_their_image_is_there(tmp_path, caplog, like):
    image(tmp_path / "cat" / "1.png")
    image(tmp_path / "cat" / like)
    assert len(ImageNetFolder(tmp_path)) == 2
    assert "1 of 2 images are named as another one is, but for the ending, capitals or what" in caplog.text
    assert f"a copy or a mask is named by, such as 1.png and {like}; each counts as an image" in caplog.text
    caplog.clear()
    (tmp_path / "cat" / "1.png").rename(tmp_path / "cat" / "2.png")
    assert len(ImageNetFolder(tmp_path)) == 2 and not caplog.text


def test_files_that_differ_in_their_ending_alone_are_warned_of(tmp_path, caplog):
    for name in ("1.jpg", "1.png", "2.png"):
        image(tmp_path / "cat" / name)
    ImageNetFolder(tmp_path)
    assert "1 of 3 images are named as another one is" in caplog.text
    assert "such as 1.jpg and 1.png; each counts as an image" in caplog.text
    image(tmp_path / "m" / "1.png")
    image(tmp_path / "m" / "2.png")
    with pytest.raises(InputError, match="1.jpg and .*1.png have the same label map .*1.png"):
        SemSegFolder(tmp_path / "cat", tmp_path / "m", ["a", "b"])


@pytest.mark.parametrize("names", [("Cat", "cat"), ("cafe\u0301", "caf\u00e9")])
def test_class_folders_that_are_alike_are_warned_of(tmp_path, caplog, names):
    for name in (*names, "dog"):
        image(tmp_path / name / "1.png")
    assert set(names) < set(ImageFolders(tmp_path).info.class_names)
    assert f"1 of 3 names are like another one, such as {names[0]!r} and {names[1]!r}" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": "ab"}, "names must be a list of strings, it is 'ab'"),
        ({"names": ["a", 1]}, r"it has 1 \(a number is a string in quotes\)"),
        ({"values": [0, "255"]}, r"values is \[0, '255'\], allowed are integers of 0 to 65535"),
        ({"values": [0, True]}, r"values is \[0, True\]"),
        ({"ignore_values": [-1]}, r"ignore_values is \[-1\], allowed are integers of 0 to 65535"),
        ({"ignore_values": [10**12]}, r"ignore_values is \[1000000000000\]"),
    ],
)
def test_names_and_values_of_maps(tmp_path, options, message):
    image(tmp_path / "1.png")
    with pytest.raises(InputError, match=message):
        SemSegFolder(tmp_path, tmp_path, **{"names": ["a", "b"], **options})


def test_the_two_parts_of_a_folder_share_no_image_and_all_classes(tmp_path):
    for number in range(7):
        image(tmp_path / ("cat" if number < 5 else "dog") / f"{number}.png")
    whole, train, val = (ImageFolders(tmp_path, part) for part in ("all", "train", "val"))
    names = {part: [part.image_path(i).name for i in range(len(part))] for part in (whole, train, val)}
    assert names[val] == ["4.png"] and sorted(names[train] + names[val]) == names[whole]
    assert {whole.info, train.info, val.info} == {whole.info} and val.info.class_names == ("cat", "dog")
    assert [train[i]["class_label"] for i in range(len(train))] == [0, 0, 0, 0, 1, 1]
    assert val[0]["class_label"] == 0 and val.label_counts == {"class_label": 1}
