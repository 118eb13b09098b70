"""The runners that D2Go's ``--runner`` names: ``d2go_fbnetv5.runner.MultitaskSearchRunner``, ``FBNetV5Runner``."""

from d2go_fbnetv5.plugins.stand_ins import STAND_INS

try:
    from d2go_fbnetv5.plugins.d2go import FBNetV5Runner, MultitaskSearchRunner
except ModuleNotFoundError as error:
    _name = error.name or ""
    if any(f"{module}.".startswith(f"{_name}.") for module in STAND_INS):
        raise ImportError(
            f"D2Go asks for {_name}, which these packages do not have; python -m d2go_fbnetv5.d2go runs its commands "
            "with stand-ins"
        ) from None
    _host = _name.split(".")[0]
    if _host not in ("d2go", "detectron2", "mobile_cv"):
        raise
    raise ImportError(
        f"d2go_fbnetv5.runner needs D2Go, Detectron2 and mobile_cv, of which {_host} is not installed; "
        "tools/train_net.py trains, evaluates and reports without any of them"
    ) from None

__all__ = ["FBNetV5Runner", "MultitaskSearchRunner"]
