"""All that tells a person what happened: history, results, drawings, plots and pages."""

import os
from importlib.util import find_spec

# A notebook hands the name of its backend on to the commands that it starts, and matplotlib is not imported where there
# is no such module. What is drawn here needs none.
_PACKAGE = os.environ.get("MPLBACKEND", "").removeprefix("module://").split(".")[0]
if os.environ.get("MPLBACKEND", "").startswith("module://") and find_spec(_PACKAGE) is None:
    del os.environ["MPLBACKEND"]
