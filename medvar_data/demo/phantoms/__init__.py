"""Phantoms: CT and MR scans made by code, with recognisable anatomy and known truth, in published layouts.

In: a seed. Out: volumes (`synthesize`), or whole collections on disk (`write_phantoms`). No person was ever scanned.
"""

from medvar_data.demo.phantoms.anatomy import CELLS, Cell, Phantom, synthesize
from medvar_data.demo.phantoms.broken import BrokenFile, write_broken
from medvar_data.demo.phantoms.layouts import LAYOUTS
from medvar_data.demo.phantoms.write import write_phantoms

__all__ = ["CELLS", "LAYOUTS", "BrokenFile", "Cell", "Phantom", "synthesize", "write_broken", "write_phantoms"]
