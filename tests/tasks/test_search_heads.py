"""The four search heads: they learn, skip what has no label, and keep to each sample's own frame."""

import copy

import pytest
import torch
from torch.nn import functional as F

from d2go_fbnetv5.tasks import DatasetInfo, build_task
from d2go_fbnetv5.tasks.segmentation import narrowed

INFO = DatasetInfo(
    class_names=("a", "b", "c"),
    box_names=("x", "y"),
    sem_seg_names=("p", "q", "r"),
    depth_units=("metres",),
)
CHANNELS = {"path2": 96, "path3": 16}
OPTIONS = {
    "cls": {"pool_channels": 32, "expansion": 2},
    "det": {
        "anchor_sizes": (16.0, 32.0),
        "anchor_ratios": (1.0,),
        "box_head_width": 64,
        "roi_output_size": 3,
    },
    "seg": {},
    "depth": {},
}
TASKS = sorted(OPTIONS)


def build(name, **options):
    torch.manual_seed(0)
    return build_task(name, CHANNELS, INFO, **{**OPTIONS[name], **options})


def labelled_batch(sizes):
    generator = torch.Generator().manual_seed(1)
    batch = []
    for image_id, (height, width) in enumerate(sizes):
        sem_seg = torch.zeros(height, width, dtype=torch.int64)
        sem_seg[:16] = 1
        sem_seg[:, : 16 * (1 + image_id % 2)] = 2
        x, y = 8 * (image_id % 4), 6 * (image_id % 3)
        batch.append(
            {
                "image": torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator),
                "image_id": image_id,
                "height": height,
                "width": width,
                "class_label": image_id % 3,
                "boxes": torch.tensor([[x, y, x + 18.0, y + 20.0], [30.0, 28.0, 62.0, 60.0]]),
                "box_labels": torch.tensor([image_id % 2, 1]),
                "sem_seg": sem_seg,
                "depth": 1.0 + sem_seg,
            }
        )
    return batch


def random_features(images, height, width, requires_grad=False):
    generator = torch.Generator().manual_seed(2)
    return {
        "path2": torch.randn(images, 96, height // 16, width // 16, generator=generator).requires_grad_(
            requires_grad
        ),
        "path3": torch.randn(images, 16, height // 32, width // 32, generator=generator).requires_grad_(
            requires_grad
        ),
    }


def without(sample, *keys):
    return {key: value for key, value in sample.items() if key not in keys}


LABELS = {"cls": ("class_label",), "det": ("boxes", "box_labels"), "seg": ("sem_seg",), "depth": ("depth",)}


