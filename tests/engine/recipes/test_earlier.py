"""SEARCH.FROM: tasks that a run adds to a finished search."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from d2go_fbnetv5.arch import Topology
from d2go_fbnetv5.arch.topology_file import save_topologies
from d2go_fbnetv5.engine.build import build_search_groups
from d2go_fbnetv5.engine.config import load_cfg
from d2go_fbnetv5.engine.continuing import search_config
from d2go_fbnetv5.engine.recipes.earlier import EarlierTasks
from d2go_fbnetv5.engine.recipes.search import SearchRecipe, search_arguments
from d2go_fbnetv5.engine.train import prepare, train
from d2go_fbnetv5.front.extract import extract_network
from d2go_fbnetv5.front.run import find_front
from d2go_fbnetv5.search import AdaptingSearch, AdditionSearch
from d2go_fbnetv5.tasks import DatasetInfo

OPTS = {
    "SOLVER.MAX_ITER": 4,
    "SOLVER.IMS_PER_BATCH": 4,
    "SOLVER.CHECKPOINT_PERIOD": 1,
    "SEARCH.SAMPLES_PER_RANK": 2,
    "SEARCH.EVAL.MAX_IMAGES": 4,
    "SEARCH.EVAL.BN_ITERS": 1,
    "SEARCH.EVAL.CANDIDATES": 1,
    "SEARCH.EVAL.RANDOM_TOPOLOGIES": 1,
    "FBNETV5_DATA.DATASETS.digit_scenes_val.num_images": 4,
    "WRITER_PERIOD": 1,
    "SEED": 1,
}
ADDED = {"SEARCH.ARCH_WARMUP_ITERS": 2, "SEARCH.SHARED_IMAGES": True}


def configured(file, folder, **more):
    opts = {**OPTS, "OUTPUT_DIR": folder, **more}
    return load_cfg(file, [str(part) for item in opts.items() for part in item])


def adding(folder, earlier, tasks, **more):
    more = {**ADDED, "SEARCH.FROM": earlier, "SEARCH.TASKS": tasks, **more}
    depth = "_depth" if tasks == "[depth]" else ""
    return configured(f"search_digits_addition{depth}.yaml", folder, **more)


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A search for cls, of one step on the supernet that ships."""
    folder = tmp_path_factory.mktemp("search") / "run"
    more = {"SEARCH.TASKS": "[cls]", "SOLVER.MAX_ITER": 1}
    train(prepare(configured("search_digits.yaml", folder, **more), 1))
    return folder


def weights(folder):
    return torch.load(folder / "model_final.pth", weights_only=True)["model"]


def refused(cfg, message, kind=ValueError):
    with pytest.raises(kind, match=message):
        prepare(cfg, 1)


@pytest.mark.slow
def test_depth_is_added_at_the_recipes_rate(searched, tmp_path):
    """A trained supernet's features are large, and the loss a square: depth's head was thrown off in 18 steps."""
    more = {"SOLVER.MAX_ITER": 40, "SEARCH.ARCH_WARMUP_ITERS": 39, "SOLVER.IMS_PER_BATCH": 16}
    cfg = adding(tmp_path / "depth", searched, "[depth]", **{"SOLVER.STEPS": "[]", **more})
    train(prepare(cfg, 1))
    records = (tmp_path / "depth" / "metrics.json").read_text().splitlines()
    losses = [json.loads(line)["loss_depth"] for line in records if "loss_depth" in line]
    assert len(losses) == 40 and sum(losses[30:]) / 10 < sum(losses[:10]) / 10


@pytest.mark.slow
def test_added_tasks_join_what_was_found_and_change_none_of_it(searched, tmp_path):
    """cls, then seg, then det: each run has the tasks before it to the last bit, without the folders they came from."""
    folders, tasks = [searched], ["cls"]
    for name in ("seg", "det"):
        earlier = tmp_path / f"before_{name}"
        shutil.copytree(folders[-1], earlier)
        folder = tmp_path / name
        metrics = train(prepare(adding(folder, earlier, f"[{name}]"), 1))
        assert {key.split("/")[0] for key in metrics} == {name}
        shutil.rmtree(earlier)
        before, after = weights(folders[-1]), weights(folder)
        assert torch.equal(before["distribution.probs"], after["distribution.probs"][:-1])
        heads = tuple(f"tasks.{task}." for task in tasks)
        kept = [key for key in before if key.startswith(("supernet.", *heads))]
        assert len(kept) > 800 and all(torch.equal(before[key], after[key]) for key in kept)
        then, now = (json.loads((path / "topologies.json").read_text()) for path in (folders[-1], folder))
        assert {task: now["tasks"][task] for task in tasks} == then["tasks"]
        tasks.append(name)
        folders.append(folder)
        assert list(now["tasks"]) == tasks
    whole = (folder / "topologies.json").read_text()
    train(prepare(adding(folder, earlier, "[det]"), 1, eval_only=True), eval_only=True)
    assert (folder / "topologies.json").read_text() == whole
    assert list(
        json.loads(find_front(folder, ["cls"], evaluations=2, population=2).read_text())["tasks"]
    ) == ["cls"]
    assert "top1" in extract_network(folder, "cls", tmp_path / "net")
    assert "cls, seg" in (folder / "report.html").read_text()


