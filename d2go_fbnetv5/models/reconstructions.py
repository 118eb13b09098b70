"""Topologies for the paper's models: reconstructions, never the paper's own.

Figure 3, where the paper shows its searched topologies, is a picture without numbers. What its FLOPs still tell is
how many blocks each path keeps: with 7 stages, the published totals of the five family sizes (Table 2 for CLS, the BB
column of Table 6 for SEG and of Table 7 for DET) are met within 1.5% by the counts chosen here
(``tools/solve_topologies.py`` finds them, among others that fit about as well). *Where* the blocks sit is our choice,
guided by section 4.4: SEG climbs from low to high resolution as a U-Net does, CLS keeps many blocks of high
resolution. So these models cost what the published ones cost; their accuracy is their own.
"""

from d2go_fbnetv5.arch import Topology
from d2go_fbnetv5.utils.errors import InputError


def _topology(rows: str) -> Topology:
    """Read one group a stage, Stage 1 first; in a group Path 0 to Path 3."""
    return Topology([[int(kept) for kept in row] for row in rows.split()])


_TOPOLOGIES = {
    "CLS": _topology("1000 1000 0101 1001 0101 0011 0001"),
    "SEG": _topology("0001 0011 1111 1101 1100 1001 0101"),
    "DET": _topology("1001 1100 0011 1101 0110 1001 0100"),
}
_TOPOLOGIES["DEPTH"] = _TOPOLOGIES["SEG"]  # of depth the paper has none, and calls it similar to segmentation


def builtin_topology(task: str) -> Topology:
    """Return the reconstructed topology of "CLS", "SEG" or "DET", or that of SEG for "DEPTH"."""
    if task not in _TOPOLOGIES:
        raise InputError(f"unknown task {task!r}; allowed are {', '.join(_TOPOLOGIES)}")
    return _TOPOLOGIES[task]
