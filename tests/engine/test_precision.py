"""What a configuration says of a GPU's arithmetic, without a GPU."""

import os
import re

import pytest
import torch

from d2go_fbnetv5.engine.config import load_cfg
from d2go_fbnetv5.engine.precision import choose_kernels
from d2go_fbnetv5.engine.validate import validate
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


def test_the_fastest_kernels_are_not_the_same_ones_again():
    options = ["MODEL.DEVICE", "cpu", "SOLVER.DETERMINISTIC", "True", "CUDNN_BENCHMARK", "True"]
    with pytest.raises(
        InputError, match=re.escape("CUDNN_BENCHMARK is True, allowed with SOLVER.DETERMINISTIC")
    ):
        validate(load_cfg("search_digits.yaml", options))
