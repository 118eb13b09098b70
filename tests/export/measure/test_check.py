"""What the check of a file lets pass, and what not."""

import copy

import pytest
import torch
from exported import SIZES, images, tiny

from d2go_fbnetv5.export import CheckFailedError
from d2go_fbnetv5.export.measure.check import check
from d2go_fbnetv5.export.network.inference import inference_module
from d2go_fbnetv5.models import ImageClassifier, LiteMaskFormer, LiteRCNN

NAN = float("nan")


@pytest.mark.parametrize(("magnitude", "passes"), [(1.0, False), (3.0, True)])
def test_scores_over_1_may_differ_by_a_part_of_the_greatest(magnitude, passes, monkeypatch):
    model = tiny(LiteMaskFormer)
    expected = torch.full((5, 96, 64), magnitude / 2)
    expected[0] = magnitude
    monkeypatch.setattr("d2go_fbnetv5.export.measure.check.segment_scores", lambda *args: expected)
    monkeypatch.setattr("d2go_fbnetv5.export.measure.check.weighed_masks", lambda *args: expected + 2e-4)
    run, shown = inference_module(model), images((96, 64))
    if passes:
        assert check(model, run, shown).worst == pytest.approx(2e-4, rel=0.01)
    else:
        with pytest.raises(CheckFailedError, match="class scores differ by 0.0002, allowed is 0.0001"):
            check(model, run, shown)


def detector_run(model, change):
    module = inference_module(model)
    return lambda image: change(*module(image))


def test_detections_match_in_any_order_but_not_moved_missing_or_relabelled():
    model = tiny(LiteRCNN)
    shown = images(*SIZES)
    order = torch.arange(model.roi_head.max_detections - 1, -1, -1)
    report = check(model, detector_run(model, lambda b, s, k: (b[order], s[order], k[order])), shown)
    assert report.overlap > 0.999 and report.agreement == 1
    for change in (
        lambda b, s, k: (b + 2, s, k),
        lambda b, s, k: (b, s * 0.9, k),
        lambda b, s, k: (b, s, (k + 1) % 5),
        lambda b, s, k: (b[1:], s[1:], k[1:]),
        lambda b, s, k: (b, s * 0, k),
    ):
        with pytest.raises(CheckFailedError, match="counterpart"):
            check(model, detector_run(model, change), shown)


def test_which_of_equal_boxes_is_kept_may_differ_and_nothing_else():
    """In an even image scores are equal but for rounding, and suppression takes one or the other."""
    model = tiny(LiteRCNN, max_detections=500, test_proposals=(1000, 100), anchor_sizes=(64, 96))
    shown = [torch.full((1, 3, 96, 640), 127.0)]

    def file(noise, change=lambda found: found):
        rounded = copy.deepcopy(model)
        select, generator = rounded.roi_head._select, torch.Generator().manual_seed(0)
        rounded.roi_head._select = lambda scores, boxes: select(
            scores * (1 + noise * torch.rand(scores.shape, generator=generator)), boxes
        )

        def run(image):
            found = change(rounded([{"image": image[0]}])[0])
            return found["boxes"], found["scores"], found["labels"]

        return run

    exact = model([{"image": shown[0][0]}])[0]
    other = file(1e-5)(shown[0])
    assert not all(len(a) == len(b) and torch.equal(a, b) for a, b in zip(exact.values(), other, strict=True))
    report = check(model, file(1e-5), shown)
    assert report.worst < 1e-3 and report.overlap > 0.99
    for changed in (
        file(0.1),
        file(1e-5, lambda found: found | {"boxes": found["boxes"] + 3}),
        file(1e-5, lambda found: {key: value[len(value) // 2 :] for key, value in found.items()}),
    ):
        with pytest.raises(CheckFailedError, match="counterpart"):
            check(model, changed, shown)


def probing(model, change=lambda *found: found):
    module = inference_module(model)
    module.least_score.fill_(0.0)
    return lambda image: change(*module(image))


@pytest.mark.slow
def test_a_detector_that_finds_nothing_is_compared_by_detections_of_any_score():
    model = tiny(LiteRCNN, score_threshold=0.9999)
    shown = images((96, 64), (64, 128))
    run = inference_module(model)
    report = check(model, run, shown, probe=lambda: probing(model))
    assert report.detections == (0, 0) and report.agreement > 0.9
    assert model.roi_head.score_threshold == 0.9999
    for change in (
        lambda b, s, k: (b + 20, s, k),
        lambda b, s, k: (b, s, (k + 1) % 5),
        lambda b, s, k: (b, s * 0.9, k),
        lambda b, s, k: (b, s * 0, k),
    ):
        changed = probing(model, change)
        for int8 in (False, True):
            with pytest.raises(CheckFailedError, match="no detection in 2 images, and of those of any score"):
                check(model, run, shown, int8, lambda run=changed: run)
    with pytest.raises(CheckFailedError, match="no detection in 2 images"):
        check(model, run, shown)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [ImageClassifier, LiteRCNN, LiteMaskFormer])
@pytest.mark.parametrize("int8", [False, True])
def test_what_is_not_finite_fails_in_the_model_and_in_the_file(kind, int8):
    model, shown = tiny(kind), images((96, 64))
    module = inference_module(model)

    def broken(image):
        found = module(image)
        first, *rest = found if isinstance(found, tuple) else (found,)
        return first.index_fill(0, torch.tensor([0]), NAN), *rest

    with pytest.raises(CheckFailedError, match=r"image 0 \(96 x 64\): the file's output is not finite"):
        check(model, broken, shown, int8)
    next(model.backbone.parameters()).data.flatten()[0] = NAN
    with pytest.raises(CheckFailedError, match="the model's weight 'backbone.stage0.* is not finite"):
        check(model, inference_module(model), shown, int8)
