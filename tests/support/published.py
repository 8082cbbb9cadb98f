"""Read the hand-written lists of published files in tests/listings: what is published, and what each file is.

A listing has a head of `# key: value` lines, then one published path a line, each with what it is after an arrow:

    training/patient001/patient001_frame01.nii.gz -> patient001-frame01 | acdc/patient001 | train | cine-bssfp
    training/patient001/patient001_frame01_gt.nii.gz -> label of patient001-frame01

An image's line holds its case, its patient, the official split ("-" for none) and, where there is one, the sequence. Braces
name several cases: the channels of one image (`brats-001-{flair,t1} | … | {FLAIR,T1}`) or the images that share a label.
`key=value` parts say what else is known of a file: `reject=known_bad`, `modality=MR`, `values=205 420`, or a field of
`collection_phantoms.StorageStyle` that only this file has. Several lines with one case are the slices of one stack.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

LISTINGS = Path(__file__).parents[1] / "listings"
ARROW = " -> "


@dataclass(frozen=True)
class PublishedCase:
    """One case as its publisher means it, said by hand and not by our own description."""

    case: str
    group: str
    split: str
    sequence: str
    paths: tuple[str, ...]
    channel: int = -1
    about: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PublishedLabel:
    """One label file (or stack of masks) and the cases it serves."""

    cases: tuple[str, ...]
    paths: tuple[str, ...]
    about: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Listing:
    """One file of tests/listings."""

    sources: tuple[str, ...]
    expected: dict[str, str]
    paths: tuple[str, ...]
    ignored: tuple[str, ...]
    about: tuple[str, ...]  # what stands behind each path's arrow; "" where there is none

    def cases(self) -> list[PublishedCase]:
        """Every case, known to be bad or not, in the order of the listing."""
        cases: dict[str, PublishedCase] = {}
        for path, text in zip(self.paths, self.about, strict=True):
            if text and not text.startswith("label of "):
                for case in self._image(path, text):
                    paths = (*cases[case.case].paths, path) if case.case in cases else (path,)
                    cases[case.case] = PublishedCase(**{**vars(case), "paths": paths})
        return list(cases.values())

    def labels(self) -> list[PublishedLabel]:
        """Every label file; the masks of one stack together."""
        labels: dict[str, PublishedLabel] = {}
        for path, text in zip(self.paths, self.about, strict=True):
            if text.startswith("label of "):
                names, about = _parts(text.removeprefix("label of "))
                stack = text if path.endswith(".png") else path
                paths = (*labels[stack].paths, path) if stack in labels else (path,)
                labels[stack] = PublishedLabel(tuple(_expanded(names[0])), paths, about)
        return list(labels.values())

    def names(self) -> dict[int, str]:
        """Published label values and what they mean: `1-7 C{n}, 28 T13` counts n from 1."""
        names = {}
        for part in self.expected["labels"].split(", "):
            values, _, name = part.partition(" ")
            low, _, high = values.partition("-")
            for n, value in enumerate(range(int(low), int(high or low) + 1), start=1):
                names[value] = name.replace("{n}", str(n))
        return names

    def _image(self, path: str, text: str) -> list[PublishedCase]:
        names, about = _parts(text)
        assert 3 <= len(names) <= 4, f"wanted case | group | split | sequence, found {text!r}"
        keys, sequences = _expanded(names[0]), _expanded(names[3] if len(names) == 4 else "")
        assert len(sequences) in (1, len(keys)), f"{len(sequences)} sequences for {len(keys)} channels in {text!r}"
        sequences *= len(keys) // len(sequences)
        many = len(keys) > 1
        return [
            PublishedCase(key, names[1], "" if names[2] == "-" else names[2], sequence, (path,), n if many else -1,
                          about)
            for n, (key, sequence) in enumerate(zip(keys, sequences, strict=True))
        ]  # fmt: skip


def read_listing(name: str) -> Listing:
    """Read one listing; a key that stands twice, or a path that does, is an error."""
    sources, ignored, paths, about, expected = [], [], [], [], {}
    for line in (LISTINGS / f"{name}.txt").read_text().splitlines():
        if not line.startswith("# "):
            path, _, what = line.partition(ARROW)
            paths.append(path)
            about.append(what)
            continue
        key, _, value = line[2:].partition(": ")
        if key == "source":
            sources.append(value)
        elif key == "ignored":
            ignored.append(value)
        else:
            assert key not in expected, f"{name}: {key} stands twice"
            expected[key] = value
    assert len(set(paths + ignored)) == len(paths + ignored), f"{name}: a path stands twice"
    return Listing(tuple(sources), expected, tuple(paths), tuple(ignored), tuple(about))


def _parts(text: str) -> tuple[list[str], dict[str, str]]:
    parts = text.split(" | ")
    named = [part for part in parts if re.match(r"\w+=", part)]
    return [part for part in parts if part not in named], dict(part.split("=", 1) for part in named)


def _expanded(text: str) -> list[str]:
    """Expand one pair of braces: "a-{b,c}" is "a-b", "a-c"."""
    match = re.fullmatch(r"([^{]*)\{([^}]*)\}(.*)", text)
    return [match[1] + middle + match[3] for middle in match[2].split(",")] if match else [text]
