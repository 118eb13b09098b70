import shutil

import pytest
import torch
from d2go_fbnetv5.tools.extract import main
from torch import nn

from d2go_fbnetv5.arch.topology_file import load_topologies
from d2go_fbnetv5.engine.config import load_cfg
from d2go_fbnetv5.engine.evaluation import precise_batch_norm
from d2go_fbnetv5.engine.predictor import from_run
from d2go_fbnetv5.engine.train import Run, prepare, train
from d2go_fbnetv5.front.extract import extract_network
from d2go_fbnetv5.front.run import open_search

OPTS = {
    "SOLVER.MAX_ITER": 1,
    "SOLVER.IMS_PER_BATCH": 4,
    "SEARCH.ARCH_WARMUP_ITERS": 0,
    "SEARCH.SAMPLES_PER_RANK": 2,
    "SEARCH.EVAL.MAX_IMAGES": 8,
    "SEARCH.EVAL.BN_ITERS": 2,
    "SEARCH.EVAL.CANDIDATES": 1,
    "SEARCH.EVAL.RANDOM_TOPOLOGIES": 0,
    "FBNETV5_DATA.DATASETS.digit_scenes_val.num_images": 8,
    "SEED": 1,
}


def searched(config, folder, **more):
    opts = {**OPTS, "OUTPUT_DIR": folder, **more}
    train(prepare(load_cfg(config, [str(part) for item in opts.items() for part in item]), 1))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A search of one step with the models' heads."""
    sure = {"SEARCH.HEADS.det.score_threshold": 0.0}  # a head of a single step is sure of nothing
    return searched("search_digits_lite.yaml", tmp_path_factory.mktemp("search") / "run", **sure)


class Under(nn.Module):
    """A search's supernet under one topology, with a task's head."""

    def __init__(self, search, task, topology):
        super().__init__()
        self.search, self.task, self.topology = search, search.tasks[task], topology

    def forward(self, batch):
        return self.task(self.search.features(batch, self.topology), batch)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["cls", "det", "seg"])
def test_what_is_extracted_gives_the_supernets_own_outputs(run, tmp_path, task):
    metrics = extract_network(run, task, tmp_path / "net")
    model = from_run(tmp_path / "net").model
    topology = load_topologies(run / "topologies.json").task(task).topology
    assert model.backbone.topology == topology.prune(model.in_features)
    with open_search(run) as opened:
        search, data = opened.model.eval(), opened.data
        batch = next(iter(data.eval_batches()))
        under = Under(search, task, topology)
        with torch.no_grad(), precise_batch_norm(under, data.statistics_batches(2)):
            expected, found = under.eval()(batch), model(batch)
            if task == "seg":
                features = search.features(batch, topology), model.backbone(model.images(batch)[0])
                expected += [vars(p) for p in under.task.model.head(features[0])]
                found += [vars(p) for p in model.head(features[1])]
        judged = opened.recipe.judge(search).metrics({task: topology})[task]
    assert all(output.keys() == other.keys() for output, other in zip(found, expected, strict=True))
    assert len(found[0].get("boxes", [0])) > 0
    for output, other in zip(found, expected, strict=True):
        for name, value in output.items():
            torch.testing.assert_close(value, other[name], atol=1e-5, rtol=1e-5)
    assert metrics == pytest.approx(judged, nan_ok=True)


@pytest.mark.slow
def test_what_is_extracted_is_a_run_that_is_judged_again_and_trained_further(run, tmp_path):
    search, net = tmp_path / "search", tmp_path / "net"
    shutil.copytree(run, search)
    assert main([str(search), "--task", "det", "--output", str(net)]) == 0
    shutil.rmtree(search)  # it stands on its own
    cfg = load_cfg(net / "config.yaml")
    before = (net / "model_final.pth").read_bytes()
    metrics = train(prepare(cfg, 1, eval_only=True), eval_only=True)
    assert metrics["AP"] >= 0 and (net / "model_final.pth").read_bytes() == before
    opts = ["OUTPUT_DIR", str(tmp_path / "tuned"), "MODEL.WEIGHTS", str(net / "model_final.pth")]
    tuned = Run(prepare(load_cfg(net / "config.yaml", opts), 1))
    weights = from_run(net).model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in tuned.model.state_dict().items())
    tuned.close()
    assert main([str(run), "--task", "det", "--output", str(net)]) == 2  # what is there stays


@pytest.mark.slow
def test_what_cannot_be_extracted_is_said_in_a_sentence(run, tmp_path, capsys):
    paper = searched("search_digits.yaml", tmp_path / "paper", **{"SEARCH.TASKS": "[det]"})
    shutil.copytree(run, tmp_path / "other")
    for folder, arguments, sentence in (
        (run, ["--task", "pose"], f"task 'pose': {run} has cls, det, seg"),
        (
            paper,
            ["--task", "det"],
            "FasterRCNN, which no model has; allowed is a search with SEARCH.HEADS.det.head lite",
        ),
        (run, ["--task", "det", "--budget", "flops=9e6"], "front.json"),
        (
            run,
            ["--task", "det", "--budget", "flops=few"],
            "--budget flops is 'few', allowed is a number over 0",
        ),
        (run, ["--task", "cls", "--output", str(tmp_path / "other")], "already holds a run"),
        (tmp_path / "none", ["--task", "det"], str(tmp_path / "none")),
    ):
        assert main([str(folder), *arguments]) == 2
        said = (
            capsys.readouterr().err.splitlines()
        )  # the log's lines, too, where a test before this one has set it up
        assert sentence in said[-1] and [line for line in said if not line.startswith("INFO: ")] == said[-1:]
    assert not (run / "extracted").exists()
