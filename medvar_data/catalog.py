"""Read what we know of a collection, and the condition vocabulary: TOML in, frozen dataclasses out.

The files of the distribution live in the data package `medvar_manifests`; a user's own file has the same form and is
checked by the same code, so a wrong key is named in the error. Nouns, parser and checks stand in one file above 300 lines,
since a new key touches all three.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path
from typing import Any

from medvar_data.errors import SpecError
from medvar_data.specfile import build, compiled, manifests, one_of, read_text, read_toml, rows_of, unknown_name

MODALITIES = ("CT", "MR")
SLICE_AXES = ("axial", "native")
LABEL_GRIDS = ("image", "affine")
CONFIRMED = ("originals", "listing", "unconfirmed")
READER_NAMES = ("volume", "dicom", "dicom_png")  # keys of readers.READERS
FINDER_NAMES = ("", "msd", "mms")  # keys of finders.FINDERS
MAX_LABEL_VALUE = 65535
OWN_CONDITION_IDS = range(1000, 2000)  # reserved for users' own collections


@dataclass(frozen=True)
class LabelSpec:
    """Map the published values `low`..`high` to the contiguous id 1..255 that masks hold.

    A structure of a DICOM segmentation or structure set is known by its name: `roi` is a regular expression on the whole
    name, whatever its case, and the structure's voxels take the value `low`. `layouts` names the layouts whose files hold
    these values; empty means all.
    """

    low: int
    high: int
    id: int
    name: str
    roi: str = ""
    layouts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """One published way in which images (and labels) lie in folders.

    `image` and `label` are regular expressions on the tail of a POSIX path; groups named in `pair_on` must agree.
    `case`, `group`, `sequence` and `split` are templates filled from the image's groups; `sequences` and `split_names`
    give other names to what comes out of the last two.

    Where every structure has a file of its own, `label` captures it as `structure`, and `label_files` gives, in the order
    of painting (a later one covers an earlier one), the label value that the file's voxels above 0 take. Where several
    raters drew the whole label, `label` captures them as `rater`, and `vote` makes one of them. Where no folder
    tells the official split, `splits` lists for each split the values of the image's group `number`: "1-10 12 15-20".

    With the reader `dicom` the patterns say which files to look into, and the headers which of them make a volume. `case`
    and `group` may then be empty: the case is named after its series, the patient after PatientID, both by salted hashes.
    `sequences` maps regular expressions on the series' description to the names that are stored in its place.
    """

    id: str
    image: str
    case: str = ""
    group: str = ""
    label: str = ""
    vote: bool = False  # several raters drew one label each; they vote, voxel by voxel
    pair_on: tuple[str, ...] = ()
    label_files: Mapping[str, int] = field(default_factory=dict)
    split: str = ""
    split_names: Mapping[str, str] = field(default_factory=dict)  # the folder's word -> the split
    splits: Mapping[str, str] = field(default_factory=dict)
    modality: str = ""
    region: str = ""
    sequence: str = ""
    sequences: Mapping[str, str] = field(default_factory=dict)  # group value -> field's name
    reader: str = "volume"
    stack: bool = False  # many files are one volume, stacked in file-name order
    derived: bool = False  # reader `dicom`: take maps computed from other images (ADC, FA, MIP …) too
    channels: tuple[str, ...] = ()  # the fourth dimension, one sequence each
    labelled: bool = True
    expected: int = 0  # cases as published; 0 means unknown
    variant_of: str = ""  # id of the layout that holds the same cases, otherwise published; not counted again
    patients_of: str = ""  # family or collection whose patients these are: what `group` names there, it names here
    confirmed: str = "unconfirmed"


@dataclass(frozen=True)
class Quirk:
    """One known oddity and what is done about it.

    With `skip` the cases become rejects (`known_bad`) before anything is opened; `cases` then holds case names as in
    `rejects.parquet`, parted by spaces, `*` standing for anything, and `action` says why. With `step`, that word goes into
    the steps of the cases' rows, so that they can be told from the others.
    """

    id: str
    action: str
    cases: str = "*"
    skip: bool = False
    step: str = ""

    def holds_for(self, name: str) -> bool:
        """Tell whether `cases` names this case."""
        return any(fnmatchcase(name, pattern) for pattern in self.cases.split())


@dataclass(frozen=True)
class Repair:
    """How to get HU from what a collection stores: HU = slope * stored + intercept_hu.

    Holds for the cases that `cases` names (as in `Quirk`) and whose stored values all lie within `stored_from`..`stored_to`,
    so that a copy which somebody has repaired already is left alone.
    """

    id: str
    cases: str = "*"
    slope: float = 1.0
    intercept_hu: float = 0.0
    stored_from: float = -math.inf
    stored_to: float = math.inf

    def holds_for(self, name: str) -> bool:
        """Tell whether `cases` names this case."""
        return any(fnmatchcase(name, pattern) for pattern in self.cases.split())


@dataclass(frozen=True)
class CollectionSpec:
    """All that is known of a collection before anything is opened."""

    name: str
    title: str
    region: str
    modality: str
    slice_axis: str
    license: str
    layouts: tuple[Layout, ...]
    labels: tuple[LabelSpec, ...] = ()
    family: str = ""
    homepage: str = ""
    doi: str = ""
    citation: str = ""
    license_url: str = ""
    commercial: str = "unknown"
    license_confirmed: bool = False
    access: str = ""
    download: tuple[str, ...] = ()
    notes: str = ""
    overlaps: tuple[str, ...] = ()
    quirks: tuple[Quirk, ...] = ()
    repairs: tuple[Repair, ...] = ()
    exclude: tuple[str, ...] = ()
    finder: str = ""  # key of FINDERS, where a pattern cannot say it all
    spacing_from: str = "reject"  # which holds where affine and pixdim disagree: affine, pixdim, or reject
    label_grid: str = "image"  # labels lie on the image's grid; "affine": on their own, resampled through both affines
    case_names: str = "published"  # published names may be shown; "hash" hides a user's own file names
    condition: str = ""  # default: <name>-<modality>
    digest: str = ""  # sha256 of the TOML file

    @property
    def n_expected(self) -> int:
        """Cases that the publisher counts, over all layouts (0 where unknown); each case once, however published."""
        return sum(layout.expected for layout in self.layouts if not layout.variant_of)


def collection_names() -> list[str]:
    """List the collections of the distribution, sorted."""
    return sorted(p.name.removesuffix(".toml") for p in manifests("collections").iterdir() if p.name.endswith(".toml"))


def load_collections() -> list[CollectionSpec]:
    """Load every collection of the distribution."""
    return [load_collection(name) for name in collection_names()]


def find_collections(name: str) -> list[CollectionSpec]:
    """Resolve a command-line name: a collection, else a family of collections, or the path of a user's own TOML.

    Raises:
        SpecError: no such name; the nearest ones are given.
    """
    if name.endswith(".toml"):
        return [load_collection_file(Path(name))]
    if name in template_names():
        return [parse_collection(collection_text(name), f"template {name}", own=True)]
    specs = load_collections()
    found = [s for s in specs if s.name == name] or [s for s in specs if s.family == name]
    if not found:
        raise SpecError(
            unknown_name(
                "collection",
                name,
                [*{s.name for s in specs}, *{s.family for s in specs if s.family}, *template_names()],
            )
            + " Or give the path of your own TOML."
        )
    return found


def collection_text(name: str) -> str:
    """The TOML of a collection or template, by name or by the path of a user's own."""
    if name.endswith(".toml"):
        return Path(name).read_text(encoding="utf-8")
    folder = "templates" if name in template_names() else "collections"
    return str((manifests(folder) / f"{name}.toml").read_text(encoding="utf-8"))


