import pytest
import torch

from d2go_fbnetv5.arch import Backbone, Topology
from d2go_fbnetv5.models import ImageClassifier, LiteMaskFormer, LiteRCNN
from d2go_fbnetv5.utils.errors import InputError

KINDS = [ImageClassifier, LiteRCNN, LiteMaskFormer]
LABELS = {ImageClassifier: "class_label", LiteRCNN: "boxes", LiteMaskFormer: "sem_seg"}


def train_statistics(model, batch):
    """Gives batch norm real statistics, so that evaluation is of sane scale."""
    model.train()
    with torch.no_grad():
        for _ in range(20):
            model(batch)
    return model.eval()


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_batch_of_one_equals_its_place_in_a_batch(kind, small_model, scene):
    batch = [scene(0), scene(1, 50, 90), scene(2), scene(3, 100, 40)]
    model = train_statistics(small_model(kind), batch)
    together = model(batch)
    for sample, output in zip(batch, together, strict=True):
        assert_same(model([sample])[0], output)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_outputs_are_in_the_frame_of_the_image(kind, small_model, scene):
    batch = [scene(0, 50, 70), scene(1, 64, 64)]
    outputs = train_statistics(small_model(kind), batch)(batch)
    for sample, output in zip(batch, outputs, strict=True):
        height, width = sample["image"].shape[-2:]
        if kind is ImageClassifier:
            assert output["class_scores"].sum().item() == pytest.approx(1, abs=1e-5)
        elif kind is LiteMaskFormer:
            assert output["sem_seg"].shape == (height, width) and output["sem_seg"].dtype == torch.int64
            assert output["sem_seg"].min() >= 0 and output["sem_seg"].max() < 4
        else:
            boxes = output["boxes"]
            assert 0 < len(boxes) == len(output["scores"]) == len(output["labels"]) <= 100
            assert boxes.min() >= 0 and boxes[:, 2].max() <= width and boxes[:, 3].max() <= height


def odd_batches(scene):
    no_box = {"boxes": torch.zeros(0, 4), "box_labels": torch.zeros(0, dtype=torch.int64)}
    pixel = {
        **scene(0),
        "image": scene(0)["image"][:, :1, :1],
        "sem_seg": torch.zeros(1, 1, dtype=torch.int64),
        "boxes": torch.tensor([[0.0, 0, 1, 1]]),
        "box_labels": torch.tensor([0]),
    }
    return {
        "one pixel": [pixel],
        "one pixel, no box": [{**pixel, **no_box}],
        "no box": [{**scene(1), **no_box}, {**scene(2), **no_box}],
        "some without box": [{**scene(1), **no_box}, scene(2)],
        "all ignored": [{**scene(1), "sem_seg": torch.full((64, 64), 255)}],
        "a box of no area": [{**scene(1), "boxes": torch.tensor([[3.0, 3, 3, 9], [5, 5, 5, 5]])}],
        "unlabelled": [{"image": scene(3)["image"], "image_id": 3}],
        "very wide": [scene(4, 3, 130)],
    }


@pytest.mark.parametrize("kind", KINDS)
def test_odd_inputs_train_and_evaluate(kind, small_model, scene):
    model = small_model(kind)
    for name, batch in odd_batches(scene).items():
        model.train().zero_grad()
        losses = model(batch)
        assert all(loss.dim() == 0 and loss.isfinite() for loss in losses.values()), name
        sum(losses.values()).backward()
        for parameter in model.parameters():  # each has one, or distributed training would wait for it
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        model.eval()
        with torch.no_grad():
            assert len(model(batch)) == len(batch), name


@pytest.mark.parametrize("family", ["A", "C", "F"])
def test_one_pixel_in_families_that_pad_unusually(family, scene):
    sample = odd_batches(scene)["one pixel"]
    model = LiteRCNN(Backbone(family, Topology.named("linear"), ("path1",)), 4, regions_per_image=8)
    assert all(loss.isfinite() for loss in model(sample).values())
    model = ImageClassifier(Backbone(family, Topology.named("linear"), ("path3",)), 4)
    assert model(sample)["loss_class"].isfinite()


