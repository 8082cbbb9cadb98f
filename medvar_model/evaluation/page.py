"""Show a trained run to people: an HTML section of curves, pictures and tables.

In: the folders that training and evaluation left. Out: HTML as text; the pictures it points to exist already.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from medvar_data.storage.html import folded, number, picture, table
from medvar_model.evaluation.page_distances import distances_html, reconstructions_html
from medvar_model.evaluation.reconstructions import TITLES
from medvar_model.training.log import read_log

SECTION = "2-model"  # sorts after the data's on a page that holds both
WIDTH, HEIGHT = 540.0, 190.0  # of a curve, in pixels
LEFT, BOTTOM, TOP, RIGHT = 52.0, 26.0, 12.0, 12.0  # room for its labels
COLOURS = {"training": "#9db4d6", "validation": "#c2410c"}
MOST_POINTS = 300


@dataclass(frozen=True)
class Curve:
    """A line of a chart: its name and its points."""

    name: str
    x: tuple[float | int, ...]
    y: tuple[float | int, ...]


def model_section(
    evaluation: Mapping[str, Any], pictures: str, tokenizer: Path | None = None, transformer: Path | None = None
) -> str:
    """Write the section.

    Args:
        evaluation: the content of report.json.
        pictures: where the page finds the evaluation's pictures, relative to itself.
        tokenizer: its run's folder, for its curves; None leaves them out.
        transformer: likewise.
    """
    parts = ["<h2>Model</h2>", _summary(evaluation), "<h3>Samples</h3>", _samples(evaluation, pictures)]
    runs = [(name, run) for name, run in (("Tokenizer", tokenizer), ("Transformer", transformer)) if run]
    if runs:
        parts += ["<h3>Training</h3>", "".join(_run_curves(name, read_log(run / "log.jsonl")) for name, run in runs)]
    parts += ["<h3>Reconstructions of held-out slices</h3>", _reconstructions(evaluation, pictures)]
    parts += ["<h3>Tokens, scale by scale</h3>", _scales(evaluation, pictures)]
    parts += ["<h3>Do samples show what was asked for?</h3>", _conditions(evaluation)]
    parts += ["<h3>How far are samples from real slices?</h3>", distances_html(evaluation["distribution"], pictures)]
    parts += ["<h3>Are samples copies?</h3>", _copies(evaluation, pictures)]
    return "\n".join(parts)


def images_section(evaluation: Mapping[str, Any], pictures: str) -> str:
    """Write the section of images that another model drew: what needs no network of ours."""
    notes = "".join(f"<p><b>Note.</b> {escape(note)}</p>" for note in evaluation["notes"])
    parts = ["<h2>Images</h2>", notes, "<h3>Do they show what was asked for?</h3>", _conditions(evaluation)]
    parts += ["<h3>How far are they from real slices?</h3>", distances_html(evaluation["distribution"], pictures)]
    return "\n".join([*parts, "<h3>Are they copies?</h3>", _copies(evaluation, pictures)])


def chart(title: str, curves: Sequence[Curve], x_name: str) -> str:
    """Draw lines as an inline SVG; several are named in the corner, one alone is named by the title."""
    drawn = [curve for curve in (_thinned(curve) for curve in curves) if curve.x]
    if not drawn:
        return ""
    x_low, x_high = _range([x for curve in drawn for x in curve.x])
    y_low, y_high = _range([y for curve in drawn for y in curve.y])

    def at(x: float | int, y: float | int) -> str:
        across = LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        return f"{across:.1f},{HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - BOTTOM - TOP):.1f}"

    lines = []
    for step in range(4):
        y = y_low + (y_high - y_low) * step / 3
        height = float(at(x_low, y).split(",")[1])
        lines.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height}" y2="{height}" stroke="#e8ebf0"/>')
        lines.append(_text(LEFT - 6, height + 4, f"{y:.3g}", "end"))
    for place, curve in enumerate(drawn):
        colour = COLOURS.get(curve.name, "#3f5f8f")
        points = " ".join(at(x, y) for x, y in zip(curve.x, curve.y, strict=True))
        lines.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.6" points="{points}"/>')
        if len(drawn) > 1:
            lines.append(_text(WIDTH - RIGHT, TOP + 12 + 15 * place, curve.name, "end", colour))
    lines.append(_text(WIDTH - RIGHT, HEIGHT - 6, f"{x_high:,.0f} {x_name}", "end"))
    lines.append(_text(LEFT, HEIGHT - 6, f"{x_low:,.0f}", "start"))
    body = "".join(lines)
    return (
        f'<figure style="display:inline-block;width:{WIDTH:.0f}px;margin-right:12px"><svg viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" '
        f'width="{WIDTH:.0f}" height="{HEIGHT:.0f}" role="img" aria-label="{escape(title)}">{body}</svg>'
        f"<figcaption>{escape(title)}</figcaption></figure>"
    )


def _summary(report: Mapping[str, Any]) -> str:
    right, copies, drawn = report["conditions"]["right"], report["copies"], report["reconstructions"]
    rows = [
        ("reconstruction of held-out slices", f"PSNR {number(drawn['psnr'])} dB, SSIM {number(drawn['ssim'])}"),
        ("samples that show their condition", _percent(right)),
        (
            f"samples closer to training than {100 * copies['alpha']:g} % of held-out slices are",
            _percent(copies["closer"]),
        ),
    ]
    notes = "".join(f"<p><b>Note.</b> {escape(note)}</p>" for note in report.get("notes", []))
    return table(("what", "result"), rows) + notes


def _samples(report: Mapping[str, Any], pictures: str) -> str:
    settings = report["settings"]
    said = (
        f"Not selected: the first of each condition. Guidance {settings['guidance']:g}, top-k {settings['top_k']}, top-p "
        f"{settings['top_p']:g}, seed {settings['seed']}. Right: held-out slices of the same condition."
    )
    conditions = report["conditions"]
    names = report["sampled"]
    rows = []
    for name in names:
        score = conditions["per_condition"].get(name)
        right = f"{100 * score['share']:.0f} % named right" if score else "not scored: no held-out slices"
        real = (
            picture(pictures, f"real-{name}", f"held-out slices of {name}") if name in conditions["conditions"] else ""
        )
        drawn = picture(pictures, f"samples-{name}", f"samples of {name}")
        rows.append(f"<tr><td><b>{escape(name)}</b><br><small>{right}</small></td><td>{drawn}</td><td>{real}</td></tr>")
    head = "<tr><th>condition</th><th>samples</th><th>real, held out</th></tr>"
    return f"<p>{escape(said)}</p><table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"


def _run_curves(name: str, lines: Sequence[Mapping[str, Any]]) -> str:
    """Draw loss over images seen, and PSNR or accuracy where a validation gives it."""
    validated = [line for line in lines if "validation" in line]

    def of(key: str, where: Sequence[Mapping[str, Any]], inside: bool) -> Curve:
        found = [(line["samples"], (line["validation"] if inside else line).get(key)) for line in where]
        kept = [(x, y) for x, y in found if y is not None]
        return Curve("validation" if inside else "training", tuple(x for x, _ in kept), tuple(y for _, y in kept))

    charts = [chart(f"{name}: loss", [of("loss", lines, False), of("loss", validated, True)], "images")]
    for key, title in (
        ("psnr", "PSNR of validation slices, dB"),
        ("accuracy", "tokens of validation slices predicted right, share"),
    ):
        charts.append(chart(f"{name}: {title}", [of(key, validated, True)], "images"))
    return "".join(charts)


def _reconstructions(report: Mapping[str, Any], pictures: str) -> str:
    drawn = report["reconstructions"]
    columns = ["condition", "slices", "PSNR, dB", "without air, dB", "SSIM"]
    keys = ["n", "psnr", "foreground_psnr", "ssim"]
    for key, title in TITLES.items():
        if key in drawn:
            keys.append(key)
            columns.append(title)
    rows = [(name, *(part[key] for key in keys)) for name, part in drawn["per_condition"].items()]
    rows.append(("all", *(drawn[key] for key in keys)))
    shown = [
        f"<figure>{picture(pictures, f'reconstructions-{name}', f'reconstructions of {name}')}"
        f"<figcaption>{escape(name)}: slices above, what comes back from their tokens below</figcaption></figure>"
        for name in drawn["per_condition"]
    ]
    distances = reconstructions_html(drawn.get("distances", []))
    return table(columns, rows) + distances + folded("Pictures of every condition", "".join(shown))


def _scales(report: Mapping[str, Any], pictures: str) -> str:
    scales, splits = report["scales"], list(report["predictions"])
    columns = ["scale", "tokens", "codes used", "could be used", "by uniform use", "perplexity"]
    columns += [f"cross-entropy, {split}" for split in splits] + [f"right, {split}" for split in splits]
    rows = []
    for k, side in enumerate(scales["side"]):
        predicted = [report["predictions"][split] for split in splits]
        rows.append(
            (
                f"{side} × {side}", side * side, _share(scales["share"][k]), _share(scales["reachable"][k]),
                _share(scales["uniform"][k]),
                scales["perplexity"][k], *(part["cross_entropy"][k] for part in predicted),
                *(_share(part["accuracy"][k]) for part in predicted),
            )
        )  # fmt: skip
    said = (
        f"Cross-entropy in nats a token, with the condition told; guessing among all {scales['vocabulary']} codes costs "
        f"{scales['uniform_cross_entropy']:.2f}. A code counts as used from 8 % of its fair share of hits on; few tokens "
        "cannot hit many codes, so “could be used” is the bound; “by uniform use” is what tokens would hit that took any code with equal chance."
    )
    shown = "".join(
        f"<figure>{picture(pictures, f'scales-{name}', f'{name}, scale by scale')}"
        f"<figcaption>{escape(name)}: a held-out slice as its token maps are added, and the slice itself</figcaption></figure>"
        for name in report["reconstructions"]["per_condition"]
    )
    return f"<p>{escape(said)}</p>" + table(columns, rows) + folded("A slice of each condition, coming up", shown)


def _conditions(report: Mapping[str, Any]) -> str:
    conditions = report["conditions"]
    said = (
        "A linear classifier, fitted to held-out real slices that no network was trained on, names the condition of each "
        "sample. What it gets right on real slices bounds what it can get right on samples."
    )
    rows = [("samples", _percent(conditions["right"]))]
    if "right_through_tokenizer" in conditions:
        rows.append(("fresh real slices through the tokenizer", _percent(conditions["right_through_tokenizer"])))
    rows += [
        ("fresh real slices (training)", _percent(conditions["right_on_fresh"])),
        ("held-out slices of other scans (cross-validated)", _percent(conditions["right_on_held_out"])),
    ]
    text = f"<p>{escape(said)}</p>" + table(("images", "named right, with 95 % interval"), rows)
    names = conditions["conditions"]
    counts = [[names[i], *row] for i, row in enumerate(conditions["confusion"])]
    counted = table(("asked for ↓ named →", *names), [[v if v else "·" for v in row] for row in counts])
    note = (
        f"<p>{conditions['unscored']} samples are of conditions without held-out slices.</p>"
        if conditions["unscored"]
        else ""
    )
    return text + note + folded("Who was taken for whom", counted)


def _copies(report: Mapping[str, Any], pictures: str) -> str:
    part = report["copies"]
    said = (
        "Distance to the nearest training slice: root mean square difference of grey at 32 × 32 pixels, of 255. The "
        "threshold is the distance that "
        f"{100 * part['alpha']:g} % of held-out slices (other patients) stay below."
    )
    rows = [
        ("threshold", number(part["threshold"])),
        ("median of held-out slices", number(part["held_out_median"])),
        ("median of samples", number(part["sample_median"])),
        ("samples below the threshold", _percent(part["closer"])),
    ]
    pairs = picture(pictures, "closest", "closest pairs")
    caption = "The samples closest to a training slice above, those training slices below."
    return f"<p>{escape(said)}</p>{table(('distance', 'value'), rows)}<figure>{pairs}<figcaption>{caption}</figcaption></figure>"


def _share(value: float) -> str:
    return f"{100 * value:.3g} %"


def _percent(share: Mapping[str, Any]) -> str:
    if not share["n"]:
        return "none to score"
    interval = f"{100 * share['low']:.1f} to {100 * share['high']:.1f}"
    return f"{100 * share['share']:.1f} % of {share['n']} ({interval})"


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#566072") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="11" fill="{colour}">{escape(text)}</text>'


def _thinned(curve: Curve) -> Curve:
    """Average neighbouring points where there are more than can be told apart."""
    group = -(-len(curve.x) // MOST_POINTS)
    if group <= 1:
        return curve
    starts = range(0, len(curve.x), group)
    mean = [sum(curve.y[i : i + group]) / len(curve.y[i : i + group]) for i in starts]
    return Curve(curve.name, tuple(curve.x[i] for i in starts), tuple(mean))


def _range(values: Sequence[float | int]) -> tuple[float, float]:
    low, high = float(min(values)), float(max(values))
    return (low, high) if high > low else (low - 0.5, high + 0.5)
