"""Labelling under random teachers' outputs, settings, files of OUTPUT_DIR and names: seeded, in this process."""

import json
import random

import cv2
import numpy as np
import pytest
import torch
import yaml
from d2go_fbnetv5.tools.pseudo_label import main

from d2go_fbnetv5.data import MultitaskDataset
from d2go_fbnetv5.engine.log import setup_logging
from d2go_fbnetv5.pseudo_labels import Teacher, register_teacher

SIDE, IMAGES = 12, 10
KEYS = {"CLS": "class_label", "DET": "boxes", "SEG": "sem_seg"}


@pytest.fixture(scope="module", autouse=True)
def console():
    setup_logging(is_main=True)


def odd_values(rng):
    """Values of any kind, as teachers and configurations have them."""
    shape = tuple(rng.choice([0, 1, 2, 3, 4, SIDE]) for _ in range(rng.randrange(4)))
    numbers = torch.rand(shape, generator=torch.Generator().manual_seed(rng.randrange(2**31)))
    kinds = [
        torch.float16,
        torch.bfloat16,
        torch.float64,
        torch.int8,
        torch.int64,
        torch.bool,
        torch.complex64,
    ]
    changed = numbers.clone()
    if changed.numel():
        changed.view(-1)[rng.randrange(changed.numel())] = rng.choice(
            [float("nan"), float("inf"), -float("inf"), -1, 2, 1e30]
        )
    return [
        *(
            None,
            "",
            "text",
            {},
            {"a": 1},
            {1},
            object(),
            [None],
            [[1], [1, 2]],
            -1,
            0,
            1e30,
            float("nan"),
            True,
        ),
        *(numbers, changed, -numbers, numbers.to(rng.choice(kinds)), numbers.numpy(), numbers.tolist()),
        *(numbers.to_sparse(), numbers.to("meta"), numbers.requires_grad_()),
        torch.quantize_per_tensor(torch.rand(shape), 0.1, 0, torch.qint8),
        numbers.detach().to(torch.float8_e5m2),
        torch.zeros(1).expand(2**33),
        np.array(["a"]),
        np.array([None, 1]),
    ]


@register_teacher("fuzzed")
class Fuzzed(Teacher):
    """Right but for what chance, by the image's number, puts in place of an output."""

    def __init__(self, device, seed: int, names: tuple[str, ...] = ("a", "b"), rate: float = 0.3) -> None:
        self.seed, self.rate = seed, rate
        self.class_names = self.box_names = self.sem_seg_names = tuple(names)

    def __call__(self, images):
        return [self.label(image) for image in images]

    def label(self, image):
        rng, count = random.Random(f"{self.seed} {int(image[0, 0, 0])}"), len(self.box_names)
        output = {
            "boxes": torch.tensor([[1.0, 1, 5, 5], [0, 0, 4, 9]]),
            "scores": torch.tensor([0.9, 0.3]),
            "labels": torch.tensor([0, count - 1]),
            "probabilities": torch.full((count, 3, 3), 1.0 / count),
            "class_scores": torch.eye(count)[0],
        }
        while rng.random() < self.rate:
            key = rng.choice([*output, "sem_seg", "all", "raise"])
            if key == "all":
                return rng.choice(odd_values(rng))
            if key == "raise":
                raise rng.choice(
                    [ValueError, RuntimeError, MemoryError, SystemExit, KeyboardInterrupt, OSError]
                )("odd")
            output[key] = rng.choice(odd_values(rng))
            if rng.random() < 0.2:
                del output[key]
        return output


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number in range(IMAGES):
        cv2.imwrite(str(folder / f"{number}.png"), np.full((SIDE, SIDE, 3), number * 20, np.uint8))
    return folder


def settings(photos, options, **changes):
    group = {"SOURCE": "teacher", "TEACHER": "fuzzed", "OPTIONS": options}
    fixed = {"DEVICE": "cpu", "NUM_WORKERS": 0, "CHUNK_SIZE": 4, "BATCH_SIZE": 3}
    return {"IMAGES": {"folders": str(photos)}, **dict.fromkeys(KEYS, group), **fixed, **changes}


@pytest.fixture
def run(tmp_path, capfd):
    """The exit status, what was printed and what was said, which is never a traceback."""

    def label(values, *flags):
        file = tmp_path / "settings.yaml"
        file.write_text(values if isinstance(values, str) else yaml.safe_dump(values), encoding="utf-8")
        capfd.readouterr()
        status = main(["--config-file", str(file), "--output-dir", str(tmp_path / "out"), *flags])
        printed, said = capfd.readouterr()
        assert "Traceback" not in said and status in (0, 2), said
        assert (status == 2) == said.rstrip().rpartition("\n")[2].startswith("pseudo_label: "), said
        return status, printed, said

    return label


def seeds(quick, slow):
    return [*range(quick), *(pytest.param(n, marks=pytest.mark.slow) for n in range(quick, quick + slow))]


@pytest.mark.filterwarnings("ignore")  # numpy's and torch's opinions of odd values
@pytest.mark.parametrize("seed", seeds(6, 150))
def test_a_teachers_outputs_are_labels_or_problems(run, photos, tmp_path, seed):
    rate = random.Random(seed).choice([0.2, 0.5, 0.8])
    status, _, said = run(settings(photos, {"seed": seed, "rate": rate}))
    if status == 2:
        assert "a teacher failed on all of the" in said
        return
    problems = set()
    for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines():
        entry = json.loads(line)
        problems.add((entry["image"].rpartition("/")[2], entry["task"]))
    dataset = MultitaskDataset(tmp_path / "out" / "index")
    assert len(dataset) == IMAGES
    for place, sample in enumerate(dataset):
        for task, key in KEYS.items():
            assert (key in sample) == ((dataset.image_path(place).name, task) not in problems), (task, place)


