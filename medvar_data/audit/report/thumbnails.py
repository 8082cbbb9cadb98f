"""Choose the cases whose pictures stand in the report, typical and outlying ones, and make the pictures.

A case is typical or outlying by its distance from the medians of its collection, modality and sequence: over the numbers in `TRAITS`,
each distance is taken in robust standard deviations (1.4826 times the median absolute deviation; the standard deviation where
half of the cases are equal), at most `FARTHEST` of them, and the root of the mean of the squares is the case's distance.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import pyarrow as pa
from jaxtyping import Float64

from medvar_data.audit.contact_sheets import PALETTE, outlined
from medvar_data.audit.report.source import CaseName, Shown
from medvar_data.storage.html import number

N_TYPICAL = N_OUTLYING = 4
FARTHEST = 10.0
TRAITS = {
    "spacing_row_mm": ("pixel", "mm"), "through_plane_mm": ("distance of slices", "mm"), "n_slices": ("slices", ""),
    "mean": ("mean", ""), "std": ("standard deviation", ""), "p50": ("median value", ""), "p99_5": ("99.5th percentile", ""),
    "clipped_low": ("share clipped below", ""), "clipped_high": ("share clipped above", ""),
    "foreground_fraction": ("annotated share", ""), "body_fraction": ("share of body", ""),
}  # fmt: skip
"""Columns of cases.parquet that are compared, with their names and units for people."""
MOST_PIXELS = 256  # a side of a picture
QUALITY = 62  # of WebP


@dataclass(frozen=True)
class Chosen:
    """A case whose picture is shown."""

    case: str
    why: str  # what is farthest from the median, of an outlying case; empty of a typical one
    distance: float


@dataclass(frozen=True)
class Thumbnail:
    """A picture with its caption."""

    chosen: Chosen
    z: int
    side: int  # in pixels
    data: str  # of a `data:` URI
    says: str  # what is seen, for those who do not see it
    labels: tuple[int, ...]


def choose_cases(cases: pa.Table) -> tuple[list[Chosen], list[Chosen]]:
    """The cases nearest to the medians of a group, and those farthest from them; no patient is shown twice.

    Args:
        cases: rows of cases.parquet of one collection, modality and sequence.
    """
    values = np.stack([np.asarray(cases[name], dtype=np.float64) for name in TRAITS], axis=1)
    medians = np.median(values, axis=0)
    off = _deviations(values, medians)
    distance = np.sqrt(np.mean(off**2, axis=1))
    names = cases["case"].to_pylist()
    order = sorted(range(len(names)), key=lambda n: (distance[n], names[n]))
    patients = cases["patient"].to_pylist()
    near = _of_different_patients(order, patients, N_TYPICAL)
    shown = {patients[n] for n in near}
    far = _of_different_patients(
        [n for n in order[::-1] if patients[n] not in shown and distance[n] > 0], patients, N_OUTLYING
    )
    outlying = [Chosen(names[n], _why(values[n], medians, off[n]), float(distance[n])) for n in far]
    return [Chosen(names[n], "", float(distance[n])) for n in near], outlying


def _of_different_patients(order: Sequence[int], patients: Sequence[str], most: int) -> list[int]:
    """The first cases in an order, one a patient."""
    first: dict[str, int] = {}
    for n in order:
        first.setdefault(patients[n], n)
    return list(first.values())[:most]


def _deviations(
    values: Float64[np.ndarray, "cases traits"], medians: Float64[np.ndarray, " traits"]
) -> Float64[np.ndarray, "cases traits"]:
    """How far each value is from its median, in robust standard deviations."""
    robust = 1.4826 * np.median(np.abs(values - medians), axis=0)
    spread = np.where(robust > 0, robust, np.std(values, axis=0))
    off = np.divide(values - medians, spread, out=np.zeros_like(values), where=spread > 0)
    return np.asarray(np.clip(off, -FARTHEST, FARTHEST))


def _why(values: Float64[np.ndarray, " traits"], medians: Float64[np.ndarray, " traits"], off: np.ndarray) -> str:
    first = int(np.argmax(np.abs(off)))
    name, unit = list(TRAITS.values())[first]
    return f"{name} {number(float(values[first]))} {unit}".strip() + f" (median {number(float(medians[first]))})"


def thumbnail(chosen: Chosen, shown: Shown, label_names: Mapping[int, str]) -> Thumbnail:
    """Outline the labels of a slice and encode it small.

    Args:
        chosen: the case.
        shown: its slice.
        label_names: of the collection.
    """
    picture = outlined(shown.image, shown.mask)
    if picture.shape[0] > MOST_PIXELS:
        picture = cv2.resize(picture, (MOST_PIXELS, MOST_PIXELS), interpolation=cv2.INTER_AREA)
    ok, data = cv2.imencode(".webp", picture, [cv2.IMWRITE_WEBP_QUALITY, QUALITY])
    assert ok, "cv2 refused a colour picture"
    held = tuple(int(value) for value in np.unique(shown.mask) if value)
    outlines = ", ".join(label_names.get(value, str(value)) for value in held)
    says = f"Slice of {chosen.case}" + (f" with outlines of {outlines}" if held else ", no annotation")
    return Thumbnail(chosen, shown.z, picture.shape[0], base64.b64encode(data.tobytes()).decode(), says, held)


def colour_of(label: int) -> str:
    """The colour of a label's outline, as CSS writes it."""
    blue, green, red = PALETTE[label % len(PALETTE)]
    return f"#{red:02x}{green:02x}{blue:02x}"


def pictures_of(
    chosen: Mapping[CaseName, Chosen],
    shown: Iterable[tuple[CaseName, Shown]],
    label_names: Mapping[str, Mapping[int, str]],
) -> dict[CaseName, Thumbnail]:
    """Make the pictures of chosen cases, as their slices come.

    Args:
        chosen: the cases.
        shown: their slices.
        label_names: by collection, the name of each label id.
    """
    return {name: thumbnail(chosen[name], slice_, label_names[name[0]]) for name, slice_ in shown}
