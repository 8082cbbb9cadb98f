"""Print what the commands of `medvar-data` are going to do and what they did."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medvar_cli.console import MOST_LETTERS, console, print_json, print_table
from medvar_data.audit.contents import Contents
from medvar_data.audit.diff import Changed, Difference
from medvar_data.audit.figures import CellCount
from medvar_data.audit.reconstruct import Losses
from medvar_data.audit.verify import Verification
from medvar_data.catalog.collection import license_text
from medvar_data.catalog.recipe import Recipe
from medvar_data.demo.demo import DemoResult
from medvar_data.engine.engine import Engine
from medvar_data.engine.memory import show_size
from medvar_data.harmonize.plan import HarmonizePlan
from medvar_data.harmonize.summary import HarmonizeSummary
from medvar_data.naming import how_many, printable
from medvar_data.records import LICENSE_TERMS, Ingested
from medvar_data.shard.run import ShardSummary

SHOWN_KEYS = 10  # of slices that were made again
MAX_ROWS = 20
ML_MM3 = 1000.0
DROPPED = ("slices_without_foreground", "slices_emptied_by_cleanup", "slices_not_selected")
STATISTICS = {
    "collection": "collection", "modality": "mod.", "region": "region", "sequence": "sequence", "split": "split",
    "patients": "patients", "volumes": "volumes", "cases": "cases", "slices": "slices", "dropped": "dropped",
    "spacing": "median mm", "fov": "field of view mm", "foreground": "foreground", "clipped": "clipped",
}  # fmt: skip


def show_ingested(found: Sequence[Ingested], workspace: Path, *, as_json: bool) -> None:
    """Print how many cases each layout has, what was rejected, what is absent and what is worth a note."""
    if as_json:
        print_json([_ingest_note(result) for result in found])
        return
    columns = ("collection", "layout", "found", "expected", "missing", "no label")
    rows = [
        (result.collection, count.layout, count.found, *_promised(count.expected, count.found), count.unlabelled)
        for result in found
        if result.n_found
        for count in result.counts
    ]
    print_table("Found", columns, rows)
    rejects = [(x.collection, x.case, x.reason.value, x.detail) for result in found for x in result.rejects]
    if rejects:
        print_table("\nRejected", ("collection", "case", "reason", "detail"), rejects)
        console.print(f"{workspace / 'rejected'} names their files", markup=False)
    absent = [result.collection for result in found if not result.n_found]
    if absent:
        console.print(f"\nNothing found of {', '.join(absent)}", markup=False)
    for result in found:
        for note in result.notes:
            console.print(f"note: {result.collection}: {note}", markup=False)


def _promised(expected: int, found: int) -> tuple[int | str, int | str]:
    """What a publisher promises and what of it is missing; dashes where nobody does."""
    return (expected, max(0, expected - found)) if expected else ("–", "–")


def _ingest_note(result: Ingested) -> dict[str, object]:
    return {
        "collection": result.collection,
        "kept": len(result.cases),
        "layouts": [asdict(c) for c in result.counts],
        "rejects": [{k: v for k, v in asdict(r).items() if k != "files"} for r in result.rejects],
        "notes": list(result.notes),
    }


def show_plan(recipe: Recipe, plan: HarmonizePlan, engine: Engine, *, as_json: bool) -> None:
    """Print which cases are to do and why, and what they are expected to take."""
    if as_json:
        print_json({"recipe": asdict(recipe), "engine": asdict(engine), **asdict(plan)})
        return
    others = f", {plan.n_elsewhere:,} of other parts" if plan.n_elsewhere else ""
    console.print(
        f"recipe {recipe.name}: {how_many(plan.n_todo, 'case')} to do, {plan.n_finished:,} finished{others}",
        markup=False,
    )
    if not plan.n_todo:
        return
    print_table("\nWhy", ("reason", "cases"), list(plan.todo_by_reason.items()))
    print_table(
        "\nWhich", ("collection", "case", "reason"), [(t.collection, t.case, t.why) for t in plan.todo[:MAX_ROWS]]
    )
    if plan.n_todo > MAX_ROWS:
        console.print(f"and {plan.n_todo - MAX_ROWS:,} more; --json lists all")
    expected = plan.expected
    console.print(
        f"\nExpected ({expected.basis}): {show_seconds(expected.core_seconds)} of one core, "
        f"{show_seconds(expected.wall_seconds)} with {how_many(engine.workers, 'worker')}; "
        f"{show_size(plan.todo_bytes)} to read, {show_size(expected.written_bytes)} to write; "
        f"up to {show_size(expected.peak_bytes)} of memory for one case, {show_size(engine.memory_bytes)} for all",
        markup=False,
    )


def show_harmonized(summary: HarmonizeSummary, *, as_json: bool) -> None:
    """Print the counts, why cases were rejected, and the first of them with their sentences."""
    if as_json:
        print_json(asdict(summary))
        return
    others = f", {summary.n_elsewhere:,} left to other parts" if summary.n_elsewhere else ""
    console.print(
        f"{how_many(summary.n_cases, 'case')}: {summary.n_kept:,} kept, {summary.n_rejected:,} rejected{others}; "
        f"{how_many(summary.n_slices, 'slice')} ({how_many(summary.n_skipped, 'case')} finished before)"
    )
    for name, labels in summary.never_met.items():
        console.print(printable(f"note: {name}: no kept case holds {', '.join(labels)}", MOST_LETTERS), markup=False)
    for label in summary.shrunk:
        console.print(
            f"note: {label.collection}: {printable(label.label)} loses more than a tenth of its volume to the recipe's thresholds for small "
            f"parts in {label.n_shrunk:,} of {label.n_cases:,} cases ({label.share:.1%} of all of it); see removed_label_share "
            "in cases.parquet",
            markup=False,
        )
    if not summary.rejects:
        return
    print_table("\nWhy rejected", ("reason", "cases"), list(Counter(summary.reasons).most_common()))
    shown = [(r.collection, r.case, r.reason.value, r.detail) for r in summary.rejects[:MAX_ROWS]]
    print_table("\nRejected", ("collection", "case", "reason", "detail"), shown)
    more = f"and {len(summary.rejects) - MAX_ROWS:,} more; " if len(summary.rejects) > MAX_ROWS else ""
    console.print(
        f"{more}the full list will be in the shard set's rejects.parquet; rejected/ in the workspace names their files"
    )


def show_shards(summary: ShardSummary, *, as_json: bool) -> None:
    """Print how many shards and slices were written, and what is left to other parts."""
    if as_json:
        print_json(asdict(summary))
        return
    counts = ", ".join(f"{split} {n:,}" for split, n in summary.n_slices.items())
    console.print(
        f"{how_many(summary.n_shards, 'shard')} ({summary.n_reused:,} finished before): {how_many(sum(summary.n_slices.values()), 'slice')} "
        f"of {how_many(summary.n_cases, 'case')} ({counts}); {how_many(summary.n_rejected, 'case')} rejected"
    )
    if summary.left_out:
        told = ", ".join(f"{name} {n:,}" for name, n in summary.left_out.items())
        console.print(f"Cases that the condition left out: {told}", markup=False)
    if summary.n_elsewhere:
        console.print(
            f"left to other parts: {how_many(summary.n_elsewhere, 'shard')}; the tables come with the last of them"
        )


def statistics_parts(contents: Contents, volumes: Sequence[CellCount]) -> dict[str, Any]:
    """All that `show_statistics` shows and more, for machines: each table's rows with every column."""
    return {
        "statistics": contents.statistics.to_pylist(),
        "collections": contents.collections.to_pylist(),
        "rejects": [{"collection": name, "reason": reason, "cases": n} for name, reason, n in contents.rejects],
        "volumes": [asdict(count) | {"here": count.here} for count in volumes],
        "not_harmonized": contents.n_missing,
    }


