"""SEARCH.FROM: tasks that a run adds to a finished search."""

import json
import shutil

import pytest
import torch

from d2go_fbnetv5.arch import Topology
from d2go_fbnetv5.arch.topology_file import save_topologies
from d2go_fbnetv5.engine.config import load_cfg
from d2go_fbnetv5.engine.recipes.earlier import EarlierTasks
from d2go_fbnetv5.engine.train import prepare, train
from d2go_fbnetv5.front.extract import extract_network
from d2go_fbnetv5.front.run import find_front
from d2go_fbnetv5.search import AdditionSearch
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
    return configured("search_digits_addition.yaml", folder, **more)


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
    """Stopped before and after the probabilities start, and gone on with without the search that it began with."""
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
    train(prepare(cfg, 1, resume=True), resume=True)
    one, other = weights(whole), weights(stopped)
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert (whole / "topologies.json").read_text() == (stopped / "topologies.json").read_text()


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


def test_the_data_may_lack_the_earlier_tasks_labels_and_not_have_other_ones(finished):
    earlier = EarlierTasks.of_search(finished)
    boxes = DatasetInfo(box_names=("x",))
    assert earlier.with_labels_of(boxes) == DatasetInfo(("a", "b"), ("x",), ("p",))
    with pytest.raises(
        ValueError, match=r"^DATASETS.TRAIN: its class_names are .*c.*, allowed: those of the search"
    ):
        earlier.with_labels_of(DatasetInfo(class_names=("a", "c")))


def test_what_a_run_keeps_of_the_earlier_tasks_is_read_back(finished, tmp_path):
    earlier = EarlierTasks.of_search(finished)
    earlier.write(tmp_path)
    again = EarlierTasks.read(tmp_path)
    assert (again.heads, again.info) == (earlier.heads, earlier.info) and list(again.heads) == ["cls", "seg"]
    assert again.heads["seg"]["feature"] == "path1" and again.found.tasks == earlier.found.tasks
    for content, message in (({}, "format is missing"), ({"format": 1, "heads": {}}, "heads is {}")):
        (tmp_path / "earlier_tasks.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            EarlierTasks.read(tmp_path)
