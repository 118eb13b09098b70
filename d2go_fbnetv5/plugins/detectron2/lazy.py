"""Functions that a lazy configuration of Detectron2's (`LazyConfig`) calls by name: saved as text and read again.

Backbones, heads, meta-architectures, data sets, transforms and `SampleMapper` are called as they are; `configs/lazy/`
has an example of each model.
"""

from __future__ import annotations

from typing import Any

from d2go_fbnetv5.arch import Topology
from d2go_fbnetv5.arch.topology_file import load_topologies
from d2go_fbnetv5.plugins.detectron2.evaluators import SampleEvaluator


def searched_topology(path: str, task: str) -> Topology:
    """Return the topology that a search has found for a task.

    Args:
        path: of a topologies.json.
        task: "cls", "det", "seg" or one of your own.

    Raises:
        FileNotFoundError, ValueError: no such file, or none of that task in it.
    """
    return load_topologies(path).task(task).topology


def sample_evaluator(dataset: Any) -> SampleEvaluator:
    """Return the metrics of all that one of our data sets labels."""
    return SampleEvaluator.for_info(dataset.info)
