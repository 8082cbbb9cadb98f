"""The parts of a collection's description as frozen dataclasses: layouts, labels, quirks, repairs.

`load` reads them from TOML, `checks` refuses what contradicts itself; a new key touches all three.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import MappingProxyType

from medvar_data.records import LICENSE_TERMS

NO_TERMS: Mapping[str, object] = MappingProxyType({})
CREATIVE_COMMONS = re.compile(r"CC-BY(-NC)?(-SA|-ND)?(?![A-Z-]*[A-Z])|CC0")
TERM_TITLES = {
    "commercial": "commercial use", "derivatives": "derivatives", "share_alike": "share alike", "redistribute": "redistribution",
}  # fmt: skip
LOOSEST = {term: "no" if term == "share_alike" else "yes" for term in LICENSE_TERMS}


def _names(patterns: str, case: str) -> bool:
    """Tell whether one of the patterns, parted by spaces, fits a case."""
    return any(fnmatchcase(case, pattern) for pattern in patterns.split())


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
    `case`, `group`, `volume`, `sequence` and `split` are templates filled from the image's groups; `sequences` and `split_names`
    give other names to what comes out of the last two. `volume` is the same in all cases that are sequences or frames of one
    scan.

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
    volume: str = ""  # what the statistics count as one scan; `case` where empty
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
    defaced: str = ""  # as the collection's; that where empty
    expected: int = 0  # cases as published; 0 means unknown
    variant_of: str = ""  # id of the layout that holds the same cases, otherwise published; not counted again
    patients_of: str = ""  # family or collection whose patients these are: what `group` names there, it names here
    confirmed: str = "unconfirmed"


@dataclass(frozen=True)
class Quirk:
    """One known oddity and what is done about it.

    With `skip` the cases become rejects (`known_bad`) before anything is opened, and `action` says why. With `step`, that
    word goes into the steps of the cases' rows, so that they can be told from the others. Both hold for the cases that
    `cases` names: patterns on case names as in `rejects.parquet`, separated by spaces, in the form of `fnmatch` (`*`, `?`,
    `[3-8]`). `which` tells people in words which cases are meant, where nothing has to be done about them.
    """

    id: str
    action: str
    cases: str = "*"
    which: str = ""
    skip: bool = False
    step: str = ""

    def holds_for(self, name: str) -> bool:
        """Tell whether `cases` names this case."""
        return _names(self.cases, name)


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
        return _names(self.cases, name)


@dataclass(frozen=True)
class Overlap:
    """Scans that a collection shares with another one.

    Attributes:
        collection: name of the other, where this distribution describes it.
        title: what it is, where it does not.
        cases: patterns on this collection's case keys ("*" all of them); empty where it is not known which.
        numbers: numbers and ranges of this collection's cases, beside `cases`.
        theirs: key of the same scan there; {case} and {number} stand for ours. Empty where it is not known.
        n_cases: how many scans are said to be shared; 0 where unknown.
        certainty: published (by a publisher of either), measured (equal geometry or content), or unconfirmed.
        pairs: name of a table of shared cases in `manifests/overlaps`.
    """

    collection: str = ""
    title: str = ""
    cases: str = ""
    numbers: str = ""
    theirs: str = ""
    n_cases: int = 0
    certainty: str = "published"
    pairs: str = ""

    def holds_for(self, case: str) -> bool | None:
        """Tell whether a case is shared; None where it is not known which are."""
        if not self.cases and not self.numbers:
            return None
        number = re.search(r"\d+", case)
        named = not self.cases or _names(self.cases, case)
        counted = not self.numbers or bool(number and int(number[0]) in parse_numbers(self.numbers))
        return named and counted

    def their_case(self, case: str) -> str:
        """Key of the same scan in the other collection; empty where it is not known."""
        number = re.search(r"\d+", case)
        return self.theirs.format(case=case, number=int(number[0]) if number else "")


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
    license_confirmed: bool = False  # its own text was read
    license_evidence: str = ""  # where it was read, or what was not
    license_read: str = ""  # when: a month (2026-11) or a day
    license_conflict: str = ""  # other answers for the same scans; the strictest stands in the four terms
    commercial: str = "unknown"  # may it be used for profit: yes, no, unknown
    derivatives: str = "unknown"  # may what is made of it be passed on: yes, no, unknown
    share_alike: str = "unknown"  # must that carry the same licence: yes, no, unknown
    redistribute: str = "unknown"  # may it be passed on as it is: yes, no, unknown
    access: str = ""
    download: tuple[str, ...] = ()
    notes: str = ""
    overlaps: tuple[Overlap, ...] = ()
    quirks: tuple[Quirk, ...] = ()
    repairs: tuple[Repair, ...] = ()
    exclude: tuple[str, ...] = ()
    case_list: str = ""  # key of CASE_LISTS, where a pattern cannot say it all
    spacing_from: str = "reject"  # which holds where affine and pixdim disagree: affine, pixdim, or reject
    label_grid: str = "image"  # labels lie on the image's grid; "affine": on their own, resampled through both affines
    case_names: str = "published"  # published names may be shown; "hash" hides a user's own file names
    public: bool = True  # its files are published; if not, no shard set may be linked to one
    defaced: str = "unknown"  # its pictures are without a face: yes, no, unknown
    condition: str = ""  # default: <name>-<modality>
    digest: str = ""  # sha256 of the TOML file

    @property
    def n_expected(self) -> int:
        """Cases that the publisher counts, over all layouts (0 where unknown); each case once, however published."""
        return sum(layout.expected for layout in self.layouts if not layout.variant_of)


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


def defaced(spec: CollectionSpec, layout_id: str) -> str:
    """Whether the pictures of one of a collection's layouts are without a face: yes, no or unknown."""
    return next((layout.defaced for layout in spec.layouts if layout.id == layout_id and layout.defaced), spec.defaced)