ODD_YAML = [
    *(
        "null",
        "x",
        "''",
        "-1",
        "0",
        "1",
        "2.5",
        "1e30",
        ".nan",
        ".inf",
        "true",
        "[]",
        "{}",
        "[1, null]",
        "[[a]]",
    ),
    *(
        "{a: b}",
        "{1: 2}",
        "2024-01-15",
        "!!set {a}",
        "!!binary aGk=",
        "'\\0'",
        '"\\0"',
        "99999999999999999999",
        "~",
    ),
    *(
        "a:b",
        "no_such:thing",
        "os:abort_",
        "builtins:dict",
        "math:hypot",
        "torchvision",
        "run",
        "zoo",
        "onnx",
        "~/x",
    ),
]
PLACES = [
    *(
        "IMAGES",
        "IMAGES.READER",
        "IMAGES.folders",
        "IMAGES.index",
        "LIMIT",
        "CHUNK_SIZE",
        "BATCH_SIZE",
        "NUM_WORKERS",
    ),
    *(
        "OUTPUT_DIR",
        "DEVICE",
        "SKIP_MISSING",
        "NONE",
        "CLS",
        "DET.SOURCE",
        "DET.TEACHER",
        "DET.OPTIONS",
        "SEG.NAMES",
    ),
    *("DET.OPTIONS.seed", "DET.OPTIONS.names", "DET.OPTIONS.rate", "DET.OPTIONS.run", "DET.OPTIONS.model"),
    *(
        "DET.OPTIONS.path",
        "DET.THRESHOLD",
        "DET.NAMES",
        "DET.REMAP",
        "DET.REMAP.a",
        "CLS.REMAP.b",
        "CLS.THRESHOLD",
    ),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", seeds(10, 250))
def test_any_settings_are_taken_or_one_sentence(run, photos, seed):
    rng = random.Random(seed)
    values = json.loads(json.dumps(settings(photos, {"seed": 1, "rate": 0.0})))
    chosen = {}
    for number in range(rng.choice([1, 1, 2])):
        node, place = values, rng.choice(PLACES)
        *parents, last = place.split(".")
        for parent in parents:
            node = node[parent] if isinstance(node.get(parent), dict) else node.setdefault(parent + "_", {})
        node[last], chosen[f"<{number}>"] = f"<{number}>", rng.choice(ODD_YAML)
    text = yaml.safe_dump(values)
    for mark, value in chosen.items():
        text = text.replace(mark, value)
    run(text)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("seed", seeds(6, 120))
def test_any_change_of_a_file_is_mended_or_told(run, photos, tmp_path, seed):
    rng, out = random.Random(seed), tmp_path / "out"
    values = settings(photos, {"seed": 1, "rate": 0.0})
    assert run(values)[0] == 0
    whole = contents(out)
    name = rng.choice(sorted(name for name, data in whole.items() if data))
    path, data = out / name, bytearray(whole[name])
    kind = rng.choice(["flip", "cut", "remove", "text"])
    if kind == "flip":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del data[rng.randrange(len(data)) :]
    elif kind == "text":
        data[:] = rng.choice([b"{}", b"[]", b"null", b"\xff\xfe", b"", b'{"version": 2}', b"[" * 9999])
    path.write_bytes(data)
    if kind == "remove":
        path.unlink()
    status, _, said = run(values)
    if status == 2:
        assert str(out) in said  # it names the file, or the folder that holds other labels
        return
    found = contents(out)
    changed = {key for key in whole if found.get(key) != whole[key]} | (found.keys() - whole.keys())
    if changed == {"job.json"}:  # a flip between its values
        assert json.loads(found["job.json"]) == json.loads(whole["job.json"])
    else:
        assert not changed


PARTS = [
    "[red]",
    "[/x]",
    "[",
    "]",
    ":smile:",
    "\\",
    "\n",
    "\t",
    "\x1b[31m",
    "犬",
    "\u202e",
    "%s",
    "{}",
    "<b>",
    '"',
    "'",
    " ",
]


@pytest.mark.parametrize("seed", seeds(4, 60))
def test_any_names_are_shown_as_they_are(run, photos, tmp_path, seed):
    rng = random.Random(seed)
    names = {"".join(rng.choices(PARTS, k=rng.randrange(1, 5))) for _ in range(3)} | {"[red]b[/x]"}
    names = sorted(names)
    status, printed, said = run(settings(photos, {"seed": 1, "names": names, "rate": 0.0}), "--preview", "2")
    if any(not name.strip() or "\udce9" in name for name in names):
        assert status == 2 and "CLS: the set's classes must be a list of strings, none of them empty" in said
        assert not list((tmp_path / "out").glob("chunks/*"))  # known before any image is labelled
        return
    assert status == 0, said
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert list(summary["DET"]["classes"]) == names
    assert MultitaskDataset(tmp_path / "out" / "index").info.box_names == tuple(names)
    shown = [name for name in (names[0],) if name.isprintable() and not name.isspace() and "犬" not in name]
    assert all(name.strip() in printed for name in shown)
