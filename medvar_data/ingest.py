"""Find the cases of a collection in a download: match paths, pair labels, judge headers. No voxel is read.

In: a collection's description and the tree of its files. Out: one `Case` a scan and one `Reject` for each that cannot
be used; `found = kept + rejected` holds by construction. `match_files` works on names alone, so that a published list of
files can stand in for a download; it shares its helpers with the judging of headers, hence one file above 300 lines.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from hashlib import sha256
from hmac import new as hmac

from medvar_data.catalog import CollectionSpec, Layout, condition_name, parse_numbers
from medvar_data.errors import CaseRejected, Reason, SourceError
from medvar_data.readers import Header, read_volume_header
from medvar_data.readers.scan import check_same_shape
from medvar_data.records import Case, Reject, SourceFile
from medvar_data.tree import Tree, modified_ns, read_bytes

MAX_CASE_KEY = 48  # letters; with collection, channel and ending a member's name stays below the archive's 99
# All that an error may say of file names: a name can be a patient's, and so can what follows its first dot.
SHOWN_SUFFIXES = (
    ".nii.gz",
    ".nii",
    ".mha",
    ".mhd",
    ".nrrd",
    ".dcm",
    ".ima",
    ".png",
    ".json",
    ".csv",
    ".txt",
    ".gz",
    ".7z",
)


@dataclass(frozen=True)
class LayoutCount:
    """Cases of one layout beside what the publisher counts (0: unknown)."""

    layout: str
    found: int
    expected: int
    unlabelled: int  # found without the label that the layout promises


@dataclass(frozen=True)
class Ingested:
    """Everything that one collection's ingest found out."""

    collection: str
    cases: tuple[Case, ...]
    rejects: tuple[Reject, ...]
    counts: tuple[LayoutCount, ...]
    notes: tuple[str, ...]

    @property
    def n_found(self) -> int:
        """Cases and rejects together."""
        return len(self.cases) + len(self.rejects)


def ingest(spec: CollectionSpec, tree: Tree, salt: bytes) -> Ingested:
    """Find every case of `spec` in `tree`.

    Args:
        spec: the collection.
        tree: the files of the download.
        salt: secret that hides a user's own file names (`case_names = "hash"`).

    Raises:
        SourceError: nothing in the tree looks like this collection; says what was looked for and what is there.
    """
    matched = match_files(spec, tree, salt)
    rejects = [
        Reject(spec.name, f"archive-{i}", "ingest", reason, detail) for i, (_, reason, detail) in enumerate(tree.broken)
    ]
    rejects += matched.rejects
    if not matched.candidates and not rejects:
        raise SourceError(_nothing_found(spec, tree))
    found = FINDERS[spec.finder](spec, tree, list(matched.candidates)) if spec.finder else Found()
    named = {reject.case for reject in rejects}
    rejects += [reject for reject in found.rejects if reject.case not in named]
    cases = []
    for case, reject in _judge(spec, matched.candidates):
        if reject:
            rejects.append(reject)
        else:
            paths = (*case.image, *case.label)
            cases.append(replace(case, modified_ns=max(modified_ns(tree.root, path) for path in paths)))
    order = sorted(cases, key=lambda c: _natural(c.case))
    return Ingested(
        spec.name,
        tuple(order),
        tuple(sorted(rejects, key=lambda r: _natural(r.case))),
        matched.counts,
        found.notes,
    )


@dataclass(frozen=True)
class Matched:
    """What the names of the files alone tell.

    Attributes:
        candidates: cases whose files are there, each key once; `modified_ns` is still 0.
        rejects: left out for their names: known to be bad, twice there, incomplete, or labels without image.
        claimed: paths that some layout takes as image or label.
    """

    candidates: tuple[Case, ...]
    rejects: tuple[Reject, ...]
    counts: tuple[LayoutCount, ...]
    claimed: frozenset[str]


