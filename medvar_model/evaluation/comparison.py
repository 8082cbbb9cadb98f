"""Compare sets of images with held-out slices: every set metric, for all of them and for each anatomy and modality.

In: images with conditions and patients, extractors. Out: one row a metric, cell and set, JSON-ready, with the interval, the
counts and what must be known before the number is believed.

    reference   held-out slices, of other patients than in training
    candidates  what is scored, by name; `fresh` are real training slices in the same numbers: the floor of every metric
    cell        anatomy and modality, such as `heart mr`; `all` for everything together
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from medvar_model.evaluation.extractors import Extractor
from medvar_model.evaluation.metrics import SETS, standardised
from medvar_model.evaluation.metrics.intervals import FEWEST_GROUPS, interval
from medvar_model.evaluation.scores import Labelled
from medvar_model.mosaic import spread_out

ALL = "all"
FLOOR = "fresh"
RECONSTRUCTIONS = "reconstructions"  # a set of its own: held-out slices as they come back from their tokens
REPLICATES = 20
REFERENCE = 4  # held-out slices of a condition for each image of the largest candidate
SHARES = ("precision", "recall", "coverage")  # cannot leave [0, 1]


@dataclass(frozen=True, eq=False)
class Grouped:
    """Images with their conditions, and the group of each: its patient, or itself where it was drawn."""

    labelled: Labelled
    groups: tuple[str, ...]

    @staticmethod
    def drawn(labelled: Labelled) -> "Grouped":
        """Every image is a group of its own."""
        return Grouped(labelled, tuple(str(i) for i in range(len(labelled))))


@dataclass(frozen=True)
class Score:
    """One number and what belongs to it.

    Attributes:
        metric: with the name of its features, such as `kid_effnetlite0`.
        cell, candidate: where, and of which set.
        value: None where it means nothing; see `warning`.
        low, high: 95 % interval over patients; None where there are too few.
        better: "higher" or "lower".
        n_reference, n_candidate: images compared.
        patients: of the reference.
        warning: a sentence, or nothing.
    """

    metric: str
    cell: str
    candidate: str
    value: float | None
    low: float | None
    high: float | None
    better: str
    n_reference: int
    n_candidate: int
    patients: int
    warning: str


def all_scores(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Give the rows of `metrics.parquet` of a report: distances of sets, then what was measured of reconstructions."""
    return [*report["distribution"]["scores"], *report.get("reconstructions", {}).get("scores", [])]


@dataclass(frozen=True, eq=False)
class _Described:
    rows: Float64[np.ndarray, "n features"]
    conditions: tuple[str, ...]
    groups: tuple[str, ...]

    def part(self, places: Sequence[int]) -> "_Described":
        return _Described(
            self.rows[np.array(places, dtype=np.int64)],
            tuple(self.conditions[i] for i in places),
            tuple(self.groups[i] for i in places),
        )


def compare(
    reference: Grouped,
    candidates: Mapping[str, Grouped],
    extractors: Sequence[Extractor],
    cells: Mapping[str, str],
    replicates: int = REPLICATES,
) -> list[Score]:
    """Score every candidate by every set metric, in all and in each cell.

    In a cell all sets are first cut to the same mix: the conditions that all of them have, equally many of each in a set.

    Args:
        reference: what is compared with.
        candidates: name → set.
        extractors: what the distances stand on.
        cells: condition → cell.
        replicates: of the intervals; 0 gives none.
    """
    reference = _bounded(reference, candidates.values())
    scores = []
    for extractor in extractors:
        described = {
            name: _Described(extractor.of(part.labelled.images), part.labelled.conditions, part.groups)
            for name, part in {"": reference, **candidates}.items()
        }
        names = sorted({cells[name] for name in reference.labelled.conditions if name in cells})
        for cell in [ALL, *(names if len(names) > 1 else [])]:
            inside = {c for c in cells if cell in (ALL, cells[c])}
            scores += _cell_scores(cell, {n: _of(part, inside) for n, part in described.items()}, extractor, replicates)
    return scores


def _bounded(reference: Grouped, candidates: Iterable[Grouped]) -> Grouped:
    """Keep, evenly spread, at most four times as many of each condition as any candidate has: more would only take time."""
    names, candidates = reference.labelled.conditions, list(candidates)
    most = {
        name: REFERENCE * max((c.labelled.conditions.count(name) for c in candidates), default=0) for name in set(names)
    }
    kept = []
    for name in sorted(set(names)):
        mine = reference.labelled.places(name)
        kept += [mine[i] for i in spread_out(len(mine), most[name])]
    kept.sort()
    return Grouped(reference.labelled.part(kept), tuple(reference.groups[i] for i in kept))


