"""Decide whether a report is good enough: bounds in a TOML file, checked one by one.

In: a report, a gate. Out: a sentence for each bound that is not kept.

    obeyed = 0.8                        # least share of each condition's samples that show it

    [obeyed_of]                         # the same for single conditions
    acdc-mr = 0.95

    [[bound]]
    metric = "kid_effnetlite0"          # as in metrics.parquet
    candidate = "samples"               # or "reconstructions", with psnr, ssim, lpips, rfid ...
    cell = "all"                        # or an anatomy and modality, such as "heart mr"
    at_most = 0.5                       # or at_least
    times_floor = 3.0                   # or: at most so many times what fresh real slices get (at least that part, where higher is better)

    [copies]
    at_most = 0.03                      # share of samples closer to training than the threshold
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from medvar_model.errors import ConfigMismatch
from medvar_model.evaluation.comparison import ALL, FLOOR, all_scores


@dataclass(frozen=True)
class Bound:
    """What a metric must keep.

    Attributes:
        metric, cell, candidate: which number.
        at_least, at_most: bounds of the value itself.
        times_floor: bound relative to what fresh real slices get.
    """

    metric: str
    cell: str = ALL
    candidate: str = "samples"
    at_least: float | None = None
    at_most: float | None = None
    times_floor: float | None = None


@dataclass(frozen=True)
class Copies:
    """What the copy check must keep."""

    at_most: float


@dataclass(frozen=True)
class Gate:
    """All bounds; see the head of the file."""

    obeyed: float = 0.5
    obeyed_of: dict[str, float] = field(default_factory=dict)
    bound: list[Bound] = field(default_factory=list)
    copies: Copies | None = None


def read_gate(path: Path) -> Gate:
    """Read a gate.

    Raises:
        ConfigMismatch: the file is absent, no TOML, or has a key that no gate has.
    """
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8"))
        unknown = [key for key in said if key not in Gate.__dataclass_fields__]
        unknown += [key for bound in said.get("bound", []) for key in bound if key not in Bound.__dataclass_fields__]
        gate = msgspec.convert(said, Gate)
    except (
        OSError,
        UnicodeDecodeError,
        tomllib.TOMLDecodeError,
        msgspec.ValidationError,
        AttributeError,
        TypeError,
    ) as error:
        raise ConfigMismatch(f"{path} is no gate ({error}). docs/evaluation.md shows one.") from error
    if unknown:
        raise ConfigMismatch(f"{path} has the key {unknown[0]!r}, which no gate has. docs/evaluation.md shows one.")
    for bound in gate.bound:
        if bound.at_least is None and bound.at_most is None and bound.times_floor is None:
            raise ConfigMismatch(
                f"{path} bounds {bound.metric} by nothing; wanted at_least, at_most or times_floor. docs/evaluation.md shows a gate."
            )
    return gate


def failures(gate: Gate, report: Mapping[str, Any]) -> list[str]:
    """Say in a sentence each what of a report does not keep the gate's bounds; a number that is not given does not keep its bound."""
    return [*_disobeyed(gate, report), *_unkept(gate, report), *_copied(gate, report)]


def _disobeyed(gate: Gate, report: Mapping[str, Any]) -> list[str]:
    said, scores = [], report["conditions"]["per_condition"]
    for name in sorted({*scores, *gate.obeyed_of}):
        wanted, score = gate.obeyed_of.get(name, gate.obeyed), scores.get(name)
        if score is None:
            said.append(f"{name}: no sample was scored; wanted {100 * wanted:g} % that show it.")
        elif score["share"] < wanted:
            said.append(
                f"{name}: {100 * score['share']:.1f} % of {score['n']} samples show it; wanted {100 * wanted:g} %."
            )
    return said


def _unkept(gate: Gate, report: Mapping[str, Any]) -> list[str]:
    found = {(s["metric"], s["cell"], s["candidate"]): s for s in all_scores(report)}
    said = []
    for bound in gate.bound:
        score = found.get((bound.metric, bound.cell, bound.candidate))
        where = f"{bound.metric} of {bound.candidate} ({bound.cell})"
        if score is None or score["value"] is None:
            said.append(
                f"{where} is not given{': ' + score['warning'] if score and score['warning'] else ''}; wanted a number."
            )
            continue
        low, high = bound.at_least, bound.at_most
        if bound.times_floor is not None:
            fresh = found.get((bound.metric, bound.cell, FLOOR))
            if fresh is None:
                said.append(
                    f"{where} has no floor to be compared with; wanted at_least or at_most in place of times_floor."
                )
                continue
            floor = fresh["value"] or 0.0
            if score["better"] == "lower":
                high = min(x for x in (high, bound.times_floor * floor) if x is not None)
            else:
                low = max(x for x in (low, bound.times_floor * floor) if x is not None)
        if low is not None and score["value"] < low:
            said.append(f"{where} is {score['value']:.4g}; wanted at least {low:.4g}.")
        if high is not None and score["value"] > high:
            said.append(f"{where} is {score['value']:.4g}; wanted at most {high:.4g}.")
    return said


def _copied(gate: Gate, report: Mapping[str, Any]) -> list[str]:
    closer = report["copies"]["closer"]
    if gate.copies is None or (closer["n"] and closer["share"] <= gate.copies.at_most):
        return []
    share = (
        f"{100 * closer['share']:.1f} % of {closer['n']} samples"
        if closer["n"]
        else "No sample was scored; share unknown"
    )
    return [
        f"{share} are closer to training slices than the threshold; wanted at most {100 * gate.copies.at_most:g} %."
    ]
