"""Match the paths of a download against a collection's layouts: cases, their labels, their groups. No file is opened.

In: a collection's description and a list of paths, of a download or of a publisher's listing. Out: candidates and rejects, and the
count of each layout beside the published one.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from medvar_data.catalog.collection import CollectionSpec, Layout
from medvar_data.catalog.patterns import found_by_any, search
from medvar_data.errors import Reason
from medvar_data.ingest.names import CaseFiles, CaseKeys, make_case, make_reject, skip_reason, slug
from medvar_data.records import Case, LayoutCount, Reject, SourceFile
from medvar_data.sources.tree import Tree


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
    files = [f for f in tree.files if not found_by_any(spec.exclude, f.path)]
    candidates: list[Case] = []
    rejects: list[Reject] = []
    unlabelled, claimed, spares = [], set(), []
    seen: set[str] = set()
    found: dict[str, int] = {}
    keys = CaseKeys(spec, salt)
    layouts = [layout for layout in spec.layouts if layout.reader != "dicom"]  # those go by headers: `series`
    for layout in layouts:
        matched, spare = _match(spec, layout, files, tree, keys)
        found[layout.id] = len(matched)
        unlabelled.append(sum(layout.labelled and not case.label for case, _ in matched))
        claimed |= {path for case, _ in matched for path in (*case.image, *case.label)}
        for case, reason in matched:
            reject = _check_name(spec, layout, case, reason, seen)
            seen.add(case.case)
            if reject:
                rejects.append(reject)
            else:
                candidates.append(case)
        spares += spare
    for reject, paths in spares:
        if not claimed.issuperset(paths):  # a label that serves no image of one layout may serve one of another
            rejects.append(reject)
            claimed |= set(paths)
    counts = tuple(
        LayoutCount(layout.id, found[layout.id], _expected(spec, layout, found), n)
        for layout, n in zip(layouts, unlabelled, strict=True)
    )
    return Matched(tuple(candidates), tuple(rejects), counts, frozenset(claimed))


def _expected(spec: CollectionSpec, layout: Layout, found: Mapping[str, int]) -> int:
    """Hold a layout to its published number, unless its cases are here in another variant or it is one not used."""
    others = [o.id for o in spec.layouts if o.variant_of == layout.id]
    elsewhere = not found[layout.id] and (layout.variant_of or any(found.get(other) for other in others))
    return 0 if elsewhere else layout.expected


def _check_name(spec: CollectionSpec, layout: Layout, case: Case, reason: str, seen: set[str]) -> Reject | None:
    if reason:
        return make_reject(spec, case.case, Reason.KNOWN_BAD, reason, (*case.image, *case.label))
    if case.case in seen:
        detail = "another file already claims this case; keep one of them"
        return make_reject(spec, case.case, Reason.DUPLICATE_CASE, detail, (*case.image, *case.label))
    if layout.label_files and case.label and len(case.label) != len(layout.label_files):
        detail = f"the label has {len(case.label)} of its files; wanted {', '.join(layout.label_files)}"
        return make_reject(spec, case.case, Reason.FILE_MISSING, detail, (*case.image, *case.label))
    return None


def _match(
    spec: CollectionSpec, layout: Layout, files: Iterable[SourceFile], tree: Tree, keys: CaseKeys
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
        cases += _cases(spec, layout, groups, (members, label[1] if label else []), tree, keys)
    spare = []
    for (pair, again), (groups, members) in labels.items():
        name = (
            "-".join(pair)
            if set(re.findall(r"\{(\w+)\}", layout.case)) - groups.keys()
            else layout.case.format_map(groups)
        )
        key, paths = keys.key(name), [f.path for f in members]
        if pair not in used:
            lone = make_reject(spec, key, Reason.LABEL_WITHOUT_IMAGE, "there is a label but no image", paths)
            spare.append((lone, paths))
        elif again:
            second = make_reject(
                spec, key, Reason.DUPLICATE_CASE, "a second label claims this case; keep one of them", paths
            )
            spare.append((second, paths))
    return cases, spare


Groups = dict[tuple[tuple[str, ...], str], tuple[Mapping[str, str], list[SourceFile]]]


def _grouped(pattern: str, layout: Layout, files: Iterable[SourceFile], *, by_case: bool) -> Groups:
    """Collect the files that match, by what pairs them (and, for images, by the case they make)."""
    found: Groups = {}
    seen = set()
    for file in files:
        match = search(pattern, file.path)
        if not match:
            continue
        groups = {k: v or "" for k, v in match.groupdict().items()}
        pair = tuple(groups[name] for name in layout.pair_on) or (layout.case.format_map(groups),)
        key = (pair, layout.case.format_map(groups) if by_case else "")
        part = "" if by_case else groups["structure"] if layout.label_files else groups["rater"] if layout.vote else ""
        if (key, part) in seen and not layout.stack:
            key = (pair, f"{key[1]}\0{file.path}")  # a second file for one case: reported as a duplicate
        seen.add((key, part))
        found.setdefault(key, (groups, []))[1].append(file)
    return found


def _cases(
    spec: CollectionSpec,
    layout: Layout,
    groups: Mapping[str, str],
    files: tuple[list[SourceFile], list[SourceFile]],
    tree: Tree,
    keys: CaseKeys,
) -> list[tuple[Case, str]]:
    """Make one case of images and labels, or one a channel where the fourth dimension holds several; with each the reason to skip it."""
    images, labels = files
    sequence = layout.sequence.format_map(groups)
    name = layout.case.format_map(groups)
    base = keys.key(name)
    channels = [(i, title, f"-{slug(title)}") for i, title in enumerate(layout.channels)]
    return [
        (
            make_case(
                spec,
                layout,
                groups,
                key=f"{base}{tail}",
                patient=layout.group.format_map(groups),
                sequence=title,
                files=CaseFiles(
                    root=str(tree.root),
                    image=tuple(sorted(file.path for file in images)),
                    label=_label_order(layout, [file.path for file in labels]),
                    channel=channel,
                    n_bytes=sum(file.n_bytes for file in (*images, *labels)),
                ),
            ),
            skip_reason(spec, f"{slug(name)}{tail}"),
        )
        for channel, title, tail in channels or [(-1, layout.sequences.get(sequence, sequence), "")]
    ]


def _label_order(layout: Layout, paths: list[str]) -> tuple[str, ...]:
    """Sort label files by name, or as `label_files` lists them."""
    if not layout.label_files:
        return tuple(sorted(paths))
    order = list(layout.label_files)
    named = [(match["structure"], path) for path in paths if (match := search(layout.label, path))]
    known = [(order.index(structure), path) for structure, path in named if structure in order]
    return tuple(path for _, path in sorted(known))
