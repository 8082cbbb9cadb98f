"""Say in sentences what a reader must know before believing a report's numbers.

In: a report. Out: sentences.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medvar_model.sampling.sample_files import training_note

NEARLY_GUESSING = 0.9  # of the cross-entropy of a guess


def notes(report: Mapping[str, Any], folders: Sequence[Path]) -> list[str]:
    """Say what is little trained, hardly better than a guess, or not given for too few images.

    Args:
        report: with its scales, predictions and distribution.
        folders: runs of the networks behind it.
    """
    said = [note for folder in folders if (note := training_note(folder))]
    guessing = report["scales"]["uniform_cross_entropy"]
    split, worst = max(((name, part["mean"]) for name, part in report["predictions"].items()), key=lambda x: x[1])
    if worst > NEARLY_GUESSING * guessing:
        said.append(
            f"The transformer predicts the tokens of {split} hardly better than a guess ({worst:.2f} nats, a guess costs "
            f"{guessing:.2f}): it is hardly trained, or trained on other data."
        )
    return said + distribution_notes(report["distribution"])


def distribution_notes(part: Mapping[str, Any]) -> list[str]:
    """Say what the distances between sets lack: learned features, images, patients."""
    said, sizes = [], part["n"]
    if not any(features["learned"] for features in part["features"]):
        said.append(
            "Distances stand on features computed by hand, which hardly see anatomy. Install the learned ones with "
            "`pip install 'medvar[features]'` (19 MB)."
        )
    short = [f"{name} (needs {m['minimum']})" for name, m in part["metrics"].items() if m.get("samples") is None]
    if short:
        said.append(
            f"Not given for too few images: {', '.join(short)}; after all sets are cut to the same mix of conditions there "
            f"are {sizes['samples']} samples and {sizes['held_out']} held-out slices. Draw more with -n."
        )
    few = sorted({score["cell"] for score in part["scores"] if "no interval" in score["warning"]})
    if few:
        said.append(f"Too few held-out patients for intervals: {', '.join(few)}.")
    return said
