"""Show an audit to people: rates, planted copies, membership, and the closest pairs.

In: the audit's numbers and pairs of pictures. Out: `index.html`, and `pictures/pair-<n>.png` beside it.
"""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from medvar_data.storage.html import assemble, number, picture, table, write_section
from medvar_model.evaluation.metrics.features import shrunk

SHOWN = 128  # pixels a side


def write_page(
    out: Path,
    result: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
) -> Path:
    """Write page and pictures.

    Args:
        out: the audit's folder, with `recall.png`.
        result: as copies.json holds it.
        rows: of the closest images, as copies.parquet holds them.
        pairs: those images and their training slices.
    """
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    for path in (out / "pictures").glob("pair-*.png"):
        path.unlink()
    for i, pair in enumerate(pairs):
        both = np.hstack([shrunk(image[None], SHOWN)[0] for image in pair])
        (out / "pictures" / f"pair-{i:02d}.png").write_bytes(cv2.imencode(".png", both)[1].tobytes())
    write_section(out, "1-copies", _rates(result) + _planted(result) + _membership(result) + _pairs(rows))
    return assemble(out, "medvar: memorised slices", "Does the model give back slices that it was trained on?")


def _rates(result: Mapping[str, Any]) -> str:
    said = (
        "An image is called a copy where its best training slice fits it much better than the best slice of any other patient: its "
        f"suspicion lies below {result['threshold']:.3f}, as {100 * result['alpha']:g} % of slices of unseen patients do "
        f"({result['held_out']['n']} slices of {result['held_out']['patients']} patients). Shifts, flips, turns up to 5 degrees and "
        "windows are seen through."
    )
    rows = [("false alarms among unseen patients, cross-validated", _percent(result["false_alarms"]))]
    rows += [("images called copies", _percent(result["copies"]))]
    rows += [(f"of {name}", _percent(share)) for name, share in result["per_condition"].items()]
    return f"<h2>Copies</h2><p>{escape(said)}</p>" + table(("what", "share, with 95 % interval"), rows)


def _planted(result: Mapping[str, Any]) -> str:
    columns = ("planted copy", "strength", "unit", "found", "must be found")
    rows = [
        (r["kind"], r["strength"], r["unit"], _percent(r), "yes" if r["required"] else "shown only")
        for r in result["planted"]
    ]
    plot = '<figure><img src="recall.png" alt="recall over strength"></figure>'
    return f"<h2>Would copies be found?</h2><p>Copies of training slices, changed on purpose.</p>{plot}" + table(
        columns, rows
    )


def _membership(result: Mapping[str, Any]) -> str:
    if not result["membership"]:
        return ""
    rows = []
    for split, tests in result["membership"].items():
        for name in ("likelihood", "difference"):
            test = tests[name]
            ends = f" [{number(test['interval'][0])}, {number(test['interval'][1])}]" if test["interval"] else ""
            rows.append(
                (split, name, number(test["gap"]) + ends, test["auc"], f"{100 * test['found_at_1_percent']:.1f} %")
            )
    said = (
        "Log-likelihood of tokens, nats a token, with the condition (likelihood), and less that without one (difference). The gap is "
        "training minus held-out slices; an area of 0.5 means that members cannot be told."
    )
    columns = ("against", "test", "gap [95 % interval]", "area under ROC", "members found at 1 % false alarms")
    return f"<h2>Does the transformer know its training slices?</h2><p>{escape(said)}</p>" + table(columns, rows)


def _pairs(rows: Sequence[Mapping[str, Any]]) -> str:
    shown = "".join(
        f'<figure style="display:inline-block;width:270px;vertical-align:top">{picture("pictures", f"pair-{i:02d}", "a pair")}'
        f"<figcaption>{escape(str(row['file']))}<br>{escape(str(row['nearest_key']))}<br>score {row['score']:.3f}, other patient "
        f"{row['score_of_other_patient']:.3f}, suspicion {row['suspicion']:.3f}{' <b>copy</b>' if row['copy'] else ''}</figcaption></figure>"
        for i, row in enumerate(rows)
    )
    return f"<h2>The closest pairs</h2><p>Left the image, right the training slice.</p>{shown}"


def _percent(share: Mapping[str, Any]) -> str:
    if not share["n"]:
        return "none"
    return f"{100 * share['share']:.1f} % of {share['n']} ({100 * share['low']:.1f} to {100 * share['high']:.1f})"
