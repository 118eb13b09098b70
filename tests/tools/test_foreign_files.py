"""What lies under the name that a tool is given for its output: its own earlier file is replaced, any other is not."""

import pytest
import torch
from d2go_fbnetv5.tools import benchmark, convert_weights, latency_table, visualize

from d2go_fbnetv5.arch import Supernet, block_costs, build_family
from d2go_fbnetv5.arch.latency_table import read_latency_table, write_latency_table
from d2go_fbnetv5.utils.files import is_ours


def drawn(folder, file):
    return visualize.main(["--named", "unet", "--output", file])


def compared(folder, file):
    (folder / "metrics.json").write_text('{"iteration": 9, "probs/det": [[0.9, 0.8, 0.7, 0.6]]}\n')
    return visualize.main([str(folder), str(folder), "--output", file])


def converted(folder, file):
    search = folder / "search"
    search.mkdir(exist_ok=True)
    (search / "config.yaml").write_text("SEED: 7\n")
    state = {f"supernet.{name}": value for name, value in Supernet("N", 1).state_dict().items()}
    torch.save({"model": state}, search / "model_final.pth")
    return convert_weights.main([str(search), file])


WRITE = {
    "a.svg": drawn,
    "a.png": drawn,
    "a.pdf": drawn,
    "b.html": compared,
    "w.pth": converted,
    "w.safetensors": converted,
}


@pytest.mark.parametrize("name", WRITE)
def test_a_tool_replaces_its_own_file_and_no_other(tmp_path, capsys, name):
    file = tmp_path / name
    file.write_bytes(b"a user's own, by FBNetV5 or d2go_fbnetv5\n" * 1000)
    before = file.read_bytes()
    assert WRITE[name](tmp_path, str(file)) == 2
    error = capsys.readouterr().err
    assert f"{file} is there and is nothing that this package has written; choose another name" in error
    assert file.read_bytes() == before
    file.write_bytes(b"")
    for _ in range(2):
        assert WRITE[name](tmp_path, str(file)) == 0, capsys.readouterr().err
    assert is_ours(file) and file.stat().st_size


@pytest.mark.parametrize(
    ("tool", "args", "name"),
    [
        (latency_table, ["--family", "N"], "table.csv"),
        (benchmark, ["FBNetV5-A-CLS", "--output"], "benchmark.md"),
        (benchmark, ["FBNetV5-A-CLS", "--output"], "benchmark.json"),
    ],
)
def test_what_would_be_refused_is_refused_before_anything_is_measured(tmp_path, capsys, tool, args, name):
    (tmp_path / name).write_text("mine")
    assert tool.main([*args, str(tmp_path if tool is benchmark else tmp_path / name)]) == 2
    assert f"{name} is there and is nothing that this package has written" in capsys.readouterr().err
    assert (tmp_path / name).read_text() == "mine"


def test_a_table_is_signed_and_read(tmp_path):
    family, file = build_family("N"), tmp_path / "table.csv"
    costs = block_costs(family, (96, 96))
    write_latency_table(file, costs, family, (96, 96))
    assert is_ours(file)
    found = read_latency_table(file, family, (96, 96))
    assert found.blocks == pytest.approx(costs.blocks, rel=1e-4)
