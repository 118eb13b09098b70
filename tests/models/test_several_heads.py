"""SeveralHeads: each head is its model's, the backbone runs once, and images need not have all labels."""

import pytest
import torch

from d2go_fbnetv5.arch import Backbone, Topology
from d2go_fbnetv5.arch.cost import count_flops
from d2go_fbnetv5.data import DigitScenes
from d2go_fbnetv5.export.measure.check import check
from d2go_fbnetv5.export.measure.evaluation import ExportedModel
from d2go_fbnetv5.export.metadata import output_names
from d2go_fbnetv5.export.network.inference import inference_module
from d2go_fbnetv5.models import MODELS, SeveralHeads
from d2go_fbnetv5.models.flops import model_flops

TOPOLOGY = Topology([[0, 1, 0, 1], [1, 1, 1, 0]])
HEADS = {
    "cls": {},
    "det": {"regions_per_image": 8, "train_proposals": (50, 20), "score_threshold": 0.0, "max_detections": 9},
    "seg": {"num_queries": 6, "dim": 32, "num_heads": 4, "feedforward_dim": 32, "dropout": 0.0},
    "depth": {"dim": 16},
}
CLASSES = {"cls": 10, "det": 10, "seg": 11, "depth": 1}
LABELS = {
    "cls": ("class_label",),
    "det": ("boxes", "box_labels", "box_areas"),
    "seg": ("sem_seg",),
    "depth": ("depth",),
}


def build(tasks=tuple(HEADS), **options):
    torch.manual_seed(0)
    heads = {task: HEADS[task] for task in tasks}
    backbone = Backbone("N", TOPOLOGY, ("path1", "path2", "path3"))
    model = SeveralHeads(backbone, {task: CLASSES[task] for task in tasks}, heads, **options)
    for name, weight in model.named_parameters():
        if name.endswith(("fc.weight", "predictor.weight", "classes.weight")):
            torch.nn.init.normal_(weight, std=0.2)  # else all outputs are alike
    return model


@pytest.fixture(scope="module")
def batch():
    scenes = DigitScenes(size=96)
    return [scenes[i] for i in range(4)]


def only(sample, *tasks):
    """A sample that is labelled for some tasks."""
    others = {key for task in LABELS if task not in tasks for key in LABELS[task]}
    return {key: value for key, value in sample.items() if key not in others}


def alone(model, task):
    """The model of one task with its own backbone and the same weights, by its own class."""
    single = MODELS[task](
        Backbone("N", TOPOLOGY, ("path1", "path2", "path3")),
        CLASSES[task],
        size_divisibility=32,
        **HEADS[task],
    )
    state = {f"backbone.{k}": v for k, v in model.backbone.state_dict().items()}
    single.load_state_dict(state | model.heads[task].state_dict())
    return single


def test_outputs_and_losses_are_those_of_each_model_with_the_same_weights(batch):
    model = build(loss_weights=dict.fromkeys(HEADS, 1.0))
    singles = {task: alone(model, task) for task in HEADS}
    expected = {}
    for task, single in singles.items():
        torch.manual_seed(1)
        expected[task] = single(batch)
    for task in HEADS:  # each on its own, as detection draws its samples
        torch.manual_seed(1)
        losses = model.heads[task].head_losses(model.backbone(model.images(batch)[0]), batch, (96, 96))
        assert losses.keys() == expected[task].keys()
        for name, loss in losses.items():
            torch.testing.assert_close(loss, expected[task][name], rtol=1e-4, atol=1e-5)
    names = {f"loss_{task}_{name.removeprefix('loss_')}" for task in HEADS for name in expected[task]}
    assert set(model(batch)) == names
    model.eval()
    odd = [batch[0], {**DigitScenes(size=(80, 120))[1], "height": 160, "width": 240}]
    with torch.no_grad():
        outputs = model(odd)
        for task, single in singles.items():
            single.load_state_dict(
                {f"backbone.{k}": v for k, v in model.backbone.state_dict().items()}
                | model.heads[task].state_dict()
            )
            for found, right in zip(outputs, single.eval()(odd), strict=True):
                for key, value in right.items():
                    torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-4)
            again = model.singles()[task](odd)[0]
            assert all(torch.equal(outputs[0][key], value) for key, value in again.items())
    assert "backbone" not in dict(model.heads["det"].named_children())


def test_the_backbone_runs_once(batch):
    model, runs = build(), []
    model.backbone.register_forward_hook(lambda *_: runs.append(1))
    model(batch)
    model.eval()(batch)
    assert len(runs) == 2


def test_an_image_counts_where_it_has_a_label_and_every_weight_gets_a_gradient(batch):
    model = build(loss_weights=dict.fromkeys(HEADS, 1.0))
    parts = [
        only(batch[0], "cls", "seg"),
        only(batch[1], "det"),
        only(batch[2]),
        only(batch[3], "cls", "depth"),
    ]
    torch.manual_seed(1)
    losses = model(parts)
    torch.manual_seed(1)
    filled = [only(batch[0], "cls", "seg"), only(batch[1], "det"), batch[2], only(batch[3], "cls", "depth")]
    assert any(not torch.equal(model(filled)[name], loss) for name, loss in losses.items())
    sum(losses.values()).backward()
    assert all(weight.grad is not None for weight in model.parameters())
    for task in HEADS:
        mine = {name for name in losses if name.startswith(f"loss_{task}_")}
        found = model([only(sample, task) for sample in batch])
        assert found.keys() == losses.keys()
        assert all(bool(found[name] == 0) or name in mine for name in found)
        model.zero_grad()
        sum(model([only(sample) for sample in batch]).values()).backward()
        assert all(weight.grad is not None and not weight.grad.any() for weight in model.parameters())


