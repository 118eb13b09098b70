"""One of two ranks: evaluates its share of seven images and compares with all of them on one rank.

Usage: evaluate_on_ranks.py STORE_FILE RANK
"""

import sys

import torch
import torch.distributed as dist

from d2go_fbnetv5.tasks.coco_metrics import AveragePrecision
from d2go_fbnetv5.tasks.depth_metrics import DepthMetrics
from d2go_fbnetv5.tasks.metrics import SemSegMetrics, TopKAccuracy

NAMES = ("a", "b", "c")


def images(count: int = 7) -> tuple[list[dict], list[dict]]:
    generator = torch.Generator().manual_seed(0)
    inputs, outputs = [], []
    for image_id in range(count):
        corners = torch.rand(5, 2, generator=generator) * 50
        boxes = torch.cat([corners, corners + 5 + 40 * torch.rand(5, 2, generator=generator)], 1)
        inputs.append(
            {
                "image_id": image_id,
                "image": torch.zeros(3, 100, 100, dtype=torch.uint8),
                "class_label": image_id % 3,
                "sem_seg": torch.randint(0, 3, (8, 8), generator=generator),
                "depth": 1 + torch.rand(8, 8, generator=generator),
                "boxes": boxes,
                "box_labels": torch.randint(0, 3, (5,), generator=generator),
            }
        )
        outputs.append(
            {
                "class_scores": torch.rand(3, generator=generator),
                "sem_seg": torch.randint(0, 3, (8, 8), generator=generator),
                "depth": 1 + torch.rand(8, 8, generator=generator),
                "boxes": boxes + 4 * torch.rand(5, 4, generator=generator),
                "labels": inputs[-1]["box_labels"].clone(),
                "scores": torch.rand(5, generator=generator),
            }
        )
    return inputs, outputs


def main(store: str, rank: int) -> None:
    inputs, outputs = images()
    evaluators = [TopKAccuracy(topk=(1, 2)), SemSegMetrics(NAMES), AveragePrecision(NAMES), DepthMetrics()]
    expected = []
    for evaluator in evaluators:
        evaluator.process(inputs, outputs)
        expected.append(evaluator.evaluate())
        evaluator.reset()
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    share = range(rank, 8, 2)  # the eighth is the first again, as a padding sampler would have it
    for evaluator, alone in zip(evaluators, expected, strict=True):
        for i in share:
            evaluator.process([inputs[i % 7]], [outputs[i % 7]])
        together = evaluator.evaluate()
        evaluator.reset()
        if rank == 0:  # the other has no labelled image
            evaluator.process(inputs, outputs)
        if repr(evaluator.evaluate()) != repr(alone):  # of NaN, too
            sys.exit(f"{type(evaluator).__name__} differs where one rank has all the labels")
        if repr(together) != repr(alone) or not 0 < alone[next(iter(alone))] < 1:
            sys.exit(f"{type(evaluator).__name__}: {together} on two ranks, {alone} on one")
    dist.destroy_process_group()
    print("equal:", *(type(evaluator).__name__ for evaluator in evaluators))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
