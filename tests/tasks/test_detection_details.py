"""What torchvision leaves to chance: strides, boxes without anchors, crowds, empty images."""

import pytest
import torch
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.image_list import ImageList

from d2go_fbnetv5.tasks import DatasetInfo, build_task
from d2go_fbnetv5.tasks.anchors import StrideAnchorGenerator, anchor_similarity
from d2go_fbnetv5.tasks.detection import detection_target
from d2go_fbnetv5.tasks.roi_align import StrideRoIAlign

INFO = DatasetInfo(box_names=("x", "y"))
OPTIONS = {"anchor_sizes": (16.0, 32.0), "anchor_ratios": (1.0,), "box_head_width": 32, "roi_output_size": 3}


def build():
    torch.manual_seed(0)
    return build_task("det", {"path2": 8}, INFO, **OPTIONS)


def sample(boxes, labels, size=(64, 64), **others):
    return {
        "image": torch.zeros(3, *size, dtype=torch.uint8),
        "image_id": 0,
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "box_labels": torch.tensor(labels, dtype=torch.int64),
        **others,
    }


def test_anchors_lie_the_nominal_stride_apart_whatever_the_feature_size():
    generator = StrideAnchorGenerator((16,), ((8.0,),), ((1.0, 4.0),))
    feature = torch.zeros(2, 5, 13, 13, dtype=torch.float16)  # Path 2 of FBNetV3-A for 224 pixels
    first, second = generator(ImageList(feature, [(224, 224), (200, 224)]), [feature])
    assert torch.equal(first, second)
    assert first.dtype == torch.float32
    grid = first.view(13, 13, 2, 4)
    assert grid[0, 0].tolist() == [[-4, -4, 4, 4], [-2, -8, 2, 8]]
    assert (grid[3, 5] - grid[0, 0]).tolist() == [[80, 48, 80, 48]] * 2
    assert generator.num_anchors_per_location() == [2]


def test_regions_are_read_at_the_nominal_stride():
    # A feature that holds its cells' own x and y: a region's mean is its centre, in cells.
    y, x = torch.meshgrid(torch.arange(13.0), torch.arange(13.0), indexing="ij")
    align = StrideRoIAlign("path2", output_size=1, stride=16)
    boxes = [torch.tensor([[32.0, 48.0, 96.0, 80.0]]), torch.zeros(0, 4)]
    pooled = align({"path2": torch.stack([x, y]).expand(2, 2, 13, 13)}, boxes, [(224, 224), (100, 100)])
    torch.testing.assert_close(pooled.flatten(), torch.tensor([3.5, 3.5]))  # 64 / 16 - 0.5


def test_similarity_is_iou_where_boxes_touch_anchors():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    anchors = torch.tensor([[0.0, 0.0, 10.0, 5.0], [20.0, 20.0, 30.0, 30.0]])
    assert anchor_similarity(boxes, anchors).tolist() == [[0.5, 0.0]]
    assert anchor_similarity(torch.zeros(0, 4), anchors).shape == (0, 2)


def test_a_box_that_touches_no_anchor_is_given_the_nearest_alone():
    boxes = torch.tensor([[90.0, 90.0, 99.0, 99.0], [0.0, 0.0, 10.0, 10.0]])
    anchors = torch.tensor([[0.0, 0.0, 10.0, 10.0], [70.0, 70.0, 80.0, 80.0], [40.0, 0.0, 50.0, 10.0]])
    matches = Matcher(0.7, 0.3, allow_low_quality_matches=True)(anchor_similarity(boxes, anchors))
    assert matches.tolist() == [1, 0, Matcher(0.7, 0.3).BELOW_LOW_THRESHOLD]


def test_targets_leave_out_crowds_and_boxes_without_area():
    boxes = [[0, 0, 5, 5], [1, 1, 9, 9], [3, 3, 3, 9], [2, 2, 8, 8]]
    crowd = torch.tensor([False, True, False, False])
    target = detection_target(sample(boxes, [0, 1, 0, 1], box_is_crowd=crowd), torch.device("cpu"))
    assert target["boxes"].tolist() == [boxes[0], boxes[3]]
    assert target["labels"].tolist() == [1, 2]


@pytest.mark.parametrize(
    "batch",
    [
        [sample([], []), sample([], [])],
        [sample([], []), sample([[4, 4, 30, 30]], [1])],
        [sample([[4, 4, 4, 30]], [1]), sample([[4, 4, 30, 30]], [1], box_is_crowd=torch.tensor([True]))],
        [sample([[4, 4, 30, 30]], [1], size=(2, 2)), sample([], [], size=(64, 64))],
    ],
    ids=["all empty", "one empty", "nothing to train on", "tiny image"],
)
def test_images_without_objects_are_learned_from_as_background(batch):
    task, features = build(), torch.randn(2, 8, 4, 4, requires_grad=True)
    losses = task({"path2": features}, batch)
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert features.grad.isfinite().all()
    assert (features.grad.flatten(1).abs().sum(1) > 0).all()


def test_an_image_without_a_proposal_has_a_finite_loss():
    task = build()
    task.rpn.min_size = 1e6  # drops every proposal
    losses = task({"path2": torch.randn(1, 8, 4, 4)}, [sample([], [])])
    assert all(loss.isfinite() for loss in losses.values())


def test_autocast_does_not_touch_box_arithmetic():
    task, features = build().eval(), {"path2": torch.randn(1, 8, 4, 4).bfloat16()}
    with torch.no_grad():
        plain = task(features, [sample([], [])])[0]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = task(features, [sample([], [])])[0]
    assert mixed["boxes"].dtype == torch.float32
    torch.testing.assert_close(mixed, plain)


def test_the_number_of_outputs_follows_the_options():
    task = build_task("det", {"path2": 8}, INFO, **OPTIONS, detections_per_image=3, score_thresh=0.0).eval()
    with torch.no_grad():
        (output,) = task({"path2": torch.randn(1, 8, 4, 4)}, [sample([], [])])
    assert len(output["boxes"]) == 3
    assert torch.equal(output["scores"], output["scores"].sort(descending=True).values)


def test_the_box_head_learns_background_for_empty_images():
    task, features = build(), {"path2": torch.randn(2, 8, 4, 4)}
    optimizer = torch.optim.Adam(task.parameters(), lr=0.01)
    for _ in range(15):
        optimizer.zero_grad()
        sum(task(features, [sample([], []), sample([], [])]).values()).backward()
        optimizer.step()
    with torch.no_grad():
        outputs = task.eval()(features, [sample([], []), sample([], [])])
    assert all(len(output["boxes"]) == 0 for output in outputs)
