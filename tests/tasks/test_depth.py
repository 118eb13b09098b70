"""Depth: losses and metrics by hand, missing values, and what is no depth."""

import math

import pytest
import torch

from d2go_fbnetv5.tasks import DatasetInfo, build_task
from d2go_fbnetv5.tasks.depth import depth_losses, depth_outputs, padded_depth
from d2go_fbnetv5.tasks.depth_metrics import DepthMetrics, aligned, has_depth

METRES = DatasetInfo(depth_units=("metres",))


def judged(truth, found, units=("metres",)):
    metric = DepthMetrics(units)
    for image_id, (a, b) in enumerate(zip(truth, found, strict=True)):
        metric.process([{"image_id": image_id, "depth": torch.tensor(a)}], [{"depth": torch.tensor(b)}])
    return metric.evaluate()


def test_metrics_of_metres_by_hand():
    # Errors 1 of 2, 0 of 4 and -1 of 4 (a factor of 4/3); a second image of one pixel that is right to 10 percent.
    truth = [[[2.0, 4.0, 4.0, 0.0]], [[10.0, 0.0, 0.0, 0.0]]]
    found = [[[3.0, 4.0, 3.0, 9.0]], [[11.0, 1.0, 1.0, 1.0]]]
    metrics = judged(truth, found)
    assert metrics["AbsRel"] == pytest.approx(((0.5 + 0 + 0.25) / 3 + 0.1) / 2)
    assert metrics["RMSE"] == pytest.approx((math.sqrt(2 / 3) + 1) / 2)
    assert metrics["delta1"] == pytest.approx((1 / 3 + 1) / 2)


def test_a_relative_depth_is_scaled_and_shifted_and_a_wrong_order_earns_what_a_constant_does():
    truth = [[[1.0, 2.0, 3.0, 6.0]]]
    right = judged(truth, [[[-7.0, -5.0, -3.0, 3.0]]], ("relative",))
    assert right == pytest.approx({"AbsRel": 0, "RMSE": 0, "delta1": 1}, abs=1e-6)
    constant, reverse = (judged(truth, [[x]], ("relative",)) for x in ([5.0] * 4, [6.0, 3.0, 2.0, 1.0]))
    assert constant == pytest.approx(reverse)  # the truth's mean, 3
    assert constant["AbsRel"] == pytest.approx((2 / 1 + 1 / 2 + 0 + 3 / 6) / 4) and constant["delta1"] == 0.25


def test_the_alignment_is_that_of_least_squares():
    generator = torch.Generator().manual_seed(0)
    found = torch.rand(50, generator=generator, dtype=torch.float64)
    truth = 3 * found + 2 + 0.1 * torch.rand(50, generator=generator, dtype=torch.float64)
    design = torch.stack([found, torch.ones_like(found)], 1)
    expected = design @ torch.linalg.lstsq(design, truth).solution
    torch.testing.assert_close(aligned(found, truth), expected)


@pytest.mark.parametrize("nothing", [0.0, -1.0, math.nan, math.inf])
def test_pixels_without_depth_have_no_part_in_losses_and_metrics(nothing):
    truth = torch.tensor([[[2.0, nothing], [4.0, 8.0]]])
    assert has_depth(truth).tolist() == [[[True, False], [True, True]]]
    logs = torch.zeros(1, 2, 2, requires_grad=True)
    total = sum(depth_losses(logs, truth).values())
    total.backward()
    assert total.isfinite() and logs.grad[0, 0, 1] == 0 and logs.grad.abs().sum() > 0
    metrics = judged(truth.tolist(), [[[1.0, 5.0], [4.0, 8.0]]])
    assert metrics["AbsRel"] == pytest.approx(0.5 / 3) and metrics["delta1"] == pytest.approx(2 / 3)


def test_metrics_of_nothing_are_nan():
    assert all(math.isnan(value) for value in judged([[[0.0]]], [[[1.0]]]).values())


def test_losses_by_hand():
    # Differences of logarithms: 1, 2 and 5 in the first row, -1 in the second, the rest missing.
    logs = torch.tensor([[[1.0, 2.0, 5.0], [-1.0, 9.0, 9.0]]])
    truth = torch.tensor([[[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]])
    losses = depth_losses(logs, truth, invariance=0.5, gradient_weight=2.0)
    mean, square = 7 / 4, (1 + 4 + 25 + 1) / 4
    assert losses["loss_depth"].item() == pytest.approx(square - 0.5 * mean**2)
    # Every pixel: down |-1 - 1|, along 1 and 3. Every second one: along |5 - 1|. Then nothing is left to compare.
    assert losses["loss_depth_gradient"].item() == pytest.approx(2 * (2 + (1 + 3) / 2 + 4))


def test_a_loss_of_full_invariance_forgives_a_factor_and_the_gradients_always_do():
    generator = torch.Generator().manual_seed(0)
    truth = 1 + torch.rand(2, 16, 16, generator=generator)
    losses = depth_losses((3 * truth).log(), truth, invariance=1.0)
    assert all(loss.abs() < 1e-5 for loss in losses.values())
    assert depth_losses((3 * truth).log(), truth)["loss_depth"].item() == pytest.approx(
        0.5 * math.log(3) ** 2
    )


def test_an_output_has_the_size_that_the_labels_have():
    logs = torch.zeros(1, 32, 64)
    (output,) = depth_outputs(logs, [{"image": torch.zeros(3, 20, 40), "height": 50, "width": 100}])
    assert output["depth"].shape == (50, 100) and (output["depth"] == 1).all()


@pytest.mark.parametrize(
    ("depth", "message"),
    [
        (torch.ones(50, 64), r"depth of image 3 is \(50, 64\), its image \(64, 64\)"),
        (
            torch.ones(64, 64, dtype=torch.int64),
            "depth of image 3 is of torch.int64, .* a label map is no depth",
        ),
    ],
)
def test_what_is_no_depth_of_its_image_is_refused(depth, message):
    sample = {"image": torch.zeros(3, 64, 64), "image_id": 3, "depth": depth}
    with pytest.raises(ValueError, match=message):
        padded_depth([sample], (64, 64), torch.device("cpu"))


def test_a_data_set_without_depth_is_refused():
    with pytest.raises(ValueError, match="task 'depth' needs depth_units, but the data set has none"):
        build_task("depth", {"path2": 4}, DatasetInfo(class_names=("a",)))
    with pytest.raises(
        ValueError, match="'invariance' of task 'depth' is 2.0, allowed: 0 or more and at most 1"
    ):
        build_task("depth", {"path2": 4}, METRES, invariance=2.0)
