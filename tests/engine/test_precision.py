"""What a configuration says of a GPU's arithmetic, without a GPU."""

import os
import re

import pytest
import torch

from d2go_fbnetv5.engine.build import clip_each_norm
from d2go_fbnetv5.engine.config import load_cfg
from d2go_fbnetv5.engine.loop import images_to_device
from d2go_fbnetv5.engine.precision import choose_kernels
from d2go_fbnetv5.engine.recipes.search import SearchRecipe, search_arguments
from d2go_fbnetv5.engine.validate import validate
from d2go_fbnetv5.tasks import DatasetInfo
from d2go_fbnetv5.utils.errors import InputError


def chosen():
    return (
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(),
    )


@pytest.fixture
def as_before(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = chosen()
    yield before
    torch.backends.cudnn.allow_tf32 = before[1]
    choose_kernels(torch.device("cuda"), "", False, False)
    torch.set_float32_matmul_precision(before[0])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("highest", False, False), ("highest", False, False, False, False)),
        (("high", False, True), ("high", True, True, False, False)),
        (("medium", True, False), ("medium", True, False, True, True)),
    ],
)
def test_the_kernels_of_a_gpu_are_as_the_keys_say(as_before, options, expected):
    choose_kernels(torch.device("cuda"), *options)
    assert chosen() == expected
    assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) == options[1]
    # Where torch has no other kernel, the run goes on.
    assert not options[1] or torch.is_deterministic_algorithms_warn_only_enabled()


def test_without_a_word_on_float32_it_is_as_torch_has_it(as_before):
    choose_kernels(torch.device("cuda"), "", False, False)
    assert chosen()[:2] == as_before[:2]


def test_nothing_of_a_cpu_changes(as_before):
    choose_kernels(torch.device("cpu"), "medium", True, True)
    assert chosen() == as_before and "CUBLAS_WORKSPACE_CONFIG" not in os.environ


def test_parts_of_a_batch_are_alike_and_a_search_counts_them_as_its_steps():
    options = ["MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", "32", "SEARCH.TASKS", "['cls']"]
    options += ["SEARCH.ARCH_WARMUP_ITERS", "10", "SEARCH.LOSS_WINDOW", "50", "SEARCH.SAMPLES_PER_RANK", "4"]
    cfg = load_cfg("search_digits_scratch.yaml", [*options, "SOLVER.GRAD_ACCUM", "4"])
    validate(cfg, 2)
    SearchRecipe.validate(cfg, 2)
    arguments = search_arguments(cfg, DatasetInfo(class_names=("a", "b")), 0)
    assert (arguments["arch_warmup_iters"], arguments["loss_window"]) == (40, 200)
    cfg.SEARCH.SAMPLES_PER_RANK = 5  # of the 4 images of a part
    with pytest.raises(InputError, match="SEARCH.SAMPLES_PER_RANK is 5, allowed: 1 or more and at most 4"):
        SearchRecipe.validate(cfg, 2)
    cfg.SOLVER.GRAD_ACCUM = 3
    with pytest.raises(InputError, match="SOLVER.GRAD_ACCUM is 3, allowed: a divisor of the 16 images"):
        validate(cfg, 2)


def test_the_fastest_kernels_are_not_the_same_ones_again():
    options = ["MODEL.DEVICE", "cpu", "SOLVER.DETERMINISTIC", "True", "CUDNN_BENCHMARK", "True"]
    with pytest.raises(
        InputError, match=re.escape("CUDNN_BENCHMARK is True, allowed with SOLVER.DETERMINISTIC")
    ):
        validate(load_cfg("search_digits.yaml", options))


@pytest.mark.parametrize("norm_type", [2.0, 1.0, float("inf")])
def test_norms_are_clipped_as_torch_clips_each(norm_type):
    generator = torch.Generator().manual_seed(0)
    shapes, kinds = [(3, 4), (5,), (), (2, 2)], [torch.float32, torch.float32, torch.float32, torch.float64]
    weights = [
        [
            torch.nn.Parameter(torch.zeros(shape, dtype=kind))
            for shape, kind in zip(shapes, kinds, strict=True)
        ]
        for _ in range(2)
    ]
    for ours, torchs in zip(*weights, strict=True):
        ours.grad = torch.randn(ours.shape, generator=generator, dtype=ours.dtype)
        torchs.grad = ours.grad.clone()
        torch.nn.utils.clip_grad_norm_(torchs, 1.5, norm_type)
    clip_each_norm([*weights[0], torch.nn.Parameter(torch.zeros(1))], 1.5, norm_type)
    assert all(torch.equal(ours.grad, torchs.grad) for ours, torchs in zip(*weights, strict=True))


def test_images_stay_what_they_are_and_labels_where_they_are():
    batch = [
        {"image": torch.ones(3, 2, 2, dtype=torch.uint8), "boxes": torch.zeros(1, 4)},
        {"class_label": 1},
    ]
    moved = images_to_device(batch, torch.device("cpu"))
    assert moved[0]["image"] is batch[0]["image"] and moved[0]["boxes"] is batch[0]["boxes"]
    assert moved[1] == {"class_label": 1} and moved[1] is not batch[1]
