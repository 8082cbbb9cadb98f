"""Tell a solid scanner table from a body part, where size alone cannot: by its shape along the scan and by where it lies.

In: the components of a CT's foreground and which of them are kept. Out: which are kept without the tables.
"""

import numpy as np
from jaxtyping import Bool, Int64

from medvar_data.harmonize.components import Components

TABLE_LENGTH_MM = 60.0  # a solid table is this long at least, and in every slice,
TABLE_CONSTANCY = 0.9  # of one cross-section: what all slices share is this part of what any slice holds,
TABLE_COVER = 0.5  # under (or over) this part of the patient's width


def without_tables(
    parts: Components, keep: Bool[np.ndarray, " components"], spacing_mm: tuple[float, float, float]
) -> Bool[np.ndarray, " components"]:
    """Let solid tables go: bars of one cross-section in every slice that lie across under, or over, all else that is kept.

    No part of a body has one cross-section over `TABLE_LENGTH_MM` and lies across under the rest; what fails one of the
    tests stays, and the largest component always does.
    """
    if np.count_nonzero(keep) < 2 or len(parts.ids) * spacing_mm[2] < TABLE_LENGTH_MM:
        return keep
    keep, largest = keep.copy(), int(parts.n_voxels[1:].argmax()) + 1
    candidates = [int(n) for n in np.flatnonzero(keep) if n != largest]
    bars = {n: (parts.ids == n).any(axis=0) for n in candidates if _is_constant(parts.ids == n)}
    while table := next((n for n, bar in bars.items() if keep[n] and _lies_across(bar, _shadow(parts, keep, n))), 0):
        keep[table] = False  # what lay above it is the next to be seen
    return keep


def _is_constant(part: Bool[np.ndarray, "z h w"]) -> bool:
    every, any_ = np.count_nonzero(part.all(axis=0)), np.count_nonzero(part.any(axis=0))
    return bool(every >= TABLE_CONSTANCY * any_)


def _shadow(parts: Components, keep: Bool[np.ndarray, " components"], without: int) -> Bool[np.ndarray, "h w"]:
    """Where any slice shows a part that is kept, one part left out."""
    others = keep.copy()
    others[without] = False
    return others[parts.ids].any(axis=0)


def _lies_across(bar: Bool[np.ndarray, "h w"], patient: Bool[np.ndarray, "h w"]) -> bool:
    """Tell whether a bar lies under the patient, or over, in every column they share, and across much of the width."""
    width = patient.any(axis=0)
    both = width & bar.any(axis=0)
    under = (bar.argmax(axis=0) > _last_row(patient))[both].all()
    over = (_last_row(bar) < patient.argmax(axis=0))[both].all()
    return bool((under or over) and np.count_nonzero(both) >= TABLE_COVER * np.count_nonzero(width))


def _last_row(shadow: Bool[np.ndarray, "h w"]) -> Int64[np.ndarray, " w"]:
    return len(shadow) - 1 - shadow[::-1].argmax(axis=0)
