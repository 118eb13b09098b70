import math

import pytest
import torch
from torch.nn import functional as F

from d2go_fbnetv5.models.maskformer_loss import (
    MaskFormerLoss,
    SegmentPrediction,
    Segments,
    _nearest,
    dice_loss,
    focal_loss,
    segments_of,
)


def prediction(num_images=1, queries=5, classes=3, size=(8, 8), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return SegmentPrediction(
        torch.randn(num_images, queries, classes + 1, generator=generator),
        torch.randn(num_images, queries, *size, generator=generator),
    )


def test_focal_and_dice_by_hand():
    logits = torch.tensor([[[0.0, math.log(3.0)]]])  # probabilities 1/2 and 3/4
    truth = torch.tensor([[[True, False]]])
    valid = torch.ones(1, 1, 2, dtype=torch.bool)
    on, off = 0.25 * 0.5**2 * math.log(2), 0.75 * 0.75**2 * math.log(4)
    assert focal_loss(logits, truth, valid).item() == pytest.approx((on + off) / 2)
    assert dice_loss(logits, truth, valid).item() == pytest.approx(1 - (2 * 0.5 + 1) / (1.25 + 1 + 1))
    valid[..., 1] = False
    assert focal_loss(logits, truth, valid).item() == pytest.approx(on)
    assert dice_loss(logits, truth, valid).item() == pytest.approx(1 - (2 * 0.5 + 1) / (0.5 + 1 + 1))


def test_segments_of_a_label_map():
    segments = segments_of(torch.tensor([[0, 2], [255, 2]]), ignore=255)
    assert segments.labels.tolist() == [0, 2]
    assert segments.masks.int().tolist() == [[[1, 0], [0, 0]], [[0, 1], [0, 1]]]
    assert segments.valid.int().tolist() == [[1, 1], [0, 1]]


def test_classification_weighs_no_object_a_tenth():
    outputs = prediction(queries=3)
    target = segments_of(torch.zeros(8, 8, dtype=torch.int64), 255)
    loss = MaskFormerLoss(3)
    [[(queries, _)]] = loss.match([outputs], [target])
    nll = -outputs.class_logits[0].log_softmax(1)
    weights = [1.0 if q == queries[0] else 0.1 for q in range(3)]
    classes = [0 if q == queries[0] else 3 for q in range(3)]
    expected = sum(w * nll[q, c] for q, (w, c) in enumerate(zip(weights, classes, strict=True))) / sum(
        weights
    )
    assert loss([outputs], [target])["loss_class"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_order_of_segments_does_not_matter():
    outputs = prediction(num_images=2)
    sem_seg = torch.randint(0, 3, (2, 16, 16), generator=torch.Generator().manual_seed(1))
    targets = [segments_of(one, 255) for one in sem_seg]
    order = torch.tensor([2, 0, 1])
    shuffled = [Segments(t.labels[order], t.masks[order], t.valid) for t in targets]
    loss = MaskFormerLoss(3)
    before, after = loss([outputs], targets), loss([outputs], shuffled)
    assert before.keys() == after.keys() == {"loss_class", "loss_mask", "loss_dice"}
    for name, value in before.items():
        assert after[name].item() == pytest.approx(value.item(), rel=1e-5)


def test_a_fixed_matching_gives_each_class_the_query_of_its_number():
    outputs = prediction(queries=5, classes=3)
    sem_seg = torch.zeros(8, 8, dtype=torch.int64)
    sem_seg[:, 4:] = 2
    loss = MaskFormerLoss(3, matching="fixed")
    target = segments_of(sem_seg, 255)
    [[(queries, segments)]] = loss.match([outputs], [target])
    assert queries.tolist() == [0, 2] and target.labels[segments].tolist() == [0, 2]
    # By hand: queries 0 and 2 have their class, 1, 3 and 4 see no object.
    nll = -outputs.class_logits[0].log_softmax(1)
    wanted, weights = [0, 3, 2, 3, 3], [1.0, 0.1, 1.0, 0.1, 0.1]
    expected = sum(w * nll[q, c] for q, (w, c) in enumerate(zip(weights, wanted, strict=True))) / sum(weights)
    losses = loss([outputs], [target])
    assert losses["loss_class"].item() == pytest.approx(expected.item(), rel=1e-5)
    masks = torch.stack([outputs.mask_logits[0, 0], outputs.mask_logits[0, 2]])
    dice = dice_loss(masks, target.masks, target.valid.expand_as(masks)).mean()
    assert losses["loss_dice"].item() == pytest.approx(dice.item(), rel=1e-5)
    # What suits better does not count, as it does by default.
    swapped = SegmentPrediction(outputs.class_logits.flip(1), outputs.mask_logits.flip(1))
    default = MaskFormerLoss(3)
    before, after = default([outputs], [target]), default([swapped], [target])
    assert after["loss_dice"].item() == pytest.approx(before["loss_dice"].item(), rel=1e-5)
    assert abs(loss([swapped], [target])["loss_dice"].item() - losses["loss_dice"].item()) > 1e-3


def test_perfect_prediction_costs_nothing():
    sem_seg = torch.zeros(16, 16, dtype=torch.int64)
    sem_seg[:, 8:] = 1
    target = segments_of(sem_seg, 255)
    masks = F.interpolate(target.masks[None].float(), (16, 16))[0]
    class_logits = 50 * F.one_hot(torch.tensor([[1, 0, 3]]), 4).float()
    mask_logits = torch.stack([100 * masks[1] - 50, 100 * masks[0] - 50, masks[0] * 0])[None]
    losses = MaskFormerLoss(3)([SegmentPrediction(class_logits, mask_logits)], [target])
    assert all(value.item() == pytest.approx(0, abs=1e-5) for value in losses.values())


def test_pixels_nobody_cares_about_do_not_count():
    outputs = prediction(size=(16, 16))
    sem_seg = torch.randint(0, 3, (16, 16), generator=torch.Generator().manual_seed(2))
    sem_seg[:, 12:] = 255
    target = segments_of(sem_seg, 255)
    loss = MaskFormerLoss(3)
    before = loss([outputs], [target])
    changed = outputs.mask_logits.clone()
    changed[..., 12:] = 30.0
    after = loss([SegmentPrediction(outputs.class_logits, changed)], [target])
    assert {k: v.item() for k, v in before.items()} == pytest.approx({k: v.item() for k, v in after.items()})


def test_auxiliary_predictions_are_scored_alike():
    outputs = prediction()
    target = segments_of(torch.zeros(8, 8, dtype=torch.int64), 255)
    losses = MaskFormerLoss(3)([outputs, outputs], [target])
    assert set(losses) == {f"loss_{n}{s}" for n in ("class", "mask", "dice") for s in ("", "_0")}
    assert all(losses[f"loss_{n}"] == losses[f"loss_{n}_0"] for n in ("class", "mask", "dice"))


def test_more_segments_than_queries():
    outputs = prediction(queries=2, classes=5)
    target = segments_of(torch.arange(64).view(8, 8) % 5, 255)
    losses = MaskFormerLoss(5)([outputs], [target])
    assert all(value.isfinite() for value in losses.values())


def test_nothing_labelled():
    outputs = prediction()
    target = segments_of(torch.full((8, 8), 255), 255)
    losses = MaskFormerLoss(3)([outputs], [target])
    assert losses["loss_mask"] == losses["loss_dice"] == 0 and losses["loss_class"] > 0


@pytest.mark.parametrize("size", [(4, 4), (3, 5), (8, 8), (7, 2)])
def test_masks_are_made_smaller_as_torch_does(size):
    masks = torch.rand(3, 13, 8, generator=torch.Generator().manual_seed(0)) < 0.5
    expected = F.interpolate(masks[None].float(), size, mode="nearest")[0].bool()
    assert torch.equal(_nearest(masks, size), expected)


def test_each_layer_and_image_has_the_match_that_it_has_alone():
    first, second = prediction(num_images=3), prediction(num_images=3, seed=7)
    sem_seg = torch.randint(0, 3, (3, 16, 16), generator=torch.Generator().manual_seed(1))
    sem_seg[1] = 255
    targets = [segments_of(one, 255) for one in sem_seg]
    loss = MaskFormerLoss(3)
    together = loss.match([first, second], targets)
    assert [[len(queries) for queries, _ in row] for row in together] == [[3, 0, 3]] * 2
    for row, layer in zip(together, (first, second), strict=True):
        for i, (queries, segments) in enumerate(row):
            one = SegmentPrediction(layer.class_logits[i : i + 1], layer.mask_logits[i : i + 1])
            [[alone]] = loss.match([one], targets[i : i + 1])
            assert torch.equal(queries, alone[0]) and torch.equal(segments, alone[1])
