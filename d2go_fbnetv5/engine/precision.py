"""The arithmetic of a GPU: which kernels, and mixed precision by autocast, with loss scaling for float16."""

import contextlib
import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
FLOAT32_PRECISIONS = ("highest", "high", "medium")


def choose_kernels(device: torch.device, float32: str, deterministic: bool, benchmark: bool) -> None:
    """Choose the kernels of this process' GPU; on a CPU nothing changes, and numbers are equal anyway.

    Args:
        float32: of `FLOAT32_PRECISIONS`: "highest" is float32 everywhere, the others TF32 in products and convolutions,
            as in Detectron2; empty leaves it to torch.
        deterministic: take kernels that give equal numbers again; torch warns where it has none.
        benchmark: let cuDNN try its algorithms.
    """
    if device.type != "cuda":
        return
    if float32:
        torch.set_float32_matmul_precision(float32)
        torch.backends.cudnn.allow_tf32 = float32 != "highest"
    torch.backends.cudnn.benchmark = benchmark
    torch.backends.cudnn.deterministic = deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
    torch.use_deterministic_algorithms(deterministic, warn_only=True)


class Precision:
    """The arithmetic of a step: in float32, or by torch.amp.

    Args:
        device: autocast is used on "cuda" only; elsewhere everything stays in float32.
        dtype: of `DTYPES`' names, None for float32.
    """

    def __init__(self, device: torch.device | str, dtype: str | None = None) -> None:
        used = DTYPES[dtype] if dtype and torch.device(device).type == "cuda" else None
        self._dtype = used
        self.scaler = torch.amp.GradScaler("cuda", enabled=used is torch.float16)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Around a forward pass."""
        if self._dtype is None:
            return contextlib.nullcontext()
        return torch.autocast("cuda", dtype=self._dtype)

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def step(
        self,
        optimizer: torch.optim.Optimizer,
        clip_gradients: Callable[[Iterable[nn.Parameter]], None] | None = None,
    ) -> None:
        """Clip the gradients at their true scale, and update, unless float16 overflowed."""
        if clip_gradients is not None:
            self.scaler.unscale_(optimizer)
            clip_gradients(p for group in optimizer.param_groups for p in group["params"])
        self.scaler.step(optimizer)
        self.scaler.update()
