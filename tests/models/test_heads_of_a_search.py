import pytest
import torch

from d2go_fbnetv5.arch import Supernet, Topology
from d2go_fbnetv5.models import LiteMaskFormer, LiteRCNN, ModelHead
from d2go_fbnetv5.tasks import DatasetInfo, batch_images, build_task

INFO = DatasetInfo(box_names=("a", "b", "c"), sem_seg_names=("x", "y"), sem_seg_ignore=9)
OPTIONS = {
    "det": {
        "anchor_sizes": [12, 24],
        "train_proposals": [50, 20],
        "regions_per_image": 8,
        "score_threshold": 0.0,
    },
    "seg": {"num_queries": 4, "dim": 32, "feedforward_dim": 32, "dropout": 0.0},
}


def samples(count=3):
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "image": torch.randint(0, 256, (3, 96, 96), generator=generator, dtype=torch.uint8),
            "image_id": i,
            "boxes": torch.tensor([[8.0, 8.0, 40.0, 50.0]]),
            "box_labels": torch.tensor([i % 3]),
            "sem_seg": torch.randint(0, 2, (96, 96), generator=generator),
        }
        for i in range(count)
    ]


@pytest.fixture(params=["det", "seg"])
def made(request):
    """A task's lite head, and a supernet's features of three samples."""
    torch.manual_seed(0)
    supernet = Supernet("N", 1)
    head = build_task(request.param, supernet.channels, INFO, head="lite", **OPTIONS[request.param])
    images = batch_images(samples(), [123.7, 116.3, 103.5], [58.4, 57.1, 57.4])
    return head, supernet(images, Topology.full(1))


def test_it_is_the_models_head_with_the_models_losses_and_predictions(made):
    head, features = made
    kind, keys = {"det": (LiteRCNN, {"boxes", "scores", "labels"}), "seg": (LiteMaskFormer, {"sem_seg"})}[
        head.name
    ]
    assert (
        isinstance(head, ModelHead) and isinstance(head.model, kind) and head.in_features == kind.in_features
    )
    losses = head(features, samples())
    assert all(name.startswith("loss_") and torch.isfinite(value) for name, value in losses.items())
    sum(losses.values()).backward()
    assert all(weight.grad is not None for weight in head.parameters())
    with torch.no_grad():
        outputs = head.eval()(features, samples())
    assert [set(output) for output in outputs] == [keys] * 3
    assert head.evaluator(INFO) is not None


def test_samples_without_the_label_have_no_part_in_its_loss(made):
    head, features = made
    label = {"det": "boxes", "seg": "sem_seg"}[head.name]
    batch = samples()
    for sample in batch:
        del sample[label]
    assert head(features, batch) == {}


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("det", {"head": "heavy"}, "unknown head of task 'det' 'heavy'; allowed are lite"),
        ("det", {"head": "lite", "feature": "path1"}, "head 'lite' of task 'det' has no option 'feature'"),
        ("seg", {"head": "lite", "ignore": 3}, "head 'lite' of task 'seg' has no option 'ignore'"),
        ("seg", {"head": "lite", "dim": 33}, "dim is 33; allowed is a multiple of 32"),
        ("cls", {"head": "lite"}, "task 'cls' has no option 'head'"),
    ],
)
def test_wrong_options_are_named(task, options, message):
    info = DatasetInfo(class_names=("a",), box_names=("a",), sem_seg_names=("x",))
    with pytest.raises(ValueError, match=message):
        build_task(task, Supernet("N", 1).channels, info, **options)
