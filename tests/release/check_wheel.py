"""Compare a wheel's files with the repository's: `python tests/release/check_wheel.py dist/*.whl`, after a commit."""

import subprocess
import sys
import zipfile
from pathlib import Path

MOST_BYTES = 10_000_000
ROOT = Path(__file__).parents[2]
# Where each top-level folder that ships lies in the package.
SHIPPED = {
    "d2go_fbnetv5/": "d2go_fbnetv5/",
    "tools/": "d2go_fbnetv5/tools/",
    "configs/": "d2go_fbnetv5/configs/",
}


def expected() -> set[str]:
    """Return the names that the wheel of the files under version control must have."""
    run = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return {
        inside + name.removeprefix(outside)
        for name in run.stdout.splitlines()
        for outside, inside in SHIPPED.items()
        if name.startswith(outside)
    }


def found(wheel: Path) -> set[str]:
    """Return the names of a wheel's files, those of its metadata apart."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def main(wheel: str) -> int:
    """Print what is missing and what is too much; return the exit status."""
    ours, theirs = expected(), found(Path(wheel))
    for name in sorted(ours - theirs):
        print(f"{wheel} lacks {name}", file=sys.stderr)
    for name in sorted(theirs - ours):
        print(f"{wheel} has {name}, which is not in the repository", file=sys.stderr)
    size = Path(wheel).stat().st_size
    if size > MOST_BYTES:
        print(f"{wheel} has {size} bytes, allowed are {MOST_BYTES}", file=sys.stderr)
    if ours == theirs:
        print(f"{wheel}: {len(theirs)} files, those of the repository, {size / 1e6:.1f} MB")
    return int(ours != theirs or size > MOST_BYTES)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