def show_statistics(contents: Contents, volumes: Sequence[CellCount], figure: Path | None = None) -> None:
    """Print statistics, labels, what became of the cases, the volumes beside the paper's, and which figure was written."""
    rows = contents.statistics.to_pylist()
    shown = [
        {
            **row, "split": row["split"] or "–", "sequence": row["sequence"] or "–", "dropped": sum(row[name] for name in DROPPED),
            "spacing": f"{row['in_plane_mm_median']:.3g} x {row['through_plane_mm_median']:.3g}",
            "fov": " x ".join(f"{row[f'fov_{axis}_mm_median']:.0f}" for axis in ("rows", "columns", "through")),
            "foreground": f"{row['foreground_fraction_mean']:.1%}",
            "clipped": f"{row['clipped_low_mean']:.1%} | {row['clipped_high_mean']:.1%}",
        }
        for row in rows
    ]  # fmt: skip
    print_table("Statistics", tuple(STATISTICS.values()), [tuple(row[c] for c in STATISTICS) for row in shown])
    print_table(
        "\nLabels", ("collection", "id", "label", "cases", "slices", "mL", "taken off mL", "vanished"), _labels(rows)
    )
    collections = contents.collections.to_pylist()
    became = [
        (
            row["collection"], row["n_found"], row["n_expected"] or "–", row["n_kept"], row["n_rejected"],
            show_size(sum(part["source_bytes"] for part in rows if part["collection"] == row["collection"])),
            license_text(row["license"], row["license_confirmed"], row),
        )
        for row in collections
    ]  # fmt: skip
    print_table("\nCases", ("collection", "found", "published", "kept", "rejected", "sources", "license"), became)
    if contents.rejects:
        print_table("\nRejected", ("collection", "reason", "cases"), contents.rejects)
    if contents.n_missing:
        console.print(f"\nnote: {how_many(contents.n_missing, 'case')} not harmonized yet and not counted")
    show_volumes(volumes)
    if figure:
        console.print(f"\n{figure} written", markup=False)


