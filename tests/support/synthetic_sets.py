"""Write the tables of a shard set as large as asked for, and one small shard whose pictures all of its slices share."""

import hashlib
import json
import tarfile
import zlib
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medvar_data.shardset.histograms import GREY_LEVELS, SOURCE_NUMBERS
from medvar_data.shardset.schema import SCHEMA_VERSION, SCHEMAS, SPLITS
from support.shard_sets import mask_of, picture, png, republished

SIDE = 256
N_PICTURES = 12
PLACES = [("abdomen", "CT"), ("brain", "MR"), ("heart", "MR"), ("chest", "CT"), ("spine", "MR"), ("prostate", "MR")]


@dataclass(frozen=True)
class Sizes:
    """How large a set is, and texts that stand in it."""

    collections: int = 3
    cases: int = 12  # a collection
    slices: int = 6  # a case
    sequences: tuple[str, ...] = ("",)
    texts: dict[str, str] = field(default_factory=dict)  # of every collection, by column
    label_names: tuple[str, ...] = ("liver", "spleen")


def write_synthetic_set(root: Path, sizes: Sizes) -> Path:
    """Write such a set."""
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(5)
    names = [f"collection-{n:02d}" for n in range(sizes.collections)]
    cases = [_case(n, name, k, sizes, rng) for n, name in enumerate(names) for k in range(sizes.cases)]
    members = _shard(root / "train-000000.tar")
    _write(root, "cases", cases)
    _write(root, "collections", [_collection(n, name, sizes) for n, name in enumerate(names)])
    _write(root, "stats", _statistics(cases, sizes))
    _write(root, "rejects", [
        _row("rejects", collection=names[0], case="broken", stage="harmonize", reason="truncated",
             detail=sizes.texts.get("detail", "the bytes end early")),
    ])  # fmt: skip
    _write(root, "edges", [
        _row("edges", collection_a=a["collection"], case_a=a["case"], split_a=a["split"], collection_b=b["collection"], case_b=b["case"],
             split_b=b["split"], evidence="pixels", shared_slices=9, share=0.9)
        for a, b in [(cases[0], cases[sizes.cases])] if sizes.collections > 1
    ])  # fmt: skip
    pq.write_table(_slices(cases, sizes, members), root / "slices.parquet", compression="zstd", row_group_size=1 << 16)
    data = (root / "train-000000.tar").read_bytes()
    shard = {"name": "train-000000.tar", "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), "slices": 1}
    splits = {split: {"slices": 0, "cases": 0, "patients": 0, "shards": []} for split in SPLITS}
    splits["train"] = {
        "slices": len(cases) * sizes.slices,
        "cases": len(cases),
        "patients": len(cases),
        "shards": [shard],
    }
    dataset = {
        "schema_version": SCHEMA_VERSION, "digest": "0" * 64, "image_side": SIDE, "codec": "png", "conditions": {"all": 0},
        "splits": splits, "recipe": {"name": "paper"}, "split": {}, "seed": 0, "salt_sha256": "", "versions": {"pipeline": 3},
        "tables": dict.fromkeys(f"{path.name}" for path in root.glob("*.parquet")),
    }  # fmt: skip
    (root / "dataset.json").write_text(json.dumps(dataset))
    return republished(root)


def _row(table: str, **values: Any) -> dict[str, Any]:
    """A row of a table: the given values, and for all other columns the empty one of its type."""
    unknown = set(values) - set(SCHEMAS[f"{table}.parquet"].names)
    assert not unknown, unknown
    return {f.name: values.get(f.name, _nothing(f.type)) for f in SCHEMAS[f"{table}.parquet"]}


def _nothing(kind: pa.DataType) -> Any:
    if pa.types.is_fixed_size_list(kind):
        return [0] * kind.list_size
    if pa.types.is_nested(kind):
        return []
    return "" if pa.types.is_string(kind) else pa.scalar(0).cast(kind).as_py()


def _write(root: Path, name: str, rows: list[dict[str, Any]]) -> None:
    schema = SCHEMAS[f"{name}.parquet"]
    columns = {f.name: pa.array([row[f.name] for row in rows], f.type) for f in schema}
    pq.write_table(pa.table(columns, schema=schema).replace_schema_metadata(), root / f"{name}.parquet")


def _case(place: int, collection: str, number: int, sizes: Sizes, rng: np.random.Generator) -> dict[str, Any]:
    region, modality = PLACES[place % len(PLACES)]
    ct = modality == "CT"
    spacing, low = max(0.3, rng.normal(0.8, 0.1)), -160.0 if ct else 0.0
    volumes = rng.lognormal(11, 0.5, len(sizes.label_names))
    if number == 1:
        volumes[0] = 3.0  # tiny
    values = rng.normal(40 if ct else 0.4, 150 if ct else 0.2, 4000)
    edges = np.linspace(-1024, 3072, SOURCE_NUMBERS - 1) if ct else np.linspace(-0.5, 1.5, SOURCE_NUMBERS - 1)
    counts = np.concatenate([[0], np.histogram(values, edges)[0], [0]])
    greys = np.histogram(rng.normal(110, 50, 4000).clip(0, 255), np.arange(GREY_LEVELS + 1))[0]
    return _row(
        "cases", collection=collection, case=f"case-{number:04d}", patient=f"{place:02d}{number:06d}", volume=f"{place:02d}{number:06d}",
        split="train", condition="all", region=region, modality=modality, sequence=sizes.sequences[number % len(sizes.sequences)],
        has_label=True, plane="axial", source_shape=[512, 512, 80], source_affine=np.eye(4).ravel().tolist(), orientation="RAS",
        spacing_row_mm=spacing, spacing_col_mm=spacing, through_plane_mm=float(rng.choice([1.0, 2.5, 5.0])), n_slices=int(rng.integers(40, 120)),
        n_kept=sizes.slices, low=low, high=240.0 if ct else 900.0, mean=float(values.mean()), std=float(values.std()),
        p50=float(rng.normal(0, 9)), p99_5=float(rng.normal(300, 20)), source_rows=512, source_columns=512,
        label_mm3=[(n + 1, v) for n, v in enumerate(volumes)], vanished_labels=[1] if number == 2 else [],
        steps=["scaled"] if number % 2 else [], foreground_fraction=float(rng.uniform(0.05, 0.1)), body_fraction=float(rng.uniform(0.4, 0.5)),
        clipped_low=float(rng.uniform(0.3, 0.4)), clipped_high=0.01, n_bytes=8_000_000, histogram_source=counts.tolist(),
        histogram_source_foreground=(counts // 9).tolist(), histogram_slices=greys.tolist(), histogram_slices_foreground=(greys // 9).tolist(),
    )  # fmt: skip


def _collection(place: int, name: str, sizes: Sizes) -> dict[str, Any]:
    region, modality = PLACES[place % len(PLACES)]
    terms = {
        "commercial": ("yes", "no", "unknown")[place % 3],
        "derivatives": "yes",
        "share_alike": "no",
        "redistribute": "yes",
    }
    return _row(
        "collections", **{
            "collection": name, "title": f"Synthetic collection {place}", "region": region, "modality": modality, "license": "CC-BY-4.0",
            "license_url": "https://creativecommons.org/licenses/by/4.0/", "license_confirmed": place % 2 == 0, "license_evidence": "its page",
            "license_read": "2026-11", **terms, "citation": "Nobody N. A set that was made up.", **_columns(sizes.texts),
        },
        labels=[*enumerate(sizes.label_names, start=1), (99, "appendix")], n_expected=2 * sizes.cases, n_found=sizes.cases + (place == 0),
        n_kept=sizes.cases, n_rejected=int(place == 0), layouts=[{"layout": "all", "found": sizes.cases, "expected": 0, "unlabelled": 0}],
        overlaps=[
            {"collection": other, "title": title, "cases": "*", "numbers": "", "theirs": "", "n_cases": n, "certainty": "published"}
            for other, title, n in (("collection-01", "", 12), ("", "Another archive", 0)) if place == 0
        ],
    )  # fmt: skip


def _columns(texts: dict[str, str]) -> dict[str, str]:
    return {name: text for name, text in texts.items() if name in SCHEMAS["collections.parquet"].names}


def _statistics(cases: list[dict[str, Any]], sizes: Sizes) -> list[dict[str, Any]]:
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for case in cases:
        groups.setdefault((case["collection"], case["sequence"]), []).append(case)
    histograms = ("histogram_source", "histogram_source_foreground", "histogram_slices", "histogram_slices_foreground")
    return [
        _row(
            "stats", **{name: part[0][name] for name in ("collection", "modality", "region", "sequence", "split")},
            patients=len(part), cases=len(part), volumes=len(part), labelled_cases=len(part), slices=len(part) * sizes.slices,
            labelled_slices=len(part) * sizes.slices, source_bytes=len(part) * 8_000_000, slice_bytes=len(part) * 400_000,
            **{name: np.sum([case[name] for case in part], axis=0).tolist() for name in histograms},
            labels=[
                {"id": n + 1, "name": name, "cases": len(part), "slices": 3 * len(part), "pixels": 99, "lost_mm3": 40.0, "vanished_cases": 1 - n,
                 "mm3": sum(dict(case["label_mm3"])[n + 1] for case in part)}
                for n, name in enumerate(sizes.label_names[:2])
            ],
        )
        for part in groups.values()
    ]  # fmt: skip


def _shard(path: Path) -> list[dict[str, int]]:
    """Write a few pictures; gives where each image and mask lies."""
    found = []
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(N_PICTURES):
            image, where = picture(number, SIDE), {}
            for name, data in (("image", png(image)), ("mask", png(mask_of(image) * (1 + number % 2)))):
                where |= {
                    f"{name}_offset": tar.offset + 512,
                    f"{name}_size": len(data),
                    f"{name}_crc32": zlib.crc32(data),
                }
                member = tarfile.TarInfo(f"{number}.{name}.png")
                member.size = len(data)
                tar.addfile(member, BytesIO(data))
            found.append(where)
    return found


def _slices(cases: list[dict[str, Any]], sizes: Sizes, members: list[dict[str, int]]) -> pa.Table:
    """Rows of slices.parquet, column by column: those of a case from the case, the others as if measured."""
    n = len(cases) * sizes.slices
    owner, z = (
        np.repeat(np.arange(len(cases)), sizes.slices),
        np.tile(np.arange(sizes.slices, dtype=np.int32), len(cases)),
    )
    held = np.arange(n) % len(members)
    own = {
        "key": pa.array([f"{c['collection']}-{c['case']}-z{k:04d}" for c in cases for k in range(sizes.slices)]),
        "shard": pa.array(["train-000000.tar"]).take(pa.array(np.zeros(n, dtype=np.int64))),
        "z": pa.array(z), "foreground_pixels": pa.array(((z * 37 + owner) % 900).astype(np.int32)),
        "body_pixels": pa.array(np.full(n, 30_000, dtype=np.int32)), "image_sha256": pa.array([hashlib.sha256(b"%d" % i).hexdigest() for i in range(n)]),
        **{name: pa.array(np.array([m[name] for m in members])[held]) for name in members[0]},
    }  # fmt: skip
    columns = []
    for f in SCHEMAS["slices.parquet"]:
        values = own.get(f.name)
        if values is None:
            values = pa.array([case.get(f.name, _nothing(f.type)) for case in cases], f.type).take(pa.array(owner))
        columns.append(values.cast(f.type))
    return pa.table(columns, schema=SCHEMAS["slices.parquet"]).replace_schema_metadata()
