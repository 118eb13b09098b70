import importlib.util
from pathlib import Path

import pytest
import torch

from d2go_fbnetv5.engine.config import load_cfg
from d2go_fbnetv5.engine.recipes.search import search_arguments
from d2go_fbnetv5.search import ALGORITHMS, CostRegularizer
from d2go_fbnetv5.tasks import DatasetInfo

_spec = importlib.util.spec_from_file_location("objectives", Path(__file__).with_name("objectives.py"))
objectives = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(objectives)


def gradients(name, steps, **options):
    """Of the probabilities, which do not move, in each step."""
    tasks = objectives.random_tasks(1, 4, seed=0, noise=0.0)
    search = ALGORITHMS[name](
        objectives.MaskSupernet(2, 2),
        tasks,
        samples_per_rank=2,
        preprocess=len,
        cost=CostRegularizer(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), 0.2, 3.0),
        **options,
    )
    found = []
    for _ in range(steps):
        search.zero_grad()
        sum(search([{}] * 2).values()).backward()
        found.append(search.distribution.probs.grad.clone())
    return found


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("multitask", {}),
        ("single_task", {}),
        ("single_task", {"estimator": "reinforce"}),
        ("per_task_forward", {}),
        ("shared_forward", {}),
    ],
)
def test_gradients_of_losses_and_prices_fall_linearly_to_zero(name, options):
    whole = gradients(name, 8, arch_warmup_iters=2, **options)
    falling = gradients(name, 8, arch_warmup_iters=2, arch_decay_iters=4, **options)
    assert all(step.any() for step in whole[2:])
    for found, expected, factor in zip(falling, whole, [1, 1, 1, 0.75, 0.5, 0.25, 0, 0], strict=True):
        torch.testing.assert_close(found, expected * factor)


@pytest.mark.slow
def test_the_last_steps_do_not_decide_where_the_rate_falls():
    """With noise of twice the spread of what is searched, at a rate at which probabilities wander from end to end."""

    def found(**options):
        shares = []
        for seed in range(4):
            tasks = objectives.random_tasks(2, 8, seed, noise=0.0)
            spread = torch.stack([task.objective(objectives.all_masks(2, 4)) for task in tasks]).std()
            for task in tasks:
                task.noise = 2 * float(spread)
            search = objectives.run_search(tasks, (2, 4), 500, 4, 0.03, seed=seed, **options)
            optima = [objectives.optimum(task, 2, 4) for task in tasks]
            shares += objectives.quality(search, tasks, optima, (2, 4))
        return sum(shares) / len(shares)

    assert found(arch_decay_iters=500) > 0.85
    assert found() < 0.75


@pytest.mark.parametrize(
    ("decay", "warmup", "expected"), [(True, 700, 300), (True, 2000, 0), (False, 700, 0)]
)
def test_the_keys_let_the_rate_fall_to_the_end(decay, warmup, expected):
    cfg = load_cfg(
        "search_digits_scratch.yaml",
        ["SEARCH.ARCH_LR_DECAY", str(decay), "SEARCH.ARCH_WARMUP_ITERS", str(warmup)],
    )
    info = DatasetInfo(class_names=("a",), box_names=("a",), sem_seg_names=("a",))
    assert search_arguments(cfg, info, 0)["arch_decay_iters"] == expected
