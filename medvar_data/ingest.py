"""Find the cases of a collection in a download: match paths, pair labels, judge headers. No voxel is read.

In: a collection's description and the tree of its files. Out: one `Case` a scan and one `Reject` for each that cannot
be used; `found = kept + rejected` holds by construction.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from hmac import new as hmac

from medvar_data.catalog import CollectionSpec, Layout, condition_name
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
    files = [f for f in tree.files if not any(re.search(p, f.path) for p in spec.exclude)]
    rejects = [
        Reject(spec.name, f"archive-{i}", "ingest", reason, detail) for i, (_, reason, detail) in enumerate(tree.broken)
    ]
    candidates: list[Case] = []
    counts = []
    for layout in spec.layouts:
        matched, spare = _match(spec, layout, files, tree, salt)
        candidates += matched
        rejects += spare
        counts.append(
            LayoutCount(
                layout.id,
                len(matched),
                layout.expected,
                sum(layout.labelled and not c.label for c in matched),
            )
        )
    if not candidates and not rejects:
        raise SourceError(_nothing_found(spec, tree))
    found = FINDERS[spec.finder](spec, tree, candidates) if spec.finder else Found()
    named = {reject.case for reject in rejects}
    rejects += [reject for reject in found.rejects if reject.case not in named]
    cases = []
    for case, reject in _judge(spec, candidates):
        if reject:
            rejects.append(reject)
        else:
            cases.append(case)
    order = sorted(cases, key=lambda c: _natural(c.case))
    return Ingested(
        spec.name,
        tuple(order),
        tuple(sorted(rejects, key=lambda r: _natural(r.case))),
        tuple(counts),
        found.notes,
    )


def _match(
    spec: CollectionSpec, layout: Layout, files: Iterable[SourceFile], tree: Tree, salt: bytes
) -> tuple[list[Case], list[Reject]]:
    """Pair images and labels of one layout; returns the cases and a reject for each label that serves none."""
    images = _grouped(layout.image, layout, files, by_case=True)
    labels = _grouped(layout.label, layout, files, by_case=False) if layout.label else {}
    cases, used = [], set()
    for (pair, _), (groups, members) in images.items():
        label = labels.get((pair, ""))
        used.add(pair)
        cases += _cases(spec, layout, groups, members, label[1] if label else [], tree, salt)
    spare = []
    for pair, again in labels:
        key = _case_key("-".join(pair), spec, salt)
        if pair not in used:
            spare.append(_reject(spec, key, Reason.LABEL_WITHOUT_IMAGE, "there is a label but no image"))
        elif again:
            spare.append(_reject(spec, key, Reason.DUPLICATE_CASE, "a second label claims this case; keep one of them"))
    return cases, spare


Groups = dict[tuple[tuple[str, ...], str], tuple[Mapping[str, str], list[SourceFile]]]


def _grouped(pattern: str, layout: Layout, files: Iterable[SourceFile], *, by_case: bool) -> Groups:
    """Collect the files that match, by what pairs them (and, for images, by the case they make)."""
    found: Groups = {}
    regex = re.compile(pattern)
    for file in files:
        match = regex.search(file.path)
        if not match:
            continue
        groups = {k: v or "" for k, v in match.groupdict().items()}
        pair = tuple(groups[name] for name in layout.pair_on) or (layout.case.format_map(groups),)
        key = (pair, layout.case.format_map(groups) if by_case else "")
        if key in found and not layout.stack:
            key = (pair, f"{key[1]}\0{file.path}")  # a second file for one case: reported as a duplicate
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
) -> list[Case]:
    """Make one case, or one a channel where the fourth dimension holds several."""
    modality = layout.modality or spec.modality
    sequence = layout.sequence.format_map(groups)
    members = [*images, *labels]
    base = _case_key(layout.case.format_map(groups), spec, salt)
    channels = [(i, name, f"{base}-{_slug(name)}") for i, name in enumerate(layout.channels)]
    return [
        Case(
            collection=spec.name,
            case=key,
            group=f"{spec.family or spec.name}/{layout.group.format_map(groups)}",
            modality=modality,
            region=layout.region or spec.region,
            sequence=name,
            official_split=layout.split,
            condition=condition_name(spec, modality),
            layout=layout.id,
            reader=layout.reader,
            root=str(tree.root),
            image=tuple(sorted(f.path for f in images)),
            label=tuple(sorted(f.path for f in labels)),
            channel=channel,
            n_bytes=sum(f.n_bytes for f in members),
            modified_ns=max(modified_ns(tree.root, f.path) for f in members),
        )
        for channel, name, key in channels or [(-1, layout.sequences.get(sequence, sequence), base)]
    ]


def _judge(spec: CollectionSpec, candidates: Iterable[Case]) -> Iterable[tuple[Case, Reject | None]]:
    """Judge each case by file sizes and headers alone."""
    seen: set[str] = set()
    headers: dict[str, Header | CaseRejected | None] = {}
    for case in candidates:
        try:
            if case.case in seen:
                raise CaseRejected(Reason.DUPLICATE_CASE, "another file already claims this case; keep one of them")
            seen.add(case.case)
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
    if case.label:
        label = _header(case.root, case.label[0], "affine", headers)
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
    """Show a path pattern as a person would write it: `<name>` for what varies, `[...]` for what may be absent."""
    text, depth = "", 0
    path = pattern.removeprefix("(?:^|/)").rstrip("$").replace("\\", "")
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
