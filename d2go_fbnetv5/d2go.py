"""Run a command of D2Go's with stand-ins for the modules that it asks for and today's packages no longer have.

    python -m d2go_fbnetv5.d2go train_net --runner d2go_fbnetv5.runner.FBNetV5Runner --config-file ...

The commands are train_net, exporter and evaluator; their arguments are D2Go's. An error ends them with its status, as
with ``--disable-post-mortem``.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from d2go_fbnetv5.plugins.stand_ins import install_stand_ins
from d2go_fbnetv5.utils.errors import USER_ERRORS, InputError, sentence

COMMANDS = ("train_net", "exporter", "evaluator")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, or 2 after one sentence about what the user can mend. Other errors are raised."""
    command, *arguments = (sys.argv[1:] if argv is None else argv) or [""]
    try:
        if command not in COMMANDS:
            raise InputError(f"the command is {command!r}, allowed: {', '.join(COMMANDS)}")
        installed = install_stand_ins()
        if installed:
            print(
                f"d2go_fbnetv5.d2go: stands in for {', '.join(installed)}, which these packages no longer have",
                file=sys.stderr,
            )
        tool = importlib.import_module(f"d2go.tools.{command}")
        tool.cli(["--disable-post-mortem", *arguments])
    except USER_ERRORS as error:
        print(f"d2go_fbnetv5.d2go: {sentence(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
elif __name__ == "__mp_main__":  # a worker, which begins by importing what its parent ran
    install_stand_ins()
