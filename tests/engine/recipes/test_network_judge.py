import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch

from d2go_fbnetv5.arch import Supernet, Topology
from d2go_fbnetv5.data import DigitScenes, EvalTransform
from d2go_fbnetv5.engine.recipes import network_judge
from d2go_fbnetv5.engine.recipes.network_judge import NetworkJudge
from d2go_fbnetv5.search import MultitaskSearch
from d2go_fbnetv5.tasks import build_task

STAGES = 3
TASKS = {
    "cls": {"pool_channels": 16, "expansion": 1},
    "det": {
        "feature": "path1",
        "input_norm": True,
        "anchor_sizes": [12.0, 24.0],
        "rpn_post_nms_topk_test": 8,
        "box_head_width": 8,
        "roi_output_size": 2,
    },
    "seg": {"feature": "path1", "input_norm": True},
}


@pytest.fixture(scope="module")
def judge():
    torch.manual_seed(0)
    data = DigitScenes("val", 64, 9)
    supernet = Supernet("N", STAGES)
    tasks = [build_task(name, supernet.channels, data.info, **options) for name, options in TASKS.items()]
    search = MultitaskSearch(supernet, tasks, samples_per_rank=1)
    batches = [[data[i] for i in range(start, start + 3)] for start in (0, 3, 6)]
    return NetworkJudge(search, data.info, batches[:2], batches[1:])


@pytest.fixture(scope="module")
def judge_alone():
    """The slow way, which the benchmark compares with: `precise_batch_norm` and `evaluate`, a network at a time."""
    folder = Path(__file__).parents[3] / "benchmarks"
    sys.path.insert(0, str(folder))
    try:
        spec = importlib.util.spec_from_file_location("judge_speed", folder / "judge_speed.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(folder))
    return module.judge_alone


def random_networks(count):
    generator = torch.Generator().manual_seed(3)
    some = [Topology.random(STAGES, generator=generator) for _ in range(count)]
    some += [Topology([[0] * 4] * STAGES), Topology([[1] * 4, [0] * 4, [0, 1, 0, 1]])]  # passed on unchanged
    return [(task, topology) for task in TASKS for topology in some]


def same(a, b):
    values = [(a.loss, b.loss), *((a.metrics[key], b.metrics[key]) for key in a.metrics | b.metrics)]
    return all(x == pytest.approx(y, abs=1e-6, nan_ok=True) for x, y in values)


def test_what_is_judged_together_is_what_each_network_is_worth_alone(judge, judge_alone):
    before = {name: value.clone() for name, value in judge.search.state_dict().items()}
    judge.search.train()
    together = judge(random_networks(2))
    assert judge.search.training and judge.search.tasks["det"].training
    assert all(torch.equal(before[name], value) for name, value in judge.search.state_dict().items())
    assert len(together) > 8
    assert all(same(verdict, judge_alone(judge, *network)) for network, verdict in together.items())
    assert len({verdict.loss for verdict in together.values()}) > 6


def test_losses_are_taken_where_the_image_is_and_metrics_where_the_original_is(judge):
    """Evaluation resizes the image and leaves labels in the original's pixels: no loss may compare the two."""
    scale = EvalTransform(96)
    samples = [sample for batch in judge.eval_batches for sample in batch]
    resized = [scale(sample) for sample in samples]
    assert resized[0]["image"].shape[-2:] == (96, 96) and resized[0]["sem_seg"].shape == (64, 64)
    by_hand = [
        {
            **sample,
            "boxes": sample["boxes"] * 1.5,
            "sem_seg": torch.nn.functional.interpolate(sample["sem_seg"][None, None].double(), (96, 96))[
                0, 0
            ].long(),
            "height": 96,
            "width": 96,
        }
        for sample in resized
    ]
    networks, statistics = random_networks(1), [resized]
    found = NetworkJudge(judge.search, judge.info, statistics, [resized])(networks)
    expected = NetworkJudge(judge.search, judge.info, statistics, [by_hand])(networks)
    for network, verdict in found.items():
        assert verdict.loss == pytest.approx(expected[network].loss, rel=1e-6)
    unmoved = [{**sample, "height": 96, "width": 96} for sample in resized]
    det = [network for network in networks if network[0] == "det"]
    wrong = NetworkJudge(judge.search, judge.info, statistics, [unmoved])(det, metrics=False)
    assert all(
        verdict.loss != pytest.approx(found[network].loss, rel=1e-3) for network, verdict in wrong.items()
    )


def test_networks_beyond_what_memory_holds_are_judged_in_turns(judge, monkeypatch):
    networks, shares = random_networks(2), []
    together = judge(networks)
    monkeypatch.setattr(network_judge, "AT_ONCE", 5)
    parts = judge(networks, progress=shares.append)
    assert list(parts) == list(together)
    assert all(same(together[network], verdict) for network, verdict in parts.items())
    assert len(shares) == 2 * math.ceil(len(together) / 5)
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1)


def test_each_block_runs_once_for_all_networks_that_begin_alike(judge):
    runs = []
    names = {module: name for name, module in judge.search.supernet.named_modules()}
    hooks = [
        block.register_forward_pre_hook(lambda module, _: runs.append(names[module]))
        for stage in judge.search.supernet.stages.children()
        for block in stage.children()
    ]
    one = Topology([[0, 1, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0]])
    other = Topology([[0, 1, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0]])
    dead = Topology([[0, 1, 0, 0], [0, 1, 0, 0], [0, 1, 1, 1]])  # the same network for a head on Path 1
    found = judge([("seg", one), ("seg", other), ("seg", dead), ("det", other)], metrics=False)
    for hook in hooks:
        hook.remove()
    assert set(found) == {("seg", one), ("seg", other), ("det", other)}
    batches = len(judge.statistics) + len(judge.eval_batches)
    once = ["stage1.path1", "stage2.path0", "stage2.path1", "stage3.path1", "stage3.path1"]
    assert sorted(runs) == sorted(f"stages.{name}" for name in batches * once)


def test_only_what_is_asked_for_is_said(judge):
    network = ("cls", Topology.full(STAGES))
    (loss,) = judge([network], metrics=False).values()
    (metrics,) = judge([network], losses=False).values()
    (both,) = judge([network]).values()
    assert loss.metrics == {} and math.isnan(metrics.loss)
    assert (loss.loss, metrics.metrics) == (both.loss, both.metrics)


def test_a_task_without_labels_has_no_loss(judge):
    batches = [[{k: v for k, v in s.items() if k != "class_label"} for s in b] for b in judge.eval_batches]
    unlabelled = NetworkJudge(judge.search, judge.info, judge.statistics, batches)
    (verdict,) = unlabelled([("cls", Topology.full(STAGES))]).values()
    assert math.isnan(verdict.loss) and math.isnan(verdict.metrics["top1"])
