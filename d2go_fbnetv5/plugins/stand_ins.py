"""Stand-ins for the modules that D2Go's last commit asks for and that today's packages no longer have.

D2Go needs of them: ``pkg_resources`` (gone with setuptools 82) the folder of a package and its version;
``torch.ao.quantization.quantize_pt2e`` (gone with torch 2.11) for QUANTIZATION.PT2E alone, which is refused here;
``caffe2`` (gone with torch 2.4) that its evaluator may initialise it. A module that is there is left as it is.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from typing import Any, NoReturn

from d2go_fbnetv5.utils.errors import InputError

_QUANTIZATION = "torch.ao.quantization"


def install_stand_ins() -> list[str]:
    """Put stand-ins for what is missing into `sys.modules` and return the missing modules' names, in order."""
    installed = []
    for name, contents in STAND_INS.items():
        if _is_missing(name):
            _install(name, contents)
            installed.append(name)
    return installed


def _is_missing(name: str) -> bool:
    try:
        return find_spec(name) is None
    except ModuleNotFoundError:  # of the package that it is in
        return True


def _install(name: str, contents: dict[str, Any]) -> None:
    """Make a module of these contents, and the packages around it."""
    module = module_from_spec(ModuleSpec(name, None, is_package=True))
    vars(module).update(contents)
    sys.modules[name] = module
    package, _, own = name.rpartition(".")
    if package:
        if _is_missing(package):
            _install(package, {})
        setattr(sys.modules[package], own, module)


def _resource_filename(package: str, path: str) -> str:
    """Return where a file beside a module's own is; of a package without a path its folder."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"no folder of {package}", name=package)
    return str(Path(spec.origin).parent / path)


def _refused(name: str) -> Callable[..., NoReturn]:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise InputError(
            f"QUANTIZATION.PT2E is True, allowed with this torch, which no longer has {name}: False "
            "(torch 2.10 and older have it)"
        )

    return refuse


STAND_INS: dict[str, dict[str, Any]] = {
    "pkg_resources": {
        "resource_filename": _resource_filename,
        "get_distribution": importlib.metadata.distribution,
        "declare_namespace": lambda name: None,  # Python needs no declaration any more
    },
    f"{_QUANTIZATION}.quantize_pt2e": {
        name: _refused(name) for name in ("convert_pt2e", "prepare_pt2e", "prepare_qat_pt2e")
    },
    f"{_QUANTIZATION}.quantizer.xnnpack_quantizer": {
        name: _refused(name) for name in ("XNNPACKQuantizer", "get_symmetric_quantization_config")
    },
    "caffe2.python": {
        "workspace": type("workspace", (), {"GlobalInit": staticmethod(lambda arguments: None)})
    },
}
