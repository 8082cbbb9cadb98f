"""Write the report of a shard set or a workspace: one HTML file that needs nothing else, and asks no network for anything."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from medvar_data.audit.figures import FAINT, INK, OURS, THEIRS, CellCount, figure2, figure2_counts
from medvar_data.audit.report.collection import Section, sections_of
from medvar_data.audit.report.labels import CONCERNS, concerns, never_held
from medvar_data.audit.report.overlaps import apart, overlaps_of, split_table
from medvar_data.audit.report.overview import collection_table, dropped_slices, tiles
from medvar_data.audit.report.plots import recoloured
from medvar_data.audit.report.source import CaseName, Subject, open_subject
from medvar_data.audit.report.table import Table, table
from medvar_data.audit.report.terms import terms_of
from medvar_data.audit.report.thumbnails import Chosen, Thumbnail, pictures_of
from medvar_data.catalog.collection import license_text
from medvar_data.catalog.recipe import Recipe, load_recipe
from medvar_data.engine.memory import show_size
from medvar_data.naming import how_many
from medvar_data.shard.datasheet import official_test_elsewhere
from medvar_data.storage.html import number
from medvar_data.storage.store import write_bytes

TEMPLATE = "report.html.j2"
FIGURE_COLOURS = {
    INK: "--plot-ink",
    FAINT: "--line",
    OURS: "--plot-ours",
    THEIRS: "--plot-annotated",
    "#ffffff": "--panel",
}


def write_report(place: str, output: Path, recipe: Recipe | None = None) -> Path:
    """Write the report of a shard set or a workspace.

    Args:
        place: folder or URL of a shard set, or folder of a workspace.
        output: the file, such as `report.html`.
        recipe: that the workspace was harmonized by; `paper` where absent. Says nothing of a shard set.

    Returns:
        The file.

    Raises:
        ShardSetError: neither lies there, or the set is damaged.
        WorkspaceError: no case of the workspace is kept by this recipe, or a case file is damaged.
    """
    write_bytes(output, page(open_subject(place, recipe or load_recipe("paper"))).encode())
    return output


def page(subject: Subject) -> str:
    """Make the page; equal tables and pictures give equal text."""
    sections = sections_of(subject)
    pictures = _pictures(subject, sections)
    volumes = figure2_counts(subject.cases)
    environment = _environment()
    style, script = (environment.loader_text(name) for name in ("report.css", "report.js"))
    return environment.get_template(TEMPLATE).render(
        subject=subject,
        tiles=tiles(subject),
        collections=collection_table(subject),
        dropped=dropped_slices(subject),
        figure2=recoloured(
            figure2(volumes).decode(), "figure2", "Volumes by region and modality, as in the table", FIGURE_COLOURS
        ),
        volumes=_volumes(volumes),
        splits=split_table(subject),
        official=official_test_elsewhere(subject.cases) if subject.splits else (),
        apart=apart(subject.cases, subject.edges) if subject.splits else None,
        terms=terms_of(subject.collections),
        overlaps=overlaps_of(subject),
        reasons=_reasons(subject),
        concerns=_concerns(sections),
        never_held=_never_held(sections),
        sections=sections,
        pictures=pictures,
        style=Markup(style),
        script=Markup(script),
        script_digest=b64encode(sha256(script.encode()).digest()).decode(),
    )


def _volumes(counts: Sequence[CellCount]) -> Table:
    columns = (
        ("region", "text"), ("modality", "text"), ("paper", "count"), ("published", "count"), ("here", "count"), ("of which of other collections", "count"),
        ("names in the paper’s figure", "text"),
    )  # fmt: skip
    rows = (
        (c.region, c.modality, c.paper or None, c.published or None, c.here, c.other or None, c.names or "not in the figure")
        for c in counts
    )  # fmt: skip
    return table("Volumes by region and modality", columns, rows)


def _pictures(subject: Subject, sections: list[Section]) -> dict[CaseName, Thumbnail]:
    chosen: dict[CaseName, Chosen] = {
        (section.row["collection"], one.case): one
        for section in sections
        for group in section.groups
        for one in (*group.typical, *group.outlying)
    }
    label_names = {
        section.row["collection"]: {label.id: label.name for label in section.labels} for section in sections
    }
    return pictures_of(chosen, subject.pictures(chosen), label_names)


def _reasons(subject: Subject) -> Table:
    counts: dict[tuple[str, str, str], int] = {}
    for reject in subject.rejects:
        key = (reject["collection"], reject["stage"], reject["reason"])
        counts[key] = counts.get(key, 0) + 1
    columns = (("collection", "name"), ("stage", "text"), ("reason", "text"), ("cases", "count"))
    rows = ((name, stage, reason.replace("_", " "), n) for (name, stage, reason), n in sorted(counts.items()))
    return table("Rejected cases by reason", columns, rows)


def _concerns(sections: list[Section]) -> Table:
    rows = [row for s in sections for row in concerns(s.row["collection"], s.n_labelled, s.labels)]
    return table("Structures to look at", CONCERNS, rows)


def _never_held(sections: list[Section]) -> Table:
    rows = [row for s in sections for row in never_held(s.row["collection"], s.n_labelled, s.labels)]
    return table("Structures that no kept case holds", (("collection", "name"), ("structures", "text")), rows)


class _Templates(jinja2.Environment):
    """The package's templates; every value that is not marked as ours is escaped."""

    def loader_text(self, name: str) -> str:
        """The text of a file beside the template, as it is."""
        assert self.loader, "made with one"
        return self.loader.get_source(self, name)[0]


def _environment() -> _Templates:
    environment = _Templates(
        loader=jinja2.PackageLoader("medvar_data.audit.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "size": show_size,
        "number": number,
        "percent": _percent,
        "svg": Markup,
        "how_many": how_many,
        "licence": _licence,
    }
    return environment


def _licence(row: Mapping[str, Any]) -> str:
    """The licence of a row of collections.parquet."""
    return license_text(row["license"], row["license_confirmed"], row)


def _percent(share: float) -> str:
    """A share for people.

    >>> _percent(0.1234), _percent(0.00004), _percent(0.0)
    ('12.3 %', '<0.01 %', '0 %')
    """
    if 0 < share < 1e-4:
        return "<0.01 %"
    return f"{100 * share:.3g} %" if share >= 0.01 else f"{100 * share:.2g} %"
