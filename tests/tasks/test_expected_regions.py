"""Losses of all regions are the mean of those of sampled ones, for the detector of a search."""

import torch
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

from d2go_fbnetv5.tasks import DatasetInfo, build_task
from d2go_fbnetv5.tasks.expected_regions import sampling_chances

INFO = DatasetInfo(box_names=("x", "y"))
OPTIONS = {
    "anchor_sizes": (8.0, 16.0, 32.0),
    "anchor_ratios": (1.0,),
    "box_head_width": 16,
    "roi_output_size": 3,
    "rpn_batch_size_per_image": 4,
    "roi_batch_size_per_image": 8,
    "rpn_post_nms_topk_train": 30,
}


def batch():
    boxes = [[[4, 4, 20, 22], [30, 30, 60, 62], [2, 40, 18, 60]], [[8, 8, 40, 36]], []]
    labels = [[0, 1, 0], [1], []]
    return [
        {
            "image": torch.zeros(3, 64, 64, dtype=torch.uint8),
            "image_id": i,
            "boxes": torch.tensor(each, dtype=torch.float32).reshape(-1, 4),
            "box_labels": torch.tensor(kinds, dtype=torch.int64),
        }
        for i, (each, kinds) in enumerate(zip(boxes, labels, strict=True))
    ]


def build(expected):
    torch.manual_seed(0)
    head = build_task(
        "det", {"path1": 8, "path2": 8}, INFO, feature="path1", expected_losses=expected, **OPTIONS
    )
    for p in head.parameters():
        torch.nn.init.normal_(p, std=0.3)  # so that anchors and proposals differ
    return head.train()


def test_chances_are_those_of_the_sampler():
    labels = [torch.tensor([1.0, 1, 1, 0, 0, 0, 0, 0, -1, 0]), torch.tensor([0.0, 0, 0, 2]), torch.zeros(9)]
    sampler = BalancedPositiveNegativeSampler(4, 0.5)
    expected = torch.tensor([2 / 3] * 3 + [1 / 3] * 5 + [0] + [1 / 3] + [1] * 4 + [4 / 9] * 9)
    torch.testing.assert_close(sampling_chances(labels, sampler), expected)
    torch.manual_seed(0)
    drawn = torch.stack(
        [torch.cat([p | n for p, n in zip(*sampler(labels), strict=True)]) for _ in range(1500)]
    )
    assert (drawn.double().mean(dim=0) - expected).abs().max() < 0.065  # five deviations


def test_losses_and_their_gradients_are_the_mean_of_the_sampled_ones():
    features = {"path1": torch.randn(3, 8, 8, 8, generator=torch.Generator().manual_seed(1))}
    whole, sampled = build(True), build(False)
    expected = whole(features, batch())
    assert set(expected) == {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"}
    sum(expected.values()).backward()
    draws = []
    for seed in range(150):
        torch.manual_seed(seed)
        losses = sampled(features, batch())
        (sum(losses.values()) / 150).backward()
        draws.append([losses[name].item() for name in expected])
    draws = torch.tensor(draws, dtype=torch.double)
    error = draws.std(dim=0) / 150**0.5
    ours = torch.tensor([loss.item() for loss in expected.values()], dtype=torch.double)
    assert (draws.std(dim=0) > 0).all()
    assert ((ours - draws.mean(dim=0)).abs() < 4 * error).all()
    for (name, one), other in zip(whole.named_parameters(), sampled.parameters(), strict=True):
        assert (one.grad - other.grad).norm() < 0.15 * one.grad.norm(), name


def test_losses_do_not_depend_on_the_generator_and_predictions_not_on_the_losses():
    features = {"path1": torch.randn(3, 8, 8, 8, generator=torch.Generator().manual_seed(1))}
    head = build(True)
    torch.manual_seed(0)
    first = head(features, batch())
    torch.manual_seed(1)
    assert all(torch.equal(loss, first[name]) for name, loss in head(features, batch()).items())
    with torch.no_grad():
        ours, theirs = head.eval()(features, batch()), build(False).eval()(features, batch())
    assert all(torch.equal(a[key], b[key]) for a, b in zip(ours, theirs, strict=True) for key in a)


def test_images_without_a_box_are_background_alone():
    features = {"path1": torch.randn(3, 8, 8, 8, generator=torch.Generator().manual_seed(1))}
    empty = [
        {**sample, "boxes": torch.zeros(0, 4), "box_labels": torch.zeros(0).long()} for sample in batch()
    ]
    losses = build(True)(features, empty)
    assert losses["loss_box_reg"] == losses["loss_rpn_box_reg"] == 0
    assert losses["loss_classifier"] > 0 and losses["loss_objectness"] > 0
