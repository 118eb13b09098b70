import math

import pytest
import torch
from torch import nn

from d2go_fbnetv5.arch import Backbone, Topology
from d2go_fbnetv5.models import BoxPredictor, LiteBoxHead, LiteRCNN, LiteRPNHead
from d2go_fbnetv5.models.roi_head import BoxTargets, ROIHead


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return LiteRCNN(Backbone("N", Topology.named("linear"), ("path1",)), 3)


def test_head_shapes():
    logits, deltas = LiteRPNHead(20)([torch.randn(2, 20, 4, 6)])
    assert logits[0].shape == (2, 15, 4, 6) and deltas[0].shape == (2, 60, 4, 6)
    head = LiteBoxHead(20)
    assert head(torch.randn(5, 20, 6, 6)).shape == (5, 160) == (5, head.out_channels)
    classes, boxes = BoxPredictor(160, 3)(torch.randn(5, 160))
    assert classes.shape == (5, 4) and boxes.shape == (5, 3, 4)


def test_rpn_head_is_table_7s():
    head = LiteRPNHead(40)
    assert [block.pw.conv.out_channels for block in head.blocks] == [120, 288, 288]
    assert all(
        block.pwl.conv.out_channels == 96 and isinstance(block.se.gate, nn.Hardsigmoid)
        for block in head.blocks
    )


def test_box_head_is_table_7s():
    head = LiteBoxHead(40)
    assert [block.pw.conv.out_channels for block in head.blocks] == [160, 768, 768, 768]
    assert [block.pwl.conv.out_channels for block in head.blocks] == [128, 128, 128, 160]
    assert [block.dw.conv.stride[0] for block in head.blocks] == [2, 1, 1, 1]
    assert all(block.se is None for block in head.blocks)


def test_fifteen_anchors_per_feature(model):
    anchors = model.rpn.anchor_generator.cell_anchors[0]
    sides = anchors[:, 2:] - anchors[:, :2]
    assert len(anchors) == 15
    # Rounded to pixels: an area of 32 x 32 at height over width 1/2, 1 and 2.
    assert {tuple(map(int, s)) for s in sides} >= {(46, 22), (32, 32), (22, 46), (512, 512)}


def test_rpn_targets_by_hand(model):
    anchors = torch.tensor(
        [[0.0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 5], [20, 20, 30, 30], [40, 40, 50, 54]]
    )
    # IoU with the first box 1, 0.8, 0.5; the fourth anchor meets nothing; the fifth has the best IoU of the
    # second box, 4 x 10 of 10 x 14, and is an object for that.
    truth = torch.tensor([[0.0, 0, 10, 10], [40, 40, 50, 44]])
    labels, boxes = model.rpn.assign_targets_to_anchors([anchors], [{"boxes": truth}])
    assert labels[0].tolist() == [1, 1, -1, 0, 1]
    assert boxes[0][[0, 1, 4]].tolist() == [truth[0].tolist(), truth[0].tolist(), truth[1].tolist()]
    deltas = model.rpn.box_coder.encode([boxes[0][1:2]], [anchors[1:2]])[0][0]
    torch.testing.assert_close(deltas, torch.tensor([0, 1 / 8, 0, math.log(10 / 8)]))


def test_without_boxes_every_anchor_is_background(model):
    labels, _ = model.rpn.assign_targets_to_anchors([torch.rand(4, 4)], [{"boxes": torch.zeros(0, 4)}])
    assert labels[0].tolist() == [0, 0, 0, 0]


def test_region_targets_by_hand(model):
    target = BoxTargets(torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40]]), torch.tensor([2, 0]))
    proposals = torch.tensor([[0.0, 0, 10, 6], [0, 0, 10, 4], [22, 20, 42, 40], [60, 60, 70, 70]])
    labels, match = model.roi_head.label(proposals, target)
    assert labels.tolist() == [2, 3, 0, 3]  # IoU 0.6, 0.4, 18/22, 0; 3 is the background
    assert match[[0, 2]].tolist() == [0, 1]
    encoded = model.roi_head.coder.encode_single(target.boxes[1:], proposals[2:3])[0]
    torch.testing.assert_close(encoded, torch.tensor([10 * -2 / 20, 0, 0, 0]))
    none = BoxTargets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert model.roi_head.label(proposals, none)[0].tolist() == [3, 3, 3, 3]


def test_region_losses_by_hand():
    class Fixed(nn.Module):
        num_classes = 2

        def forward(self, x):
            return torch.zeros(len(x), 3, requires_grad=True), torch.full((len(x), 2, 4), 0.5)

    head = ROIHead(nn.Flatten(), Fixed(), stride=8, regions_per_image=8, positive_fraction=1.0)
    target = BoxTargets(torch.tensor([[0.0, 0, 16, 16]]), torch.tensor([1]))
    proposals = torch.tensor([[40.0, 40, 56, 56]])
    losses = head.losses(torch.randn(1, 4, 8, 8), [proposals], [target])
    assert losses["loss_cls"].item() == pytest.approx(math.log(3))
    # The true box is itself a region with deltas 0; it is the one object of two regions.
    assert losses["loss_box_reg"].item() == pytest.approx(4 * 0.5 / 2)


def test_detections_are_thresholded_suppressed_and_clipped():
    class Fixed(nn.Module):
        num_classes = 2

        def forward(self, x):
            logits = torch.tensor([[4.0, 0, 0], [3.0, 0, 0], [-9.0, 4.0, 0], [-9.0, -9.0, 9.0]])
            return logits, torch.zeros(4, 2, 4)

    head = ROIHead(nn.Flatten(), Fixed(), stride=8, score_threshold=0.1)
    boxes = torch.tensor([[0.0, 0, 20, 20], [1, 0, 20, 20], [30, 30, 90, 90], [5, 5, 9, 9]])
    output = head.predict(torch.randn(1, 4, 8, 8), [boxes], [(50, 60)])[0]
    assert output["labels"].tolist() == [1, 0] or output["labels"].tolist() == [0, 1]
    first = output["boxes"][output["labels"] == 0]
    assert first.tolist() == [[0, 0, 20, 20]]
    assert output["boxes"][output["labels"] == 1].tolist() == [[30, 30, 60, 50]]
    assert torch.equal(output["scores"], output["scores"].sort(descending=True).values)


def test_training_boxes_leave_out_crowds_and_empty_boxes(model):
    sample = {
        "boxes": torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 9], [5, 5, 5, 9]]),
        "box_labels": torch.tensor([0, 1, 2]),
        "box_is_crowd": torch.tensor([False, True, False]),
    }
    target = model.targets(sample, torch.device("cpu"))
    assert target.labels.tolist() == [0] and target.boxes.tolist() == [[0, 0, 9, 9]]
