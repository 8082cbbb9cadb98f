"""Check a collection's description: every word, pattern, template and number in it, each with an error that names the key."""

import re
from string import Formatter

from medvar_data.catalog.collection import CollectionSpec, LabelSpec, Layout, Overlap, Quirk, labels_of, parse_numbers
from medvar_data.catalog.patterns import compile_pattern
from medvar_data.catalog.toml import compiled, one_of
from medvar_data.errors import SpecError
from medvar_data.naming import is_name, printable
from medvar_data.records import LICENSE_TERMS

MOST_TEMPLATE = 500  # letters
CASE_PATTERNS = re.compile(r"[a-z0-9*?\[\]\-]+(?: +[a-z0-9*?\[\]\-]+)*")
MODALITIES = ("CT", "MR")


SLICE_AXES = ("axial", "native")


LABEL_GRIDS = ("image", "affine")


CONFIRMED = ("originals", "listing", "unconfirmed")


READER_NAMES = ("volume", "dicom", "dicom_png")  # keys of readers.READERS


CASE_LIST_NAMES = ("", "msd", "mms")  # keys of case_lists.CASE_LISTS


def _check_words(spec: CollectionSpec, where: str) -> None:
    for term in LICENSE_TERMS:
        one_of(getattr(spec, term), ("yes", "no", "unknown"), f"{where}: {term}")
    if any((layout.region or spec.region) == "header" and layout.reader != "dicom" for layout in spec.layouts):
        raise SpecError(
            f'{where}: region is "header", which DICOM alone has; wanted reader = "dicom", or a region by its name.'
        )
    for overlap in spec.overlaps:
        _check_overlap(overlap, f"{where}, overlap with {overlap.collection or overlap.title or 'nobody'}")


def _check_overlap(overlap: Overlap, where: str) -> None:
    if bool(overlap.collection) == bool(overlap.title):
        raise SpecError(f"{where}: wanted either the name of a collection described here or the title of another.")
    one_of(overlap.certainty, ("published", "measured", "unconfirmed"), f"{where}: certainty")
    if overlap.cases:
        _check_cases(overlap.cases, where)
    if overlap.pairs and not is_name(overlap.pairs.removesuffix(".csv")):
        raise SpecError(
            f"{where}: pairs is {printable(overlap.pairs)!r}; wanted the name of a table of the distribution."
        )
    if unknown := sorted(set(_fields_of(overlap.theirs, f"{where}, theirs")) - {"case", "number"}):
        raise SpecError(f"{where}: theirs names {{{unknown[0]}}}; wanted {{case}} and {{number}} alone.")
    try:
        parse_numbers(overlap.numbers)
    except ValueError as error:
        raise SpecError(f'{where}: numbers is {overlap.numbers!r}; wanted numbers and ranges, as "0-12 17".') from error


def check_collection(spec: CollectionSpec, where: str) -> None:
    """Check everything that a description says.

    Args:
        spec: as parsed.
        where: the file, as errors name it.

    Raises:
        SpecError: names the file, the key and what it should be.
    """
    if not is_name(spec.name):
        raise SpecError(f"{where}: name is {spec.name!r}; wanted lower-case letters, digits and hyphens.")
    one_of(spec.slice_axis, SLICE_AXES, f"{where}: slice_axis")
    one_of(spec.spacing_from, ("affine", "pixdim", "reject"), f"{where}: spacing_from")
    one_of(spec.label_grid, LABEL_GRIDS, f"{where}: label_grid")
    one_of(spec.case_names, ("published", "hash"), f"{where}: case_names")
    one_of(spec.case_list, CASE_LIST_NAMES, f"{where}: case_list")
    if spec.case_list and spec.case_names == "hash":
        raise SpecError(
            f'{where}: case_list works on published names; wanted case_names = "published" with it, or no case_list.'
        )
    for pattern in spec.exclude:
        compiled(pattern, f"{where}: exclude")
    for quirk in spec.quirks:
        _check_quirk(quirk, f"{where}, quirk {quirk.id}")
    _check_words(spec, where)
    for repair in spec.repairs:
        _check_cases(repair.cases, f"{where}, repair {repair.id}")
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
        if layout.vote and "rater" not in compile_pattern(layout.label).groupindex:
            raise SpecError(f"{where}, layout {layout.id}: label has no group rater, which vote needs.")
        _check_splits(layout, f"{where}, layout {layout.id}")


def _check_quirk(quirk: Quirk, where: str) -> None:
    if quirk.cases != "*" and not (quirk.skip or quirk.step):
        raise SpecError(
            f"{where}: cases is {quirk.cases!r} without skip or step; wanted one of them, or `which` for words to people."
        )
    _check_cases(quirk.cases, where)


def _check_cases(cases: str, where: str) -> None:
    if not CASE_PATTERNS.fullmatch(cases):
        raise SpecError(
            f"{where}: cases is {cases!r}; wanted patterns on case names, separated by spaces, of lower-case letters, digits, "
            "hyphens, `*`, `?` and `[...]`."
        )


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
    groups = set(compile_pattern(layout.image).groupindex)
    for template in (layout.case, layout.group, layout.volume, layout.sequence, layout.split):
        unknown = set(_fields_of(template, where)) - groups
        if unknown:
            raise SpecError(
                f"{where}: template {template!r} uses {sorted(unknown)}, which the image pattern does not capture."
            )


def _fields_of(template: str, where: str) -> list[str]:
    """The names in a template, which may hold plain {name} alone: a width or a call could do anything.

    Raises:
        SpecError: it holds something else.
    """
    wrong = SpecError(
        f"{where}: template {printable(template)!r} cannot be filled in; wanted text and plain {{name}}s."
    )
    try:
        parts = list(Formatter().parse(template))
    except ValueError:
        raise wrong from None
    fields = [(name, spec, conversion) for _, name, spec, conversion in parts if name is not None]
    if len(template) > MOST_TEMPLATE or any(
        spec or conversion or not name.isidentifier() for name, spec, conversion in fields
    ):
        raise wrong
    return [name for name, _, _ in fields]


def _check_label_files(layout: Layout, defined: set[int], where: str) -> None:
    if not layout.label_files:
        return
    if "structure" not in compile_pattern(layout.label).groupindex:
        raise SpecError(f"{where}: label has no group structure, which label_files needs.")
    unknown = sorted(set(layout.label_files.values()) - defined)
    if unknown:
        raise SpecError(f"{where}: label_files gives the values {unknown}, which no [[label]] defines.")


def _check_splits(layout: Layout, where: str) -> None:
    if layout.splits and "number" not in compile_pattern(layout.image).groupindex:
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