def match_files(spec: CollectionSpec, tree: Tree, salt: bytes) -> Matched:
    """Match the paths of a tree against the layouts of a collection; no file is opened or looked at."""
    files = [f for f in tree.files if not any(re.search(p, f.path) for p in spec.exclude)]
    candidates: list[Case] = []
    rejects: list[Reject] = []
    unlabelled, claimed = [], set()
    seen: set[str] = set()
    found: dict[str, int] = {}
    for layout in spec.layouts:
        matched, spare = _match(spec, layout, files, tree, salt)
        found[layout.id] = len(matched)
        unlabelled.append(sum(layout.labelled and not case.label for case, _ in matched))
        claimed |= {path for case, _ in matched for path in (*case.image, *case.label)}
        for case, reason in matched:
            reject = _judge_name(spec, layout, case, reason, seen)
            seen.add(case.case)
            if reject:
                rejects.append(reject)
            else:
                candidates.append(case)
        for reject, paths in spare:
            claimed |= set(paths)
            rejects.append(reject)
    counts = tuple(
        LayoutCount(layout.id, found[layout.id], _expected(spec, layout, found), n)
        for layout, n in zip(spec.layouts, unlabelled, strict=True)
    )
    return Matched(tuple(candidates), tuple(rejects), counts, frozenset(claimed))


def _expected(spec: CollectionSpec, layout: Layout, found: Mapping[str, int]) -> int:
    """Hold a layout to its published number, unless its cases are here in another variant or it is one not used."""
    others = [o.id for o in spec.layouts if o.variant_of == layout.id]
    elsewhere = not found[layout.id] and (layout.variant_of or any(found[other] for other in others))
    return 0 if elsewhere else layout.expected


def _judge_name(spec: CollectionSpec, layout: Layout, case: Case, reason: str, seen: set[str]) -> Reject | None:
    if reason:
        return _reject(spec, case.case, Reason.KNOWN_BAD, reason)
    if case.case in seen:
        detail = "another file already claims this case; keep one of them"
        return _reject(spec, case.case, Reason.DUPLICATE_CASE, detail)
    if layout.label_files and case.label and len(case.label) != len(layout.label_files):
        detail = f"the label has {len(case.label)} of its files; wanted {', '.join(layout.label_files)}"
        return _reject(spec, case.case, Reason.FILE_MISSING, detail)
    return None


def _match(
    spec: CollectionSpec, layout: Layout, files: Iterable[SourceFile], tree: Tree, salt: bytes
) -> tuple[list[tuple[Case, str]], list[tuple[Reject, list[str]]]]:
    """Pair images and labels of one layout.

    Returns:
        Each case with the reason to skip it ("" where there is none); a reject for each label that serves no case, with
        the label's paths.
    """
    images = _grouped(layout.image, layout, files, by_case=True)
    labels = _grouped(layout.label, layout, files, by_case=False) if layout.label else {}
    cases, used = [], set()
    for (pair, _), (groups, members) in images.items():
        label = labels.get((pair, ""))
        used.add(pair)
        cases += _cases(spec, layout, groups, members, label[1] if label else [], tree, salt)
    spare = []
    for (pair, again), (groups, members) in labels.items():
        name = (
            "-".join(pair)
            if set(re.findall(r"\{(\w+)\}", layout.case)) - groups.keys()
            else layout.case.format_map(groups)
        )
        key, paths = _case_key(name, spec, salt), [f.path for f in members]
        if pair not in used:
            lone = _reject(spec, key, Reason.LABEL_WITHOUT_IMAGE, "there is a label but no image")
            spare.append((lone, paths))
        elif again:
            second = _reject(spec, key, Reason.DUPLICATE_CASE, "a second label claims this case; keep one of them")
            spare.append((second, paths))
    return cases, spare


Groups = dict[tuple[tuple[str, ...], str], tuple[Mapping[str, str], list[SourceFile]]]


def _grouped(pattern: str, layout: Layout, files: Iterable[SourceFile], *, by_case: bool) -> Groups:
    """Collect the files that match, by what pairs them (and, for images, by the case they make)."""
    found: Groups = {}
    seen = set()
    regex = re.compile(pattern)
    for file in files:
        match = regex.search(file.path)
        if not match:
            continue
        groups = {k: v or "" for k, v in match.groupdict().items()}
        pair = tuple(groups[name] for name in layout.pair_on) or (layout.case.format_map(groups),)
        key = (pair, layout.case.format_map(groups) if by_case else "")
        part = groups["structure"] if layout.label_files and not by_case else ""
        if (key, part) in seen and not layout.stack:
            key = (pair, f"{key[1]}\0{file.path}")  # a second file for one case: reported as a duplicate
        seen.add((key, part))
        found.setdefault(key, (groups, []))[1].append(file)
    return found


