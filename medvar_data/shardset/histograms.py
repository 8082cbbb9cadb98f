"""Bins of the intensity histograms in cases.parquet and stats.parquet. They never depend on a scan, so that histograms add up.

Source: CT in HU, 128 bins of 32 HU from -1024 to 3072; MR in shares of the way from `low` to `high`, the bounds of the 8-bit scale,
128 bins of 1/64 from -0.5 to 1.5. Before the first bin stands one for everything below, after the last one for everything above.
Slices: one bin a grey level.
"""

import numpy as np
from jaxtyping import Float64

SOURCE_BINS = 128
SOURCE_NUMBERS = SOURCE_BINS + 2  # with those below and above
GREY_LEVELS = 256
CT_FROM_HU, CT_STEP_HU = -1024.0, 32.0
MR_FROM, MR_STEP = -0.5, 1 / 64  # 0 is `low`, 1 is `high`


def source_edges(modality: str) -> Float64[np.ndarray, "129"]:
    """Edges of the bins of a source's histogram: HU in CT; in MR (value - low) / (high - low), so that 0 became black and 1 white.

    Bin i holds the values from edge i up to, but not including, edge i + 1. A histogram has 130 numbers: the first counts the values
    below the first edge, the last those from the last edge on.

    Args:
        modality: CT or MR.

    >>> source_edges("CT")[[0, 1, -1]].tolist(), source_edges("MR")[[0, 32, 96, -1]].tolist()
    ([-1024.0, -992.0, 3072.0], [-0.5, 0.0, 1.0, 1.5])
    """
    first, step = (CT_FROM_HU, CT_STEP_HU) if modality == "CT" else (MR_FROM, MR_STEP)
    return first + step * np.arange(SOURCE_BINS + 1)


def edges_of_case(modality: str, low: float, high: float) -> Float64[np.ndarray, "129"]:
    """The edges in the unit of a case's voxels: HU in CT, the scanner's unit in MR.

    Args:
        modality: CT or MR.
        low: intensity that became 0.
        high: intensity that became 255; above `low`.
    """
    edges = source_edges(modality)
    return edges if modality == "CT" else low + (high - low) * edges
