"""Find the pairs of cases that show one scan: the same file, the same pixels, the same statistics, or so said by a description.

In: rows of cases.parquet and slices.parquet, finished or planned. Out: links between cases, as few as join all that belong together
(of equal copies a star: the first to each other). Everything is found by hashing and sorting, in n log n steps, whatever is shared.

Pixels prove something where a slice has content: at least 5 % of it is body and it is not of one value. A pair of cases needs three
different slices of that kind in common, or a fifth of the slices of the smaller one, so that a scan of few slices is found too. Equal
statistics prove something where the volume has 1,000 voxels and three different values at least among its extremes and percentiles.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int64

from medvar_data.shard.unions import Unions
from medvar_data.shardset.schema import EDGES_SCHEMA, case_keys
from medvar_data.storage.codec import pixel_digest
from medvar_data.storage.parquet import table_from_rows

MIN_BODY_SHARE = 0.05  # of a slice's pixels
MIN_SHARED_SLICES, MIN_SHARE = 3, 0.2
MIN_VOXELS, MIN_VALUES = 1000, 3
NEIGHBOURS = (
    8  # cases that hold one slice, up to which each is compared with each; of more each with the next and the first
)
ORDERED = ("minimum", "p0_5", "p50", "p99_5", "maximum")
CASE_INPUTS = (
    "collection", "case", "patient", "source_sha256", "source_shape", "mean", "std", *ORDERED, "n_kept", "n_not_selected",
)  # fmt: skip
SLICE_INPUTS = ("__case", "image_sha256", "body_pixels")
Pairs = Int64[np.ndarray, " pairs"]


@dataclass(frozen=True)
class Link:
    """Two cases that show one scan; the first is first by collection and case.

    Attributes:
        first, second: rows of cases.parquet.
        evidence: source_digest, pixels, statistics, voxels or overlap.
        exact: whether one is a copy of the other: the same file and statistics, or the same pixels in all slices.
        shared: different slices with content that both hold; 0 where the evidence is another.
        share: of the slices of the case with fewer.
        similarity: of the voxels where they are the evidence, else 1.
    """

    first: int
    second: int
    evidence: str
    exact: bool = False
    shared: int = 0
    share: float = 0.0
    similarity: float = 1.0


Near = Callable[[Int64[np.ndarray, " cases"]], Iterable[tuple[int, int, float]]]
"""Of a number for each row of cases.parquet, the same for those that are joined: further pairs of rows, and their similarity."""


def find_links(
    cases: pa.Table, slices: pa.Table, side: int, named: Iterable[tuple[int, int]] = (), near: Near | None = None
) -> tuple[Link, ...]:
    """Find the cases that show one scan, of different patients or as exact copies.

    A link is left out where those before it join its cases already; the strongest evidence comes first.

    Args:
        cases: rows of cases.parquet, with `CASE_INPUTS`.
        slices: with `SLICE_INPUTS`; `__case` counts the rows of `cases`.
        side: pixels of a slice's side.
        named: rows of cases that a description says are one scan.
        near: finds those whose voxels are alike, among those that nothing else has joined.
    """
    by_name = pc.sort_indices(cases, sort_keys=[("collection", "ascending"), ("case", "ascending")])
    order = by_name.to_numpy().astype(np.int64)  # a case's row by its rank
    ranked = cases.select(CASE_INPUTS).take(pa.array(order))
    rank_of = np.argsort(order, kind="stable")
    patients = _numbered(ranked["patient"])
    n_slices = ranked["n_kept"].to_numpy().astype(np.int64) + ranked["n_not_selected"].to_numpy()
    sources, statistics = [text or None for text in ranked["source_sha256"].to_pylist()], _statistics(ranked)
    held = _Slices.of(slices, rank_of, side)
    by_file = [None if not (a and b) else (a, b) for a, b in zip(sources, statistics, strict=True)]
    joining = _Joining(patients)
    joining.add("source_digest", _stars(by_file), exact=True)
    joining.add("pixels", held.equal(n_slices), exact=True)
    joining.add("source_digest", _stars(sources), by_patient=True)
    joining.add("pixels", held.shared(patients, n_slices))
    joining.add("statistics", _stars(statistics))
    if near is not None:
        joined = joining.patients()[rank_of]
        alike = {
            (min(pair), max(pair)): similarity
            for pair, similarity in (((int(rank_of[a]), int(rank_of[b])), value) for a, b, value in near(joined))
        }
        joining.add("voxels", ((*pair, 0, 0.0) for pair in sorted(alike)), by_patient=True, similarity=alike)
    ranks = ((int(rank_of[a]), int(rank_of[b])) for a, b in named)
    joining.add("overlap", ((*pair, 0, 0.0) for pair in sorted((min(p), max(p)) for p in ranks)))
    return tuple(
        Link(int(order[x.first]), int(order[x.second]), x.evidence, x.exact, x.shared, x.share, x.similarity)
        for x in joining.links
    )


def edges_table(links: Iterable[Link], cases: pa.Table) -> pa.Table:
    """Make edges.parquet: the links between cases of which slices are left.

    Args:
        links: of `find_links`.
        cases: rows of cases.parquet as found, with splits and counts.
    """
    rows = cases.select(["collection", "case", "split", "n_kept"]).to_pylist()
    table = table_from_rows(
        (
            {
                **{f"{name}_{side}": row[name] for side, row in (("a", a), ("b", b)) for name in ("collection", "case", "split")},
                "evidence": link.evidence, "exact": link.exact, "shared_slices": link.shared, "share": link.share,
                "similarity": link.similarity,
            }
            for link, a, b in ((link, rows[link.first], rows[link.second]) for link in links)
            if a["n_kept"] and b["n_kept"]
        ),
        EDGES_SCHEMA,
    )  # fmt: skip
    return table.sort_by([(name, "ascending") for name in ("collection_a", "case_a", "collection_b", "case_b")])


def edges_between(edges: pa.Table, cases: pa.Table) -> pa.Table:
    """The rows of edges.parquet of which both cases are among some rows of cases.parquet."""
    there = set(case_keys(cases))
    ends = (zip(edges[f"collection_{s}"].to_pylist(), edges[f"case_{s}"].to_pylist(), strict=True) for s in "ab")
    return edges.filter(pa.array([a in there and b in there for a, b in zip(*ends, strict=True)], type=pa.bool_()))


class _Joining:
    """Links so far, between cases by rank, and what they join."""

    def __init__(self, patients: Int64[np.ndarray, " cases"]) -> None:
        self.links: list[Link] = []
        self._patient = patients.tolist()
        self._cases, self._patients = Unions(len(patients)), Unions(len(patients))

    def add(
        self,
        evidence: str,
        pairs: Iterable[tuple[int, int, int, float]],
        *,
        exact: bool = False,
        by_patient: bool = False,
        similarity: Mapping[tuple[int, int], float] | None = None,
    ) -> None:
        """Add the pairs that join something.

        Args:
            evidence: of all of them.
            pairs: first and second case, shared slices, their share.
            exact: whether they are copies; others are links between patients alone.
            by_patient: whether a pair of patients that are joined already needs no further link.
            similarity: of pairs whose voxels are the evidence.
        """
        for first, second, shared, share in pairs:
            ours, theirs = self._patient[first], self._patient[second]
            if ours == theirs and not exact:
                continue
            apart = self._patients.join(ours, theirs)
            if apart or (not by_patient and self._cases.find(first) != self._cases.find(second)):
                self._cases.join(first, second)
                alike = similarity[first, second] if similarity else 1.0
                self.links.append(Link(first, second, evidence, exact, shared, share, alike))

    def patients(self) -> Int64[np.ndarray, " cases"]:
        """A number for each case, the same for those of joined patients."""
        return np.array([self._patients.find(patient) for patient in self._patient], dtype=np.int64)


@dataclass(frozen=True, eq=False)
class _Slices:
    """Slices as numbers: the rank of each one's case, a number for its pixels, whether it has content."""

    case: Int64[np.ndarray, " slices"]
    picture: Int64[np.ndarray, " slices"]
    telling: np.ndarray

    @classmethod
    def of(cls, slices: pa.Table, rank_of: Int64[np.ndarray, " cases"], side: int) -> "_Slices":
        """Number the pictures of slices."""
        flat = pa.array([pixel_digest(np.full((side, side), value, dtype=np.uint8)) for value in range(256)])
        telling = slices["body_pixels"].to_numpy() >= MIN_BODY_SHARE * side**2
        telling &= ~pc.is_in(slices["image_sha256"], value_set=flat).to_numpy()
        return cls(rank_of[slices["__case"].to_numpy()], _numbered(slices["image_sha256"]), telling)

    def equal(self, n_slices: Int64[np.ndarray, " cases"]) -> Iterator[tuple[int, int, int, float]]:
        """Pairs of cases, all of whose slices have the same pixels, enough of them with content."""
        n = len(n_slices)
        pictures = self.picture[np.lexsort((self.picture, self.case))]
        ends = np.cumsum(np.bincount(self.case, minlength=n))
        told = np.bincount(self._told(n)[0], minlength=n)
        proves = (told >= MIN_SHARED_SLICES) | ((told > 0) & (told >= MIN_SHARE * n_slices))
        keys = [
            pictures[a:b].tobytes() if proof else None for a, b, proof in zip([0, *ends], ends, proves, strict=False)
        ]
        return ((first, second, int(told[first]), 1.0) for first, second, _, _ in _stars(keys))

    def shared(
        self, patients: Int64[np.ndarray, " cases"], n_slices: Int64[np.ndarray, " cases"]
    ) -> Iterator[tuple[int, int, int, float]]:
        """Pairs of cases of different patients that have enough slices in common; those with the largest share come first."""
        n = len(n_slices)
        case, picture = self._told(n)
        found = [np.empty(0, dtype=np.int64)]
        for a, b in _neighbours(picture):
            first, second = case[a], case[b]
            other = patients[first] != patients[second]
            found.append(first[other] * n + second[other])
        pairs, counts = np.unique(np.concatenate(found), return_counts=True)
        first, second = pairs // max(1, n), pairs % max(1, n)
        smaller = np.maximum(1, np.minimum(n_slices[first], n_slices[second]))
        shares = np.minimum(1.0, counts / smaller)
        enough = np.flatnonzero((counts >= MIN_SHARED_SLICES) | (counts >= MIN_SHARE * smaller))
        for place in enough[np.lexsort((pairs[enough], -shares[enough]))]:
            yield int(first[place]), int(second[place]), int(counts[place]), float(shares[place])

    def _told(self, n: int) -> tuple[Int64[np.ndarray, " told"], Int64[np.ndarray, " told"]]:
        """Case and picture of the slices with content, each picture once a case, picture by picture in the order of cases."""
        both = np.unique(self.picture[self.telling] * n + self.case[self.telling])
        return both % max(1, n), both // max(1, n)