def template_names() -> list[str]:
    """List the templates: descriptions of users' own data that serve as they stand, and as a start for better ones."""
    return sorted(p.name.removesuffix(".toml") for p in manifests("templates").iterdir() if p.name.endswith(".toml"))


def load_collection(name: str) -> CollectionSpec:
    """Load one collection of the distribution by name."""
    entry = manifests("collections") / f"{name}.toml"
    if not entry.is_file():
        raise SpecError(unknown_name("collection", name, collection_names()))
    return parse_collection(entry.read_text(encoding="utf-8"), f"collection {name}")


def load_collection_file(path: Path) -> CollectionSpec:
    """Load a user's own collection; unless it says otherwise, its case names are hashed."""
    if not path.is_file():
        raise SpecError(
            f"No collection file at {path}; wanted a TOML that describes your folders. See docs/own-data.md."
        )
    return parse_collection(read_text(path), str(path), own=True)


def parse_collection(text: str, where: str, *, own: bool = False) -> CollectionSpec:
    """Parse and check one collection's TOML.

    Raises:
        SpecError: names the file, the key and what it should be.
    """
    table = read_toml(text, where)
    table["layouts"] = tuple(
        build(Layout, row, f"{where}, layout {i}") for i, row in enumerate(rows_of(table, "layout", where), start=1)
    )
    table["labels"] = tuple(
        _label(row, f"{where}, label {i}") for i, row in enumerate(rows_of(table, "label", where), start=1)
    )
    table["quirks"] = tuple(
        build(Quirk, row, f"{where}, quirk {i}") for i, row in enumerate(rows_of(table, "quirk", where), start=1)
    )
    table["repairs"] = tuple(
        build(Repair, row, f"{where}, repair {i}") for i, row in enumerate(rows_of(table, "repair", where), start=1)
    )
    table["digest"] = sha256(text.encode()).hexdigest()
    if own:
        table.setdefault("case_names", "hash")
        if table.setdefault("license", "own data") == "own data":
            table["license_confirmed"] = True
    spec = build(CollectionSpec, table, where)
    _check_collection(spec, where)
    return spec


