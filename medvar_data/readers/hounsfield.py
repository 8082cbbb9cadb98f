"""Tell by the distribution of its values that a "CT" is not in Hounsfield units.

A CT of a body holds air or fat. Grey values of 0 to 255, values with the offset still on them and normalised values hold
neither, whatever padding surrounds them, and would become a flat square under a window of soft tissue.
"""

import numpy as np
from jaxtyping import Shaped

from medvar_data.errors import CaseRejected, Reason

FAT_HU = -50  # air and fat lie below it
LEAST_BELOW_FAT = 1e-3  # of the voxels
BELOW_AIR_HU, MOST_BELOW_AIR = -1100, 0.05  # of the voxels, besides padding
ALONE = 100  # a lowest value below air, so far below the next, is padding
SIGNED_BYTE = (-128, 127)
MOST_VOXELS = 1 << 18  # looked at, evenly over the volume
WAY_ON = "if the collection stores something else, or these are HU all the same, say so by a [[repair]] (id, cases, slope, intercept_hu)"


def check_hu(voxels: Shaped[np.ndarray, "i j k"]) -> None:
    """Reject a CT whose values cannot be HU.

    Args:
        voxels: before padding is raised to air; any real dtype.

    Raises:
        CaseRejected: `not_hu`.
    """
    step = max(1, round((voxels.size / MOST_VOXELS) ** (1 / 3)))
    values = voxels[::step, ::step, ::step].ravel()
    low, high = float(values.min()), float(values.max())
    tissue = values[values > low + 1]
    is_padded = low < BELOW_AIR_HU and tissue.size and float(tissue.min()) - low > ALONE
    values = tissue if is_padded else values
    if (low, high) == SIGNED_BYTE:
        raise _not_hu("all values lie in -128 to 127, which is a picture of 8 bits")
    below = float(np.mean(values < FAT_HU))
    if below < LEAST_BELOW_FAT:
        besides = f" besides the padding of {low:g}" if is_padded else ""
        raise _not_hu(
            f"values go from {values.min():g} to {high:g}{besides}, and {below:.2%} of them lie below {FAT_HU} HU, "
            f"but a CT holds air or fat (at least {LEAST_BELOW_FAT:.1%})"
        )
    below = float(np.mean(values < BELOW_AIR_HU))
    if below > MOST_BELOW_AIR:
        raise _not_hu(
            f"{below:.0%} of the values lie below {BELOW_AIR_HU} HU, where nothing is (at most {MOST_BELOW_AIR:.0%})"
        )


def _not_hu(what: str) -> CaseRejected:
    return CaseRejected(Reason.NOT_HU, f"{what}: these are no HU; {WAY_ON}")
