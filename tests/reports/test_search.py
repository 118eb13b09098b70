import dataclasses
import importlib.util
import io
import json
import math
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from d2go_fbnetv5.arch.topology_file import load_topologies
from d2go_fbnetv5.reports.history import read_history
from d2go_fbnetv5.reports.results import TaskResult
from d2go_fbnetv5.reports.search import search_table, write_search_report

_spec = importlib.util.spec_from_file_location(
    "search_results", Path(__file__).with_name("search_results.py")
)
made_up = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(made_up)
make_history, make_results, make_task = made_up.make_history, made_up.make_results, made_up.make_task


class Page(HTMLParser):
    """Collects what a page refers to, and checks that its elements close in order."""

    VOID = {"meta", "img", "br", "link"}

    def __init__(self, text):
        super().__init__()
        self.references, self.tags, self.open, self.words, self.rows = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [value for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)
            if "tr" in self.open:
                self.rows[-1].append(data.strip())

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def write(folder, results=None, history=None):
    results = results or make_results()
    write_search_report(folder, results, make_history() if history is None else history)
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def shown(table, width=100):
    output = io.StringIO()
    Console(width=width, force_terminal=False, file=output).print(table)
    return output.getvalue()


def test_folder_holds_everything_and_no_leftovers(tmp_path):
    write(tmp_path)
    names = {"topologies.json", "topologies.svg", "topologies.png", "probabilities.png", "report.html"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert all(path.stat().st_size > 500 for path in tmp_path.iterdir())


def test_topologies_file_has_what_later_steps_need(tmp_path):
    results = make_results()
    write(tmp_path, results)
    file = load_topologies(tmp_path / "topologies.json")
    assert (file.family, file.num_stages, file.size) == ("N", 3, (64, 96))
    for task in results.tasks:
        entry = file.task(task.task)
        assert entry.topology == task.topology
        assert entry.outputs == task.outputs
        assert [list(row) for row in entry.probabilities] == task.probabilities
        assert (entry.flops, entry.flops_pruned, entry.relative_cost) == (250e6, 200e6, 0.5)
        assert entry.blocks_kept == 6
        assert entry.blocks_kept_pruned == task.topology.prune(task.outputs).num_kept
        assert entry.metrics == {"top1": 0.75, "top5": None}
        assert entry.random["metrics"] == [0.5, 0.7]
        assert len(entry.random["topologies"]) == 2
    json.loads((tmp_path / "topologies.json").read_text(), parse_constant=pytest.fail)


def test_page_needs_nothing_but_itself(tmp_path):
    page = write(tmp_path)
    assert page.references
    assert all(reference.startswith("data:image/svg+xml;base64,") for reference in page.references)
    assert not {"script", "link", "iframe"} & set(page.tags)
    style = (tmp_path / "report.html").read_text().split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style


def test_page_says_what_was_run_and_found(tmp_path):
    (tmp_path / "config.yaml").write_text("SEARCH:\n  TASKS: [cls]\n")
    page = write(tmp_path)
    assert "1,200" in page.text
    assert "1 min 23 s" in page.text
    assert "64 × 96" in page.text
    assert "50% of FLOPs" in page.text
    assert "SEARCH: TASKS: [cls]" in page.text
    row = next(row for row in page.rows if row and row[0] == "cls")
    figures = ["6 / 12", "(5)", "250M", "(200M)", "62%", "0.750", "top1", "0.600", "0.700"]
    assert [cell for cell in row if cell] == ["cls", *figures]
    for heading in (
        "Result",
        "Topologies",
        "Final distribution",
        "Probabilities over time",
        "Loss of the sampled topologies",
        "Diagnostics",
    ):
        assert heading in page.words


def test_diagnostics_are_those_of_the_history(tmp_path):
    history = make_history(length=7)
    for line in history:
        line["task_loss/cls"] = 3.0 - 0.123 * line["iteration"]
    (tmp_path / "metrics.json").write_text("".join(f"{json.dumps(line)}\n" for line in history))
    page = write(tmp_path, history=read_history(tmp_path))
    first, *_, last = (json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines())
    rows = [[cell for cell in row if cell] for row in page.rows if row and row[0] == "cls"]
    keys = ("entropy/cls", "ess/cls", "expected_cost/cls", "task_loss/cls")
    ends = [(f"{first[key]:.3f} →", f"{last[key]:.3f}") for key in keys]
    assert ["cls", *ends[0], *ends[1], *ends[2], "0.500", *ends[3]] in rows
    assert "Agreement between ranks" not in page.text  # of a single process


@pytest.mark.parametrize(("spread", "verdict"), [(0.0, "exactly the same"), (0.25, "probabilities differ")])
def test_ranks_are_compared_where_there_are_several(tmp_path, spread, verdict):
    history = make_history()
    for line in history:
        line |= {"rank_spread/cls": 0.0, "rank_spread/det": spread, "rank_samples_equal": 0.625}
        line |= {f"probs/{task}": [[0.5] * 4] * 3 for task in ("cls", "det")}
    page = write(tmp_path, history=history)
    assert verdict in page.text
    assert ["det", f"{spread:.2g}", f"{spread:.2g}"] in page.rows
    assert "had 0.625 of their decisions in common" in page.text
    assert "with draws of their own it would be 0.500" in page.text


def test_heat_map_has_every_probability(tmp_path):
    task = make_task(probabilities=[[0.01 * (4 * s + p + 1) for p in range(4)] for s in range(3)])
    page = write(tmp_path, make_results(task), history=[])
    rows = {row[0][:6]: row[1:] for row in page.rows if row and row[0].startswith("Path ")}
    assert rows["Path 1"] == ["0.02", "0.06", "0.10"]
    assert sum(map(len, rows.values())) == 12


def test_everything_is_escaped(tmp_path):
    evil = '<img src=x onerror="alert(1)">&amp;$'
    task = make_task(evil, metric_name="<b>", metrics={"<b>": 0.5, "<script>": 1.0})
    (tmp_path / "config.yaml").write_text("</pre><script>alert(1)</script>")
    results = make_results(task, family="<i>A")
    write_search_report(tmp_path, results, make_history((evil,)))
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert not {"script", "i"} & set(page.tags)
    assert all(reference.startswith("data:") for reference in page.references)
    assert evil in page.text
    assert "</pre><script>alert(1)</script>" in page.text


@pytest.mark.parametrize(
    ("metrics", "verdict"),
    [
        ((0.75, 0.6), "Every searched topology is at least as good"),
        ((0.75, 0.5), "cost the same or more: cls."),
        ((0.5, math.nan), "No searched topology reaches the mean"),
    ],
)
def test_verdict_does_not_flatter(tmp_path, metrics, verdict):
    tasks = [make_task(name, metric) for name, metric in zip(("cls", "det"), metrics, strict=True)]
    assert verdict in write(tmp_path, make_results(*tasks), history=[]).text


def test_lower_may_be_better():
    task = make_task(metric=0.6, higher_is_better=False)
    assert task.random_best == 0.5
    assert task.at_least_as_good_as(0.6)
    assert not task.at_least_as_good_as(0.5)
    assert not make_task(metric=math.nan).at_least_as_good_as(0.0)


def test_results_need_a_metric_for_each_random_topology():
    with pytest.raises(ValueError, match=r"cls: \(2, 1, 2\)"):
        make_task(random_metrics=[0.5])


def test_without_history_or_random_topologies(tmp_path):
    task = make_task(random_topologies=[], random_metrics=[], random_flops=[], metrics={})
    page = write(tmp_path, make_results(task, cost_targets={}), history=[])
    assert not (tmp_path / "probabilities.png").exists()
    assert "Probabilities over time" not in page.text
    assert "Beside random topologies" not in page.text
    assert "cost target" not in page.text
    assert "nan" not in page.text.lower()


def test_table_has_a_row_for_each_task_within_80_columns():
    text = shown(search_table(make_results()), width=80)
    row = next(line for line in text.splitlines() if "cls" in line)
    assert row.split() == ["cls", "6/12", "(5)", "250M", "(200M)", "62%", "top1", "0.750", "0.600", "0.700"]
    assert "Random: 2 topologies that cost as much or more" in " ".join(text.split())


def test_table_takes_names_literally():
    assert "[red]x" in shown(search_table(make_results(make_task("[red]x"))))


def test_folder_that_cannot_be_written(tmp_path):
    with pytest.raises(OSError, match="missing"):
        write_search_report(tmp_path / "missing", make_results(), [])


def test_what_was_left_undecided_is_said_where_others_than_the_mode_were_tried(tmp_path):
    assert make_results().undecided == ""
    decided = make_results(make_task("cls", candidates=1), make_task("det", candidates=32, undecided=3))
    assert decided.undecided.startswith(
        "Blocks that the probabilities left undecided: cls 0, det 3; the best of the 32 "
    )
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(search_table(decided))
    assert "undecided: cls 0, det 3" in console.export_text()
    write_search_report(tmp_path, decided, [])
    assert "undecided: cls 0, det 3" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_tasks_that_share_a_network_are_named(tmp_path):
    both = ("cls", "det")
    results = make_results(*(make_task(name, group=both) for name in both), make_task("seg"))
    page = write(tmp_path, results)
    assert "One network is of cls, det, pruned for all of them." in page.text
    entries = load_topologies(tmp_path / "topologies.json").tasks
    assert {name: entry.group for name, entry in entries.items()} == {"cls": both, "det": both, "seg": ()}
    assert "One network" not in write(tmp_path).text
    content = json.loads((tmp_path / "topologies.json").read_text())
    content["tasks"]["cls"]["group"] = "det"
    (tmp_path / "topologies.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="tasks.cls.group is 'det', allowed is a list of tasks' names"):
        load_topologies(tmp_path / "topologies.json")


def test_a_result_is_read_back_from_the_file(tmp_path):
    results = make_results()
    write(tmp_path, results)
    entries = load_topologies(tmp_path / "topologies.json").tasks
    read = [TaskResult.of_entry(name, entry, 400e6) for name, entry in entries.items()]
    assert [repr(each) for each in read] == [repr(task) for task in results.tasks]  # NaN is not NaN
    by_hand = dataclasses.replace(entries["cls"], flops=None)
    with pytest.raises(
        ValueError, match=r"topologies.json: cls has no flops, allowed: all that a search writes"
    ):
        TaskResult.of_entry("cls", by_hand, 400e6)