def load_conditions() -> dict[str, int]:
    """Read the condition vocabulary: name -> id. Append-only; users' own ids start at 1000.

    >>> load_conditions()["acdc-mr"]
    0
    """
    table = read_toml((manifests() / "conditions.toml").read_text(encoding="utf-8"), "conditions.toml")
    ids = {row["name"]: int(row["id"]) for row in table["condition"]}
    if len(set(ids.values())) != len(ids) or len(ids) != len(table["condition"]):
        raise SpecError("conditions.toml gives one id or one name twice; ids are append-only and never reused.")
    return ids


def parse_numbers(text: str) -> frozenset[int]:
    """Read a list of numbers and ranges.

    >>> sorted(parse_numbers("1-3 7"))
    [1, 2, 3, 7]

    Raises:
        ValueError: something else stands in it.
    """
    numbers: set[int] = set()
    for part in text.split():
        low, _, high = part.partition("-")
        numbers.update(range(int(low), int(high or low) + 1))
    return frozenset(numbers)


def labels_of(spec: CollectionSpec, layout_id: str) -> tuple[LabelSpec, ...]:
    """The rows of a collection's label table that hold for one of its layouts."""
    return tuple(label for label in spec.labels if not label.layouts or layout_id in label.layouts)


def license_text(name: str, confirmed: bool) -> str:
    """A licence as people are shown it, marked where nothing confirms it."""
    return name if confirmed else f"{name} (unconfirmed)"


def condition_name(spec: CollectionSpec, modality: str) -> str:
    """Name the condition that a case of this collection and modality is generated under."""
    return spec.condition or f"{spec.name}-{modality.lower()}"


def _label(row: Mapping[str, Any], where: str) -> LabelSpec:
    value = row.get("value", row.get("id") if "roi" in row else None)
    bounds: list[Any] = value if isinstance(value, list) and len(value) == 2 else [value, value]
    if not all(isinstance(v, int) and not isinstance(v, bool) for v in bounds):
        raise SpecError(f"{where}: value is {value!r}; wanted an integer or [low, high].")
    low, high = bounds
    if not 1 <= low <= high <= MAX_LABEL_VALUE:
        raise SpecError(f"{where}: value is {value!r}; wanted 1 to {MAX_LABEL_VALUE}, 0 being the background.")
    rest = {k: v for k, v in row.items() if k != "value"}
    return build(LabelSpec, {**rest, "low": low, "high": high}, where)


