import importlib.util

import pytest
from d2go_fbnetv5.tools.latency_table import main

from d2go_fbnetv5.arch import build_family
from d2go_fbnetv5.arch.blocks import InvertedResidual
from d2go_fbnetv5.arch.latency_table import BLOCKS, STAGE0, read_latency_table
from d2go_fbnetv5.export import get_format
from d2go_fbnetv5.export.measure import latency
from d2go_fbnetv5.export.measure.latency import CHAIN, FamilyLatency, measure_family
from d2go_fbnetv5.export.measure.timing import Latency


def test_a_table_of_this_machine(tmp_path, capsys):
    path = tmp_path / "table.csv"
    argv = ["--family", "N", "--size", "64x96", "--format", "eager", "--rounds", "2", "--check", "3"]
    assert main([*argv, "--stages", "1", str(path)]) == 0
    out, _ = capsys.readouterr()
    costs = read_latency_table(path, build_family("N"), (64, 96))
    assert min(costs.stage0 + costs.blocks) > 0
    text = path.read_text()
    for line in ("# family: N", "# size: 64x96", "# format: eager", "# threads: 1", "# versions: torch "):
        assert f"\n{line}" in f"\n{text}"
    assert "# machine: " in text
    for words in (
        "Family N at 64x96, eager",
        "block.path3",
        "3 networks of random topologies",
        "correlation",
    ):
        assert words in out


@pytest.mark.slow  # each block is compiled
@pytest.mark.parametrize("runtime", ["executorch", "onnx"])
def test_formats_run_a_familys_blocks(tmp_path, runtime):
    pytest.importorskip({"executorch": "executorch", "onnx": "onnxruntime"}[runtime])
    family = build_family("N")
    measured = measure_family(family, (64, 64), runtime, rounds=2)
    assert min(measured.costs.stage0 + measured.costs.blocks) > 0


def test_a_block_takes_its_share_of_a_chain_and_networks_the_sum_of_their_parts(monkeypatch):
    """With a clock that counts inverted residuals."""
    monkeypatch.setattr(get_format("eager"), "compiled", lambda module, x: module)
    monkeypatch.setattr(
        latency,
        "measure_in_turns",
        lambda calls, rounds: {
            name: Latency(float(sum(isinstance(m, InvertedResidual) for m in module.modules())), 0.5)
            for name, module in calls.items()
        },
    )
    measured = measure_family(build_family("N"), (64, 64), "eager", networks=5, num_stages=2)
    assert measured.costs.stage0 == (2.0, 2.0, 2.0, 2.0) and measured.costs.blocks == (2.0,) * 4
    assert measured.spreads == {**dict.fromkeys(STAGE0, 0.5), **dict.fromkeys(BLOCKS, 0.5 / CHAIN)}
    assert all(total == whole for total, whole in measured.networks)
    assert measured.correlation == pytest.approx(1)
    assert FamilyLatency(measured.costs, {}, measured.networks[:2]).correlation is None


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--family", "Z", "t.csv"], "unknown family 'Z'"),
        (["--family", "N", "--size", "64", "t.csv"], "--size 64: expected HEIGHTxWIDTH"),
        (["--family", "A", "--size", "32x32", "t.csv"], "size (32, 32): allowed are"),
        (
            ["--family", "N", "--format", "coreml", "t.csv"],
            "unknown format 'coreml'; allowed are eager, executorch, onnx",
        ),
        (
            ["--family", "N", "--format", "torchscript", "t.csv"],
            "the format torchscript has no latency table; allowed are eager, executorch, onnx",
        ),
        (["--family", "N", "--rounds", "0", "t.csv"], "--rounds 0: allowed is 1 or more"),
        (["--family", "N", "--check", "-1", "t.csv"], "--check -1: allowed is 0 or more"),
        (["--family", "N", "--stages", "0", "t.csv"], "--stages 0: allowed is 1 or more"),
        (["--family", "N", "nowhere/t.csv"], "nowhere/t.csv: there is no folder nowhere"),
    ],
)
def test_wrong_input_is_one_sentence_and_status_2(capsys, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.startswith("latency_table: ") and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(importlib.util.find_spec("executorch") is not None, reason="executorch is installed")
def test_a_format_without_its_packages_says_how_to_install_them(capsys, tmp_path):
    assert main(["--family", "N", str(tmp_path / "t.csv")]) == 2
    assert "pip install 'd2go_fbnetv5[export]'" in capsys.readouterr().err
