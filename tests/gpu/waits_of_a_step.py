"""A script that counts what makes the host wait in a step of the search and of each model, on a fake GPU.

    python waits_of_a_step.py FILE

Writes FILE: of each the number of waits by the place that asks, as JSON, for 4 images with 3 boxes each.
"""

import json
import sys

import torch
from fake_accelerator import enable, waits

from d2go_fbnetv5.arch import Supernet
from d2go_fbnetv5.engine.build import build_clipping
from d2go_fbnetv5.engine.config import load_cfg
from d2go_fbnetv5.engine.ema import EMA
from d2go_fbnetv5.engine.loop import TrainLoop
from d2go_fbnetv5.engine.precision import Precision
from d2go_fbnetv5.models.distillation import TeacherClassifier
from d2go_fbnetv5.search import ALGORITHMS, CostRegularizer
from d2go_fbnetv5.tasks import DatasetInfo, batch_images, build_task
from d2go_fbnetv5.zoo import create_model

NAMES = ("a", "b", "c", "d")
IMAGES = 4


def samples():
    generator = torch.Generator().manual_seed(0)
    found = []
    for i in range(IMAGES):
        corner = torch.rand(3, 2, generator=generator) * 40
        found.append(
            {
                "image": torch.randint(0, 256, (3, 96, 96), generator=generator, dtype=torch.uint8),
                "image_id": i,
                "class_label": i,
                "boxes": torch.cat([corner, corner + 30], 1),
                "box_labels": torch.randint(0, 4, (3,), generator=generator),
                "box_is_crowd": torch.tensor([False, False, i == 0]),
                "sem_seg": torch.randint(0, 4, (96, 96), generator=generator),
            }
        )
    return found


def search(algorithm, tasks, **options):
    supernet = Supernet("N", 2)
    info = DatasetInfo(NAMES, NAMES, NAMES)
    cost = CostRegularizer(torch.ones(2, 4))
    options |= {"samples_per_rank": 2, "cost": cost}
    return ALGORITHMS[algorithm](
        supernet,
        [build_task(task, supernet.channels, info) for task in tasks],
        preprocess=lambda batch: batch_images(batch, (120.0,) * 3, (60.0,) * 3),
        **options,
    )


def distilled():
    classifier = create_model("FBNetV5-N-CLS", num_classes=4, mixup=0.2)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, 2), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )
    classifier.teacher = TeacherClassifier(network, (64, 64))
    return classifier


MODELS = {
    "search": lambda: search("multitask", ["cls", "seg"]),
    "search, shared images": lambda: search("multitask", ["cls", "seg"], shared_images=True),
    "search, straight-through": lambda: search("shared_forward", ["cls", "seg"]),
    "search, detector": lambda: search("multitask", ["det"]),
    "ImageClassifier": distilled,
    "LiteRCNN": lambda: create_model("FBNetV5-N-DET", num_classes=4),
    "LiteMaskFormer": lambda: create_model("FBNetV5-N-SEG", num_classes=4),
}


def waits_of(name, dtype=None, clip=None):
    """Count the third step's, with its average, its projection and what a loop does besides."""
    torch.manual_seed(0)
    model = MODELS[name]().to("cuda", memory_format=torch.channels_last)
    groups = model.param_groups(0.01) if hasattr(model, "param_groups") else model.parameters()
    clipping = ["SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", str(clip)]
    loop = TrainLoop(
        model.train(),
        torch.optim.SGD(groups, lr=0.01, momentum=0.9),
        iter(samples, None),
        3,
        device="cuda",
        precision=Precision("cuda", dtype),
        clip_gradients=build_clipping(load_cfg(None, clipping)) if clip else None,
    )
    average = EMA(model)
    for _ in range(3):
        waits.clear()
        loop.step()
        if hasattr(model, "after_step"):
            model.after_step()
        average.update_parameters(model)
    return dict(waits)


if __name__ == "__main__":
    torch.set_num_threads(1)
    enable()
    found = {name: waits_of(name) for name in MODELS}
    found["LiteMaskFormer, bfloat16, clipped"] = waits_of("LiteMaskFormer", "bfloat16", "norm")
    found["search, bfloat16, clipped"] = waits_of("search", "bfloat16", "full_model")
    with open(sys.argv[1], "w") as file:
        json.dump(found, file, indent=1)
