import io
import json
import sys

import pytest
from d2go_fbnetv5.tools.visualize import main

from d2go_fbnetv5.arch import Topology, block_costs
from d2go_fbnetv5.arch.topology_file import save_topologies
from d2go_fbnetv5.reports.text_drawing import draw_text

DET = Topology([[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 1, 1]])
CLS = Topology.full(3)


@pytest.fixture
def run(tmp_path):
    """An output folder as a search leaves it."""
    folder = tmp_path / "run"
    folder.mkdir()
    entries = {
        "det": {"topology": DET, "outputs": ["path2"], "flops_pruned": 123e6},
        "cls": {"topology": CLS, "outputs": ["path3"]},
    }
    save_topologies(folder / "topologies.json", "N", 3, (64, 64), entries)
    lines = [
        {
            "iteration": i,
            "probs/det": [[0.5, 0.5 + i / 20, 0.5 - i / 20, 0.5]] * 3,
            "probs/cls": [[0.75] * 4] * 3,
        }
        for i in range(10)
    ]
    (folder / "metrics.json").write_text(
        "".join(f"{json.dumps(line)}\n" for line in lines) + '{"iteration": 10, "pr'
    )
    return folder


def test_draws_every_task(capsys, run):
    assert main([str(run)]) == 0
    out = capsys.readouterr().out
    assert draw_text(DET, {"path2"}, legend=False) in out
    assert draw_text(CLS, {"path3"}) in out
    assert "det: 5 of 12 blocks kept, 4 used by the head, 123M FLOPs" in out


def test_takes_the_file_itself_and_one_task(capsys, run):
    assert main([str(run / "topologies.json"), "--task", "cls", "--ascii"]) == 0
    out = capsys.readouterr().out
    assert out.isascii()
    assert draw_text(CLS, {"path3"}, ascii_only=True) in out
    assert "det" not in out


def test_draws_the_network_of_a_front_within_a_budget(capsys, tmp_path):
    points = [
        {"topology": t.to_dict(), "loss": loss} for t, loss in ((DET, 0.2), (DET.prune(["path0"]), 0.3))
    ]
    tasks = {"det": {"outputs": ["path2"], "front": points}}
    path = tmp_path / "front.json"
    path.write_text(
        json.dumps({"format": 1, "family": "N", "num_stages": 3, "size": [96, 96], "tasks": tasks})
    )
    least = block_costs("N", (96, 96)).network(DET.prune(["path0"]), ["path2"])
    for budget, shown in (([], DET), (["--budget", f"flops={least}"], DET.prune(["path0"]))):
        assert main([str(path), *budget]) == 0
        assert draw_text(shown, {"path2"}, legend=False) in capsys.readouterr().out
    assert main([str(path), "--budget", "flops=9"]) == 2
    assert "the least is" in capsys.readouterr().err


def test_named(capsys):
    assert main(["--named", "unet", "--stages", "4"]) == 0
    assert draw_text(Topology.named("unet", stages=4)) in capsys.readouterr().out


def test_falls_back_to_ascii_where_the_terminal_needs_it(monkeypatch, run):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="latin-1"))
    assert main([str(run), "--probabilities"]) == 0
    assert main([str(run)]) == 0
    sys.stdout.flush()
    assert b"[#]---[#]" in raw.getvalue()


@pytest.mark.parametrize("more", [[], ["--probabilities"]])
@pytest.mark.parametrize(("suffix", "magic"), [(".svg", b"<?xml"), (".png", b"\x89PNG")])
def test_writes_a_picture(capsys, run, tmp_path, suffix, magic, more):
    picture = tmp_path / f"picture{suffix}"
    assert main([str(run), "--output", str(picture), *more]) == 0
    assert picture.read_bytes().startswith(magic)
    assert str(picture) in capsys.readouterr().out


def test_several_runs_are_compared(capsys, run, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    line = {"iteration": 3, "probs/det": [[0.5, 0.95, 0.95, 0.5]] * 3, "probs/cls": [[0.25] * 4] * 3}
    (other / "metrics.json").write_text(json.dumps(line))
    (run / "topologies.json").unlink()
    assert main([str(run), str(other), "--ascii"]) == 0
    out = capsys.readouterr().out
    assert out.isascii()
    rows = {line.split("|")[1].strip(): line.split("|")[2:6] for line in out.splitlines() if "other" in line}
    assert [cell.strip() for cell in rows["det"]][:2] == ["run - other", "75%"]
    assert [cell.strip() for cell in rows["cls"]][:2] == ["run - other", "0%"]
    for name in ("agreement.html", "agreement.svg"):
        assert main([str(run), str(other), "--task", "det", "--output", str(tmp_path / name)]) == 0
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert text.startswith("<!doctype html>" if name.endswith("html") else "<?xml")
    assert "75%" in (tmp_path / "agreement.html").read_text(encoding="utf-8")


def test_probabilities_as_text(capsys, run):
    (run / "topologies.json").unlink()  # as while the search is under way
    assert main([str(run), "--probabilities", "--task", "det"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "det: probability of each block, iterations 0 to 9"
    rows = [line.split()[2:] for line in lines if line.startswith("Path ")]
    assert [row[1] for row in rows] == ["0.50", "0.95", "0.05", "0.50"]
    assert rows[0][0] == "▅▅▅▅"
    assert list(rows[1][0]) == sorted(rows[1][0])
    assert rows[1][0][0] < rows[1][0][-1]
    assert rows[2][0][0] > rows[2][0][-1]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "give either RUN_DIR"),
        (["RUN", "--named", "unet"], "give either RUN_DIR"),
        (["--named", "resnet"], "unknown topology 'resnet': allowed are linear, unet"),
        (["--named", "panet", "--stages", "2"], "to 100 stages, found 2"),
        (["RUN", "EMPTY"], "no probabilities of a search"),
        (["RUN", "RUN", "--probabilities"], "several RUN_DIR are compared"),
        (["RUN", "--task", "seg"], "no task 'seg'; available: det, cls"),
        (["RUN", "--task", "seg", "--probabilities"], "no task 'seg'; available: det, cls"),
        (["--probabilities"], "--probabilities needs RUN_DIR"),
        (["RUN", "--output", "a.gif"], "'.gif'; allowed are .svg, .png"),
        (["RUN", "--output", "nowhere/a.png"], "nowhere: no such folder"),
        (
            ["--named", "unet", "--budget", "flops=9e6"],
            "--budget flops=9e6: is for the networks of one front.json",
        ),
        (["nowhere"], "nowhere: no such file"),
        (["EMPTY"], "--probabilities shows a search under way"),
        (["EMPTY", "--probabilities"], "no probabilities of a search"),
    ],
)
def test_wrong_input_is_one_sentence_and_status_2(capsys, run, tmp_path, argv, message):
    empty = tmp_path / "empty"
    empty.mkdir()
    places = {"RUN": str(run), "EMPTY": str(empty)}
    assert main([places.get(word, word) for word in argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.startswith("visualize: ")
    assert err.count("\n") == 1