@pytest.fixture(scope="module")
def whole(searched, tmp_path_factory):
    """seg, added to that search in one go."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(prepare(adding(folder, searched, "[seg]"), 1))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 2])
def test_an_addition_that_was_stopped_ends_as_one_that_was_not(searched, whole, tmp_path, monkeypatch, step):
    """Stopped before and after the probabilities start, and gone on with without the search that it began with.

    Where it has ended it is judged again alone.
    """
    original = AdditionSearch.step

    def failing(self, *args):
        if self.iteration == step:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(AdditionSearch, "step", failing)
    earlier, stopped = tmp_path / "moved", tmp_path / "stopped"
    shutil.copytree(searched, earlier)
    cfg = adding(stopped, earlier, "[seg]")
    with pytest.raises(KeyboardInterrupt):
        train(prepare(cfg, 1))
    monkeypatch.setattr(AdditionSearch, "step", original)
    shutil.rmtree(earlier)
    monkeypatch.chdir(tmp_path)  # the same folder by another path
    train(prepare(adding(stopped, "moved", "[seg]"), 1, resume=True), resume=True)
    one, other = weights(whole), weights(stopped)
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    found = (whole / "topologies.json").read_text()
    assert found == (stopped / "topologies.json").read_text()
    train(prepare(adding(stopped, "moved", "[seg]"), 1, resume=True), resume=True)
    assert found == (stopped / "topologies.json").read_text()


@pytest.fixture
def finished(tmp_path):
    """What a finished search for cls and seg leaves, as far as it is looked at before a run starts."""
    folder = tmp_path / "finished"
    folder.mkdir()
    cfg = configured("search_digits.yaml", folder, **{"SEARCH.TASKS": "[cls, seg]"})
    (folder / "config.yaml").write_text(cfg.dump())
    entry = {"topology": Topology([[1, 0, 0, 0]] * 4), "outputs": ["path3"]}
    save_topologies(folder / "topologies.json", "N", 4, (96, 96), {"cls": entry, "seg": entry})
    classes = {"class_names": ["a", "b"], "box_names": [], "sem_seg_names": ["p"]}
    torch.save({"model": {}, "classes": classes}, folder / "model_final.pth")
    return folder


def test_an_addition_fits_the_search_that_it_begins_with(finished, tmp_path):
    run = tmp_path / "run"
    prepare(adding(run, finished, "[det]"), 1)
    refused(
        adding(run, finished, "[det, seg]"),
        r"^SEARCH.TASKS has 'seg', which the search in SEARCH.FROM .* has",
    )
    for key, value, allowed in (
        ("MODEL.FBNETV5.FAMILY", "A", "'N', as there"),
        ("MODEL.FBNETV5.NUM_STAGES", "3", "4, as there"),
        ("MODEL.PIXEL_STD", "[1.0, 1.0, 1.0]", r"\[58.*as there"),
        ("MODEL.WEIGHTS", "supernet.pth", "'', as the supernet is that search's"),
        ("SEARCH.ALGORITHM", "shared_forward", "'multitask'"),
        ("SEARCH.TRAIN_WEIGHTS", "False", "True, as the new heads have to learn"),
        ("SEARCH.ARCH_WARMUP_ITERS", "0", "1 to 3"),
        ("SEARCH.ARCH_WARMUP_ITERS", "4", "1 to 3"),
        ("SEARCH.COST.SIZE", "[64, 64]", r"\[96, 96\], at which costs were counted there"),
    ):
        refused(
            adding(run, finished, "[det]", **{key: value}),
            f"^{key} is .*, allowed with SEARCH.FROM.*: {allowed}",
        )


def test_it_begins_with_a_finished_search_alone(finished, tmp_path):
    run = tmp_path / "run"
    refused(adding(run, tmp_path / "none", "[det]"), "^SEARCH.FROM: .*none is no run", FileNotFoundError)
    refused(adding(run, "s3://bucket/run", "[det]"), "^SEARCH.FROM is 's3://bucket/run', allowed: a path")
    (finished / "model_final.pth").rename(finished / "model_0000002.pth")
    refused(adding(run, finished, "[det]"), "^SEARCH.FROM: the search in .* has not ended")
    config = (finished / "config.yaml").read_text()
    (finished / "config.yaml").write_text(config.replace("MultitaskSearch", "LiteRCNN"))
    refused(adding(run, finished, "[det]"), "^SEARCH.FROM: .* is a run of LiteRCNN, allowed: a search")


def adapting(folder, earlier, **more):
    return adding(folder, earlier, "[seg]", **{"SEARCH.ADAPT.ENABLED": True, **more})


def test_a_supernet_adapts_with_a_finished_search_alone_within_a_band(finished, tmp_path):
    run = tmp_path / "run"
    alone = configured("search_digits.yaml", run, **{"SEARCH.ADAPT.ENABLED": True})
    refused(alone, "^SEARCH.ADAPT.ENABLED is True, allowed without SEARCH.FROM, .*: False")
    for key, value in (("BAND", -0.1), ("BAND", 1.0), ("LR_FACTOR", 0.0), ("LR_FACTOR", 1.1)):
        key = f"SEARCH.ADAPT.{key}"
        refused(adding(run, finished, "[det]", **{key: value}), f"^{key} is {value}, allowed: ")


def test_what_adapts_has_a_rate_of_its_own(finished, tmp_path):
    cfg = prepare(adding(tmp_path / "run", finished, "[det]", **{"SEARCH.ADAPT.ENABLED": True}), 1)
    info = DatasetInfo(("a", "b"), ("x",), ("p",))
    search = search_arguments(cfg, info, 0, EarlierTasks.of_search(search_config(finished)))
    search = AdaptingSearch(num_earlier=2, **search)
    rates = {
        id(parameter): group["lr"]
        for group in build_search_groups(cfg, search)
        for parameter in group["params"]
    }
    new = {id(parameter) for parameter in search.tasks["det"].parameters()}
    weights = [p for p in search.parameters() if p is not search.distribution.probs]
    assert len(rates) == len(weights) + 1
    assert all(rates[id(p)] == pytest.approx(0.1 if id(p) in new else 0.01) for p in weights)
    assert rates[id(search.distribution.probs)] == pytest.approx(0.4)


@pytest.mark.slow
def test_weights_that_adapt_are_refused_where_an_earlier_metric_fell_and_nothing_is_lost(
    searched, tmp_path, monkeypatch
):
    """As if cls had been twice as good before; what was trained is there, and is taken over with a wider band."""
    folder, first_metrics = tmp_path / "run", SearchRecipe._first_metrics
    monkeypatch.setattr(
        SearchRecipe,
        "_first_metrics",
        lambda self: {name: 2 * value for name, value in first_metrics(self).items()},
    )
    with pytest.raises(
        ValueError, match=r"^SEARCH.ADAPT.BAND is 0.02, but top1 of cls was .* and is .*--eval-only"
    ):
        train(prepare(adapting(folder, searched), 1))
    assert list(json.loads((folder / "topologies.json").read_text())["tasks"]) == ["cls"]
    before, after = weights(searched), weights(folder)
    changed = [name for name in before if name in after and not torch.equal(before[name], after[name])]
    assert any(name.startswith("supernet.") and name.endswith("weight") for name in changed)
    assert torch.equal(before["distribution.probs"], after["distribution.probs"][:1])
    with pytest.raises(ValueError, match=r"no task 'seg'; --eval-only writes the file anew"):
        EarlierTasks.of_search(search_config(folder))
    wider = adapting(folder, searched, **{"SEARCH.ADAPT.BAND": 0.999})
    metrics = train(prepare(wider, 1, eval_only=True), eval_only=True)
    assert {name.split("/")[0] for name in metrics} == {"cls", "seg"}
    tasks = json.loads((folder / "topologies.json").read_text())["tasks"]
    assert list(tasks) == ["cls", "seg"] and tasks["cls"]["metrics"]["top1"] == metrics["cls/top1"]


def test_the_data_may_lack_the_earlier_tasks_labels_and_not_have_other_ones(finished):
    earlier = EarlierTasks.of_search(search_config(finished))
    boxes = DatasetInfo(box_names=("x",))
    assert earlier.with_labels_of(boxes) == DatasetInfo(("a", "b"), ("x",), ("p",))
    with pytest.raises(
        ValueError, match=r"^DATASETS.TRAIN: its class_names are .*c.*, allowed: those of the search"
    ):
        earlier.with_labels_of(DatasetInfo(class_names=("a", "c")))


def test_what_a_run_keeps_of_the_earlier_tasks_is_read_back(finished, tmp_path):
    earlier = EarlierTasks.of_search(search_config(finished))
    earlier.write(tmp_path)
    again = EarlierTasks.read(tmp_path)
    assert (again.heads, again.info) == (earlier.heads, earlier.info) and list(again.heads) == ["cls", "seg"]
    assert again.heads["seg"]["feature"] == "path1" and again.found.tasks == earlier.found.tasks
    assert again.metrics == {}
    replace(earlier, metrics={"cls": 0.5, "seg": 0.25}).write(tmp_path)
    assert EarlierTasks.read(tmp_path).metrics == {"cls": 0.5, "seg": 0.25}
    some = {"format": 1, "heads": {"cls": {}}, "labels": {}}
    for content, message in (
        ({}, "format is missing"),
        ({"format": 1, "heads": {}}, "heads is {}"),
        (some | {"metrics": {"cls": "good"}}, "metrics is .*, allowed is an object of one number"),
    ):
        (tmp_path / "earlier_tasks.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            EarlierTasks.read(tmp_path)
