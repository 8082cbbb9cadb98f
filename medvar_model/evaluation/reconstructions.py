"""Say how well slices come back from their tokens: perceptual distance of each, and the distance between the two sets.

In: held-out slices, their patients and reconstructions. Out: numbers, JSON-ready. PSNR and SSIM are in `scores`.

The distance between the sets has the name of the set metric with an `r` before it: `rfid` on Inception's features, `rfd_effnetlite0`,
`rradfid_resnet50`, `rcmmd`. It is taken between slices and their own reconstructions, where `fid` is between samples and other
patients' slices: the two are not comparable.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, UInt8

from medvar_model.errors import MissingCheckpoint
from medvar_model.evaluation.comparison import ALL, RECONSTRUCTIONS, Score
from medvar_model.evaluation.extractors import Extractor
from medvar_model.evaluation.metrics import SETS, standardised
from medvar_model.evaluation.metrics.intervals import FEWEST_GROUPS, interval
from medvar_model.loader import to_network
from medvar_model.training.perceptual import PerceptualDistance, check_files, check_kind, load_perceptual

Stack = UInt8[np.ndarray, "n side side"]

SET_KINDS = ("fd", "cmmd")  # of set metrics that are taken between slices and their reconstructions
PERCEPTUAL = {"lpips": "lpips", "st-lpips": "st_lpips", "st-lpips-alex": "st_lpips_alex"}  # kind → column
TITLES = {"lpips": "LPIPS", "st_lpips": "ST-LPIPS", "st_lpips_alex": "ST-LPIPS (AlexNet)"}


def open_perceptual(kind: str, files: Sequence[str]) -> PerceptualDistance | None:
    """Read a perceptual distance; None for the kind none.

    Args:
        kind: one of `training.perceptual.KINDS`.
        files: weight files of the kind lpips.

    Raises:
        ConfigMismatch: there is no such kind, or it takes no files.
        MissingCheckpoint: its weights are not there, or are not what they should be.
    """
    check_kind(kind)
    check_files(kind, files)
    if kind == "lpips" and not files:
        raise MissingCheckpoint(
            "LPIPS needs two files that are published apart: https://download.pytorch.org/models/vgg16-397923af.pth (528 MB) and "
            "vgg.pth of https://github.com/richzhang/PerceptualSimilarity (lpips/weights/v0.1, 7 kB). Name both: --lpips-weights "
            "vgg16-397923af.pth --lpips-weights vgg.pth; or take --perceptual st-lpips, whose weights a package brings."
        )
    return load_perceptual(kind, files)


@torch.inference_mode()
def perceptual_distances(
    distance: PerceptualDistance | None, kind: str, images: Stack, drawn: Stack, device: torch.device
) -> dict[str, Float64[np.ndarray, " n"]]:
    """Give the perceptual distance of each slice and its reconstruction, >= 0, under the name of its kind.

    Args:
        distance: see `training.perceptual`; None gives nothing.
        kind: one of `training.perceptual.KINDS`.
        images: slices.
        drawn: as they come back from their tokens.
        device: where `distance` is.

    Raises:
        ConfigMismatch: the images are too small for the network.
    """
    if distance is None:
        return {}
    parts = []
    for start in range(0, len(images), 16):
        pair = (to_network(torch.from_numpy(part[start : start + 16])).to(device) for part in (images, drawn))
        parts.append(distance.each(*pair).double().cpu().numpy())
    return {PERCEPTUAL[kind]: np.concatenate(parts) if parts else np.zeros(0)}


def reconstruction_distances(
    images: Stack, drawn: Stack, patients: Sequence[str], extractors: Sequence[Extractor], replicates: int
) -> list[dict[str, Any]]:
    """Measure how far the set of reconstructions is from the set of slices, on each extractor's features.

    Args:
        images: slices.
        drawn: as they come back from their tokens, in the same order.
        patients: of the slices; the interval leaves out a fifth of them at a time, from both sets.
        extractors: what the distances stand on; radiomic numbers are left out.
        replicates: of the intervals; 0 gives none.

    Returns:
        A row a metric: metric, value, low, high, n, patients, better, warning; None for what cannot be given.
    """
    return [
        _row(kind, extractor, images, drawn, patients, replicates)
        for extractor in extractors
        if extractor.name != "radiomics"
        for kind in SET_KINDS
        if kind in extractor.metrics
    ]


def reconstruction_scores(
    quality: Mapping[str, Float64[np.ndarray, " n"]],
    patients: Sequence[str],
    distances: Sequence[Mapping[str, Any]],
    replicates: int,
) -> list[Score]:
    """Give all that was measured of reconstructions as rows of `metrics.parquet`: means over slices, then distances of the sets.

    Args:
        quality: PSNR, SSIM, perceptual distance of each slice.
        patients: of the slices.
        distances: of `reconstruction_distances`.
        replicates: of the means' intervals.
    """
    n, people = len(patients), len(set(patients))
    found = []
    for name, values in quality.items():
        rows = np.asarray(values, dtype=np.float64)[:, None]
        mean = float(rows.mean()) if n else math.nan
        sides = (rows, patients), (rows, patients)
        low, high = interval(lambda some, _: float(some.mean()), *sides, replicates) or (None, None)
        better = "lower" if name in TITLES else "higher"
        value = mean if math.isfinite(mean) else None
        warning = "" if value is not None else "some slices come back without any error, or there are none"
        found.append(Score(name, ALL, RECONSTRUCTIONS, value, low, high, better, n, n, people, warning))
    return found + [
        Score(
            row["metric"], ALL, RECONSTRUCTIONS, row["value"], row["low"], row["high"], row["better"], row["n"], row["n"],
            row["patients"], row["warning"],
        )
        for row in distances
    ]  # fmt: skip


def _row(
    kind: str, extractor: Extractor, images: Stack, drawn: Stack, patients: Sequence[str], replicates: int
) -> dict[str, Any]:
    metric, n, people = SETS[kind], len(images), len(set(patients))
    said: dict[str, Any] = {
        "metric": f"r{extractor.metrics[kind]}", "value": None, "low": None, "high": None, "n": n, "patients": people,
        "better": metric.better, "warning": f"needs {metric.minimum} images, has {n}",
    }  # fmt: skip
    if n < metric.minimum:
        return said

    def value(pairs: np.ndarray, _: np.ndarray) -> float:
        real, fake = pairs[:, : extractor.width], pairs[:, extractor.width :]
        return metric.score(*(standardised(real, fake) if extractor.standardised else (real, fake)))

    pairs = np.hstack([extractor.of(images), extractor.of(drawn)])
    number = value(pairs, pairs)
    ends = interval(value, (pairs, patients), (pairs, patients), replicates)
    warning = f"no interval: {people} patients, wanted {FEWEST_GROUPS}" if people < FEWEST_GROUPS else ""
    low, high = ends if ends else (None, None)
    return said | {"value": number if math.isfinite(number) else None, "low": low, "high": high, "warning": warning}