def _check_collection(spec: CollectionSpec, where: str) -> None:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", spec.name):
        raise SpecError(f"{where}: name is {spec.name!r}; wanted lower-case letters, digits and hyphens.")
    one_of(spec.slice_axis, SLICE_AXES, f"{where}: slice_axis")
    one_of(spec.spacing_from, ("affine", "pixdim", "reject"), f"{where}: spacing_from")
    one_of(spec.label_grid, LABEL_GRIDS, f"{where}: label_grid")
    one_of(spec.case_names, ("published", "hash"), f"{where}: case_names")
    one_of(spec.finder, FINDER_NAMES, f"{where}: finder")
    if spec.finder and spec.case_names == "hash":
        raise SpecError(
            f'{where}: finder works on published names; wanted case_names = "published" with it, or no finder.'
        )
    for pattern in spec.exclude:
        compiled(pattern, f"{where}: exclude")
    ids = sorted({label.id for label in spec.labels})
    if ids != list(range(1, len(ids) + 1)) or len(ids) > 255:
        raise SpecError(f"{where}: label ids are {ids}; wanted 1, 2, 3 … without a gap (masks are 8-bit).")
    if not spec.layouts:
        raise SpecError(f"{where}: no [[layout]]; wanted at least one that says where the images are.")
    for label in spec.labels:
        compiled(label.roi, f"{where}: roi of label {label.name}")
        for layout_id in label.layouts:
            one_of(layout_id, tuple(layout.id for layout in spec.layouts), f"{where}: layouts of label {label.name}")
    for layout in spec.layouts:
        defined = _label_values(labels_of(spec, layout.id), where)
        _check_layout(layout, spec, f"{where}, layout {layout.id}")
        _check_label_files(layout, defined, f"{where}, layout {layout.id}")
        if layout.vote and "rater" not in re.compile(layout.label).groupindex:
            raise SpecError(f"{where}, layout {layout.id}: label has no group rater, which vote needs.")
        _check_splits(layout, f"{where}, layout {layout.id}")


def _label_values(labels: tuple[LabelSpec, ...], where: str) -> set[int]:
    """All values that one layout's labels define; one id each, and one row unless rows go by name."""
    taken: dict[int, LabelSpec] = {}
    for label in labels:
        for value in range(label.low, label.high + 1):
            other = taken.setdefault(value, label)
            if other is not label and not (label.roi and other.roi and other.id == label.id):
                raise SpecError(f"{where}: label value {value} is given twice; wanted one id for it.")
    return set(taken)


def _check_layout(layout: Layout, spec: CollectionSpec, where: str) -> None:
    one_of(layout.modality or spec.modality, MODALITIES, f"{where}: modality")
    one_of(layout.confirmed, CONFIRMED, f"{where}: confirmed")
    if layout.variant_of:
        one_of(layout.variant_of, tuple(o.id for o in spec.layouts if not o.variant_of), f"{where}: variant_of")
    one_of(layout.reader, READER_NAMES, f"{where}: reader")
    if layout.reader != "dicom" and not (layout.case and layout.group):
        raise SpecError(f"{where}: key {'group' if layout.case else 'case'!r} is missing.")
    for text in layout.sequences if layout.reader == "dicom" else ():
        compiled(text, f"{where}: sequences")
    for key in ("image", "label"):
        pattern = compiled(getattr(layout, key), f"{where}: {key}")
        missing = set(layout.pair_on) - set(pattern.groupindex) if getattr(layout, key) else set()
        if missing:
            raise SpecError(f"{where}: {key} has no group {', '.join(sorted(missing))}, which pair_on names.")
    groups = set(re.compile(layout.image).groupindex)
    for template in (layout.case, layout.group, layout.sequence, layout.split):
        unknown = set(re.findall(r"\{(\w+)\}", template)) - groups
        if unknown:
            raise SpecError(
                f"{where}: template {template!r} uses {sorted(unknown)}, which the image pattern does not capture."
            )


def _check_label_files(layout: Layout, defined: set[int], where: str) -> None:
    if not layout.label_files:
        return
    if "structure" not in re.compile(layout.label).groupindex:
        raise SpecError(f"{where}: label has no group structure, which label_files needs.")
    unknown = sorted(set(layout.label_files.values()) - defined)
    if unknown:
        raise SpecError(f"{where}: label_files gives the values {unknown}, which no [[label]] defines.")


def _check_splits(layout: Layout, where: str) -> None:
    if layout.splits and "number" not in re.compile(layout.image).groupindex:
        raise SpecError(f"{where}: image has no group number, which splits needs.")
    seen: set[int] = set()
    for name, text in layout.splits.items():
        try:
            numbers = parse_numbers(text)
        except ValueError as error:
            raise SpecError(f'{where}: splits gives {name} as {text!r}; wanted numbers such as "1-10 12".') from error
        if seen & numbers:
            raise SpecError(f"{where}: splits gives number {min(seen & numbers)} twice; wanted it in one split.")
        seen |= numbers
