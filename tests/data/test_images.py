"""Files of images and label maps of every kind are read right, or refused by name before they cost anything."""

import io
import mmap
import multiprocessing
import resource
import struct
import types
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from d2go_fbnetv5.data import images as reading
from d2go_fbnetv5.data.images import read_image, read_label_map
from d2go_fbnetv5.utils import opencv
from d2go_fbnetv5.utils.errors import InputError, run_tool

# 48 rows of 64 columns, red to the right and green downwards: no turn or flip of it is like another.
RED, GREEN = np.meshgrid(np.arange(64) * 4, np.arange(48) * 5)
PIXELS = np.stack([RED, GREEN, np.full_like(RED, 90)], -1).astype(np.uint8)


def encoded(kind, image=None, **options):
    buffer = io.BytesIO()
    (Image.fromarray(PIXELS) if image is None else image).save(buffer, kind, **options)
    return buffer.getvalue()


def read(tmp_path, data, size=None):
    path = tmp_path / "file"
    path.write_bytes(data)
    return read_image(path, size).permute(1, 2, 0).numpy().astype(int)


@pytest.fixture(autouse=True)
def nothing_warned_of(monkeypatch):
    monkeypatch.setattr(reading, "_warned", bytearray(len(reading._WARNINGS)))


WHOLE = {
    "jpg": ("JPEG", {"quality": 95}),
    "progressive jpg": ("JPEG", {"quality": 95, "progressive": True}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {"quality": 95}),
    "lossless webp": ("WEBP", {"lossless": True}),
    "bmp": ("BMP", {}),
    "tiff": ("TIFF", {}),
    "packed tiff": ("TIFF", {"compression": "tiff_lzw"}),
    "ppm": ("PPM", {}),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_file_is_read_whole_and_refused_if_cut(tmp_path, kind):
    form, options = WHOLE[kind]
    data = encoded(form, **options)
    assert np.abs(read(tmp_path, data, (48, 64)) - PIXELS).mean() < 6
    for length in (0, 1, 12, len(data) // 3, len(data) // 2, len(data) * 9 // 10, len(data) - 2):
        with pytest.raises(InputError, match="image .*file is broken, cut short or in a format"):
            read(tmp_path, data[:length])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_camera_s_orientation_is_applied(tmp_path, kind, orientation):
    upright = {
        1: PIXELS, 2: PIXELS[:, ::-1], 3: PIXELS[::-1, ::-1], 4: PIXELS[::-1], 5: PIXELS.transpose(1, 0, 2),
        6: np.rot90(PIXELS, -1), 7: PIXELS[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(PIXELS),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(kind, exif=exif)
    assert np.abs(read(tmp_path, data, upright.shape[:2]) - upright).mean() < 9
    if orientation > 4:
        with pytest.raises(InputError, match="is 48x64 .*, expected 64x48"):
            read(tmp_path, data, (48, 64))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("mode", ["L", "P", "I;16"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_label_map_is_turned_as_the_image_of_its_orientation_is(tmp_path, kind, mode, orientation, caplog):
    values = GREEN.astype(np.uint16 if mode == "I;16" else np.uint8) // 5
    exif = Image.Exif()
    exif[0x0112] = orientation
    saved = Image.fromarray(values)
    if mode == "P":
        saved.putpalette(list(range(256)) * 3)
    (tmp_path / "map").write_bytes(encoded(kind, saved, exif=exif))
    grey = Image.fromarray(GREEN.astype(np.uint8))
    upright = read(tmp_path, encoded(kind, grey, exif=exif))[..., 0] // 5
    assert (read_label_map(tmp_path / "map", upright.shape) == upright).all()
    assert ("has the EXIF orientation" in caplog.text) == (kind == "PNG" and orientation > 1)
    if orientation > 4:
        with pytest.raises(
            InputError, match="label map .* is 48x64 .*, expected 64x48; was it turned upright"
        ):
            read_label_map(tmp_path / "map", values.shape)


def test_grey_palette_transparent_and_cmyk_files(tmp_path):
    picture = Image.fromarray(PIXELS)
    grey = np.asarray(picture.convert("L")).astype(int)
    assert (read(tmp_path, encoded("PNG", picture.convert("L"))) == grey[..., None]).all()
    assert (read(tmp_path, encoded("PNG", picture.convert("LA"))) == grey[..., None]).all()
    colours = picture.convert("P", palette=Image.Palette.ADAPTIVE)
    assert (read(tmp_path, encoded("PNG", colours)) == np.asarray(colours.convert("RGB"))).all()
    picture.putalpha(Image.fromarray(GREEN.astype(np.uint8)))
    assert (read(tmp_path, encoded("PNG", picture)) == PIXELS).all()
    cmyk = Image.fromarray(PIXELS).convert("CMYK")
    assert np.abs(read(tmp_path, encoded("JPEG", cmyk, quality=95)) - PIXELS).mean() < 6
    black = Image.fromarray(GREEN.astype(np.uint8) % 2 * 255).convert("1")
    assert set(np.unique(read(tmp_path, encoded("PNG", black)))) == {0, 255}


@pytest.mark.parametrize("extension", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_become_the_eight_that_are_used(tmp_path, extension, channels, caplog):
    values = PIXELS[..., :channels].astype(np.uint16)

    def bits(deep):
        found = read(tmp_path, cv2.imencode(extension, deep[..., ::-1])[1].tobytes())
        return np.abs(found - PIXELS[..., :channels]).max()

    assert bits(values * 257) == 0 and caplog.text == ""
    assert bits(values * 16 + 15) == 0
    assert (
        "has 16 bits and no value above 4047: it and others of its kind are read as images of 12"
        in caplog.text
    )
    assert bits(values) == 0
    assert caplog.text.count("has 16 bits") == 1
    assert read(tmp_path, cv2.imencode(".png", np.zeros((4, 4), np.uint16))[1].tobytes()).max() == 0


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP"])
def test_the_first_of_several_frames_is_read_with_one_warning(tmp_path, kind, caplog):
    frames = [Image.new("RGB", (64, 48), (0, 0, value)) for value in (10, 120, 250)]
    data = encoded(kind, frames[0], save_all=True, append_images=frames[1:])
    for _ in range(2):
        assert np.abs(read(tmp_path, data)[..., 2] - 10).max() < 9
    assert caplog.text.count("file has several frames or pages, of which the first is read") == 1
    caplog.clear()
    read(tmp_path, encoded(kind, frames[0]))
    assert caplog.text == ""


def grey_png(width, height, bits, rows):
    """A PNG of `rows`, each of which begins with a zero for "no filter"."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    chunks = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows, 1)), chunk(b"IEND", b"")
    return b"".join((b"\x89PNG\r\n\x1a\n", *chunks))


@pytest.mark.parametrize(
    ("width", "height", "message"),
    [
        (4000, 3000, "is 4000x3000 .*, expected 64x48"),
        (12000, 12000, "is 12000x12000 .*, allowed are 134217728 pixels"),
        (20000, 10000, "has more than 178956970 pixels, allowed are 134217728"),
        (0, 10, "is broken"),
        (10, 0, "is broken"),
    ],
)
def test_a_size_that_is_wrong_is_refused_before_anything_is_decoded(tmp_path, width, height, message):
    (tmp_path / "x.png").write_bytes(grey_png(width, height, 1, bytes((1 + -(-width // 8)) * height)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.warns(Image.DecompressionBombWarning) if width == 12000 else pytest.MonkeyPatch.context():
        with pytest.raises(InputError, match=f"image .*x.png {message}"):
            read_image(tmp_path / "x.png", (48, 64))
        with pytest.raises(InputError, match=f"label map .*x.png {message}"):
            read_label_map(tmp_path / "x.png", (48, 64))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes


@pytest.mark.parametrize("place", [33, -12])
def test_a_part_that_is_longer_than_its_file_takes_no_memory(tmp_path, place):
    data = bytearray(encoded("PNG"))
    data[place:place] = b"\xff\xff\xff\xf0tEXt"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="image .*file is broken, cut short"):
        read(tmp_path, data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000
    assert (read(tmp_path, encoded("PNG") + b"what some programs leave behind") == PIXELS).all()


def read_map(tmp_path, image, kind="PNG", **options):
    (tmp_path / "map").write_bytes(encoded(kind, image, **options))
    return read_label_map(tmp_path / "map")


def test_maps_give_the_values_that_were_written(tmp_path):
    labels = (GREEN % 4).astype(np.uint8)
    for kind in ("PNG", "TIFF", "BMP"):
        assert (read_map(tmp_path, Image.fromarray(labels), kind) == labels).all()
    assert (
        read_map(tmp_path, Image.fromarray(labels.astype(np.uint16) * 999)) == labels.astype(int) * 999
    ).all()
    assert (read_map(tmp_path, Image.fromarray(labels % 2 == 1)) == labels % 2).all()
    palette = Image.fromarray(labels)
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    for bits in (2, 4, 8):
        assert (read_map(tmp_path, palette, bits=bits) == labels).all()


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_of_few_bits_is_not_spread_over_the_range(tmp_path, bits):
    values = np.arange(8) % 2**bits
    row = np.packbits(((values[:, None] >> np.arange(bits)[::-1]) & 1).astype(np.uint8))
    (tmp_path / "map").write_bytes(grey_png(8, 1, bits, b"\0" + row.tobytes()))
    assert read_label_map(tmp_path / "map").tolist() == [values.tolist()]


def test_maps_that_are_none_are_refused(tmp_path):
    with pytest.raises(InputError, match="map has mode RGB, expected one channel of up to 16 bits"):
        read_map(tmp_path, Image.fromarray(PIXELS))
    with pytest.raises(InputError, match="map has mode LA, expected one channel"):
        read_map(tmp_path, Image.fromarray(PIXELS).convert("LA"))
    with pytest.raises(InputError, match="map has mode F, expected one channel"):
        read_map(tmp_path, Image.fromarray(RED.astype(np.float32)), "TIFF")
    with pytest.raises(InputError, match="map is a JPEG, which changes the values"):
        read_map(tmp_path, Image.fromarray((GREEN % 4).astype(np.uint8)), "JPEG")
    data = encoded("PNG", Image.fromarray(GREEN.astype(np.uint8)))
    for length in (0, 10, 40, len(data) // 2):
        (tmp_path / "map").write_bytes(data[:length])
        with pytest.raises(InputError, match="label map .*map is broken, cut short|is broken or cut short"):
            read_label_map(tmp_path / "map")


@pytest.mark.parametrize("found", ["4.9.0", "4.12.0-dev", "3.4.20"])
def test_an_old_opencv_is_one_sentence(tmp_path, found, monkeypatch, capsys):
    (tmp_path / "x.png").write_bytes(encoded("PNG"))
    monkeypatch.setattr(cv2, "__version__", found)
    monkeypatch.setattr(opencv, "_is_installed", lambda name: name == "opencv-python")
    opencv.opencv.cache_clear()
    try:
        with pytest.raises(InputError, match=f"OpenCV {found} in .*cv2 reads cut images"):
            read_image(tmp_path / "x.png")
        assert run_tool("tool", lambda: read_image(tmp_path / "x.png")) == 2
        assert capsys.readouterr().err.endswith(
            "4.13 is needed: pip install --upgrade 'opencv-python>=4.13'\n"
        )
    finally:
        opencv.opencv.cache_clear()


def no_display(name):
    raise ImportError("libGL.so.1: cannot open shared object file")


@pytest.mark.parametrize(
    ("importing", "message"),
    [(no_display, "libGL.so.1: cannot"), (types.ModuleType, "module 'cv2' has no attribute '__version__'")],
)
def test_an_opencv_that_cannot_be_imported_is_one_sentence(tmp_path, monkeypatch, capsys, importing, message):
    (tmp_path / "x.png").write_bytes(encoded("PNG"))
    monkeypatch.setattr(opencv.importlib, "import_module", importing)
    opencv.opencv.cache_clear()
    try:
        assert run_tool("tool", lambda: read_image(tmp_path / "x.png")) == 2
    finally:
        opencv.opencv.cache_clear()
    error = capsys.readouterr().err
    assert error.startswith(f"tool: OpenCV cannot be imported ({message}") and error.count("\n") == 1


def test_a_warning_of_a_worker_is_one_of_the_run(monkeypatch, caplog):
    monkeypatch.setattr(reading, "_warned", mmap.mmap(-1, 2))
    worker = multiprocessing.get_context("fork").Process(target=reading._warn_once, args=("bits", "twelve"))
    worker.start()
    worker.join(60)
    reading._warn_once("bits", "twelve")
    reading._warn_once("frames", "two")
    assert [record.getMessage() for record in caplog.records] == ["two"]