def show_volumes(volumes: Sequence[CellCount]) -> None:
    """Print the volumes of each region and modality beside the paper's; the same numbers as in its figure."""
    cells = [
        (v.region, v.modality, v.paper or "–", v.published or "–", v.here, v.other)
        for v in volumes
        if v.paper or v.here
    ]
    heads = ("region", "modality", "paper", "published", "here", "of which of other collections")
    print_table("\nVolumes, as the paper's figure of data sets counts them", heads, cells)


def _labels(rows: Sequence[dict[str, Any]]) -> list[tuple[object, ...]]:
    """One row a collection and label, over all its statistics' rows."""
    found: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for row in rows:
        for label in row["labels"]:
            found.setdefault((row["collection"], label["id"], label["name"]), []).append(label)
    sums = ("cases", "slices", "mm3", "lost_mm3", "vanished_cases")
    return [
        (
            *key,
            *(
                math.fsum(part[name] for part in parts) / ML_MM3 if "mm3" in name else sum(part[name] for part in parts)
                for name in sums
            ),
        )
        for key, parts in sorted(found.items())
    ]


def show_verification(result: Verification) -> None:
    """Print every finding, and whether the set is sound."""
    for finding in result.findings:
        console.print(printable(f"wrong: {finding}", MOST_LETTERS), markup=False)
    if result.remade:
        console.print(
            f"made again from their sources ({len(result.remade)}): {', '.join(result.remade[:SHOWN_KEYS])}"
            + (f" and {len(result.remade) - SHOWN_KEYS:,} more" if len(result.remade) > SHOWN_KEYS else ""),
            markup=False,
        )
    if result.sealed_by:
        console.print(f"sealed by the key {result.sealed_by}", markup=False)
    console.print(f"dataset.json has the sha256 {result.dataset_sha256}", markup=False)
    verdict = (
        f"{how_many(len(result.findings), 'thing')} {'is' if len(result.findings) == 1 else 'are'} wrong"
        if result.findings
        else "sound"
        if result.n_slices
        else "nothing is wrong, but the set is empty"
    )
    console.print(
        f"{how_many(result.n_shards, 'shard')}, {how_many(result.n_slices, 'slice')}, {how_many(result.n_cases, 'case')}: {verdict}"
    )