def license_text(name: str, confirmed: bool, terms: Mapping[str, object] = NO_TERMS) -> str:
    """A licence as people are shown it, marked where nothing confirms it, and where what is recorded is stricter than its name.

    Args:
        name: of the licence.
        confirmed: its own text was read.
        terms: answers by `LICENSE_TERMS`, such as a row of collections.parquet; other keys are ignored.

    >>> license_text("CC-BY-4.0", False, {"commercial": "no", "derivatives": "yes"})
    'CC-BY-4.0, but commercial use: no (unconfirmed)'
    """
    stricter = ", ".join(_stricter_than_named(name, terms))
    said = f"{name}, but {stricter}" if stricter else name
    return said if confirmed else f"{said} (unconfirmed)"


def license_of(spec: CollectionSpec) -> str:
    """A collection's licence as people are shown it."""
    terms = {term: getattr(spec, term) for term in LICENSE_TERMS}
    return license_text(spec.license, spec.license_confirmed, terms)


def _stricter_than_named(name: str, terms: Mapping[str, object]) -> Iterator[str]:
    """The terms that are recorded otherwise than a Creative Commons licence of this name allows; of other names nothing is known."""
    found = CREATIVE_COMMONS.match(name)
    if not found:
        return
    parts = set(found[0].split("-"))
    allowed = {
        "commercial": "NC" not in parts,
        "derivatives": "ND" not in parts,
        "share_alike": not parts & {"SA", "ND"},  # with ND there is nothing that could be shared alike
        "redistribute": True,
    }
    for term, title in TERM_TITLES.items():
        if allowed[term] and terms.get(term, LOOSEST[term]) != LOOSEST[term]:
            yield f"{title}: {terms[term]}"


def condition_name(spec: CollectionSpec, modality: str) -> str:
    """Name the condition that a case of this collection and modality is generated under."""
    return spec.condition or f"{spec.name}-{modality.lower()}"
