"""Bring a CT's stored values to Hounsfield units where a collection stores something else, and say so in a step.

Two repairs: what the collection's `[[repair]]` rows say, and padding below air, which scanners and publishers store as
-1500, -2000, -2048 or -3024 and which would spoil every minimum, percentile and wide window.
"""

from dataclasses import replace

import numpy as np
from jaxtyping import Shaped

from medvar_data.catalog.collection import CollectionSpec, Repair
from medvar_data.readers.hounsfield import check_hu
from medvar_data.records import Case, Volume

AIR_HU = -1024  # nothing in a CT attenuates less than this: 12 bits from -1024


def repair_intensities(image: Volume, case: Case, spec: CollectionSpec) -> Volume:
    """Apply the repairs that hold for a case.

    Steps: `hu=2*x-1000` where a row of the collection holds; `hu_floor_-1024` where values below air were raised to it.
    MR images come back as they are.

    Raises:
        CaseRejected: `not_hu` where no row holds and the values of a CT cannot be HU.
    """
    if case.modality != "CT":
        return image
    voxels, steps = image.voxels, image.steps
    low, high = float(voxels.min()), float(voxels.max())
    for repair in spec.repairs:
        if repair.holds_for(case.case) and repair.stored_from <= low and high <= repair.stored_to:
            voxels, steps = rescale(voxels, repair), (*steps, f"hu={repair.slope:g}*x{repair.intercept_hu:+g}")
            low = float(voxels.min())
            break
    else:
        check_hu(voxels)
    if low < AIR_HU:
        voxels, steps = np.maximum(voxels, voxels.dtype.type(AIR_HU)), (*steps, f"hu_floor_{AIR_HU}")
    return image if steps == image.steps else replace(image, voxels=voxels, steps=steps)


def rescale(voxels: Shaped[np.ndarray, "i j k"], repair: Repair) -> Shaped[np.ndarray, "i j k"]:
    """Compute slope * stored + intercept_hu; whole numbers that fit stay int16, anything else becomes float32."""
    whole = voxels.dtype == np.int16 and repair.slope == 1.0 and float(repair.intercept_hu).is_integer()
    if whole:
        shifted = voxels.astype(np.int32) + np.int32(repair.intercept_hu)
        limits = np.iinfo(np.int16)
        if shifted.min() >= limits.min and shifted.max() <= limits.max:
            return shifted.astype(np.int16)
    return voxels.astype(np.float32) * np.float32(repair.slope) + np.float32(repair.intercept_hu)