def show_trace(report: Mapping[str, Any]) -> None:
    """Print where a slice comes from, the verdict first."""
    row, case, cited, source = report["slice"], report["case"], report["citation"], report.get("source", {})
    shape, spacing = (" x ".join(f"{value:g}" for value in values) for values in (
        row["source_shape"], (row["spacing_row_mm"], row["spacing_col_mm"], row["through_plane_mm"]),
    ))  # fmt: skip
    bounds = f"{row['low']:g} to {row['high']:g}{' HU' if row['modality'] == 'CT' else ''} become 0 to 255 ({row['normalizer']})"
    removed = f"{case['removed_body_mm3']:g} mm3 outside the body, {sum(mm3 for _, mm3 in case['removed_label_mm3']):g} mm3 of labels"
    terms = ", ".join(f"{term.replace('_', ' ')} {case[term]}" for term in LICENSE_TERMS)
    rows = [
        ("verdict", report["verdict"]),
        *(("and", finding) for finding in report["blamed"][1:]),
        ("slice", f"{row['key']}, {row['split']}, condition {row['condition']}"),
        ("stored in", f"{row['shard']}: image at byte {row['image_offset']}, mask at byte {row['mask_offset']}"),
        ("case", f"{row['collection']}/{row['case']} of patient {row['patient']} (salted hash)"),
        (
            "scan",
            f"{case['modality']} {case['region']} {case['sequence']}, {shape} voxels, {case['orientation']}".replace(
                "  ", " "
            ),
        ),
        (
            "plane",
            f"{row['plane']} {row['z']} of {row['n_slices']}, source slice {row['slice_index']}; spacing {spacing} mm",
        ),
        ("intensities", bounds),
        ("taken out", removed),
        ("repairs", ", ".join(case["steps"]) or "none"),
        ("recipe", f"{row['recipe']}, pipeline {row['pipeline_version']}"),
        ("licence", f"{license_text(row['license'], row['license_confirmed'])}; {terms}"),
        ("cite", " ".join(filter(None, (cited["citation"], cited["doi"] or cited["homepage"])))),
    ]
    if source.get("found"):
        rows += [("image", path) for path in source["image"]] + [("label", path) for path in source["label"]]
        same = "the same pixels" if source["same_pixels_when_made_again"] else "other pixels"
        rows.append(
            (
                "made again",
                f"{same}; sources {'unchanged' if source['image_unchanged'] and source['label_unchanged'] else 'changed'}",
            )
        )
    print_table("", ("", ""), rows)


def _said(value: object) -> str:
    """A value of dataset.json as people read it: what is absent or empty is named."""
    return "(absent)" if value is None else str(value) or "(empty)"


def show_difference(found: Difference) -> None:
    """Print what differs, or that nothing does."""
    if not found:
        console.print("equal")
        return
    said = [(name, *(_said(value) for value in pair)) for name, pair in found.dataset.items()]
    if said:
        print_table("dataset.json", ("field", "first", "second"), said)
    for name in ("collections", "cases", "slices", "statistics"):
        changed: Changed = getattr(found, name)
        rows: list[tuple[str, str, int, str]] = [
            *((f"in the {which} alone", collection, n, ", ".join(changed.shown[f"only_{which} {collection}"][:3]))
              for which in ("first", "second") for collection, n in getattr(changed, f"only_{which}").items()),
            *(("changed", column, n, ", ".join(changed.shown[column][:3])) for column, n in changed.changed.items()),
        ]  # fmt: skip
        if rows:
            print_table(
                f"\n{'stats' if name == 'statistics' else name}.parquet",
                ("what", "collection or column", "rows", "such as"),
                rows,
            )
    if found.rejects:
        rejects = [(name, one, other) for name, (one, other) in found.rejects.items()]
        print_table("\nrejects.parquet", ("collection, stage, reason", "first", "second"), rejects)


def show_losses(losses: Losses) -> None:
    """Print what each step of harmonization took away from a case."""
    rows = [
        ("window", losses.window),
        ("resampling", losses.resampling),
        ("cleanup around the body", losses.cleanup),
        ("8 bits", losses.quantization),
        ("together", losses.image_error),
    ]
    console.print("\nMean absolute difference inside the body on kept slices, HU or the scanner's unit:")
    print_table("", ("step", "loss"), rows)
    console.print("\nDice of the mask against the source label:")
    print_table("", ("label", "Dice"), sorted(losses.dice.items()))


def show_demo(result: DemoResult) -> None:
    """Print a row for each collection, and where the report is."""
    columns = ("collection", "found", "kept", "rejected", "slices", "reasons")
    print_table("\nCollections", columns, [tuple(asdict(row)[c] for c in columns) for row in result.rows])
    console.print(f"\nReport: {result.report}", markup=False)


def show_seconds(seconds: float) -> str:
    """Write a time span for people.

    >>> show_seconds(4000)
    '1 h 07 min'
    """
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 1 else "less than 1 s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