def _numbered(texts: pa.ChunkedArray) -> Int64[np.ndarray, " rows"]:
    """A number for each text, the same for the same."""
    return np.asarray(texts.combine_chunks().dictionary_encode().indices.to_numpy(), dtype=np.int64)


def _neighbours(picture: Pairs) -> Iterator[tuple[Pairs, Pairs]]:
    """Places of slices with the same pixels, in pairs: each with the next few, and all further ones with the first.

    Args:
        picture: number of each slice's pixels, in rising order.
    """
    places = np.arange(len(picture))
    for step in range(1, NEIGHBOURS):
        same = np.flatnonzero(picture[step:] == picture[:-step])
        yield places[same], places[same + step]
    first = np.searchsorted(picture, picture)
    far = np.flatnonzero(places - first >= NEIGHBOURS)
    yield first[far], places[far]


def _stars(keys: Sequence[Hashable]) -> Iterator[tuple[int, int, int, float]]:
    """Pair the first case of each key with every other one that has it; None is no key."""
    first: dict[Hashable, int] = {}
    for number, key in enumerate(keys):
        if key is not None and first.setdefault(key, number) != number:
            yield first[key], number, 0, 0.0


def _statistics(cases: pa.Table) -> list[tuple[object, ...] | None]:
    """What is known of the voxels of each case, as one value; None where many other scans could have the same."""
    rows = cases.select(["source_shape", *ORDERED, "mean", "std"]).to_pylist()
    return [tuple(map(_hashable, row.values())) if _is_telling(row) else None for row in rows]


def _is_telling(row: dict[str, object]) -> bool:
    shape, std = row["source_shape"], row["std"]
    values = [row[name] for name in (*ORDERED, "mean", "std")]
    assert isinstance(shape, list)
    finite = all(isinstance(value, float) and math.isfinite(value) for value in values)
    different = len({row[name] for name in ORDERED})
    return finite and std != 0 and different >= MIN_VALUES and math.prod(shape) >= MIN_VOXELS


def _hashable(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value
