"""Adds our training's hooks to Detectron2's loop, and to D2Go's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor, nn

from d2go_fbnetv5.reports.history import METRICS_FILE
from d2go_fbnetv5.search import MultitaskSearch
from d2go_fbnetv5.utils.seeding import seed_all


class SeedHook(HookBase):
    """Seeds the generators at every step, as our own trainer does: a resumed run goes on with the same numbers."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def before_step(self) -> None:
        seed_all(self.seed, comm.get_rank(), self.trainer.iter)


class ProjectionHook(HookBase):
    """Brings the probabilities back into their range after each optimizer step."""

    def after_step(self) -> None:
        find_search(self.trainer.model).after_step()


class SearchRecordHook(HookBase):
    """Entropy, effective sample size and costs go to the trainer's writers, the probabilities to metrics.json.

    Args:
        folder: OUTPUT_DIR.
        period: of the probabilities' records, in steps.
    """

    def __init__(self, folder: str, period: int) -> None:
        self.folder, self.period = folder, period

    def after_step(self) -> None:
        if not comm.is_main_process():
            return
        search = find_search(self.trainer.model)
        for name, value in search.diagnostics.items():
            if isinstance(value, Tensor) and value.dim() == 0:
                self.trainer.storage.put_scalar(name, float(value))
        arch_lr = next(g["lr"] for g in self.trainer.optimizer.param_groups if g.get("name") == "arch")
        self.trainer.storage.put_scalar("arch_lr", arch_lr, smoothing_hint=False)
        done = self.trainer.iter + 1
        if done % self.period == 0 or done == self.trainer.max_iter:
            probs = search.distribution.probs.tolist()
            record = {f"probs/{task}": p for task, p in zip(search.tasks, probs, strict=True)}
            append_record(self.folder, {"iteration": self.trainer.iter, **record})


def append_record(folder: str | Path, record: dict[str, Any]) -> None:
    """Add a line to metrics.json, which Detectron2's own writer has open: neither may replace the file."""
    with open(Path(folder, METRICS_FILE), "a", encoding="utf-8") as file:
        file.write(f"{json.dumps(record)}\n")


def find_search(model: nn.Module) -> MultitaskSearch:
    """Find the search within whatever wrappers a trainer put around it."""
    return next(module for module in model.modules() if isinstance(module, MultitaskSearch))
