"""Say in sentences what a reader must know before believing what utility was measured.

In: a result. Out: sentences.
"""

from collections.abc import Mapping
from typing import Any

from medvar_model.evaluation.metrics.intervals import FEWEST_GROUPS
from medvar_model.evaluation.utility.arms import REAL, Arm

FEW_OF_CLASS = 5  # held-out patients of a class, below which its recall is hardly more than an anecdote
FEW_SEEDS = 3
LEARNT = 0.9  # share of its own training images that a network should name right
EASY = 0.98  # balanced accuracy of real slices, from which on nothing can help


def notes(result: Mapping[str, Any]) -> list[str]:
    """Say what was left out, for whom there are too few patients, whether the task can tell anything, and how copies would look."""
    return [*_left_out(result), *_patients(result), *_task(result), *_images(result)]


def _left_out(result: Mapping[str, Any]) -> list[str]:
    without = [f"{name} ({why})" for name, why in result["task"]["left_out"].items()]
    return [f"Left out, for not every set has it: {', '.join(without)}."] if without else []


def _patients(result: Mapping[str, Any]) -> list[str]:
    said, counts = [], result["counts"]
    first = result["arms"][0]["scores"]["balanced_accuracy"]
    if first["low"] is None and result["inputs"]["replicates"] > 1:
        said.append(f"No intervals: wanted {FEWEST_GROUPS} held-out patients at least.")
    few = [f"{name} ({n})" for name, row in counts.items() if (n := row["held_out_patients"]) < FEW_OF_CLASS]
    if few:
        said.append(
            f"Few held-out patients, so these recalls tell little and intervals are too narrow: {', '.join(few)}."
        )
    if result["inputs"]["seeds"] < FEW_SEEDS:
        said.append(
            f"With {result['inputs']['seeds']} training(s) of each arm their spread is hardly known. Give more --seeds."
        )
    return said


def _task(result: Mapping[str, Any]) -> list[str]:
    whole = [arm for arm in result["arms"] if arm["name"] == REAL][-1]["scores"]["balanced_accuracy"]["value"]
    linear = result["floors"]["thumbnails"]["balanced_accuracy"]["value"]
    said = []
    fits = {Arm(arm["name"], arm["share"]).said: sum(arm["fit"]) / len(arm["fit"]) for arm in result["arms"]}
    poor = [f"{name} {100 * fit:.0f} %" for name, fit in fits.items() if fit < LEARNT]
    if poor:
        said.append(
            f"Some networks know few of their own training images ({'; '.join(poor)} named right): they had too few steps, or the images do "
            "not show their conditions. Give more --steps, and see whether the scores rise."
        )
    if whole >= EASY:
        said.append(
            f"Real slices alone reach {whole:.3f}: nothing can be gained there, so look at the smaller shares, and at `synthetic`."
        )
    if linear >= whole:
        said.append(
            f"A linear classifier on 16 × 16 pixels reaches {linear:.3f}, the network {whole:.3f}: the task can be solved by coarse layout and "
            "grey alone, and tells little of the images' detail."
        )
    return said


def _images(result: Mapping[str, Any]) -> list[str]:
    said, closer = [], result["copies"]["closer"]
    if closer["n"]:
        said.append(
            f"{100 * closer['share']:.1f} % of the synthetic images lie closer to a training slice than {100 * result['copies']['alpha']:g} % "
            "of held-out slices do. Copies of training slices would make `synthetic` look as good as `real`: `medvar-model copies` looks "
            "for them thoroughly."
        )
    shares = sorted({arm["share"] for arm in result["arms"] if arm["name"] == REAL})
    if shares[0] < 1:
        said.append(
            f"A generator that was trained on all training patients carries what it learned of them into `both`, at {100 * shares[0]:g} % of "
            "the patients, too. That tells what its images add where few real slices are at hand, not what a generator trained on those few "
            "would add."
        )
    return said