def same_mix(parts: Mapping[str, Sequence[str]]) -> dict[str, list[int]]:
    """Say which images of each set remain when all are cut to the same mix of conditions.

    Args:
        parts: set → condition of each image.
    """
    shared = sorted(set.intersection(*(set(conditions) for conditions in parts.values())))
    kept = {}
    for name, conditions in parts.items():
        places = [[i for i, c in enumerate(conditions) if c == condition] for condition in shared]
        fewest = min((len(mine) for mine in places), default=0)
        kept[name] = [mine[i] for mine in places for i in spread_out(len(mine), fewest)]
    return kept


def summary(
    scores: Sequence[Score], extractors: Sequence[Extractor], reference: Grouped, candidates: Mapping[str, Grouped]
) -> dict[str, Any]:
    """Put scores into a report: the whole table, and the numbers of all cells together by metric and set."""
    parts = {name: set(part.labelled.conditions) for name, part in {"": reference, **candidates}.items()}
    whole = [score for score in scores if score.cell == ALL]
    kinds = {name: kind for extractor in extractors for kind, name in extractor.metrics.items()}
    metrics: dict[str, Any] = {}
    for score in whole:
        entry = metrics.setdefault(score.metric, _said_of(kinds[score.metric]))
        entry[score.candidate] = score.value
        entry.setdefault("intervals", {})[score.candidate] = None if score.low is None else [score.low, score.high]
    sizes = {"held_out": whole[0].n_reference if whole else 0, **{s.candidate: s.n_candidate for s in whole}}
    return {
        "conditions": sorted(set.intersection(*parts.values())),
        "n": sizes,
        "features": [{"name": e.name, "learned": e.learned, "width": e.width, **e.provenance} for e in extractors],
        "metrics": metrics,
        "scores": [asdict(score) for score in scores],
    }


def _cell_scores(cell: str, parts: Mapping[str, _Described], extractor: Extractor, replicates: int) -> list[Score]:
    kept = same_mix({name: part.conditions for name, part in parts.items()})
    cut = {name: part.part(kept[name]) for name, part in parts.items()}
    reference = cut.pop("")
    return [
        _score(metric, kind, cell, name, (reference, part), extractor, replicates)
        for kind, metric in extractor.metrics.items()
        for name, part in cut.items()
    ]


def _score(
    metric: str, kind: str, cell: str, candidate: str, pair: tuple[_Described, _Described], extractor: Extractor,
    replicates: int,
) -> Score:  # fmt: skip
    reference, part = pair
    spec, n, patients = SETS[kind], min(len(pair[0].rows), len(pair[1].rows)), len(set(reference.groups))
    counts = (spec.better, len(reference.rows), len(part.rows), patients)
    if n < spec.minimum:
        return Score(metric, cell, candidate, None, None, None, *counts, f"needs {spec.minimum} images, has {n}")

    def value(real: np.ndarray, fake: np.ndarray) -> float:
        return spec.score(*(standardised(real, fake) if extractor.standardised else (real, fake)))

    number = value(reference.rows, part.rows)
    ends = interval(value, (reference.rows, reference.groups), (part.rows, part.groups), replicates)
    notes = []
    if kind == "fd" and n <= extractor.width:
        notes.append(
            f"{n} images for {extractor.width} features overstate it: compare with real slices in the same number"
        )
    if kind == "cmmd":
        notes.append(f"{n} images overstate it by their number: compare with real slices in the same number")
    if patients < FEWEST_GROUPS:
        notes.append(f"no interval: the reference has {patients} patients, wanted {FEWEST_GROUPS}")
    low, high = ends if ends else (None, None)
    if ends and kind in SHARES:
        low, high = max(0.0, ends[0]), min(1.0, ends[1])
    known = number if math.isfinite(number) else None
    return Score(metric, cell, candidate, known, low, high, *counts, "; ".join(notes))


def _of(part: _Described, conditions: set[str]) -> _Described:
    return part.part([i for i, name in enumerate(part.conditions) if name in conditions])


def _said_of(kind: str) -> dict[str, Any]:
    spec = SETS[kind]
    return {"better": spec.better, "minimum": spec.minimum, "says": spec.says}
