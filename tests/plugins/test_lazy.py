"""Detectron2's lazy configurations: the examples train, and what they say is saved as text and read again."""

from pathlib import Path

import pytest
import torch

from d2go_fbnetv5.arch import Topology
from d2go_fbnetv5.arch.topology_file import save_topologies

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = sorted(path.name for path in (ROOT / "configs" / "lazy").glob("*_digits.py"))
SMALL = ["dataloader.train.total_batch_size=2", "dataloader.test.dataset.num_images=2"]


@pytest.fixture
def topologies(tmp_path):
    entry = {"topology": Topology.named("fpn", stages=3).to_dict(), "outputs": ["path1", "path3"]}
    path = tmp_path / "topologies.json"
    save_topologies(path, "N", 3, (96, 96), dict.fromkeys(("cls", "det", "seg"), entry))
    return path


def test_there_is_an_example_of_each_model():
    assert EXAMPLES == ["cls_digits.py", "det_digits.py", "seg_digits.py"]


@pytest.mark.parametrize("file", EXAMPLES)
def test_examples_are_saved_read_and_trained(detectron2, topologies, tmp_path, file):
    from detectron2.config import LazyConfig, instantiate
    from detectron2.evaluation import inference_on_dataset
    from detectron2.utils.events import EventStorage

    cfg = LazyConfig.load(str(ROOT / "configs" / "lazy" / file))
    cfg = LazyConfig.apply_overrides(cfg, [f"model.backbone.topology.path={topologies}", *SMALL])
    LazyConfig.save(cfg, str(tmp_path / "saved.yaml"))
    assert "!!python" not in (tmp_path / "saved.yaml").read_text()
    cfg = LazyConfig.load(str(tmp_path / "saved.yaml"))

    model = instantiate(cfg.model)
    assert model.backbone.topology == Topology.named("fpn", stages=3).prune(model.backbone.outputs)
    cfg.optimizer.params.model = model
    optimizer, schedule = instantiate(cfg.optimizer), instantiate(cfg.lr_multiplier)
    assert schedule(0.0) < schedule(0.05) > schedule(1.0)
    batch = next(iter(instantiate(cfg.dataloader.train)))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with EventStorage(0):
        sum(model(batch).values()).backward()
    optimizer.step()
    assert not all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    results = inference_on_dataset(
        model, instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator)
    )
    assert list(results) == [file.split("_")[0]]


def test_a_topology_may_be_written_in_the_configuration(detectron2, tmp_path):
    from detectron2.config import LazyCall, LazyConfig, instantiate

    topology = Topology.named("bifpn", stages=7)
    for lazy in (
        LazyCall(Topology.from_dict)(data=topology.to_dict()),
        LazyCall(Topology)(mask=topology.to_dict()["mask"]),
        LazyCall(Topology.named)(name="bifpn", stages=7),
    ):
        LazyConfig.save(lazy, str(tmp_path / "saved.yaml"))
        assert instantiate(LazyConfig.load(str(tmp_path / "saved.yaml"))) == topology


def test_a_task_that_was_not_searched_for_is_named(detectron2, topologies):
    from d2go_fbnetv5.plugins.detectron2 import searched_topology

    with pytest.raises(ValueError, match="no task 'depth'; available: cls, det, seg"):
        searched_topology(str(topologies), "depth")
