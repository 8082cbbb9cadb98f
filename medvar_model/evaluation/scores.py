"""Turn collected images into the numbers of a report; nothing is read or written here.

In: stacks of images with their condition names. Out: JSON-ready dictionaries (numbers that cannot be given are None).

    held-out slices    val and test of the shard set: other patients than in training
    fresh slices       training slices in the part of a perfect sampler: as many of each condition as were drawn
    samples            drawn by the transformer
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt8

from medvar_model.evaluation.metrics.classify import condition_features, confusion, cross_validated, fit_classifier
from medvar_model.evaluation.metrics.nearest import copy_audit
from medvar_model.evaluation.metrics.proportion import Proportion, proportion
from medvar_model.evaluation.metrics.quality import foreground_psnr, psnr, ssim

Stack = UInt8[np.ndarray, "n side side"]


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images and the name of each one's condition."""

    images: Stack
    conditions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.conditions)

    def places(self, condition: str) -> list[int]:
        """Say where a condition's images are."""
        return [place for place, name in enumerate(self.conditions) if name == condition]

    def part(self, places: Sequence[int]) -> "Labelled":
        """Return some of the images."""
        return Labelled(self.images[np.array(places, dtype=np.int64)], tuple(self.conditions[i] for i in places))


def score_reconstructions(held_out: Labelled, drawn: Stack) -> dict[str, Float64[np.ndarray, " n"]]:
    """Compare every slice with what comes back from its tokens: PSNR (of all pixels, and without air) and SSIM."""
    images = held_out.images
    return {
        "psnr": psnr(images, drawn),
        "foreground_psnr": foreground_psnr(images, drawn),
        "ssim": ssim(images, drawn),
    }


def mean_reconstructions(held_out: Labelled, each: Mapping[str, Float64[np.ndarray, " n"]]) -> dict[str, Any]:
    """Give the means of `score_reconstructions`, over all slices and over each condition's."""
    places = {name: held_out.places(name) for name in sorted(set(held_out.conditions))}
    return {
        "n": len(held_out),
        **{metric: _mean(values) for metric, values in each.items()},
        "per_condition": {
            name: {"n": len(mine)} | {metric: _mean(values[mine]) for metric, values in each.items()}
            for name, mine in places.items()
        },
    }


def score_copies(
    sample_distance: Float64[np.ndarray, " n"],
    samples: Labelled,
    held_out_distance: Float64[np.ndarray, " m"],
    held_out: Labelled,
) -> dict[str, Any]:
    """Ask whether samples lie closer to training slices than held-out slices do; see `metrics.nearest`."""
    audit = copy_audit(sample_distance, samples.conditions, held_out_distance, held_out.conditions)
    return {name: _plain(value) for name, value in asdict(audit).items()} | {"closer": _share(audit.closer)}


@dataclass(frozen=True, eq=False)
class ConditionScore:
    """What the condition classifier says.

    Attributes:
        report: JSON-ready.
        named: the condition it calls each sample; empty for conditions it cannot know.
    """

    report: dict[str, Any]
    named: tuple[str, ...]


def score_conditions(
    held_out: Labelled, groups: Sequence[str], samples: Labelled, fresh: Labelled, through_tokenizer: Stack
) -> ConditionScore:
    """Fit a classifier of conditions to held-out slices and ask it what the samples show.

    Args:
        held_out: real slices, none of which any network was trained on.
        groups: the scan of each held-out slice, for cross-validation.
        samples: what is scored.
        fresh: training slices, which the classifier has not seen either: what it gets right there, and what it gets
            right on held-out slices of other scans, bounds what it can get right on samples.
        through_tokenizer: the fresh slices as they come back from their tokens: the same bound, less what coding costs.
    """
    rows = condition_features(held_out.images)
    classifier = fit_classifier(rows, held_out.conditions)
    crossed = cross_validated(rows, held_out.conditions, groups)
    known = set(classifier.names)
    scored = [place for place, name in enumerate(samples.conditions) if name in known]
    scorable = [place for place, name in enumerate(fresh.conditions) if name in known]
    drawn, real = samples.part(scored), fresh.part(scorable)
    coded = Labelled(through_tokenizer, fresh.conditions).part(scorable)
    drawn_names, real_names, coded_names = (
        classifier.names_of(condition_features(part.images)) if len(part) else [] for part in (drawn, real, coded)
    )
    named = [""] * len(samples)
    for place, name in zip(scored, drawn_names, strict=True):
        named[place] = name
    report = {
        "conditions": list(classifier.names),
        "right": _share(_hits(drawn.conditions, drawn_names)),
        "per_condition": {
            name: _share(_hits([name] * len(called), called))
            for name in classifier.names
            if (called := [drawn_names[i] for i in drawn.places(name)])
        },
        "confusion": confusion(drawn.conditions, drawn_names, classifier.names).tolist(),
        "unscored": len(samples) - len(scored),
        "right_on_held_out": _share(_hits(held_out.conditions, crossed)),
        "right_on_fresh": _share(_hits(real.conditions, real_names)),
        "right_through_tokenizer": _share(_hits(coded.conditions, coded_names)),
    }
    return ConditionScore(report, tuple(named))


def _hits(truth: Sequence[str], named: Sequence[str]) -> Proportion:
    return proportion(sum(a == b for a, b in zip(truth, named, strict=True)), len(truth))


def _share(value: Proportion) -> dict[str, Any]:
    return {name: _plain(number) for name, number in asdict(value).items()}


def _mean(values: np.ndarray) -> float | None:
    kept = values[np.isfinite(values)]
    return float(kept.mean()) if len(kept) else None


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
