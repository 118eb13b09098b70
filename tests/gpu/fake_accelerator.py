"""A GPU that is not there: torch tensors that say they are on "cuda:0", compute on the CPU, and fail where CUDA fails.

    import fake_accelerator
    fake_accelerator.enable()  # before models are built; cannot be undone, so in a process of its own
    model.to("cuda")           # torch.cuda.is_available() is True

What it does
* Values are real: each operator runs on the CPU tensor inside. ``device``, ``is_cuda`` say CUDA.
* Operators that mix devices raise RuntimeError("Expected all tensors to be on the same device ...") unless CUDA allows
  it: 0-dim CPU tensors in pointwise operators, CPU index tensors in indexing, copies.
* ``.numpy()`` raises. A CPU generator for a tensor on the device raises.
* ``waits`` counts, by the place in the project, all that makes the host wait for the device: ``item``, ``tolist``,
  ``cpu``, ``nonzero``, indexing by masks, ``nms`` and so on, and copies to the device that are not ``non_blocking``.
* A copy to the CPU with ``non_blocking=True`` is asynchronous, as in torch, which pins the memory that it makes: until
  something waits for the device it holds garbage (NaN; 0 for integers), and an operator that reads it is noted in
  ``races``.
* ``torch.autocast("cuda", ...)`` casts by CUDA's lists (of torch 2.14); ``GradScaler`` works. Half arithmetic is the
  CPU's.

What it does not do: streams, memory limits, CUDA kernels' own nondeterminism and numerics, C++ code that asks
``is_cuda()`` (cuDNN's paths, choice of attention kernel), NCCL, torch.compile.

How: a wrapper subclass whose C++ device is the PrivateUse1 backend (so that autograd's engine has a device to run on
without a driver) and whose Python ``device`` says CUDA; a TorchDispatchMode for operators that make tensors.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections import Counter
from typing import Any

import torch
import torch.optim
from fake_autocast import register_autocast
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

aten = torch.ops.aten
NAME = "fakecuda"  # of the PrivateUse1 backend; users see "cuda"
CUDA = torch.device("cuda", 0)
PROJECT = "d2go_fbnetv5"  # the folder whose files are blamed

races: Counter = Counter()  # place in the project -> times
waits: Counter = Counter()  # place in the project -> times
_pending: list[
    tuple[torch.Tensor, torch.Tensor]
] = []  # (pinned destination, value) of unfinished copies to the host
_lock = threading.RLock()
_enabled = False
_TORCH = os.path.dirname(torch.__file__) + os.sep
_HERE = os.path.abspath(__file__)


# ------------------------------------------------------------------------------------------------ bookkeeping


def place() -> str:
    """The line of the project that is running, and the library's line through which it got here."""
    frame, inner, outer = sys._getframe(1), None, None
    while frame is not None:
        name = frame.f_code.co_filename
        if os.path.abspath(name) != _HERE and not name.startswith(_TORCH) and not name.startswith("<"):
            short = os.sep.join(name.split(os.sep)[-3:]) + f":{frame.f_lineno}"
            inner = inner or short
            if f"{os.sep}{PROJECT}{os.sep}" in name:
                outer = name.split(f"{os.sep}{PROJECT}{os.sep}")[-1] + f":{frame.f_lineno}"
                break
        frame = frame.f_back
    if outer is None:
        return inner or "(backward thread)"
    return outer if inner.endswith(outer.split(os.sep)[-1]) else f"{outer} via {inner}"


def synchronize() -> None:
    """All copies to the host are done."""
    with _lock:
        for destination, value in _pending:
            with torch.no_grad(), _off():
                destination.copy_(value)
        _pending.clear()


def wait() -> None:
    """Let the host wait, and take note of where."""
    synchronize()
    waits[place()] += 1


# ------------------------------------------------------------------------------------------------ the tensor


