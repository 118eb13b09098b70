"""Our tasks' metrics as Detectron2 evaluators."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from detectron2.evaluation import DatasetEvaluator

from d2go_fbnetv5.plugins.detectron2.samples import to_output
from d2go_fbnetv5.tasks import DatasetInfo, Evaluator
from d2go_fbnetv5.tasks.coco_metrics import AveragePrecision
from d2go_fbnetv5.tasks.depth_metrics import DepthMetrics
from d2go_fbnetv5.tasks.gather import gather_records
from d2go_fbnetv5.tasks.metrics import SemSegMetrics, TopKAccuracy


class SampleEvaluator(DatasetEvaluator):
    """Judges predictions by the labels of the very samples they are made from; metrics are fractions, but for RMSE.

    Args:
        metrics: by task, such as {"det": AveragePrecision(names)}.
    """

    def __init__(self, metrics: dict[str, Evaluator]) -> None:
        self.metrics = metrics

    @classmethod
    def for_info(cls, info: DatasetInfo) -> SampleEvaluator:
        """Build evaluators for each kind of label that a data set has: top-1 and top-5, average precision, mean IoU,
        errors of depth."""
        metrics: dict[str, Evaluator] = {}
        if info.class_names:
            metrics["cls"] = TopKAccuracy()
        if info.box_names:
            metrics["det"] = AveragePrecision(info.box_names)
        if info.sem_seg_names:
            metrics["seg"] = SemSegMetrics(info.sem_seg_names, info.sem_seg_ignore)
        if info.depth_units:
            metrics["depth"] = DepthMetrics(info.depth_units)
        return cls(metrics)

    def reset(self) -> None:
        for metric in self.metrics.values():
            metric.reset()
        self._seen: set[str] = set()

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        predictions = [
            {key: value.cpu() for key, value in to_output(output, data).items()}
            for data, output in zip(inputs, outputs, strict=True)
        ]
        for task, key in (("cls", "class_scores"), ("det", "boxes"), ("seg", "sem_seg"), ("depth", "depth")):
            if task in self.metrics and predictions and key in predictions[0]:
                self.metrics[task].process(inputs, predictions)
                self._seen.add(task)

    def evaluate(self) -> dict[str, dict[str, float]]:
        """By task, of what the model predicted. Every process must call it."""
        seen = gather_records(dict.fromkeys(self._seen))  # a process may have got no image
        results = {task: metric.evaluate() for task, metric in self.metrics.items() if task in seen}
        return OrderedDict(results)
