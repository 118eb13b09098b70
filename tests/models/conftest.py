import pytest
import torch

from d2go_fbnetv5.arch import Backbone, Family, Topology
from d2go_fbnetv5.arch.families import Layer, PoolSpec
from d2go_fbnetv5.models import ImageClassifier, LiteMaskFormer, LiteRCNN

SMALL = {
    ImageClassifier: {},
    LiteRCNN: {"regions_per_image": 32, "train_proposals": (200, 50), "score_threshold": 0.0},
    LiteMaskFormer: {"num_queries": 12, "dim": 64, "feedforward_dim": 128, "dropout": 0.0},
}


def _partition(channels, se=""):
    op = f"ir_k3{se}_hs"
    return Layer(op, channels, 2, 1, 3), Layer(op, channels, 1, 1, 2)


# The models here learn by heart in a given number of steps, which must not depend on what the demo's family is.
TINY = Family(
    "tiny",
    96,
    (
        (Layer("conv_k3_hs", 8, 2, 1), *_partition(12)),
        _partition(20),
        _partition(32, "_sehsig"),
        _partition(48, "_sehsig"),
    ),
    PoolSpec("ir_pool_hs", 192, 3),
)


@pytest.fixture
def small_model():
    """Builds a model of a tiny family with 4 classes."""

    def build(kind, topology=None, **options):
        torch.manual_seed(0)
        topology = topology or Topology.named("bifpn")
        return kind(Backbone(TINY, topology, kind.in_features), 4, **{**SMALL[kind], **options})

    return build


@pytest.fixture
def scene():
    """A sample of two bright rectangles on a dark image, with every kind of label."""

    def make(index, height=64, width=64):
        generator = torch.Generator().manual_seed(index)
        image = torch.randint(0, 60, (3, height, width), generator=generator, dtype=torch.uint8)
        sem_seg = torch.zeros(height, width, dtype=torch.int64)
        boxes, labels = [], []
        for half in range(2):
            x0, y0 = half * width // 2, int(torch.randint(0, height // 3, (1,), generator=generator))
            x1, y1 = x0 + 2 * width // 5, y0 + height // 2
            label = int(torch.randint(0, 3, (1,), generator=generator))
            image[label, y0:y1, x0:x1] = 220
            sem_seg[y0:y1, x0:x1] = label + 1
            boxes.append([x0, y0, x1, y1])
            labels.append(label)
        return {
            "image": image,
            "image_id": index,
            "class_label": index % 4,
            "boxes": torch.tensor(boxes, dtype=torch.float32),
            "box_labels": torch.tensor(labels),
            "sem_seg": sem_seg,
        }

    return make
