"""A script that computes in half precision by CUDA's own lists of casts, on a fake GPU.

    python half_precision.py FILE

Writes FILE as JSON, of each precision: the types of a supernet's features, which queries match which segments, and how
many steps of each algorithm and model were finite.
"""

import json
import sys

import torch
from fake_accelerator import enable
from waits_of_a_step import NAMES, samples, search

from d2go_fbnetv5.arch import Supernet, Topology
from d2go_fbnetv5.engine.loop import TrainLoop
from d2go_fbnetv5.engine.precision import Precision
from d2go_fbnetv5.models.maskformer_loss import MaskFormerLoss, SegmentPrediction, segments_of
from d2go_fbnetv5.zoo import create_model

# Few, as the fake is slow; 30 of each, and three of Lite R-CNN, were finite, too.
STEPS = {"multitask": 8, "shared_forward": 8, "LiteMaskFormer": 4, "LiteRCNN": 1}


def features(precision):
    network = Supernet("N", 2).to("cuda")
    images = torch.rand(2, 3, 96, 96).to("cuda")
    with precision.autocast():
        hard = network(images, Topology.full(2))
        soft = network.forward_soft(images, torch.full((2, 4), 0.5).to("cuda"))
    return [str(x.dtype) for x in (*hard.values(), *soft.values())]


def matches(precision):
    generator = torch.Generator().manual_seed(0)
    loss = MaskFormerLoss(len(NAMES)).to("cuda")
    prediction = SegmentPrediction(
        3 * torch.randn(8, 40, len(NAMES) + 1, generator=generator).to("cuda"),
        3 * torch.randn(8, 40, 32, 32, generator=generator).to("cuda"),
    )
    maps = torch.randint(0, len(NAMES), (8, 96, 96), generator=generator)
    with precision.autocast():
        pairs = loss.match([prediction], [segments_of(one, 255) for one in maps])[0]
    return [[indices.tolist() for indices in pair] for pair in pairs]


def finite(name, precision):
    torch.manual_seed(0)
    if name in ("multitask", "shared_forward"):
        model = search(name, ["cls", "seg"]).to("cuda")
        groups = model.param_groups(0.02)
    else:
        model = create_model(
            {"LiteRCNN": "FBNetV5-N-DET", "LiteMaskFormer": "FBNetV5-N-SEG"}[name], num_classes=4
        )
        groups = model.to("cuda").parameters()
    optimizer = torch.optim.SGD(groups, lr=0.001, momentum=0.9)
    batches = iter(samples, None)
    loop = TrainLoop(model.train(), optimizer, batches, STEPS[name], device="cuda", precision=precision)
    loop.run()  # stops at a loss that is not finite
    assert all(bool(torch.isfinite(weight).all()) for weight in model.parameters())
    return STEPS[name]


if __name__ == "__main__":
    torch.set_num_threads(1)
    enable()
    torch.manual_seed(0)
    found = {"float32": {"matches": matches(Precision("cuda"))}}
    for name in ("float16", "bfloat16"):
        precision = Precision("cuda", name)
        found[name] = {"features": features(precision), "matches": matches(precision)}
        found[name]["finite"] = {kind: finite(kind, Precision("cuda", name)) for kind in STEPS}
    with open(sys.argv[1], "w") as file:
        json.dump(found, file)
