import io
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from d2go_fbnetv5.tools.benchmark import main

from d2go_fbnetv5.data import DigitScenes
from d2go_fbnetv5.export import Format
from d2go_fbnetv5.export.formats.base import FORMATS
from d2go_fbnetv5.export.measure import benchmark, worker
from d2go_fbnetv5.export.measure.benchmark import Row, markdown
from d2go_fbnetv5.export.measure.evaluation import ExportedModel
from d2go_fbnetv5.export.measure.subjects import open_subject
from d2go_fbnetv5.export.network.inference import inference_module
from d2go_fbnetv5.zoo import create_model


@pytest.fixture
def in_process(monkeypatch):
    """The worker's answers without starting Python for each."""

    def run(command, input, **kwargs):
        assert command[1:] == ["-m", "d2go_fbnetv5.export.measure.worker"]
        with monkeypatch.context() as patch:
            answer = io.StringIO()
            patch.setattr(sys, "stdin", io.StringIO(input))
            patch.setattr(sys, "stdout", answer)
            worker.main()
        return SimpleNamespace(returncode=0, stdout=answer.getvalue(), stderr="")

    threads = torch.get_num_threads()
    monkeypatch.setattr(benchmark.subprocess, "run", run)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_models_by_formats_by_sizes(tmp_path, capsys, in_process):
    folder = tmp_path / "bench"
    argv = [
        "FBNetV5-N-CLS",
        "--formats",
        "torchscript",
        "eager",
        "--sizes",
        "64x64",
        "64x96",
        "--rounds",
        "2",
    ]
    assert main([*argv, "--baselines", "--output", str(folder)]) == 0
    out, _ = capsys.readouterr()
    assert (folder / "benchmark.md").read_text().startswith(out.strip())
    content = json.loads((folder / "benchmark.json").read_text())
    rows = content["rows"]
    assert [(row["format"], row["size"]) for row in rows] == [
        (format, [64, width]) for width in (64, 96) for format in ("torchscript", "eager")
    ]
    for row in rows:
        assert row["one_thread"][0] > 0 and row["all_threads"][0] > 0 and row["reason"] is None
        assert row["ms_per_mflop"] == pytest.approx(row["one_thread"][0] / (row["flops"] / 1e6))
        if row["format"] == "torchscript":
            path = folder / f"FBNetV5-N-CLS-torchscript-64x{row['size'][1]}.pt"
            assert row["file"] == str(path) and row["file_bytes"] == path.stat().st_size > 0
        else:
            assert row["file"] is None and row["file_bytes"] is None
    assert rows[0]["flops"] == rows[1]["flops"] < rows[2]["flops"]
    assert out.count("\n| FBNetV5-N-CLS | ") == 4 and "torch " in content["about"]


@pytest.mark.slow
def test_a_process_of_its_own_measures_memory(tmp_path):
    task = {
        "threads": 1,
        "modules": [],
        "path": [],
        "candidates": [{"model": "FBNetV5-N-CLS", "format": "eager", "size": [64, 64], "path": None}],
    }
    command = [sys.executable, "-m", "d2go_fbnetv5.export.measure.worker"]
    done = subprocess.run(command, input=json.dumps(task), capture_output=True, text=True, check=True)
    memory = json.loads(done.stdout)["memory"]
    assert memory is None or 1e6 < memory < 1e9


