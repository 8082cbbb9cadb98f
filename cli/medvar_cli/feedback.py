"""Show what `medvar-data harmonize` is going to do and what it did."""

from collections import Counter
from dataclasses import asdict

from medvar_cli.console import console, print_json, print_table
from medvar_data.catalog.recipe import Recipe
from medvar_data.engine.engine import Engine
from medvar_data.engine.memory import show_size
from medvar_data.harmonize.plan import HarmonizePlan
from medvar_data.harmonize.run import HarmonizeSummary

MAX_ROWS = 20


def show_plan(recipe: Recipe, plan: HarmonizePlan, engine: Engine, *, as_json: bool) -> None:
    """Print which cases are to do and why, and what they are expected to take."""
    if as_json:
        print_json({"recipe": asdict(recipe), "engine": asdict(engine), **asdict(plan)})
        return
    others = f", {plan.n_elsewhere:,} of other parts" if plan.n_elsewhere else ""
    console.print(
        f"recipe {recipe.name}: {plan.n_todo:,} cases to do, {plan.n_finished:,} finished{others}", markup=False
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
        f"{show_seconds(expected.wall_seconds)} with {engine.workers:,} workers; "
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
        f"{summary.n_cases:,} cases: {summary.n_kept:,} kept, {summary.n_rejected:,} rejected{others}; "
        f"{summary.n_slices:,} slices ({summary.n_skipped:,} cases were finished before)"
    )
    for name, labels in summary.never_met.items():
        console.print(f"note: {name}: no kept case holds {', '.join(labels)}", markup=False)
    if not summary.rejects:
        return
    print_table("\nWhy rejected", ("reason", "cases"), list(Counter(summary.reasons).most_common()))
    shown = [(r.collection, r.case, r.reason.value, r.detail) for r in summary.rejects[:MAX_ROWS]]
    print_table("\nRejected", ("collection", "case", "reason", "detail"), shown)
    more = f"and {len(summary.rejects) - MAX_ROWS:,} more; " if len(summary.rejects) > MAX_ROWS else ""
    console.print(f"{more}the full list will be in the shard set's rejects.parquet")


def show_seconds(seconds: float) -> str:
    """Write a time span for people.

    >>> show_seconds(4000)
    '1 h 07 min'
    """
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 1 else "less than 1 s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
