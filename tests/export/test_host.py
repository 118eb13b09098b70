"""The C++ host part against the Python one, and both against the model they come from."""

import json
import math
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torchvision.ops import nms

from d2go_fbnetv5.arch import Backbone, Topology
from d2go_fbnetv5.export.host import HostedDetector, HostSettings, host_header
from d2go_fbnetv5.export.network.inference import DetectorBoxes, DetectorInference, DetectorProposals
from d2go_fbnetv5.models import LiteRCNN

SETTINGS = HostSettings(
    cell_anchors=((-8.0, -16.0, 8.0, 16.0), (-16.0, -8.0, 16.0, 8.0), (-30.0, -30.0, 30.0, 30.0)),
    stride=8,
    resolution=6,
    num_classes=4,
    proposals_before_nms=60,
    proposals_after_nms=12,
    proposals_iou=0.7,
    score_threshold=0.05,
    iou=0.5,
    max_detections=10,
)
SIZE = (70, 90)  # of an image padded to 96 x 96


@pytest.fixture(scope="module")
def cpp(tmp_path_factory):
    """Runs a function of the header: settings, feature size and arrays in, the printed numbers out."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    program = tmp_path_factory.mktemp("host") / "driver"
    warnings = ["-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Werror"]
    include = ["-I", str(host_header().parent)]
    source = str(Path(__file__).with_name("host_driver.cpp"))
    subprocess.run(
        [compiler, "-std=c++17", "-O1", *warnings, *include, source, "-o", str(program)], check=True
    )

    def run(function, settings, size, *arrays):
        values = settings.to_json()
        anchors = torch.tensor(values.pop("cell_anchors"))
        words = [function, *_words(anchors), *values.values(), *size, *SIZE]
        for array in arrays:
            words += [array] if isinstance(array, int) else _words(array)
        text = " ".join(str(word) for word in words)
        out = subprocess.run([str(program)], input=text, capture_output=True, text=True, check=True).stdout
        return torch.tensor([float(word) for word in out.split()])

    return run


def _words(array):
    return [array.numel(), *(f"{value:.9g}" for value in array.flatten().tolist())]


@pytest.fixture
def host():
    def no_method(*_):
        raise AssertionError("no network is needed")

    return HostedDetector(SETTINGS, no_method, no_method)


def _boxes(count, generator):
    corner = torch.rand(count, 2, generator=generator) * 60
    return torch.cat([corner, corner + 1 + torch.rand(count, 2, generator=generator) * 40], dim=1)


@pytest.mark.parametrize("seed", range(3))
def test_proposals(cpp, host, seed):
    generator = torch.Generator().manual_seed(seed)
    objectness = torch.randn(1, 3, 12, 12, generator=generator)
    deltas = torch.randn(1, 12, 12, 12, generator=generator)
    deltas[0, ::4] *= 10  # some boxes leave the image
    expected = host.propose(objectness, deltas, SIZE)
    assert 1 < len(expected) <= 12
    found = cpp("propose", SETTINGS, (12, 12), objectness, deltas).view(-1, 4)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-5)


def test_no_proposal(cpp, host):
    deltas = torch.zeros(1, 12, 12, 12)
    deltas[0, ::4] = 1000.0  # every box is right of the image
    objectness = torch.zeros(1, 3, 12, 12)
    assert host.propose(objectness, deltas, SIZE).shape == (0, 4)
    assert len(cpp("propose", SETTINGS, (12, 12), objectness, deltas)) == 0
    boxes, scores, labels = HostedDetector(SETTINGS, lambda _: (deltas, objectness, deltas), None)(
        torch.zeros(1, 3, 96, 96), SIZE
    )
    assert (boxes.shape, scores.shape, labels.shape) == ((0, 4), (0,), (0,))


def test_a_box_that_is_no_number_is_none(cpp, host):
    objectness, deltas = torch.tensor([1.0, 2.0, 0.5]).view(1, 3, 1, 1), torch.zeros(1, 12, 1, 1)
    deltas[0, 6] = float("nan")  # the second anchor's width
    expected = torch.tensor([[0.0, 0, 8, 16], [0, 0, 30, 30]])
    assert torch.equal(host.propose(objectness, deltas, SIZE), expected)
    assert torch.equal(cpp("propose", SETTINGS, (1, 1), objectness, deltas).view(-1, 4), expected)


def test_fewer_anchors_than_proposals(cpp, host):
    objectness, deltas = torch.tensor([1.0, 0.5, 2.0]).view(1, 3, 1, 1), torch.zeros(1, 12, 1, 1)
    # The anchors at the corner, cut to the image; best first; the first two overlap by a third.
    expected = torch.tensor([[0.0, 0, 30, 30], [0, 0, 8, 16], [0, 0, 16, 8]])
    assert torch.equal(host.propose(objectness, deltas, SIZE), expected)
    assert torch.equal(cpp("propose", SETTINGS, (1, 1), objectness, deltas).view(-1, 4), expected)


def test_a_side_grows_a_thousand_sixteenths_at_most(cpp, host):
    settings = replace(SETTINGS, cell_anchors=((10.0, 10.0, 10.5, 10.5),))
    objectness, deltas = torch.zeros(1, 1, 1, 1), torch.full((1, 4, 1, 1), 0.0)
    deltas[0, 2:] = 50.0
    half = 0.5 * 0.5 * 62.5
    expected = torch.tensor([[0.0, 0.0, 10.25 + half, 10.25 + half]])
    found = HostedDetector(settings, None, None).propose(objectness, deltas, SIZE)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(cpp("propose", settings, (1, 1), objectness, deltas).view(-1, 4), expected)


@pytest.mark.parametrize("count", [0, 1, 7])
def test_regions(cpp, host, count):
    generator = torch.Generator().manual_seed(count)
    feature = torch.randn(1, 5, 12, 11, generator=generator)
    proposals = _boxes(count, generator)
    if count > 1:
        proposals[0] = torch.tensor([0.0, 0.0, 96.0, 96.0])  # more than the feature has
        proposals[1] = torch.tensor([-30.0, -30.0, -20.0, 5.0])  # outside
        proposals[2] = torch.tensor([20.0, 20.0, 20.0, 20.0])  # empty
    expected = host.regions(feature, proposals)
    found = cpp("roi_align", SETTINGS, (12, 11), feature, proposals).view(count, 5, 6, 6)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 12])
def test_detections(cpp, host, count):
    generator = torch.Generator().manual_seed(count)
    probabilities = torch.rand(count, 5, generator=generator).softmax(1)[:, :4].contiguous()
    deltas = torch.randn(count, 4, 4, generator=generator)
    proposals = _boxes(count, generator)
    boxes, scores, labels = host.detect(probabilities, deltas, proposals, SIZE)
    assert len(boxes) == min(len(boxes), 10) and (count == 0) == (len(boxes) == 0)
    found = cpp("detect", SETTINGS, (12, 12), probabilities, deltas, proposals).view(-1, 6)
    torch.testing.assert_close(found[:, :4], boxes, atol=1e-3, rtol=1e-5)
    assert torch.equal(found[:, 4], scores) and torch.equal(found[:, 5].long(), labels)


def test_a_score_at_the_threshold_is_no_detection(cpp, host):
    probabilities = torch.tensor([[0.05, 0.06, 0.0, float("nan")]])
    deltas, proposals = torch.zeros(1, 4, 4), torch.tensor([[5.0, 5.0, 20.0, 30.0]])
    expected = torch.tensor([[5.0, 5.0, 20.0, 30.0, 0.06, 1.0]])
    torch.testing.assert_close(
        cpp("detect", SETTINGS, (12, 12), probabilities, deltas, proposals).view(-1, 6), expected
    )
    boxes, scores, labels = host.detect(probabilities, deltas, proposals, SIZE)
    torch.testing.assert_close(torch.cat([boxes[0], scores, labels.float()]), expected[0])


def test_equal_scores_are_taken_in_order(cpp):
    generator = torch.Generator().manual_seed(0)
    boxes = _boxes(40, generator)
    boxes[20:] = boxes[:20]  # every box is there twice
    scores = torch.randint(0, 3, (40,), generator=generator) / 4
    found = cpp("nms", SETTINGS, (12, 12), boxes, scores).long()
    assert torch.equal(found, nms(boxes, scores, SETTINGS.iou))
    order = torch.argsort(scores, descending=True, stable=True)
    assert torch.equal(cpp("top_k", SETTINGS, (12, 12), scores, 15).long(), order[:15])


def test_nms_keeps_boxes_without_area(cpp):
    boxes = torch.tensor([[5.0, 5.0, 5.0, 5.0], [5.0, 5.0, 5.0, 5.0], [0.0, 0.0, 10.0, 10.0]])
    scores = torch.tensor([0.5, 0.9, 0.7])
    found = cpp("nms", SETTINGS, (12, 12), boxes, scores).long()
    assert found.tolist() == nms(boxes, scores, 0.5).tolist() == [1, 2, 0]


def test_settings_survive_json():
    assert HostSettings.from_json(json.loads(json.dumps(SETTINGS.to_json()))) == SETTINGS
    with pytest.raises(ValueError, match="iuo"):
        HostSettings.from_json({**SETTINGS.to_json(), "iuo": 0.5})
    with pytest.raises(ValueError, match="stride"):
        HostSettings.from_json({k: v for k, v in SETTINGS.to_json().items() if k != "stride"})


@pytest.mark.parametrize("size", [(96, 96), (70, 120), (64, 64)])
def test_hosted_detector_finds_what_the_model_finds(size):
    torch.manual_seed(0)
    backbone = Backbone("N", Topology.named("fpn", stages=3), LiteRCNN.in_features)
    model = LiteRCNN(backbone, 4, score_threshold=0.0, max_detections=20, test_proposals=(200, 30)).eval()
    torch.nn.init.normal_(model.rpn.head.objectness.weight, std=0.5)
    torch.nn.init.normal_(model.roi_head.predictor.classes.weight, std=0.5)
    image = torch.randint(0, 256, (3, *size)).float()
    expected = model([{"image": image}])[0]
    padded = model.pixel_mean.view(1, 3, 1, 1).repeat(1, 1, *model.padded_size(size))
    padded[0, :, : size[0], : size[1]] = image
    host = HostedDetector(
        HostSettings.of(DetectorInference(model)), DetectorProposals(model), DetectorBoxes(model)
    )
    with torch.no_grad():
        boxes, scores, labels = host(padded, size)
    assert len(boxes) == 20
    torch.testing.assert_close(scores, expected["scores"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(boxes, expected["boxes"], atol=1e-2, rtol=1e-4)
    assert torch.equal(labels, expected["labels"])


@pytest.mark.parametrize("value", [0, -8, "8", 8.5, True, None, math.nan, 10**9])
@pytest.mark.parametrize(
    "name", ["stride", "resolution", "num_classes", "max_detections", "proposals_after_nms"]
)
def test_counts_of_a_hosts_settings_are_checked(name, value):
    with pytest.raises(ValueError, match=f"{name} is .*, allowed is a whole number from 1 to 100000"):
        HostSettings.from_json({**SETTINGS.to_json(), name: value})


@pytest.mark.parametrize("value", [-0.1, 1.5, math.nan, "0.5", None, True])
@pytest.mark.parametrize("name", ["iou", "proposals_iou", "score_threshold"])
def test_shares_of_a_hosts_settings_are_checked(name, value):
    with pytest.raises(ValueError, match=f"{name} is .*, allowed is a number from 0 to 1"):
        HostSettings.from_json({**SETTINGS.to_json(), name: value})
    with pytest.raises(ValueError, match=name):
        replace(SETTINGS, **{name: value})


@pytest.mark.parametrize(
    "anchors",
    [[], None, 5, "abcd", [[1, 2, 3]], [[0, 0, math.nan, 4]], [[0, 0, 0, 4]], [["0", 0, 4, 4]], [None]],
)
def test_anchors_of_a_hosts_settings_are_checked(anchors):
    with pytest.raises(ValueError, match="cell_anchors"):
        HostSettings.from_json({**SETTINGS.to_json(), "cell_anchors": anchors})


@pytest.mark.parametrize("content", [None, [], "text", 3])
def test_settings_that_are_no_object_are_one_sentence(content):
    with pytest.raises(ValueError, match="the detector's settings are"):
        HostSettings.from_json(json.loads(json.dumps(content)))