@pytest.mark.parametrize(
    ("name", "steps", "least"),
    [("cls", 30, 1.0), ("det", 120, 0.75), ("seg", 150, 0.95), ("depth", 150, 0.75)],
)
def test_a_head_overfits_a_handful_of_images(name, steps, least):
    task, batch, features = build(name), labelled_batch([(64, 64)] * 4), random_features(4, 64, 64)
    optimizer = torch.optim.Adam(task.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        sum(task(features, batch).values()).backward()
        optimizer.step()
    task.eval()
    evaluator = task.evaluator(INFO)
    with torch.no_grad():
        evaluator.process(batch, task(features, batch))
    assert evaluator.evaluate()["delta1" if name == "depth" else task.primary_metric] >= least


@pytest.mark.parametrize("name", TASKS)
def test_losses_are_scalars_with_gradients_to_every_parameter_and_the_features(name):
    task, features = build(name), random_features(3, 64, 96, requires_grad=True)
    losses = task(features, labelled_batch([(64, 96), (50, 90), (64, 70)]))
    assert all(
        key.startswith("loss_") and loss.shape == () and loss.isfinite() for key, loss in losses.items()
    )
    sum(losses.values()).backward()
    (feature,) = task.in_features
    assert (features[feature].grad.flatten(1).abs().sum(1) > 0).all()
    assert all(parameter.grad is not None for parameter in task.parameters())


@pytest.mark.parametrize("name", TASKS)
def test_evaluation_needs_no_label_and_keeps_to_the_sample(name):
    task, sizes = build(name).eval(), [(64, 96), (50, 90), (33, 70)]
    batch = [{"image": sample["image"]} for sample in labelled_batch(sizes)]
    with torch.no_grad():
        outputs = task(random_features(3, 64, 96), batch)
    assert len(outputs) == 3
    for output, (height, width) in zip(outputs, sizes, strict=True):
        if name == "cls":
            assert output["class_scores"].shape == (3,)
            assert float(output["class_scores"].sum()) == pytest.approx(1.0)
        elif name == "det":
            boxes, labels = output["boxes"], output["labels"]
            assert len(boxes) == len(labels) == len(output["scores"]) > 0
            assert (boxes >= 0).all() and (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
            assert set(labels.tolist()) <= {0, 1}
        elif name == "depth":
            assert output["depth"].shape == (height, width) and (output["depth"] > 0).all()
        else:
            assert output["sem_seg"].shape == (height, width)
            assert output["sem_seg"].dtype == torch.int64


@pytest.mark.parametrize("name", TASKS)
def test_a_sample_without_the_label_has_no_part_in_the_loss(name):
    batch = labelled_batch([(64, 64), (64, 64), (64, 64)])
    batch[1] = without(batch[1], *LABELS[name])
    features = random_features(3, 64, 64, requires_grad=True)
    task = build(name)
    torch.manual_seed(3)
    losses = task(features, batch)
    sum(losses.values()).backward()
    (feature,) = task.in_features
    gradient = features[feature].grad
    assert gradient[0].any() and gradient[2].any()
    if name != "cls":  # whose batch norm sees the whole batch
        assert not gradient[1].any()
        torch.manual_seed(3)
        chosen = {feature: features[feature][[0, 2]]}
        alone = copy.deepcopy(task)(chosen, [batch[0], batch[2]])
        for key, loss in losses.items():
            torch.testing.assert_close(loss, alone[key])


@pytest.mark.parametrize("name", TASKS)
def test_a_batch_without_any_label_has_no_loss(name):
    batch = [without(sample, *LABELS[name]) for sample in labelled_batch([(64, 64)] * 2)]
    assert build(name)(random_features(2, 64, 64), batch) == {}


def test_cross_entropy_of_classification_by_hand():
    task, features = build("cls", label_smoothing=0.1), random_features(3, 64, 64)
    batch = labelled_batch([(64, 64)] * 3)
    batch[0] = without(batch[0], "class_label")
    logits = task.fc(task.pool(features["path3"]).flatten(1))
    smooth = torch.full((2, 3), 0.1 / 3)
    smooth[[0, 1], [1, 2]] += 0.9
    expected = -(smooth * logits[1:].log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(task(features, batch)["loss_class"], expected)


def test_padding_and_ignored_pixels_have_no_part_in_the_segmentation_loss():
    task, features = build("seg"), random_features(2, 64, 64)
    batch = labelled_batch([(40, 64), (64, 50)])
    batch[1]["sem_seg"][10:] = 255
    logits = F.interpolate(task.predictor(features["path2"]), (64, 64), mode="bilinear")
    pixels = torch.cat([logits[0, :, :40].flatten(1), logits[1, :, :10, :50].flatten(1)], 1).T
    truth = torch.cat([batch[0]["sem_seg"].flatten(), batch[1]["sem_seg"][:10].flatten()])
    torch.testing.assert_close(task(features, batch)["loss_sem_seg"], F.cross_entropy(pixels, truth))


def test_maps_with_nothing_to_learn_give_a_zero_loss_with_a_graph():
    task, batch = build("seg"), labelled_batch([(64, 64)] * 2)
    for sample in batch:
        sample["sem_seg"].fill_(255)
    features = random_features(2, 64, 64, requires_grad=True)
    loss = task(features, batch)["loss_sem_seg"]
    assert float(loss.detach()) == 0.0
    loss.backward()
    assert features["path2"].grad is not None and not features["path2"].grad.any()
    assert all(not parameter.grad.any() for parameter in task.parameters())


def test_a_label_map_of_another_size_is_refused():
    batch = labelled_batch([(64, 64)])
    batch[0]["sem_seg"] = batch[0]["sem_seg"][:50]
    with pytest.raises(ValueError, match=r"sem_seg of image 0 is \(50, 64\), its image \(64, 64\)"):
        build("seg")(random_features(1, 64, 64), batch)


@pytest.mark.parametrize("name", ["det", "seg", "depth"])
def test_a_sample_gets_the_same_output_whatever_it_is_batched_with(name):
    # Same padded size: the features of the smaller image are then the same, alone or not.
    task, sizes = build(name).eval(), [(64, 96), (50, 90), (40, 96)]
    batch, features = labelled_batch(sizes), random_features(3, 64, 96)
    with torch.no_grad():
        together = task(features, batch)
        for i, sample in enumerate(batch):
            (alone,) = task({"path2": features["path2"][i : i + 1]}, [sample])
            for key, value in alone.items():
                torch.testing.assert_close(together[i][key], value)


def test_segmentation_of_a_smaller_image_equals_itself_alone_away_from_its_border():
    task = build("seg").eval()
    batch, features = labelled_batch([(128, 128), (64, 64)]), random_features(2, 128, 128)
    with torch.no_grad():
        together = task(features, batch)[1]["sem_seg"]
        alone = task({"path2": features["path2"][1:, :, :4, :4]}, batch[1:])[0]["sem_seg"]
    inside = slice(0, 64 - 8)  # beyond the last cell's centre, bilinear upsampling reads the padding
    assert torch.equal(together[inside, inside], alone[inside, inside])


@pytest.mark.parametrize("name", ["det", "seg", "depth"])
def test_input_norm_makes_a_head_blind_to_the_scale_of_its_features(name):
    batch, features = labelled_batch([(64, 64)] * 3), random_features(3, 64, 64)
    batch[1] = without(batch[1], *LABELS[name])
    losses = []
    for scale in (1.0, 1000.0):
        task = build(name, input_norm=True)
        torch.manual_seed(3)
        losses.append(task({"path2": scale * features["path2"]}, batch))
        assert task.norm.running_mean.any()
        assert len(task.eval()(features, batch)) == 3
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        ([0, 255], torch.uint8),
        ([-1, 7], torch.int16),
        ([0, 256], torch.int16),
        ([3, 32767], torch.int16),
        ([0, 40000], torch.int64),
    ],
)
def test_labels_are_made_as_small_as_they_stay_what_they_are(labels, kind):
    narrow = narrowed(torch.tensor(labels))
    assert narrow.dtype is kind and narrow.tolist() == labels
