import copy
import math

import pytest
import torch
from torch import nn

from d2go_fbnetv5.arch import Backbone, Topology
from d2go_fbnetv5.models import ImageClassifier
from d2go_fbnetv5.models.distillation import TeacherClassifier, timm_teacher


class Brightness(nn.Module):
    """Class 1 for images brighter than their normalisation's mean, else class 0; remembers what it saw."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, images):
        self.seen = images
        mean = images.mean((1, 2, 3))
        return torch.stack([-mean, mean, mean - 100], 1) * self.weight


def student(**options):
    torch.manual_seed(0)
    backbone = Backbone("N", Topology.named("linear", stages=2), ("path3",))
    return ImageClassifier(backbone, 3, **options)


def batch():
    images = [torch.full((3, 32, 32), value, dtype=torch.uint8) for value in (10, 240, 250, 30)]
    return [{"image": image, "class_label": 2, "image_id": i} for i, image in enumerate(images)]


def test_the_teacher_sees_its_own_size_and_normalisation():
    teacher = TeacherClassifier(Brightness(), (48, 64), mean=[100.0] * 3, std=[10.0] * 3)
    logits = teacher(torch.full((1, 3, 32, 32), 150.0))
    assert teacher.model.seen.shape == (1, 3, 48, 64)
    assert torch.allclose(teacher.model.seen, torch.full((), 5.0), atol=1e-4)
    assert logits.argmax(1).tolist() == [1] and not logits.requires_grad


def test_the_loss_is_shared_between_label_and_teacher():
    teacher = TeacherClassifier(Brightness(), (32, 32))
    model = student(teacher=teacher, teacher_weight=0.25).train()
    losses = model(batch())
    assert set(losses) == {"loss_class", "loss_teacher"}
    # All logits are about 0 at first, so each cross-entropy is about log 3, and the shares show.
    assert losses["loss_class"].item() == pytest.approx(0.75 * math.log(3), rel=0.1)
    assert losses["loss_teacher"].item() == pytest.approx(0.25 * math.log(3), rel=0.1)
    assert teacher.model.weight.grad is None
    sum(losses.values()).backward()
    assert model.head.fc.bias.grad is not None and teacher.model.weight.grad is None


def test_a_student_follows_its_teacher_alone():
    model = student(teacher=TeacherClassifier(Brightness(), (32, 32)), teacher_weight=1.0).train()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(30):
        optimizer.zero_grad()
        sum(model(batch()).values()).backward()
        optimizer.step()
    with torch.no_grad():
        images, _ = model.images(batch())
        assert model.logits(images).argmax(1).tolist() == [0, 1, 1, 0]


def test_the_teacher_is_in_no_checkpoint_and_in_every_copy():
    model = student(teacher=TeacherClassifier(Brightness(), (32, 32)))
    assert model.state_dict().keys() == student().state_dict().keys()
    assert len(list(model.parameters())) == len(list(student().parameters()))
    assert copy.deepcopy(model).teacher is model.teacher


@pytest.mark.parametrize("options", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_blended_batches_train_and_need_one_size(options):
    model = student(**options).train()
    torch.manual_seed(1)
    first = float(model(batch())["loss_class"].detach())
    assert math.isfinite(first)
    mixed = batch()
    mixed[0]["image"] = mixed[0]["image"][:, :16]
    with pytest.raises(ValueError, match="one size"):
        model(mixed)
    assert len(model.eval()(mixed)) == 4


@pytest.mark.parametrize(
    "option", [{"dropout": 2}, {"label_smoothing": -1}, {"mixup": -1}, {"teacher_weight": 3}]
)
def test_options_out_of_range(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        student(**option)


def test_a_teacher_of_timm(tmp_path):
    timm = pytest.importorskip("timm")
    weights = tmp_path / "weights.pth"
    torch.save(timm.create_model("mobilenetv3_small_050").state_dict(), weights)
    teacher = timm_teacher("mobilenetv3_small_050", 1000, str(weights))
    assert teacher(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)
    with pytest.raises(ValueError, match="1000 classes, the data set 10"):
        timm_teacher("mobilenetv3_small_050", 10, str(weights))
    with pytest.raises(ValueError, match="no model 'nix'"):
        timm_teacher("nix", 10)