def test_what_an_exporter_cannot_is_a_dash_with_a_reason(tmp_path, capsys, in_process):
    class Broken(Format):
        suffix = ".bad"

        def write(self, module, path, spec):
            raise NotImplementedError("no\nkernel for nms")

    FORMATS.add("broken", Broken("broken"))
    argv = ["FBNetV5-N-CLS", "--formats", "broken", "--sizes", "64x64", "--baselines", "--rounds", "1"]
    assert main([*argv, "--output", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("exporting FBNetV5-N-CLS as broken\nmeasuring latency on 1 thread\n")
    assert "- FBNetV5-N-CLS as broken: NotImplementedError: no kernel for nms" in out
    row = next(line for line in out.splitlines() if line.startswith("| FBNetV5"))
    assert row.split(" | ")[4:] == ["–"] * 5 + ["– |"]


def test_a_worker_that_fails_is_a_users_error(tmp_path, capsys, monkeypatch):
    failed = SimpleNamespace(returncode=1, stdout="", stderr="Traceback\nMemoryError: too much\n")
    monkeypatch.setattr(benchmark.subprocess, "run", lambda *args, **kwargs: failed)
    argv = [
        "FBNetV5-N-CLS",
        "--formats",
        "eager",
        "--sizes",
        "64x64",
        "--baselines",
        "--output",
        str(tmp_path),
    ]
    assert main(argv) == 2
    assert "measuring FBNetV5-N-CLS (eager) failed: MemoryError: too much" in capsys.readouterr().err


def test_a_row_is_written_as_people_read_it():
    row = Row("a", "onnx", (64, 96), 280_000_000, "a.onnx", 31_300_000, (9.8, 0.25), (5.0, 0.5), 60_000_000)
    row.metrics = {"top1": 0.98765}
    text = markdown([row], threads=2, about="machine")
    assert (
        "| a | onnx | 64x96 | 280M | 9.80 (0.25) | 5.00 (0.50) | 0.0350 | 31.3 | 60.0 | top1 0.988 |" in text
    )
    assert "ms, 2 threads" in text and "Not exported" not in text


@pytest.mark.parametrize("task", ["CLS", "SEG", "DET"])
def test_a_file_has_its_models_contract(task):
    torch.manual_seed(0)
    model = create_model(f"FBNetV5-N-{task}", 10).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    scenes = DigitScenes("val", (72, 100), num_images=2)  # padded to 96 x 128
    batch = [scenes[i] for i in range(2)]
    inference = inference_module(model, task == "CLS")
    found_by_file = ExportedModel(model, lambda image: _tuple(inference(image)))(batch)
    with torch.no_grad():
        expected_by_model = model(batch)
    for found, expected in zip(found_by_file, expected_by_model, strict=True):
        if task == "CLS":
            assert torch.allclose(found["class_scores"], expected["class_scores"], atol=1e-5)
        elif task == "SEG":
            assert found["sem_seg"].shape == (72, 100)
            assert torch.equal(found["sem_seg"], expected["sem_seg"])
        else:
            assert len(found["scores"]) == len(expected["scores"]) > 0
            assert torch.allclose(found["scores"], expected["scores"], atol=1e-5)
            assert (found["boxes"] <= torch.tensor([100.0, 72.0, 100.0, 72.0])).all()
    with pytest.raises(ValueError, match="images of 96x96 alone, found one of"):
        ExportedModel(model, lambda image: _tuple(inference(image)), (96, 96))(batch)


def _tuple(outputs):
    with torch.no_grad():
        return outputs if isinstance(outputs, tuple) else (outputs,)


def test_baselines_are_other_libraries_models():
    pytest.importorskip("timm")
    subject = open_subject("timm/mobilenetv3_small_050")
    assert (subject.size, subject.outputs) == ((224, 224), ("scores",))
    assert subject.flops((224, 224)) == pytest.approx(24e6, rel=0.05)  # 23.7M, says timm
    module = subject.module((64, 64))
    with torch.no_grad():
        scores = module(255 * torch.rand(1, 3, 64, 64))
        # timm's models take images normalised by ImageNet's mean and deviation; its mean colour is zero then.
        mean = 255 * torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1).expand(1, 3, 64, 64)
        assert torch.allclose(module(mean), module.model(torch.zeros(1, 3, 64, 64)).softmax(1), atol=1e-6)
    assert scores.shape == (1, 1000) and scores.sum().item() == pytest.approx(1, abs=1e-4)


@pytest.mark.slow
def test_torchvisions_detector_runs_scripted_and_eager(tmp_path, capsys):
    argv = ["FBNetV5-N-DET", "--formats", "torchscript", "eager", "--rounds", "1", "--baselines"]
    assert main([*argv, "torchvision/fasterrcnn_mobilenet_v3_large_320_fpn", "--output", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "benchmark.json").read_text())["rows"]
    assert len(rows) == 4 and all(row["one_thread"][0] > 0 and row["reason"] is None for row in rows)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["FBNetV5-Z-CLS"], "unknown model 'FBNetV5-Z-CLS'"),
        (["nowhere/run"], "nowhere/run does not exist"),
        (["timm/no_such_model"], "has no model 'no_such_model'"),
        (["torchvision/resnet18"], "torchvision has no detector 'resnet18'"),
        (
            ["FBNetV5-N-CLS", "--formats", "coreml"],
            "unknown format 'coreml'; allowed are eager, executorch, ",
        ),
        (["FBNetV5-N-CLS", "--formats", "onnx-int8"], "the format onnx has no int8; allowed are executorch"),
        (["FBNetV5-N-CLS", "--sizes", "64"], "--sizes 64: expected HEIGHTxWIDTH"),
        (["FBNetV5-N-DET", "--sizes", "32x32"], "size 32x32 is too small for Path 3"),
        (["FBNetV5-N-CLS", "--rounds", "0"], "--rounds 0: allowed is 1 or more"),
        (["FBNetV5-N-CLS", "--max-images", "-1"], "--max-images -1: allowed is 0 or more"),
    ],
)
def test_wrong_input_is_one_sentence_and_status_2(capsys, tmp_path, monkeypatch, argv, message):
    if argv[0].startswith("timm/"):
        pytest.importorskip("timm")
    monkeypatch.chdir(tmp_path)
    formats = [] if "--formats" in argv else ["--formats", "eager"]
    assert main([*argv, *formats, "--baselines"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.startswith("benchmark: ") and err.count("\n") == 1
