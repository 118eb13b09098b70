"""OpenCV, without which no image is read, and which may be one that another package has installed."""

import importlib
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

from d2go_fbnetv5.utils.errors import InputError

# Older ones give a cut JPEG, filled up with other pixels, as if it were whole, and turn no WebP upright.
OLDEST = (4, 13)
_PACKAGES = (
    "opencv-python-headless",
    "opencv-python",
    "opencv-contrib-python-headless",
    "opencv-contrib-python",
)


@cache
def opencv() -> ModuleType:
    """Return the module cv2, which is imported when it is first asked for.

    Raises:
        InputError: it cannot be imported, or is older than `OLDEST` and would read images wrongly; says which command
            puts another one there.
    """
    oldest = ".".join(map(str, OLDEST))
    try:
        cv2 = importlib.import_module("cv2")
        found = tuple(int(part) for part in cv2.__version__.split(".")[:2])
    except (
        ImportError,
        AttributeError,
    ) as error:  # no libGL, another numpy, or a folder of rests without a module
        raise InputError(
            f"OpenCV cannot be imported ({error}); pip install --force-reinstall 'opencv-python-headless>={oldest}' "
            "puts one there that needs no display"
        ) from error
    if found >= OLDEST:
        return cv2
    packages = [name for name in _PACKAGES if _is_installed(name)] or _PACKAGES[:1]
    wanted = " ".join(f"'{name}>={oldest}'" for name in packages)
    raise InputError(
        f"OpenCV {cv2.__version__} in {Path(cv2.__file__ or '').parent} reads cut images as if they were whole, at "
        f"least {oldest} is needed: pip install --upgrade {wanted}"
    )


def _is_installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False
