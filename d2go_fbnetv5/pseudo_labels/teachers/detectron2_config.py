"""Detectron2's configuration files, without running what a file may ask for.

Detectron2 reads them with YAML's unsafe loader, and MaskFormer's use it: ``MIN_SIZE_TRAIN:
!!python/object/apply:eval ["[int(x * 0.1 * 640) for x in range(5, 16)]"]``. Here such a key keeps its default.
"""

from __future__ import annotations

import io
import logging
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from d2go_fbnetv5.pseudo_labels.teacher import load_function, users_code
from d2go_fbnetv5.utils.errors import InputError

logger = logging.getLogger(__name__)

_PROGRAM = object()


def detectron2_configuration(what: str, config: str, hooks: Sequence[str], opts: Sequence[Any]) -> Any:
    """Detectron2's defaults with the keys that ``hooks`` add, a file's values, and KEY, VALUE, ...

    Args:
        what: the model's name, for messages.
        config: a file, or a name of Detectron2's model zoo, which then gives MODEL.WEIGHTS, too.

    Raises:
        FileNotFoundError: no such file, nor in the model zoo.
        ValueError: names the hook, key or line that is wrong.
    """
    from detectron2 import model_zoo
    from detectron2.config import get_cfg

    cfg = get_cfg()
    for hook in hooks:
        add_keys = load_function(hook, f"{what}: config_hook")
        with users_code(f"{what}: config_hook {hook!r}"):
            add_keys(cfg)
    try:
        if os.path.isfile(config):
            _merge_file(cfg, config)
        else:
            _merge_file(cfg, model_zoo.get_config_file(config))
            cfg.MODEL.WEIGHTS = model_zoo.get_checkpoint_url(config)
        cfg.merge_from_list(list(opts))
    except RuntimeError as error:  # of the model zoo
        raise FileNotFoundError(f"{what}: no such file, and {error}") from None
    except (KeyError, ValueError, AssertionError, yaml.YAMLError) as error:
        raise InputError(f"{what}: {error.args[0] if len(error.args) == 1 else error}") from error
    return cfg


def _merge_file(cfg: Any, path: str) -> None:
    values = _File.load_yaml_with_base(path)
    # By way of a file, for so Detectron2 also reads those of its older versions.
    with tempfile.TemporaryDirectory() as folder:
        plain = os.path.join(folder, os.path.basename(path))
        with open(plain, "w", encoding="utf-8") as file:
            yaml.safe_dump(values, file, allow_unicode=True)
        cfg.merge_from_file(plain, allow_unsafe=False)


class _File(CfgNode):
    """Opens files as what is left of them without programs."""

    @classmethod
    def _open_cfg(cls, filename: str) -> io.StringIO:
        with super()._open_cfg(filename) as file:
            values = yaml.load(file, _Loader)
        if not isinstance(values, dict):
            raise InputError(
                f"{filename}: expected a mapping of keys to values, found {type(values).__name__}"
            )
        return io.StringIO(yaml.safe_dump(_without_programs(values, filename), allow_unicode=True))


class _Loader(yaml.SafeLoader):
    """Plain YAML, tuples as lists, and a mark for all else that only Python can make."""


_Loader.add_constructor(
    "tag:yaml.org,2002:python/tuple", lambda loader, node: loader.construct_sequence(node, deep=True)
)
_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: _PROGRAM)


def _without_programs(values: dict[str, Any], filename: str) -> dict[str, Any]:
    kept = {}
    for key, value in values.items():
        if _has_program(value):
            logger.warning("%s: %s is a program, which is not run: its default stays", filename, key)
        else:
            kept[key] = _without_programs(value, filename) if isinstance(value, dict) else value
    return kept


def _has_program(value: Any) -> bool:
    return value is _PROGRAM or (isinstance(value, list) and any(map(_has_program, value)))
