"""A format of a user's own is one class in one file: it is exported, checked and benchmarked as the built-in ones."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from d2go_fbnetv5.tools import benchmark as benchmark_tool
from d2go_fbnetv5.tools import export as export_tool
from exported import images, tiny

from d2go_fbnetv5.arch import Topology, build_family
from d2go_fbnetv5.data import EvalTransform
from d2go_fbnetv5.engine.network import Network
from d2go_fbnetv5.export import Calibration, CheckFailedError, export_model, get_format, list_formats
from d2go_fbnetv5.export.formats.base import FORMATS
from d2go_fbnetv5.export.measure.latency import measure_family
from d2go_fbnetv5.models import ImageClassifier, LiteRCNN

TOY = """
import torch
from d2go_fbnetv5.export import Format, ImageSizes, register_format

@register_format("toy")
class Toy(Format):
    suffix = ".toy"
    runtime = "zipfile"  # of the standard library
    fixed_size = parts = True

    def write(self, module, path, spec):
        torch.jit.save(torch.jit.script(module), str(path))
        return ImageSizes.of(spec.size, spec.least, 256, spec.fixed), {"colour": "green"}

    def read(self, path, described, threshold):
        module = torch.jit.load(str(path))
        if threshold is not None:
            module.least_score.fill_(threshold)
        return lambda image: [found] if torch.is_tensor(found := module(image)) else found

    def compiled(self, module, image):
        return lambda: module(image)
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The folder of a file toy.py that registers the format toy, and that nothing has imported."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "toy.py").write_text(TOY)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "toy", raising=False)
    yield folder
    sys.modules.pop("toy", None)


@pytest.fixture
def registered(toy, monkeypatch):
    monkeypatch.syspath_prepend(toy)
    import toy as module

    return module.Toy


@pytest.fixture
def run(tmp_path, toy):
    """The folder of a training of a classifier whose configuration had IMPORTS: [toy]."""
    folder = tmp_path / "run"
    folder.mkdir()
    topology = Topology([[0, 1, 0, 1]])
    images = EvalTransform(64, 64)
    grey = ((128.0,) * 3, (64.0,) * 3)
    network = Network("ImageClassifier", "N", topology, ("a", "b"), {}, *grey, images, ("toy",), (str(toy),))
    network.write(folder, ImageClassifier)
    torch.save({"model": network.build(ImageClassifier).state_dict()}, folder / "model_final.pth")
    return folder


@pytest.mark.parametrize("kind", [ImageClassifier, pytest.param(LiteRCNN, marks=pytest.mark.slow)])
def test_a_file_is_written_described_and_checked(registered, tmp_path, kind):
    assert "toy" in list_formats()
    exported = export_model(tiny(kind), "toy", tmp_path / "out", (96, 64))
    assert exported.path == tmp_path / "out" / "model.toy" and exported.report.agreement == 1
    described = json.loads((tmp_path / "out" / "model.json").read_text())
    assert described["format"] == "toy" and described["colour"] == "green" and described["int8"] is False
    assert described["image_sizes"] == {"min": [64, 64], "max": [256, 256], "multiple_of": 32}
    (image,) = images((64, 320))
    with pytest.raises(ValueError, match="the file takes images of 64x64 to 256x256"):
        get_format("toy").load(exported.path, described)(image)
    fixed = export_model(tiny(kind), "toy", tmp_path / "fixed", (96, 64), fixed_size=True)
    assert fixed.report.sizes == {(96, 64)}


def test_a_file_that_is_not_the_model_does_not_pass(registered, tmp_path, monkeypatch):
    read = registered.read
    monkeypatch.setattr(registered, "read", lambda *args: lambda image: [read(*args)(image)[0] + 0.01])
    with pytest.raises(CheckFailedError, match=r"model.unchecked.toy: .*differ by 0.01"):
        export_model(tiny(ImageClassifier), "toy", tmp_path, (96, 64))


def test_what_it_has_not_is_refused_by_its_attributes(registered, tmp_path):
    calibration = Calibration(images((96, 64)))
    with pytest.raises(ValueError, match="the format toy has no int8; allowed are executorch"):
        export_model(tiny(ImageClassifier), "toy", tmp_path / "out", calibration=calibration)
    with pytest.raises(ValueError, match="the format eager has no file; allowed are executorch, onnx, torch"):
        export_model(tiny(ImageClassifier), "eager", tmp_path / "out")
    registered.packages = ("no_such_package",)
    with pytest.raises(ValueError, match="the format toy needs no_such_package: pip install no_such_package"):
        export_model(tiny(ImageClassifier), "toy", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_parts_of_a_family_are_measured_in_it(registered):
    threads = torch.get_num_threads()
    measured = measure_family(build_family("N"), (64, 64), "toy", rounds=1)
    torch.set_num_threads(threads)
    assert min(measured.costs.blocks) > 0


def test_a_runs_imports_bring_it_to_the_exporter(run, tmp_path, capsys):
    assert "toy" not in FORMATS
    assert export_tool.main(["--run", str(run), "--format", "toy", "--size", "64x64"]) == 0
    assert (run / "toy" / "model.toy").is_file()
    assert export_tool.main(["--run", str(run), "--format", "toy", "--int8"]) == 2
    assert "the format toy has no int8" in capsys.readouterr().err


@pytest.mark.slow
def test_a_runs_imports_bring_it_to_the_benchmark_and_the_processes_that_measure(run, tmp_path):
    argv = [str(run), "--formats", "toy", "eager", "--sizes", "64x64", "--rounds", "1", "--baselines"]
    assert benchmark_tool.main([*argv, "--output", str(tmp_path / "bench")]) == 0
    rows = json.loads((tmp_path / "bench" / "benchmark.json").read_text())["rows"]
    assert [row["format"] for row in rows] == ["toy", "eager"]
    for row in rows:
        assert row["reason"] is None and row["one_thread"][0] > 0 and row["all_threads"][0] > 0


def test_the_measuring_process_is_told_where_the_format_is(run, toy, tmp_path, monkeypatch):
    asked = []

    def worker(command, input, **kwargs):
        asked.append(json.loads(input))
        answer = {"latency": [[1.0, 0.0]], "memory": 0}
        return SimpleNamespace(returncode=0, stdout=json.dumps(answer), stderr="")

    monkeypatch.setattr(subprocess, "run", worker)
    argv = [str(run), "--formats", "toy", "--sizes", "64x64", "--baselines", "--output", str(tmp_path)]
    assert benchmark_tool.main(argv) == 0
    assert [task["modules"] for task in asked] == [["toy"]] * 3 and str(toy) in asked[0]["path"]
