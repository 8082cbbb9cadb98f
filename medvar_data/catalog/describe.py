"""Tell a person what to do with a collection: how to get it, what must lie where, what is known to be odd."""

import re

from medvar_data.catalog.collection import CollectionSpec, Layout, Overlap
from medvar_data.catalog.load import load_shared_cases
from medvar_data.naming import how_many

STATUS = {
    "originals": "seen on original files",
    "listing": "checked against published file lists",
    "unconfirmed": "not confirmed by any source",
}


def describe_collection(spec: CollectionSpec, name: str = "") -> str:
    """Write a plain-text page on one collection; `name` is what `ingest` knows it by, if not by its own name."""
    known = "confirmed" if spec.license_confirmed else "not confirmed: read the terms before use"
    head = [
        spec.title,
        "",
        f"  name          {spec.name}"
        + (f"; `ingest {spec.family}=FOLDER` takes its whole family" if spec.family else ""),
        f"  what          {spec.region}, {', '.join(sorted({m.modality or spec.modality for m in spec.layouts}))}",
        f"  licence       {spec.license} ({known}){': ' + spec.license_url if spec.license_url else ''}",
        f"  terms         commercial use {spec.commercial}, derivatives {spec.derivatives}, share alike {spec.share_alike}, "
        f"redistribution {spec.redistribute}",
        f"  access        {spec.access or 'unknown'}: {', '.join((spec.homepage, *spec.download))}",
        f"  slices        {spec.slice_axis}",
        f"  labels        {', '.join(dict.fromkeys(f'{label.id} {label.name}' for label in spec.labels)) or 'none'}",
    ]
    if spec.notes:
        head.append(f"  note          {spec.notes}")
    if spec.license_evidence:
        head.append(f"  read          {spec.license_evidence} ({spec.license_read})")
    if spec.license_conflict:
        head.append(f"  conflict      {spec.license_conflict}")
    head += [f"  shares scans  {_overlap_line(spec.name, overlap)}" for overlap in spec.overlaps]
    lines = [*head, "", "Expected files (at any depth, packed or unpacked)"]
    for layout in spec.layouts:
        lines += _layout_lines(layout)
    if spec.quirks:
        lines += ["", "Known oddities and what is done about them"]
        lines += [
            f"  {q.id} ({q.which or ('every case' if q.cases == '*' else q.cases)}): {q.action}" for q in spec.quirks
        ]
    lines += [
        "",
        "Archives can stay packed; encrypted ones want --password-file FILE at ingest and harmonize.",
        f"Then: medvar-data ingest {name or spec.name}=FOLDER -w WORK",
        "",
        f"Cite: {spec.citation or 'unknown'}",
        "",
    ]
    return "\n".join(lines)


def _overlap_line(name: str, overlap: Overlap) -> str:
    which = " ".join(word for word in (overlap.cases, overlap.numbers) if word)
    n_pairs = len(load_shared_cases(name, overlap))
    ours = "all cases" if which == "*" else f"cases {which}" if which else "which cases is not published"
    ours += f", {how_many(n_pairs, 'pair')} known" if n_pairs else ""
    n = f"{how_many(overlap.n_cases, 'scan')}, " if overlap.n_cases else ""
    return f"with {overlap.collection or overlap.title}: {n}{ours} ({overlap.certainty})"


def _layout_lines(layout: Layout) -> list[str]:
    count = how_many(layout.expected, "case") if layout.expected else "count unknown"
    image = (
        "DICOM files, whatever their names; headers tell what they are"
        if layout.image == "."
        else readable(layout.image)
    )
    lines = [f"  {layout.id}: {count}; {STATUS[layout.confirmed]}", f"    image  {image}"]
    if layout.label:
        lines.append(f"    label  {readable(layout.label)}")
    if layout.channels:
        lines.append(f"    one case a channel of the fourth dimension: {', '.join(layout.channels)}")
    return lines


def readable(pattern: str) -> str:
    """Show a path pattern as a person would write it: `<name>` for what varies, `{a|b}` for a choice of words."""
    text, depth = "", 0
    path = pattern.removeprefix("(?:^|/)").rstrip("$").replace("[^/]*", "*")
    path = re.sub(r"\(\?:([^()?]*\|[^()?]*)\)(?!\?)", r"{\1}", path).replace("\\", "")
    for token in re.findall(r"\(\?P<\w+>|\(\?P=\w+\)|\(\?:|\(|\)\??|[^()]+", path):
        if token.startswith("(?P="):
            text += "" if depth else f"<{token[4:-1]}>"
        elif token.startswith("("):
            name = re.match(r"\(\?P<(\w+)>", token)
            if depth == 0:
                text += f"<{name[1]}>" if name else ""
            depth += 1
        elif token.startswith(")"):
            depth -= 1
        elif depth == 0:
            text += token
    return text
