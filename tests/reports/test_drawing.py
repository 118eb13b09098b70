import importlib
import os
import re

import pytest
import torch

import d2go_fbnetv5.reports
from d2go_fbnetv5.arch.topology import Topology
from d2go_fbnetv5.reports.drawing import Panel, draw_figure, save_figure
from d2go_fbnetv5.reports.text_drawing import draw_text, fusion_edges, live_segments


def random_topologies(count, **options):
    generator = torch.Generator().manual_seed(1)
    return [Topology.random(7, generator=generator, **options) for _ in range(count)]


def path_rows(text):
    return [line[9:] for line in text.splitlines() if line.startswith("Path ")]


def test_text_of_a_known_topology():
    topology = Topology([[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 1]])
    assert draw_text(topology, {"path0"}, ascii_only=True, legend=False) == "\n".join(
        [
            "Stage     0     1     2     3",
            "Path 0   [#]---------------[#]---> head",
            "          v  \\           /",
            "Path 1   [#]---------[#]......",
            "          v  \\     /",
            "Path 2   [#]---[#]............",
            "          v  /",
            "Path 3   [#]...............[x]",
        ]
    )


def test_text_marks_kept_dead_and_skipped():
    for topology in random_topologies(20):
        pruned = topology.prune({"path2"})
        rows = path_rows(draw_text(topology, {"path2"}, ascii_only=True))
        for stage in range(1, 8):
            for path, row in enumerate(rows):
                block = row[6 * stage : 6 * stage + 3]
                if pruned.keeps(stage, path):
                    assert block == "[#]"
                elif topology.keeps(stage, path):
                    assert block == "[x]"
                else:
                    assert block in ("---", "...")


def test_text_without_a_head_has_no_dead_block():
    for topology in random_topologies(10):
        text = draw_text(topology, legend=False)
        assert "░" not in text
        assert text.count("███") == topology.num_kept + 4


def test_text_marks_every_head_and_no_other():
    text = draw_text(Topology.full(3), {"path0", "path3"}, head="seg")
    assert [row.endswith("▶ seg") for row in path_rows(text)] == [True, False, False, True]


def test_ascii_is_ascii_and_as_wide():
    topology = random_topologies(1)[0]
    plain, fancy = (draw_text(topology, {"path3"}, ascii_only=a, legend=False) for a in (True, False))
    assert plain.isascii()
    assert [len(line) for line in plain.splitlines()] == [len(line) for line in fancy.splitlines()]


def test_crossings_show_direction():
    down = draw_text(Topology([[0, 1, 0, 0], [0, 0, 1, 0]]), legend=False).splitlines()
    assert down[4][9 + 6 :].strip() == "╲"  # between Path 1 and Path 2, after Stage 1
    up = draw_text(Topology([[0, 0, 1, 0], [0, 1, 0, 0]]), legend=False).splitlines()
    assert up[4][9 + 10 :].strip() == "╱"
    assert draw_text(Topology.full(2), legend=False).count("╳") == 6  # everything crosses everywhere


def test_segments_end_at_the_head_or_the_last_used_block():
    topology = Topology([[1, 0, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0]])
    segments = live_segments(topology, {"path3"})
    assert {s for s, p in segments if p == 3} == {0, 1, 2, 3}
    # Stage 1 of Path 0 feeds Path 3 at Stage 2; the block at Stage 3 feeds nothing.
    assert {s for s, p in segments if p == 0} == {0}


def test_fusion_edges_join_different_paths_of_successive_stages():
    for topology in random_topologies(10):
        for (stage, path), (to_stage, to_path) in fusion_edges(topology):
            assert to_stage == stage + 1
            assert path != to_path


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_equal_figures_are_equal_files(tmp_path, suffix):
    panels = [Panel(f"task {i}", t, ("path2",), "note") for i, t in enumerate(random_topologies(2))]
    paths = [tmp_path / f"{name}{suffix}" for name in "ab"]
    for path in paths:
        save_figure(draw_figure(panels), path)
    first, second = (path.read_bytes() for path in paths)
    assert first == second
    assert first.startswith(b"<?xml" if suffix == ".svg" else b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in paths)


def test_svg_has_no_date_and_no_address_to_load(tmp_path):
    save_figure(draw_figure([Panel("cls", Topology.full(3), ("path3",))]), tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    assert "dc:date" not in text
    assert not re.findall(r'(?:href|src)="(?!#)', text)


def test_titles_are_not_mathematics(tmp_path):
    save_figure(draw_figure([Panel("a$b_", Topology.full(2), note="$\\x$")]), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 0


def test_figure_grows_with_panels_and_stages():
    one = draw_figure([Panel("a", Topology.full(3))])
    two = draw_figure([Panel("a", Topology.full(3)), Panel("b", Topology.full(6))])
    assert two.get_figheight() > 1.6 * one.get_figheight()
    assert two.get_figwidth() > 1.3 * one.get_figwidth()


@pytest.mark.parametrize("stages", [1, 4, 5, 6, 9])
def test_nothing_is_cut_off(stages):
    figure = draw_figure(
        [Panel("segmentation", Topology.full(stages), ("path0", "path3"), "16 of 16 blocks kept")]
    )
    renderer = figure.canvas.get_renderer()
    width, height = figure.canvas.get_width_height()
    for text in (text for axes in figure.axes for text in axes.texts if text.get_text()):
        box = text.get_window_extent(renderer)
        assert min(box.x0, box.y0, width - box.x1, height - box.y1) > 0, text.get_text()


def test_errors(tmp_path):
    with pytest.raises(ValueError, match="no topology"):
        draw_figure([])
    figure = draw_figure([Panel("a", Topology.full(1))])
    with pytest.raises(ValueError, match=r"'\.gif'; allowed are \.svg, \.png"):
        save_figure(figure, tmp_path / "a.gif")
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        save_figure(figure, tmp_path / "nowhere" / "a.png")
    with pytest.raises(ValueError, match="path9"):
        draw_text(Topology.full(1), {"path9"})


@pytest.mark.parametrize(
    ("backend", "kept"), [("module://no_such_notebook.inline", False), ("module://json", True), ("agg", True)]
)
def test_a_backend_that_is_not_installed_stops_no_drawing(monkeypatch, backend, kept):
    monkeypatch.setenv("MPLBACKEND", backend)
    importlib.reload(d2go_fbnetv5.reports)
    assert ("MPLBACKEND" in os.environ) == kept