def _cases(
    spec: CollectionSpec,
    layout: Layout,
    groups: Mapping[str, str],
    images: list[SourceFile],
    labels: list[SourceFile],
    tree: Tree,
    salt: bytes,
) -> list[tuple[Case, str]]:
    """Make one case, or one a channel where the fourth dimension holds several; with each the reason to skip it."""
    sequence = layout.sequence.format_map(groups)
    name = layout.case.format_map(groups)
    base = _case_key(name, spec, salt)
    channels = [(i, title, f"-{_slug(title)}") for i, title in enumerate(layout.channels)]
    return [
        (
            _case(spec, layout, groups, (images, labels), tree, f"{base}{tail}", title, channel),
            _skip(spec, f"{_slug(name)}{tail}"),
        )
        for channel, title, tail in channels or [(-1, layout.sequences.get(sequence, sequence), "")]
    ]


def _case(
    spec: CollectionSpec,
    layout: Layout,
    groups: Mapping[str, str],
    files: tuple[list[SourceFile], list[SourceFile]],
    tree: Tree,
    key: str,
    sequence: str,
    channel: int,
) -> Case:
    modality = layout.modality or spec.modality
    return Case(
        collection=spec.name,
        case=key,
        group=f"{layout.patients_of or spec.family or spec.name}/{layout.group.format_map(groups)}",
        modality=modality,
        region=layout.region or spec.region,
        sequence=sequence,
        official_split=_official_split(layout, groups),
        condition=condition_name(spec, modality),
        layout=layout.id,
        reader=layout.reader,
        root=str(tree.root),
        image=tuple(sorted(f.path for f in files[0])),
        label=_label_order(layout, [f.path for f in files[1]]),
        channel=channel,
        n_bytes=sum(f.n_bytes for part in files for f in part),
        modified_ns=0,
    )


def _official_split(layout: Layout, groups: Mapping[str, str]) -> str:
    for name, text in layout.splits.items():
        if int(groups["number"]) in parse_numbers(text):
            return name
    return layout.split


def _label_order(layout: Layout, paths: list[str]) -> tuple[str, ...]:
    """Sort label files by name, or as `label_files` lists them."""
    if not layout.label_files:
        return tuple(sorted(paths))
    order = list(layout.label_files)
    regex = re.compile(layout.label)
    named = [(match["structure"], path) for path in paths if (match := regex.search(path))]
    known = [(order.index(structure), path) for structure, path in named if structure in order]
    return tuple(path for _, path in sorted(known))


def _skip(spec: CollectionSpec, name: str) -> str:
    """Tell why a case is left out before it is opened; "" where it is not."""
    for quirk in spec.quirks:
        if quirk.skip and any(fnmatchcase(name, pattern) for pattern in quirk.cases.split()):
            return quirk.action
    return ""


def _judge(spec: CollectionSpec, candidates: Iterable[Case]) -> Iterable[tuple[Case, Reject | None]]:
    """Judge each case by its headers alone."""
    headers: dict[str, Header | CaseRejected | None] = {}
    for case in candidates:
        try:
            _judge_headers(spec, case, headers)
            yield case, None
        except CaseRejected as error:
            yield case, Reject(spec.name, case.case, "ingest", error.reason, error.detail)


def _judge_headers(spec: CollectionSpec, case: Case, headers: dict[str, Header | CaseRejected | None]) -> None:
    if case.reader != "volume":
        if case.label and len(case.label) != len(case.image):
            detail = f"{len(case.image)} slices but {len(case.label)} masks; wanted one mask a slice"
            raise CaseRejected(Reason.SLICE_COUNT, detail)
        return
    image = _header(case.root, case.image[0], spec.spacing_from, headers)
    if image and case.channel >= image.n_channels:
        raise CaseRejected(
            Reason.DIMENSIONS, f"the image has {image.n_channels} channels; wanted number {case.channel + 1}"
        )
    if image and case.channel < 0 and image.n_channels > 1:
        raise CaseRejected(Reason.DIMENSIONS, f"the image has {image.n_channels} channels; the collection names none")
    for path in case.label:
        label = _header(case.root, path, "affine", headers)
        if image and label:
            check_same_shape(image.shape, label.shape)