def test_the_width_of_a_detectors_heads(small_model, scene):
    model = small_model(LiteRCNN, width=0.25)
    widths = [block.pwl.conv.out_channels for block in model.roi_head.box_head.blocks]
    assert widths == [32, 32, 32, 40]
    assert model.rpn.head.objectness.in_channels == 24
    assert all(loss.isfinite() for loss in model.train()([scene(0)]).values())
    same, paper = small_model(LiteRCNN, width=1.0), small_model(LiteRCNN)
    assert [p.shape for p in same.parameters()] == [p.shape for p in paper.parameters()]
    for wrong in (0.0, -1.0, 9.0):
        with pytest.raises(InputError, match=f"'width' is {wrong}, allowed"):
            small_model(LiteRCNN, width=wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_without_the_label_has_no_part_in_the_loss(kind, small_model, scene):
    model = small_model(kind).train()
    unlabelled = {"image": scene(1)["image"], "image_id": 1}
    torch.manual_seed(0)
    some = model([scene(0), unlabelled])
    other = {**scene(1), LABELS[kind]: None}
    del other[LABELS[kind]]
    torch.manual_seed(0)
    again = model([scene(0), other])
    assert {k: v.item() for k, v in some.items()} == pytest.approx({k: v.item() for k, v in again.items()})
    assert all(v == 0 for v in model([unlabelled]).values())
    assert model([unlabelled]).keys() == some.keys()


def test_losses_are_named_as_in_detectron2(small_model, scene):
    batch = [scene(0), scene(1)]
    assert set(small_model(LiteRCNN)(batch)) == {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"}
    assert set(small_model(LiteMaskFormer)(batch)) == {"loss_class", "loss_mask", "loss_dice"}
    deep = small_model(LiteMaskFormer, num_layers=2)(batch)
    assert set(deep) == {f"loss_{n}{s}" for n in ("class", "mask", "dice") for s in ("", "_0")}
    shallow = small_model(LiteMaskFormer, num_layers=2, auxiliary_loss=False)(batch)
    assert set(shallow) == {"loss_class", "loss_mask", "loss_dice"}


def test_a_segmenters_matching_is_known_and_has_a_query_for_each_class(small_model, scene):
    model = small_model(LiteMaskFormer, num_queries=4, matching="fixed").train()
    losses = model([scene(0), scene(1)])
    assert set(losses) == {"loss_class", "loss_mask", "loss_dice"}
    sum(losses.values()).backward()
    with pytest.raises(InputError, match="'num_queries' is 3, allowed: 4 or more"):
        small_model(LiteMaskFormer, num_queries=3, matching="fixed")
    with pytest.raises(InputError, match="'matching' is best, allowed: bipartite, fixed"):
        small_model(LiteMaskFormer, matching="best")


@pytest.mark.parametrize(
    "kind,change,message",
    [
        (ImageClassifier, {"class_label": 4}, r"image 7: class_label 4..4; allowed is 0..3"),
        (LiteRCNN, {"box_labels": torch.tensor([0, -1])}, r"image 7: box_labels -1..0; allowed is 0..3"),
        (LiteRCNN, {"box_labels": torch.tensor([0])}, r"image 7: 2 boxes, but 1 box_labels"),
        (LiteMaskFormer, {"sem_seg": torch.full((64, 64), 9)}, r"image 7: sem_seg 9..9; allowed is 0..3"),
        (
            LiteMaskFormer,
            {"sem_seg": torch.zeros(8, 64)},
            r"image 7: sem_seg is \(8, 64\); expected \(64, 64\)",
        ),
    ],
)
def test_wrong_labels_name_the_image(kind, change, message, small_model, scene):
    with pytest.raises(ValueError, match=message):
        small_model(kind)([{**scene(0), "image_id": 7, **change}])


def test_a_head_needs_its_features():
    with pytest.raises(ValueError, match="LiteMaskFormer reads path1, path3; the backbone gives path3"):
        LiteMaskFormer(Backbone("N", Topology.named("linear"), ("path3",)), 4)


@pytest.mark.parametrize("kind", KINDS)
def test_trains_under_autocast(kind, small_model, scene):
    model = small_model(kind)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model([scene(0), scene(1)])
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert len(model([scene(0)])) == 1


@torch.no_grad()
def test_only_30_proposals_reach_the_box_head(small_model, scene):
    model = train_statistics(small_model(LiteRCNN), [scene(0), scene(1)])
    seen = []
    model.roi_head.box_head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    model([scene(0)])
    assert 0 < seen[0][0] <= 30 and seen[0][2:] == (6, 6)
