"""What `torch.autocast("cuda")` casts, by the lists of torch 2.14, for the tensors of `fake_accelerator`."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
_LOWER = [
    "_convolution", "_convolution.deprecated", "conv1d", "conv2d", "conv3d", "conv_tbc", "conv_transpose1d",
    "conv_transpose2d.input", "conv_transpose3d.input", "convolution", "prelu", "addmm", "addmv", "addr",
    "matmul", "einsum", "mm", "mv", "linalg_vecdot", "linear", "addbmm", "baddbmm", "bmm", "chain_matmul",
    "linalg_multi_dot", "scaled_dot_product_attention",
]  # fmt: skip
_FP32 = [
    "acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt",
    "sinh", "tan", "pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar", "softplus", "layer_norm",
    "native_layer_norm", "rms_norm", "group_norm", "frobenius_norm.dim", "cosine_similarity",
    "poisson_nll_loss", "cosine_embedding_loss", "nll_loss", "nll_loss2d", "hinge_embedding_loss", "kl_div",
    "l1_loss", "smooth_l1_loss", "huber_loss", "mse_loss", "margin_ranking_loss", "soft_margin_loss",
    "triplet_margin_loss", "multi_margin_loss", "binary_cross_entropy_with_logits", "dist", "cdist", "renorm",
    "logsumexp", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d",
    "_upsample_nearest_exact2d", "upsample_linear1d", "upsample_bilinear2d", "_upsample_bilinear2d_aa",
    "upsample_trilinear3d", "upsample_bicubic2d", "_upsample_bicubic2d_aa",
]  # fmt: skip
_FP32_OUT = [
    "prod", "prod.dim_int", "softmax.int", "log_softmax.int", "cumprod", "cumsum", "linalg_vector_norm",
    "linalg_matrix_norm", "sum", "sum.dim_IntList",
]  # fmt: skip
_PROMOTE = [
    "addcdiv", "addcmul", "atan2", "bilinear", "cross", "dot", "vdot", "grid_sampler", "index_put",
    "tensordot", "scatter_add",
]  # fmt: skip
_libraries: list[Any] = []


def register_autocast(backend: str, kind: type[torch.Tensor]) -> None:
    """Register the casts for tensors of a kind whose device is the PrivateUse1 backend of that name."""

    def eligible(x) -> bool:
        return isinstance(x, kind) and x.is_floating_point() and x.dtype is not torch.float64

    key = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
    rest = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
    rest.fallback(torch.library.fallthrough_kernel)
    library = torch.library.Library("aten", "IMPL")
    _libraries.extend((rest, library))

    def overload(name):
        base, _, which = name.partition(".")
        return getattr(getattr(aten, base), which or "default")

    def cast_all(dtype, tree):
        return tree_map(lambda x: x.to(dtype) if eligible(x) and x.dtype is not dtype else x, tree)

    def make(op, policy):
        def kernel(*args, **kwargs):
            with torch._C._ExcludeDispatchKeyGuard(key):
                if policy == "lower":
                    dtype = torch.get_autocast_dtype(backend)
                elif policy == "fp32":
                    dtype = torch.float32
                elif policy == "fp32 out":
                    at = next(i for i, a in enumerate(op._schema.arguments) if a.name == "dtype")
                    if eligible(args[0]):
                        if at < len(args):
                            args = (*args[:at], args[at] or torch.float32, *args[at + 1 :])
                        elif kwargs.get("dtype") is None:
                            kwargs = {**kwargs, "dtype": torch.float32}
                    return op(*args, **kwargs)
                else:
                    found = {x.dtype for x in tree_leaves((args, kwargs)) if eligible(x)}
                    dtype = torch.float32 if torch.float32 in found else torch.get_autocast_dtype(backend)
                args, kwargs = cast_all(dtype, args), cast_all(dtype, kwargs)
                return op(*args, **kwargs)

        return kernel

    for names, policy in ((_LOWER, "lower"), (_FP32, "fp32"), (_FP32_OUT, "fp32 out"), (_PROMOTE, "promote")):
        for name in names:
            try:
                library.impl(name, make(overload(name), policy), "AutocastPrivateUse1")
            except Exception as error:  # an operator that this torch does not have
                print(f"fake_accelerator: autocast of {name}: {error}", file=sys.stderr)

    def refuse(*args, **kwargs):
        raise RuntimeError(
            "torch.nn.functional.binary_cross_entropy and torch.nn.BCELoss are unsafe to autocast."
        )

    library.impl("binary_cross_entropy", refuse, "AutocastPrivateUse1")
    with contextlib.suppress(Exception):
        import torchvision  # noqa: F401

        vision = torch.library.Library("torchvision", "IMPL")
        _libraries.append(vision)

        def boxes(op):  # inputs in float32, the result in the first one's type
            def kernel(*args, **kwargs):
                with torch._C._ExcludeDispatchKeyGuard(key):
                    first = args[0]
                    result = op(*cast_all(torch.float32, args), **cast_all(torch.float32, kwargs))
                    return tree_map(
                        lambda x: x.to(first.dtype) if eligible(x) and op is not nms else x, result
                    )

            return kernel

        nms = torch.ops.torchvision.nms.default
        vision.impl("nms", boxes(nms), "AutocastPrivateUse1")
        vision.impl("roi_align", boxes(torch.ops.torchvision.roi_align.default), "AutocastPrivateUse1")