def _header(root: str, path: str, spacing_from: str, headers: dict[str, Header | CaseRejected | None]) -> Header | None:
    """Read a header once, however many channels or sequences share the file."""
    if path not in headers:
        try:
            headers[path] = read_volume_header(root, path, spacing_from)
        except CaseRejected as error:
            headers[path] = error
    header = headers[path]
    if isinstance(header, CaseRejected):
        raise CaseRejected(header.reason, header.detail)
    return header


def _case_key(name: str, spec: CollectionSpec, salt: bytes) -> str:
    if spec.case_names == "hash":
        return hmac(salt, f"{spec.name}/{name}".encode(), "sha256").hexdigest()[:12]
    slug = _slug(name)
    return (
        slug
        if 0 < len(slug) <= MAX_CASE_KEY
        else f"{slug[: MAX_CASE_KEY - 13]}-{sha256(name.encode()).hexdigest()[:12]}"
    )


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _natural(key: str) -> list[tuple[int, int, str]]:
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.split(r"(\d+)", key)]


def _reject(spec: CollectionSpec, case: str, reason: Reason, detail: str) -> Reject:
    return Reject(spec.name, case, "ingest", reason, detail)


def _nothing_found(spec: CollectionSpec, tree: Tree) -> str:
    wanted = "; ".join(dict.fromkeys(readable(layout.image) for layout in spec.layouts))
    kinds: dict[str, int] = {}
    for file in tree.files:
        kind = next((s for s in SHOWN_SUFFIXES if file.path.lower().endswith(s)), "other")
        kinds[kind] = kinds.get(kind, 0) + 1
    common = sorted(kinds.items(), key=lambda item: -item[1])[:4]
    there = ", ".join(f"{n} {kind}" for kind, n in common) or "no files"
    return f"Nothing here looks like {spec.name}. Looked for {wanted}; the folder holds {there}. `medvar-data describe {spec.name}` tells the layout."


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


@dataclass(frozen=True)
class Found:
    """What a finder adds to what the patterns say."""

    rejects: tuple[Reject, ...] = ()
    notes: tuple[str, ...] = ()


def find_msd(spec: CollectionSpec, tree: Tree, cases: list[Case]) -> Found:
    """Hold a Decathlon task's `dataset.json` against the disk and against our labels."""
    task = spec.title.rsplit(" ", 2)[-2] + "_" + spec.title.rsplit(" ", 1)[-1]
    listing = next((f.path for f in tree.files if f.path.endswith(f"{task}/dataset.json")), None)
    if listing is None:
        return Found(notes=("no dataset.json; labels come from the TOML alone",))
    try:
        table = json.loads(read_bytes(tree.root, listing))
        listed = [
            str(row["image"] if isinstance(row, dict) else row) for row in [*table["training"], *table.get("test", [])]
        ]
        labels = {int(value) for value in table["labels"]} - {0}
    except (CaseRejected, ValueError, KeyError, TypeError):
        return Found(notes=("dataset.json is damaged; labels come from the TOML alone",))
    notes = []
    known = {label.low for label in spec.labels}
    if labels != known:
        notes.append(f"dataset.json names label values {sorted(labels)}, the TOML {sorted(known)}; the TOML holds")
    there = {"/".join(path.split("/")[-2:]) for case in cases for path in case.image}
    gone = sorted({"/".join(path.split("/")[-2:]) for path in listed} - there)
    rejects = tuple(
        _reject(
            spec,
            _slug(path.split("/")[-1].split(".")[0]),
            Reason.FILE_MISSING,
            "dataset.json lists it, the disk does not have it",
        )
        for path in gone
    )
    return Found(rejects, tuple(notes))


FINDERS: dict[str, Callable[[CollectionSpec, Tree, list[Case]], Found]] = {"msd": find_msd}