def test_weights_are_fixed_or_learned_of_what_a_batch_has_labels_for(batch):
    torch.manual_seed(1)
    once = build(loss_weights=dict.fromkeys(HEADS, 1.0))
    plain = once(batch)
    torch.manual_seed(1)
    doubled = build(loss_weights={"cls": 2.0, "det": 0.0, "seg": 1.0, "depth": 1.0})(batch)
    assert doubled["loss_cls_class"].item() == pytest.approx(2 * plain["loss_cls_class"].item(), rel=1e-5)
    assert all(value.item() == 0 for name, value in doubled.items() if name.startswith("loss_det_"))
    learned = build()
    with torch.no_grad():
        learned.log_variances.copy_(torch.tensor([0.5, -1.0, 2.0, 0.25]))
    losses = learned([only(sample, "cls", "seg") for sample in batch])
    assert losses["loss_uncertainty"].item() == pytest.approx(0.5 + 2.0)
    expected = plain["loss_cls_class"].item() * 2.718281828**-0.5
    assert losses["loss_cls_class"].item() == pytest.approx(expected, rel=1e-4)
    sum(losses.values()).backward()
    # d/ds of exp(-s) L + s is 1 - exp(-s) L, and nothing where no image has the label.
    assert learned.log_variances.grad[0].item() == pytest.approx(1 - expected, rel=1e-4)
    assert learned.log_variances.grad[[1, 3]].tolist() == [0, 0]


def test_metrics_are_named_by_tasks(batch):
    model = build(("cls", "depth")).eval()
    evaluator = model.evaluator(DigitScenes(size=96).info)
    with torch.no_grad():
        evaluator.process(batch, model(batch))
    metrics = evaluator.evaluate()
    assert {"cls/top1", "depth/AbsRel"} <= set(metrics) and all(name.count("/") == 1 for name in metrics)
    evaluator.reset()


def test_flops_are_those_of_one_backbone_and_each_head():
    model = build()
    counted = model_flops(model, (96, 128))
    each = {task: model_flops(alone(model, task), (96, 128)) for task in HEADS}
    assert counted.parts["BB"] == count_flops(model.backbone, torch.empty(1, 3, 96, 128))
    heads = {
        f"{task} {part}": flops
        for task, one in each.items()
        for part, flops in one.parts.items()
        if part != "BB"
    }
    assert {name: flops for name, flops in counted.parts.items() if name != "BB"} == heads
    assert counted.fixed == {"det ROI"}


@pytest.mark.parametrize("tasks", [tuple(HEADS), ("seg", "cls")])
def test_the_exported_module_is_the_model_at_two_sizes(tasks):
    model = build(tasks).eval()
    module = inference_module(model)
    images = [DigitScenes(size=size)[0]["image"][None].float() for size in ((96, 128), (160, 96))]
    report = check(model, module, images)
    assert report.worst < 1e-4 and report.agreement == 1
    names = output_names(model)
    assert len(names) == len(set(names)) == len(module(images[0]))
    if "det" in tasks:
        assert names[:3] == ("det_boxes", "det_scores", "det_labels") and report.detections[1] > 0
    assert {"cls_scores", "seg_classes", "seg_masks"} <= set(names)
    sample = DigitScenes(size=(90, 100))[2]
    with torch.no_grad():
        (found,), (right,) = ExportedModel(model, module)([sample]), model([sample])
    assert found.keys() == right.keys()
    torch.testing.assert_close(found["class_scores"], right["class_scores"], rtol=1e-3, atol=1e-4)
    assert (found["sem_seg"] == right["sem_seg"]).double().mean() > 0.999


def test_a_wrong_head_in_a_file_is_found():
    model = build(("cls", "seg")).eval()
    module = inference_module(model)
    image = DigitScenes(size=96)[0]["image"][None].float()

    def run(image):
        scores, *others = module(image)
        return [scores.roll(1, 1), *others]

    with pytest.raises(Exception, match="image 0 .*class probabilities differ"):
        check(model, run, [image])
    with pytest.raises(Exception, match=r"cls: the same class in 0.0% of 1 images' results"):
        check(model, run, [image], int8=True)


@pytest.mark.parametrize(
    ("heads", "classes", "options", "message"),
    [
        ({}, {}, {}, "option 'heads' is empty; allowed are one or more of cls, det, seg, depth"),
        ({"pose": {}}, {"pose": 3}, {}, "option 'heads' has 'pose'; allowed are one or more of cls, det"),
        ({"cls": {}}, {"det": 3}, {}, "num_classes is of det; allowed is of cls"),
        ({"cls": {"mixup": 0.2}}, {"cls": 3}, {}, "head 'cls' has no option 'mixup'"),
        ({"det": {"dim": 8}}, {"det": 3}, {}, "head 'det' has no option 'dim'"),
        ({"depth": {"dim": 1}}, {"depth": 1}, {}, "'dim' is 1, allowed"),
        (
            {"cls": {}, "det": {}},
            {"cls": 3, "det": 3},
            {"loss_weights": {"cls": 1.0}},
            "loss_weights is of cls; allowed is of cls, det, or of none",
        ),
        ({"cls": {}}, {"cls": 3}, {"loss_weights": {"cls": -1.0}}, "'loss_weights.cls' is -1.0"),
    ],
)
def test_what_is_no_set_of_heads_is_one_sentence(heads, classes, options, message):
    backbone = Backbone("N", TOPOLOGY, ("path1", "path2", "path3"))
    with pytest.raises(ValueError, match=message):
        SeveralHeads(backbone, classes, heads, **options)