class FakeCudaTensor(torch.Tensor):
    """A CPU tensor, ``_inner``, that says it is on the GPU."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor):
        extra = torch._C.DispatchKeySet(torch._C.DispatchKey.AutogradPrivateUse1)
        extra = extra | torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            layout=inner.layout, device=torch.device(NAME, 0), requires_grad=False, _extra_dispatch_keys=extra,
        )  # fmt: skip

    def __init__(self, inner: torch.Tensor) -> None:
        self._inner = inner.detach() if inner.requires_grad else inner

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})

    @property
    def device(self):
        return CUDA

    @property
    def is_cuda(self):
        return True

    @property
    def is_cpu(self):
        return False

    def get_device(self):
        return 0

    def type(self, *args, **kwargs):
        if not args and not kwargs:
            return super().type().replace(NAME, "cuda")
        return super().type(*args, **kwargs)

    def cuda(self, device=None, non_blocking=False, memory_format=torch.preserve_format):
        return self

    def numpy(self, *args, **kwargs):
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first"
        )

    def tolist(self):
        wait()
        return self._inner.tolist()

    def __array__(self, *args, **kwargs):
        return self.numpy()

    def to(self, *args, **kwargs):
        # The C++ device is another one: `x.to("cuda")` would be a copy, and "cuda" must not wake up a driver.
        copy = kwargs.pop("copy", False)
        device, dtype, non_blocking, memory_format = torch._C._nn._parse_to(*args, **kwargs)
        options = {"non_blocking": non_blocking, "copy": copy}
        if memory_format is not None:
            options["memory_format"] = memory_format
        if device is not None and device.type not in ("cuda", NAME):
            options["device"] = device
        return super().to(dtype=dtype or self.dtype, **options)

    @property
    def data(self):
        return self.detach() if not self.requires_grad else torch.Tensor.detach(self)

    @data.setter
    def data(self, value):
        torch._C.TensorBase.data.__set__(self, value)
        self._inner = value._inner

    def __repr__(self, **kwargs):
        return f"cuda:{self._inner!r}"

    def __format__(self, spec):
        return self.item().__format__(spec) if self.dim() == 0 else repr(self)

    def __reduce_ex__(self, protocol):
        wait()
        return self._inner.detach().__reduce_ex__(protocol)

    def __deepcopy__(self, memo):
        if id(self) in memo:
            return memo[id(self)]
        if not self.is_leaf:
            raise RuntimeError("Only Tensors created explicitly by the user support the deepcopy protocol")
        new = self.detach().clone()
        new.__dict__.update({k: v for k, v in self.__dict__.items() if k != "_inner"})
        new.requires_grad_(self.requires_grad)
        memo[id(self)] = new
        return new

    def pin_memory(self, *args):
        raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")

    def is_pinned(self, *args):
        return False

    def data_ptr(self):
        return self._inner.data_ptr()


def _is_device(value: Any, kind: str) -> bool:
    if isinstance(value, str):
        return value.split(":")[0] in (kind, NAME)
    if isinstance(value, int) and not isinstance(value, bool):
        return kind == "cuda"
    return isinstance(value, torch.device) and value.type in (kind, NAME)


def inner(value: Any) -> Any:
    return value._inner if isinstance(value, FakeCudaTensor) else value


# ------------------------------------------------------------------------------------------------ the operators

_POINTWISE_TAG = torch.Tag.pointwise
_ALLOW_CPU_SCALAR = {  # besides pointwise ones: names without overload
    "where", "fill_", "masked_fill", "masked_fill_", "index_fill", "index_fill_", "_foreach_mul", "_foreach_mul_",
    "_foreach_div", "_foreach_div_", "_foreach_add", "_foreach_add_", "lerp", "lerp_", "clamp", "clamp_",
    "_index_put_impl_", "index_put", "index_put_", "_foreach_lerp_", "index_add_", "isin", "copysign",
}  # fmt: skip
_INDEX = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
# Whose result, or whose result's shape, the host has to know at once.
_SYNC = {
    "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "_unique", "unique_dim", "unique_consecutive",
    "bincount", "equal", "repeat_interleave", "histc", "nms", "is_nonzero", "allclose", "linalg_svd", "_linalg_eigh",
}  # fmt: skip
_SHAPE_CHANGING = {
    "resize_",
    "t_",
    "transpose_",
    "squeeze_",
    "unsqueeze_",
    "set_",
    "as_strided_",
    "swapaxes_",
}
_VIEWS = {
    "detach", "view", "slice", "select", "alias", "t", "transpose", "permute", "expand", "unsqueeze", "squeeze",
    "as_strided", "split", "unbind", "_unsafe_view", "lift_fresh", "split_with_sizes", "_reshape_alias",
}  # fmt: skip
_cache: dict[Any, tuple] = {}


def _schema(func) -> tuple:
    """For each return: the index or name of the argument that it is (in-place), or None; and the mutated arguments."""
    if func not in _cache:
        schema = func._schema
        written = {}
        for i, argument in enumerate(schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                written[frozenset(argument.alias_info.before_set)] = (i, argument.name)
        returns = []
        for result in schema.returns:
            info = result.alias_info
            returns.append(
                written.get(frozenset(info.before_set)) if info is not None and info.is_write else None
            )
        name = func._schema.name.split("::")[-1]
        _cache[func] = (returns, list(written.values()), name)
    return _cache[func]


def _argument(args, kwargs, which):
    i, name = which
    return args[i] if i < len(args) else kwargs.get(name)


def _different(func, tensors) -> RuntimeError:
    devices = sorted({str(t.device) for t in tensors}, reverse=True)
    return RuntimeError(
        f"Expected all tensors to be on the same device, but found at least two devices, {', '.join(devices)}! "
        f"(operator {func})"
    )


def run(func, args, kwargs):
    """One operator."""
    returns, written, name = _schema(func)
    leaves = tree_leaves((args, kwargs))
    tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
    fakes = [x for x in tensors if isinstance(x, FakeCudaTensor)]
    device = kwargs.get("device")
    to_fake = _is_device(device, "cuda") if device is not None else False
    if not fakes and not to_fake:
        if _pending and name not in _VIEWS:
            _check_races(tensors)
        if kwargs.get("pin_memory"):
            kwargs = {**kwargs, "pin_memory": False}
        return func(*args, **kwargs)

    if name == "_to_copy":
        return _to_copy(func, args, kwargs)
    if name == "copy_":
        return _copy(func, args, kwargs)
    if name in _SHAPE_CHANGING:
        func(*tree_map(inner, args), **tree_map(inner, kwargs))
        torch._C.TensorBase.data.__set__(args[0], FakeCudaTensor(args[0]._inner))  # the new sizes and strides
        return args[0]
    if func is aten._fused_sdp_choice.default:
        return 0  # the kernel written in plain operators

    cpu = [x for x in tensors if not isinstance(x, FakeCudaTensor)]
    if cpu and fakes:
        if _pending:
            _check_races(cpu)
        _check_devices(func, name, args, kwargs, cpu, tensors)
    # As in zeros_like(x, device="cpu").
    to_host = device is not None and not to_fake and torch.device(device).type == "cpu"
    out_fake = not (fakes and to_host)
    generator = kwargs.get("generator")
    if isinstance(generator, torch.Generator) and generator.device.type == "cpu" and out_fake:
        raise RuntimeError(f"Expected a 'cuda' device type for generator but found 'cpu' (operator {func})")
    if name in _SYNC and not (name == "repeat_interleave" and kwargs.get("output_size") is not None):
        wait()
    elif name in _INDEX:
        _wait_for_index(name, args)

    if device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu") if out_fake else device}
    if kwargs.get("pin_memory"):
        kwargs = {**kwargs, "pin_memory": False}
    result = func(*tree_map(inner, args), **tree_map(inner, kwargs))
    if written and returns:
        if len(returns) == 1 and returns[0] is not None:
            return _argument(args, kwargs, returns[0])
        if isinstance(result, (tuple, list)) and len(result) == len(returns):
            return type(result)(
                _wrap(r) if which is None else _argument(args, kwargs, which)
                for r, which in zip(result, returns, strict=True)
            )
    if not out_fake:
        return result
    return tree_map(_wrap, result)


def _wrap(value: Any) -> Any:
    return (
        FakeCudaTensor(value)
        if isinstance(value, torch.Tensor) and not isinstance(value, FakeCudaTensor)
        else value
    )


def _check_devices(func, name, args, kwargs, cpu, tensors) -> None:
    returns, written, _ = _schema(func)
    if name in _INDEX:
        if not isinstance(args[0], FakeCudaTensor):
            raise RuntimeError(
                "indices should be either on cpu or on the same device as the indexed tensor (cpu) "
                f"(operator {func})"
            )
        values = args[2] if len(args) > 2 and isinstance(args[2], torch.Tensor) else None
        if values is not None and not isinstance(values, FakeCudaTensor) and values.dim() > 0:
            raise _different(func, tensors)
        return
    for which in written:
        target = _argument(args, kwargs, which)
        for t in target if isinstance(target, (list, tuple)) else [target]:
            if isinstance(t, torch.Tensor) and not isinstance(t, FakeCudaTensor):
                raise _different(func, tensors)
    scalar_ok = _POINTWISE_TAG in func.tags or name in _ALLOW_CPU_SCALAR or name.startswith("_foreach")
    if not scalar_ok or any(t.dim() > 0 for t in cpu):
        raise _different(func, tensors)


def _wait_for_index(name, args) -> None:
    indices = [i for i in args[1] if i is not None]
    masks = [i for i in indices if i.dtype in (torch.bool, torch.uint8)]
    value = args[2] if len(args) > 2 else None
    fill = name != "index" and len(masks) == 1 and len(indices) == 1 and isinstance(value, torch.Tensor) and (
        value.numel() == 1 and not (len(args) > 3 and args[3])
    )  # fmt: skip
    on_host = any(not isinstance(i, FakeCudaTensor) for i in indices)
    if on_host or (any(isinstance(i, FakeCudaTensor) for i in masks) and not fill):
        wait()


def _check_races(tensors) -> None:
    with _lock:
        busy = {d.untyped_storage().data_ptr() for d, _ in _pending}
    for t in tensors:
        if type(t) is torch.Tensor and t.layout is torch.strided and t.untyped_storage().data_ptr() in busy:
            races[place()] += 1


def _to_copy(func, args, kwargs):
    self = args[0]
    kwargs = dict(kwargs)
    device = kwargs.get("device")
    if kwargs.get("pin_memory"):
        kwargs["pin_memory"] = False
    target = self.device if device is None else torch.device(device)
    fake_target = target.type in ("cuda", NAME)
    if fake_target:
        kwargs["device"] = torch.device("cpu")
    if isinstance(self, FakeCudaTensor):
        result = func(self._inner, **tree_map(inner, kwargs))
        if fake_target:
            return FakeCudaTensor(result)
        if target.type == "meta":
            return result
        if kwargs.get("non_blocking"):
            garbage = torch.full_like(result, float("nan") if result.is_floating_point() else 0)
            with _lock:
                _pending.append((garbage, result))
            return garbage
        wait()
        return result
    if _pending:
        _check_races([self])
    if not kwargs.get("non_blocking"):
        wait()
    return FakeCudaTensor(func(self, **kwargs))


def _copy(func, args, kwargs):
    target, source = args[0], args[1]
    non_blocking = (args[2] if len(args) > 2 else kwargs.get("non_blocking")) or False
    fake_target, fake_source = isinstance(target, FakeCudaTensor), isinstance(source, FakeCudaTensor)
    if fake_target and not fake_source:
        if _pending:
            _check_races([source])
        if not non_blocking and source.dim() > 0:  # a scalar is filled in
            wait()
    elif fake_source and not fake_target:
        if non_blocking:
            value = torch.empty_like(target).copy_(source._inner)
            target.fill_(float("nan") if target.is_floating_point() else 0)
            with _lock:
                _pending.append((target, value))
            return target
        wait()
    func(inner(target), inner(source))
    return target


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


@contextlib.contextmanager
def _off():
    with torch.utils._python_dispatch._disable_current_modes():
        yield


# ------------------------------------------------------------------------------------------------ torch.cuda


class _Event:
    def __init__(self, enable_timing=False, blocking=False, interprocess=False):
        self._time = 0.0

    def record(self, stream=None):
        import time

        self._time = time.perf_counter()

    def synchronize(self):
        synchronize()

    def wait(self, stream=None): ...

    def query(self):
        synchronize()
        return True

    def elapsed_time(self, other):
        return 1000 * (other._time - self._time)


class _Stream:
    device = CUDA

    def synchronize(self):
        synchronize()

    def wait_stream(self, other): ...

    def wait_event(self, event): ...

    def record_event(self, event=None):
        event = event or _Event()
        event.record()
        return event


class _Backend(_DummyBackendModule):
    def get_amp_supported_dtype(self):
        return [torch.float16, torch.bfloat16, torch.float32]


def _patch_cuda() -> None:
    cuda = torch.cuda

    def explicit_synchronize(device=None):
        synchronize()

    replacements = {
        "is_available": lambda: True,
        "_lazy_init": lambda: None,
        "init": lambda: None,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "synchronize": explicit_synchronize,
        "is_bf16_supported": lambda *a, **k: True,
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "Event": _Event,
        "current_stream": lambda device=None: _Stream(),
        "default_stream": lambda device=None: _Stream(),
        "get_device_name": lambda device=None: "fake",
        "get_device_capability": lambda device=None: (9, 0),
        "empty_cache": lambda: None,
        "max_memory_allocated": lambda device=None: 0,
        "memory_allocated": lambda device=None: 0,
        "reset_peak_memory_stats": lambda device=None: None,
        "max_memory_reserved": lambda device=None: 0,
        "is_current_stream_capturing": lambda: False,
    }
    for name, value in replacements.items():
        setattr(cuda, name, value)
    torch._C._set_only_lift_cpu_tensors(True)  # else torch.tensor(..., device="cuda") wakes up a driver

    class autocast(torch.amp.autocast_mode.autocast):  # noqa: N801
        def __init__(self, device_type, *args, **kwargs):
            super().__init__(NAME if device_type == "cuda" else device_type, *args, **kwargs)

    torch.autocast = torch.amp.autocast = torch.amp.autocast_mode.autocast = autocast
    old = torch.is_autocast_enabled
    torch.is_autocast_enabled = lambda kind=NAME: old(NAME if kind == "cuda" else kind)
    old_dtype = torch.get_autocast_dtype
    torch.get_autocast_dtype = lambda kind: old_dtype(NAME if kind == "cuda" else kind)
    torch.set_autocast_dtype(NAME, torch.float16)

    torch.Tensor.pin_memory = lambda self, *a: self
    torch.Tensor.is_pinned = lambda self, *a: False
    # Optimizers and gradient clipping take their foreach paths, as on a GPU.
    from torch.utils import _foreach_utils

    with contextlib.suppress(Exception):
        from torch.optim import optimizer as optim

        optim._foreach_supported_types.append(FakeCudaTensor)
    old_support = _foreach_utils._has_foreach_support

    def has_support(tensors, device):
        if device.type == "cuda" and all(t is None or isinstance(t, FakeCudaTensor) for t in tensors):
            return True
        return old_support(tensors, device)

    for module in list(sys.modules.values()):
        if getattr(module, "_has_foreach_support", None) is old_support:
            module._has_foreach_support = has_support
    # Its C++ helper asks for C++ devices, which these are not.
    old_group = _foreach_utils._group_tensors_by_device_and_dtype

    def group(tensorlistlist, with_indices=False):
        if not any(isinstance(t, FakeCudaTensor) for row in tensorlistlist for t in row):
            return old_group(tensorlistlist, with_indices)
        groups: dict[Any, Any] = {}
        for i, first in enumerate(tensorlistlist[0]):
            lists, indices = groups.setdefault(
                (first.device, first.dtype), ([[] for _ in tensorlistlist], [])
            )
            for row, found in zip(tensorlistlist, lists, strict=True):
                found.append(row[i] if len(row) else None)
            indices.append(i)
        return groups

    for module in list(sys.modules.values()):
        if getattr(module, "_group_tensors_by_device_and_dtype", None) is old_group:
            module._group_tensors_by_device_and_dtype = group


def enable() -> None:
    """From now on "cuda" is a device of this process. Cannot be undone."""
    global _enabled
    if _enabled:
        return
    if torch.cuda.is_available():
        raise RuntimeError("there is a real GPU here; a fake one would only hide it")
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
    torch._C._ensureCUDADeviceGuardSet()  # a guard that needs no driver
    register_autocast(NAME, FakeCudaTensor)
    _patch_cuda()
    _Mode().__enter__()
    _enabled = True
