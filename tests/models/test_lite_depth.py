"""LiteDepth: its outputs and losses, its cost, and its exported module."""

import pytest
import torch

from d2go_fbnetv5.arch import Backbone, Supernet, Topology
from d2go_fbnetv5.data import DigitScenes
from d2go_fbnetv5.export.measure.check import check
from d2go_fbnetv5.export.measure.evaluation import ExportedModel
from d2go_fbnetv5.export.network.inference import inference_module
from d2go_fbnetv5.models import LiteDepth, LiteMaskFormer
from d2go_fbnetv5.models.flops import model_flops
from d2go_fbnetv5.models.reconstructions import builtin_topology
from d2go_fbnetv5.tasks import DatasetInfo, batch_images, build_task


def build():
    torch.manual_seed(0)
    model = LiteDepth(Backbone("N", Topology.full(2), LiteDepth.in_features), dim=16)
    torch.nn.init.normal_(model.decoder.predictor.weight)  # else all depths are nearly 1
    return model


def test_losses_reach_every_weight_and_unlabelled_samples_none():
    model, dataset = build(), DigitScenes(size=96)
    batch = [dataset[i] for i in range(3)]
    losses = model(batch)
    assert set(losses) == {"loss_depth", "loss_depth_gradient"}
    sum(losses.values()).backward()
    assert all(weight.grad is not None for weight in model.parameters())
    for sample in batch:
        del sample["depth"]
    assert {name: float(loss.detach()) for name, loss in model(batch).items()} == dict.fromkeys(losses, 0)


def test_predictions_have_the_labels_size_and_depend_on_no_other_image():
    model, dataset = build().eval(), DigitScenes(size=(80, 120))
    batch = [{**dataset[0], "height": 160, "width": 240}, DigitScenes(size=200)[1]]
    with torch.no_grad():
        together = [output["depth"] for output in model(batch)]
        alone = [model([sample])[0]["depth"] for sample in batch]
    assert [tuple(depth.shape) for depth in together] == [(160, 240), (200, 200)]
    for a, b in zip(together, alone, strict=True):
        assert (a > 0).all()
        torch.testing.assert_close(a, b)


def test_its_decoder_costs_less_than_lite_maskformers():
    topology = builtin_topology("DEPTH")
    flops = {
        kind: model_flops(kind(Backbone("A", topology, kind.in_features), classes), (384, 384)).parts
        for kind, classes in ((LiteDepth, 1), (LiteMaskFormer, 150))
    }
    assert flops[LiteDepth]["head"] < 0.25 * sum(v for k, v in flops[LiteMaskFormer].items() if k != "BB")


@pytest.mark.parametrize("script", [False, True])
def test_the_exported_module_is_the_model_at_two_sizes(script):
    model = build().eval()
    module = inference_module(model)
    module = torch.jit.script(module) if script else module
    images = [DigitScenes(size=size)[0]["image"][None].float() for size in ((96, 128), (160, 96))]
    report = check(model, lambda image: (module(image),), images)
    assert report.worst < 1e-4 and report.agreement == 1
    sample = DigitScenes(size=(90, 100))[2]
    with torch.no_grad():
        (found,) = ExportedModel(model, lambda image: (module(image),))([sample])
        torch.testing.assert_close(found["depth"], model([sample])[0]["depth"], rtol=1e-3, atol=1e-4)


def test_it_is_a_head_of_a_search():
    torch.manual_seed(0)
    supernet, dataset = Supernet("N", 1), DigitScenes(size=96)
    head = build_task("depth", supernet.channels, dataset.info, head="lite", dim=16)
    batch = [dataset[i] for i in range(2)]
    features = supernet(batch_images(batch, [123.7, 116.3, 103.5], [58.4, 57.1, 57.4]), Topology.full(1))
    assert head(features, batch)["loss_depth"].isfinite()
    assert head(features, [{"image": sample["image"]} for sample in batch]) == {}
    with torch.no_grad():
        assert head.eval()(features, batch)[0]["depth"].shape == (96, 96)


def test_a_model_of_several_maps_is_refused():
    with pytest.raises(ValueError, match="'num_classes' is 3, allowed"):
        LiteDepth(Backbone("N", Topology.full(1), LiteDepth.in_features), 3)
    assert (
        LiteDepth(Backbone("N", Topology.full(1), LiteDepth.in_features))
        .evaluator(DatasetInfo(depth_units=("relative",)))
        .is_relative
    )
