"""Show to people what samples are good for.

In: a result. Out: `index.html`; the pictures it points to exist already.
"""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from medvar_data.storage.html import assemble, figure, folded, table, write_section

TITLES = {"balanced_accuracy": "balanced accuracy", "auroc": "area under ROC", "accuracy": "accuracy"}


def write_page(out: Path, result: Mapping[str, Any], plot: str, pictures: str) -> Path:
    """Write the page.

    Args:
        out: the folder.
        result: as utility.json holds it.
        plot: name of the plot beside the page.
        pictures: folder beside the page that holds `shown.png`.
    """
    parts = ["<h2>Utility</h2>", _said(result), table(*arms_table(result)), figure(plot, PLOTTED), _notes(result)]
    parts += ["<h3>Is that more than real slices alone?</h3>", table(*differences_table(result))]
    parts += ["<h3>Condition by condition</h3>", table(*_recalls(result))]
    parts.append(folded("What the classifier was trained on", figure(f"{pictures}/shown.png", SHOWN)))
    write_section(out, "1-utility", "\n".join(parts))
    lead = "Does a classifier that learns from these images know real patients it never saw?"
    return assemble(out, "medvar: utility of synthetic images", lead)


PLOTTED = (
    "Balanced accuracy over the share of real training patients, with 95 % intervals over patients and seeds. The band is that of a "
    "classifier trained on synthetic images alone."
)
SHOWN = "Real training slices and synthetic images of each class, not selected, as the classifier sees them."


def arms_table(result: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    """Give columns and rows of the table of arms; floors come last."""
    columns = ("trained on", "real patients", "images", *TITLES.values(), "spread of seeds", "own images named right")
    rows: list[tuple[object, ...]] = []
    for arm in result["arms"]:
        scores = arm["scores"]
        spread = scores["balanced_accuracy"]["spread"]
        rows.append(
            (
                f"{arm['name']}, {100 * arm['share']:g} % of patients" if arm["share"] else arm["name"],
                _span(arm["patients"]) if arm["share"] else "–", _span(arm["images"]),
                *(interval(scores[name]) for name in TITLES), "–" if spread is None else f"{spread:.3f}",
                f"{100 * sum(arm['fit']) / len(arm['fit']):.0f} %",
            )
        )  # fmt: skip
    floors = result["floors"]
    thumbs = [interval(floors["thumbnails"][name]) for name in TITLES]
    rows.append(("16 × 16 pixels, linear", "–", "–", *thumbs, "–", "–"))
    chance, most = floors["chance"], floors["majority"]
    guess = (f"{chance['balanced_accuracy']:.3f}", f"{chance['auroc']:.3f}", f"{most['accuracy']:.3f}")
    rows.append((f"nothing: always {most['class']}", "–", "–", *guess, "–", "–"))
    return columns, rows


def differences_table(result: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    """Give columns and rows of the differences to real slices alone."""
    found = {(row["arm"], row["share"], row["metric"]): row for row in result["differences"]}
    pairs = dict.fromkeys((arm, share) for arm, share, _ in found)
    rows: list[tuple[object, ...]] = [
        (
            f"{arm} − real, {100 * share:g} % of patients",
            *(interval(found[arm, share, name], "+.3f") for name in TITLES),
        )
        for arm, share in pairs
    ]
    return ("difference", *TITLES.values()), rows


def interval(score: Mapping[str, Any], form: str = ".3f") -> str:
    """Write a score with its interval, each number in a form such as `+.3f`."""
    ends = "" if score["low"] is None else f" [{score['low']:{form}}, {score['high']:{form}}]"
    return f"{score['value']:{form}}{ends}"


def _said(result: Mapping[str, Any]) -> str:
    inputs, network, held = result["inputs"], result["network"], result["held_out"]
    what = "condition" if result["task"]["names"] == "condition" else "anatomy and modality"
    said = (
        f"A small convolutional network ({network['parameters']:,} parameters, {network['side']} × {network['side']} pixels) learns to name "
        f"the {what} of a slice, from one of the sources below, and is tested on {held['slices']:,} held-out slices of {held['patients']:,} patients. Every "
        f"training sees {network['images_seen']:,} images, all classes alike; `both` takes half of them from either source. Each arm is "
        f"trained {inputs['seeds']} times, with the same seeds. In brackets the 95 % interval over patients and seeds."
    )
    return f"<p>{escape(said)}</p>"


def _notes(result: Mapping[str, Any]) -> str:
    return "".join(f"<p><b>Note.</b> {escape(note)}</p>" for note in result["notes"])


def _recalls(result: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    arms = result["arms"]
    names = [f"{arm['name']}, {100 * arm['share']:g} %" if arm["share"] else arm["name"] for arm in arms]
    columns = (
        "class",
        "training slices (patients)",
        "synthetic",
        "held-out slices (patients)",
        *(f"recall: {name}" for name in names),
    )
    rows: list[tuple[object, ...]] = []
    for name, row in result["counts"].items():
        counted = [f"{row[kind]:,} ({row[f'{kind}_patients']:,})" for kind in ("training", "held_out")]
        recalls = [interval(arm["scores"][f"recall {name}"], ".2f") for arm in arms]
        rows.append((name, counted[0], row["synthetic"], counted[1], *recalls))
    return columns, rows


def _span(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
