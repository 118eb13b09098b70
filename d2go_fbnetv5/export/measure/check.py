"""Is an exported file the model? Both are run on the same images, and their outputs compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from d2go_fbnetv5.export.formats.base import Run
from d2go_fbnetv5.export.metadata import outputs_by_task
from d2go_fbnetv5.models import LiteDepth, LiteMaskFormer, LiteRCNN, SearchedModel
from d2go_fbnetv5.models.lite_maskformer import segment_scores, weighed_masks
from d2go_fbnetv5.tasks.images import image_size
from d2go_fbnetv5.utils.errors import InputError

# Allowed difference of a class' probability, or of a class' score in a pixel. Scores are sums over queries and may be
# over 1, as an untrained segmenter's are; then it is this part of the greatest.
VALUES = 1e-4
SCORES = 1e-3  # of a detection's score, and of a depth as a part of it
OVERLAP = 0.99  # least IoU of a detection with its counterpart
PROBED = 0.5  # least share of detections of any score that agree, where there is none above a detector's own
AGREEMENT = 0.9  # of int8: least share of images, pixels or detections with the same class


class CheckFailedError(Exception):
    """An exported file does not compute what the model does; the message says by how much and where."""


@dataclass
class Report:
    """The findings of a comparison.

    Attributes:
        images: how many; sizes: their different (height, width).
        worst: the greatest difference of a probability or score; where: the image it was seen in.
        overlap: of detectors, the least IoU of a detection with its counterpart.
        agreement: the mean share of images, pixels or detections that have the same class, the least of the tasks'.
        detections: of detectors, the least and the greatest number in an image.
        failures: what was beyond the allowed, worst first in each image.
    """

    images: int = 0
    sizes: set[tuple[int, int]] = field(default_factory=set)
    worst: float = 0.0
    where: str = ""
    overlap: float = 1.0
    agreement: float = 0.0
    detections: tuple[int, int] | None = None
    failures: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        content = {
            "images": self.images,
            "sizes": sorted(map(list, self.sizes)),
            "worst_difference": self.worst,
            "where": self.where,
            "same_class": self.agreement,
        }
        if self.detections is not None:
            content |= {"least_iou": self.overlap, "detections": list(self.detections)}
        return content

    def differs(self, value: float, where: str) -> None:
        if not value <= self.worst:  # NaN is the worst
            self.worst, self.where = value, where


@torch.no_grad()
def check(
    model: SearchedModel,
    run: Run,
    images: Iterable[Tensor],
    int8: bool = False,
    probe: Callable[[], Run] | None = None,
) -> Report:
    """Compares a file with its model.

    Args:
        model: in evaluation mode.
        run: the file.
        images: 1 x 3 x H x W in 0..255, of sizes that the model does not pad; one or more.
        int8: ask for `AGREEMENT` alone; differences are reported only.
        probe: gives the file with 0 for the least score of a detection. A detector that finds nothing in the images is
            compared by it.

    Raises:
        CheckFailedError: a weight of the model or an output is not finite, there is nothing to compare, or a difference
            is beyond `VALUES`, or `SCORES` and `OVERLAP`, or below `AGREEMENT`.
    """
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise CheckFailedError(f"the model's weight {name!r} is not finite (NaN or infinity)")
    images = list(images)
    if not images:
        raise InputError("check needs one image or more, found none")
    report, singles = Report(), model.singles()
    shares: dict[str, list[float]] = {task: [] for task in singles}
    for where, image, found in _outputs(run, images):
        report.images += 1
        report.sizes.add(image_size(image))
        for task, part in outputs_by_task(model, found).items():
            shares[task].append(_COMPARE[task](singles[task], image, part, report, where))
    agreement = {task: sum(each) / len(each) for task, each in shares.items()}
    probed = report.detections == (0, 0)
    if probed:
        agreement["det"] = _probed_agreement(model, probe, images)
        if not agreement["det"] >= PROBED:
            raise CheckFailedError(
                f"no detection in {report.images} images, and of those of any score {agreement['det']:.1%} have a "
                f"counterpart of the same class and place; allowed is {PROBED:.0%} or more"
            )
    report.agreement = min(agreement.values())
    seen = {task: share for task, share in agreement.items() if task != "det" or not probed}
    if int8 and seen and not min(seen.values()) >= AGREEMENT:
        worst = min(seen, key=seen.__getitem__)
        raise CheckFailedError(
            f"{worst}: the same class in {seen[worst]:.1%} of {report.images} images' results; allowed is "
            f"{AGREEMENT:.0%} or more"
        )
    if not int8 and report.failures:
        raise CheckFailedError(f"{report.failures[0]} ({len(report.failures)} such differences)")
    return report


def _outputs(run: Run, images: Iterable[Tensor]) -> Iterator[tuple[str, Tensor, tuple[Tensor, ...]]]:
    """Where a file is run, on what, and what it gives."""
    for index, image in enumerate(images):
        where = f"image {index} ({image.shape[-2]} x {image.shape[-1]})"
        try:
            found = tuple(run(image))
        except Exception as error:  # a runtime's own kind
            raise CheckFailedError(f"{where}: the file cannot run it: {error}") from error
        if not all(torch.isfinite(values).all() for values in found):
            raise CheckFailedError(f"{where}: the file's output is not finite (NaN or infinity)")
        yield where, image, found


def _probed_agreement(
    model: SearchedModel, probe: Callable[[], Run] | None, images: Sequence[Tensor]
) -> float:
    """The share of detections of any score that have a counterpart; 0 where there is none.

    An untrained detector's scores are all but equal, so which box goes before which is a matter of rounding, and not
    all can have one.
    """
    if probe is None:
        return 0.0
    detector, shares = cast(LiteRCNN, model.singles()["det"]), []
    with _changed(detector.roi_head, score_threshold=0.0):
        for _, image, found in _outputs(probe(), images):
            boxes, scores, labels = outputs_by_task(model, found)["det"]
            expected = detector([{"image": image[0]}])[0]
            there = scores > 0
            ours = boxes[there], scores[there], labels[there]
            theirs = expected["boxes"], expected["scores"], expected["labels"]
            for a, b in ((theirs, ours), (ours, theirs)):
                shares += [
                    overlap >= OVERLAP and difference <= VALUES
                    for _, _, overlap, difference in _counterparts(a, b)
                ]
    return sum(shares) / len(shares) if shares else 0.0


def _compare_classes(
    model: SearchedModel, image: Tensor, found: tuple[Tensor, ...], report: Report, where: str
) -> float:
    expected = model([{"image": image[0]}])[0]["class_scores"]
    _values(found[0][0], expected, "class probabilities", report, where)
    return float(found[0][0].argmax() == expected.argmax())


def _compare_maps(
    model: LiteMaskFormer, image: Tensor, found: tuple[Tensor, ...], report: Report, where: str
) -> float:
    images, _ = model.images([{"image": image[0]}])
    prediction = model.head(model.backbone(images))[-1]
    classes, masks = prediction.class_logits[0], prediction.mask_logits[0]
    size = (image.shape[2], image.shape[3])
    expected = segment_scores(classes, masks, size, size)
    scores = weighed_masks(found[0][0], found[1][0], size, size)
    _values(scores, expected, "class scores", report, where)
    return (scores.argmax(0) == expected.argmax(0)).float().mean().item()


def _values(found: Tensor, expected: Tensor, what: str, report: Report, where: str) -> None:
    if found.shape != expected.shape:
        report.differs(float("inf"), where)
        report.failures.append(f"{where}: {what} of {tuple(found.shape)}, expected {tuple(expected.shape)}")
        return
    difference = (found - expected).abs().max().item()
    report.differs(difference, where)
    allowed = VALUES * max(1.0, expected.abs().max().item())
    if not difference <= allowed:
        report.failures.append(f"{where}: {what} differ by {difference:.3g}, allowed is {allowed:.3g}")


def _compare_detections(
    model: LiteRCNN, image: Tensor, found: tuple[Tensor, ...], report: Report, where: str
) -> float:
    expected = model([{"image": image[0]}])[0]
    boxes, scores, labels = found
    there = scores > 0
    ours = boxes[there], scores[there], labels[there]
    theirs = expected["boxes"], expected["scores"], expected["labels"]
    for count in (len(ours[1]), len(theirs[1])):
        fewest, most = report.detections or (count, count)
        report.detections = (min(fewest, count), max(most, count))
    head = model.roi_head
    both = ((theirs, ours, "the model's"), (ours, theirs, "the file's"))
    rows = [list(_counterparts(a, b)) for a, b, _ in both]
    # The last ones, which the threshold or the number of detections lets in by a hair, are not compared.
    least = [
        max(head.score_threshold, a[1].min().item() if len(a[1]) >= head.max_detections else 0.0) + SCORES
        for a, _, _ in both
    ]
    alone = [
        torch.tensor(
            [not (overlap >= OVERLAP and differs <= SCORES) for _, _, overlap, differs in found]
        ).bool()
        for found in rows
    ]
    by_rounding = any(map(torch.any, alone)) and _rounding_decides(model, image, theirs, ours, alone, least)
    matched = total = 0
    for found_rows, flags, (_, _, whose), over in zip(rows, alone, both, least, strict=True):
        for (box, score, overlap, difference), apart in zip(found_rows, flags.tolist(), strict=True):
            if score <= over or (apart and by_rounding):
                continue
            total += 1
            matched += overlap > 0.5
            report.overlap = min(report.overlap, overlap)
            report.differs(difference, where)
            if apart:
                report.failures.append(
                    f"{where}: {whose} box {[round(v, 1) for v in box]} of score {score:.3f} has a counterpart of IoU "
                    f"{overlap:.4f} whose score differs by {difference:.3g}; allowed are {OVERLAP} and {SCORES}"
                )
    return matched / total if total else 1.0


def _rounding_decides(
    model: LiteRCNN,
    image: Tensor,
    theirs: tuple[Tensor, ...],
    ours: tuple[Tensor, ...],
    alone: Sequence[Tensor],
    least: Sequence[float],
) -> bool:
    """Return whether all detections that only the model or only the file has are such as rounding chooses among.

    Of overlapping boxes of a class the one of the highest score is kept. In an even part of an image all places look
    alike, so that scores are equal but for rounding: the file may keep another box, and what that one lets stay.
    So each of the model's has to overlap one that only the file has, of its score or a higher one; and each of the
    file's has to be among the model's own candidates, where no detection of both that scores higher overlaps it.

    Args:
        theirs, ours: boxes, scores and labels of the model, of the file.
        alone: which of them, and of which scores on they count (``least``).
    """
    threshold = model.roi_head.nms_threshold

    def overlapping(a: Sequence[Tensor], b: Sequence[Tensor], least: float) -> Tensor:
        return (box_iou(a[0], b[0]) > least) & (a[2][:, None] == b[2])

    mine, its = ([part[flags] for part in found] for found, flags in zip((theirs, ours), alone, strict=True))
    shared = [part[~alone[0]] for part in theirs]
    given_up = (overlapping(mine, its, threshold) & (its[1] >= mine[1][:, None] - SCORES)).any(1)
    if not given_up[mine[1] > least[0]].all():
        return False
    its = [part[its[1] > least[1]] for part in its]
    candidates = _candidates(model, image)
    near = overlapping(its, candidates, OVERLAP) & ((its[1][:, None] - candidates[1]).abs() <= SCORES)
    beaten = overlapping(its, shared, threshold) & (shared[1] > its[1][:, None] + SCORES)
    return bool(near.any(1).all() and not beaten.any())


def _candidates(model: LiteRCNN, image: Tensor) -> tuple[Tensor, ...]:
    """Boxes, scores and labels before any is dropped for another that it overlaps, in either stage."""
    every = torch.iinfo(torch.int64).max
    with (
        _changed(model.rpn, nms_thresh=1.0, _post_nms_top_n={"training": every, "testing": every}),
        _changed(model.roi_head, nms_threshold=1.0, max_detections=every),
    ):
        found = model([{"image": image[0]}])[0]
    return found["boxes"], found["scores"], found["labels"]


@contextmanager
def _changed(module: nn.Module, **values: Any) -> Iterator[None]:
    """Give a module other settings for a while."""
    kept = {name: getattr(module, name) for name in values}
    try:
        for name, value in values.items():
            setattr(module, name, value)
        yield
    finally:
        for name, value in kept.items():
            setattr(module, name, value)


def _counterparts(
    a: tuple[Tensor, ...], b: tuple[Tensor, ...]
) -> Iterator[tuple[list[float], float, float, float]]:
    """Yield for each detection (boxes, scores, labels) of ``a`` box and score, the IoU with the detection of ``b`` of
    its class that overlaps it most, and their scores' difference. Rows may be in any order."""
    if not len(a[1]):
        return
    if not len(b[1]):
        yield from ((box, score, 0.0, score) for box, score in zip(a[0].tolist(), a[1].tolist(), strict=True))
        return
    overlaps = box_iou(a[0], b[0]) * (a[2][:, None] == b[2][None])
    overlap, place = overlaps.max(1)
    differences = torch.where(overlap > 0, (a[1] - b[1][place]).abs(), a[1])
    yield from zip(a[0].tolist(), a[1].tolist(), overlap.tolist(), differences.tolist(), strict=True)


def _compare_depths(
    model: LiteDepth, image: Tensor, found: tuple[Tensor, ...], report: Report, where: str
) -> float:
    """Return the share of pixels whose depths differ by less than a quarter."""
    expected = model([{"image": image[0]}])[0]["depth"]
    differences = (found[0][0, 0] / expected - 1).abs()
    worst = float(differences.max())
    report.differs(worst, where)
    if not worst <= SCORES:
        report.failures.append(f"{where}: a depth differs by {worst:.3g} of itself; allowed is {SCORES}")
    return float((differences < 0.25).double().mean())


_COMPARE: dict[str, Callable[..., float]] = {
    "cls": _compare_classes,
    "seg": _compare_maps,
    "det": _compare_detections,
    "depth": _compare_depths,
}
