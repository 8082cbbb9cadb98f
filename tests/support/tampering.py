"""Ways to tamper with a finished shard set, and how somebody would make all its digests fit again.

Each tampering takes the folder of a set and leaves its digests as they were, and every count that it concerns right. `refit` then
makes every digest, checksum, offset and JSON member fit what lies there.
"""

import json
import zlib
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medvar_data.errors import Reason
from medvar_data.records import Reject
from medvar_data.shard.card import Stated, documents, reasons_of
from medvar_data.shard.collections import counted
from medvar_data.shard.statistics import names_of_labels, statistics
from medvar_data.shard.tally import SliceCounts, tally
from medvar_data.shardset.dataset import crc32, read_dataset
from medvar_data.shardset.schema import SPLITS, content_digest, sample_json
from medvar_data.storage.codec import PNG, pixel_digest
from medvar_data.storage.store import Store, canonical_json
from medvar_data.storage.tar import read_tar, write_tar

Rows = list[dict[str, Any]]


def rows_of(folder: Path, name: str) -> Rows:
    return pq.read_table(folder / f"{name}.parquet").to_pylist()


def put_table(folder: Path, name: str, table: pa.Table) -> None:
    path = folder / f"{name}.parquet"
    pq.write_table(table.replace_schema_metadata(pq.read_schema(path).metadata), path)


def put_rows(folder: Path, name: str, rows: Rows) -> None:
    put_table(folder, name, pa.Table.from_pylist(rows, schema=pq.read_schema(folder / f"{name}.parquet")))


def edit_rows(folder: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Change every row of a table."""
    rows = rows_of(folder, name)
    for row in rows:
        change(row)
    put_rows(folder, name, rows)


def edit_dataset(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    dataset = json.loads((folder / "dataset.json").read_text())
    change(dataset)
    (folder / "dataset.json").write_text(canonical_json(dataset))


def members_of(path: Path) -> list[tuple[str, bytes]]:
    data = path.read_bytes()
    return [(m.name, data[m.offset : m.offset + m.size]) for m in read_tar(data)]


def edit_member(folder: Path, ending: str, change: Callable[[bytes], bytes]) -> None:
    """Change one member of the slice with the most labels, whose mask is no mirror image of itself."""
    row = max(
        rows_of(folder, "slices"), key=lambda row: (len(row["label_pixels"]), row["foreground_pixels"], row["key"])
    )
    path, name = folder / row["shard"], f"{row['key']}.{ending}"
    write_tar(path, [(n, change(data) if n == name else data) for n, data in members_of(path)])


def refit(folder: Path) -> None:
    """Make every digest, checksum, offset, pixel count, JSON member and document fit the pictures and tables that lie there.

    A document that was tampered with stays as it is, but for its digest.
    """
    by_shard: dict[str, Rows] = {}
    painted: set[tuple[str, str]] = set()
    rows = rows_of(folder, "slices")
    for row in rows:
        by_shard.setdefault(row["shard"], []).append(row)
    for name, mine in by_shard.items():
        path = folder / name
        members = members_of(path)
        for row, (_, image), (_, mask) in zip(mine, members[0::3], members[1::3], strict=True):
            before = row["image_sha256"], row["mask_sha256"]
            _describe(row, image, mask)
            if before != (row["image_sha256"], row["mask_sha256"]):
                painted.add((row["collection"], row["case"]))
        written = [sample_json(row) for row in mine]
        if [data for _, data in members[2::3]] != written:
            texts = iter(written)
            write_tar(path, [(n, next(texts) if n.endswith(".json") else data) for n, data in members])
        places = read_tar(path.read_bytes())
        for i, row in enumerate(mine):
            for member, place in zip(("image", "mask", "json"), places[3 * i : 3 * i + 3], strict=True):
                row |= {f"{member}_offset": place.offset, f"{member}_size": place.size}
    put_rows(folder, "slices", rows)
    if painted:
        recount_grey_levels(folder, painted)
    edit_dataset(folder, lambda dataset: fit_digests(folder, dataset))
    found = read_dataset(Store(str(folder)))
    tables = [pq.read_table(folder / f"{name}.parquet") for name in ("cases", "collections", "rejects")]
    for name, data in documents(found, Stated(*tables[:2], reasons_of(tables[2]))).items():
        if sha256((folder / name).read_bytes()).hexdigest() == found.documents[name]:
            (folder / name).write_bytes(data)
    edit_dataset(folder, lambda dataset: fit_digests(folder, dataset, documents_too=True))


def _describe(row: dict[str, Any], image: bytes, mask: bytes) -> None:
    for member, data in (("image", image), ("mask", mask)):
        row |= {f"{member}_crc32": crc32(data), f"{member}_sha256": pixel_digest(PNG.decode(data))}
    counts = np.bincount(PNG.decode(mask).reshape(-1))
    row["label_pixels"] = [(int(v), int(counts[v])) for v in np.flatnonzero(counts) if v]
    row["foreground_pixels"] = sum(n for _, n in row["label_pixels"])


def fit_digests(folder: Path, dataset: dict[str, Any], *, documents_too: bool = False) -> None:
    """Make the digests of files in dataset.json and croissant.json fit; what the rows say stays."""
    for name in dataset["documents"] if documents_too else ():
        dataset["documents"][name] = sha256((folder / name).read_bytes()).hexdigest()
    for name in dataset["tables"]:
        dataset["tables"][name] = sha256((folder / name).read_bytes()).hexdigest()
    shards = [shard for split in SPLITS for shard in dataset["splits"][split]["shards"]]
    for shard in shards:
        data = (folder / shard["name"]).read_bytes()
        shard |= {"sha256": sha256(data).hexdigest(), "bytes": len(data)}
    dataset["digest"] = content_digest(pq.read_table(folder / "slices.parquet"))
    digests = dataset["tables"] | dataset["documents"] | {shard["name"]: shard["sha256"] for shard in shards}
    croissant = json.loads((folder / "croissant.json").read_text())
    for file in croissant["distribution"]:
        if file["name"] in digests:
            file["sha256"] = digests[file["name"]]
    (folder / "croissant.json").write_text(canonical_json(croissant))


def recount(folder: Path) -> None:
    """Make the statistics and every count of collections.parquet and dataset.json fit slices, cases and rejects."""
    slices, cases = (pq.read_table(folder / f"{name}.parquet") for name in ("slices", "cases"))
    sums = SliceCounts()
    sums.add(slices)
    dataset = json.loads((folder / "dataset.json").read_text())
    names = names_of_labels(pq.read_table(folder / "collections.parquet"))
    put_table(folder, "stats", statistics(tally(sums.sums, cases), names, dataset["image_side"]))
    rejects = [Reject(**{**row, "reason": Reason(row["reason"])}) for row in rows_of(folder, "rejects")]
    put_table(folder, "collections", counted(pq.read_table(folder / "collections.parquet"), cases, rejects))
    of_slices, of_cases = slices.to_pylist(), cases.to_pylist()
    for name, entry in dataset["splits"].items():
        mine = [row for row in of_cases if row["split"] == name]
        entry |= {"cases": len(mine), "patients": len({row["patient"] for row in mine})}
        entry["slices"] = sum(row["split"] == name for row in of_slices)
        for shard in entry["shards"]:
            shard["slices"] = sum(row["shard"] == shard["name"] for row in of_slices)
    (folder / "dataset.json").write_text(canonical_json(dataset))


def paint(folder: Path) -> None:
    def change(data: bytes) -> bytes:
        pixels = PNG.decode(data)
        pixels[4:10, 4:10] = 255
        return PNG.encode(pixels)

    edit_member(folder, "png", change)


def mirror(folder: Path) -> None:
    edit_member(folder, "mask.png", lambda data: PNG.encode_mask(np.ascontiguousarray(PNG.decode(data)[:, ::-1])))


def recount_grey_levels(folder: Path, cases: set[tuple[str, str]]) -> None:
    """Make the histograms of some cases fit the pictures in the shards, as who knows of them would; then the statistics."""
    found = {case: np.zeros((2, 256), dtype=np.int64) for case in cases}
    for row in rows_of(folder, "slices"):
        if (counts := found.get((row["collection"], row["case"]))) is not None:
            members = dict(members_of(folder / row["shard"]))
            image, mask = (PNG.decode(members[f"{row['key']}.{ending}"]) for ending in ("png", "mask.png"))
            counts += [np.bincount(pixels, minlength=256) for pixels in (image.reshape(-1), image[mask > 0])]

    def change(row: dict[str, Any]) -> None:
        if (counts := found.get((row["collection"], row["case"]))) is not None:
            every, inside = counts.tolist()
            row.update(histogram_slices=every, histogram_slices_foreground=inside)

    edit_rows(folder, "cases", change)
    recount(folder)


def remove_case(folder: Path) -> None:
    cases = rows_of(folder, "cases")
    gone = next(row for row in cases if row["split"] == "train")
    lost = (gone["collection"], gone["case"])
    put_rows(folder, "cases", [row for row in cases if (row["collection"], row["case"]) != lost])
    rows = rows_of(folder, "slices")
    put_rows(folder, "slices", [row for row in rows if (row["collection"], row["case"]) != lost])
    keys = {row["key"] for row in rows if (row["collection"], row["case"]) == lost}
    for path in folder.glob("*.tar"):
        write_tar(path, [(name, data) for name, data in members_of(path) if name.partition(".")[0] not in keys])
    recount(folder)


def remove_reject(folder: Path) -> None:
    put_rows(folder, "rejects", rows_of(folder, "rejects")[1:])
    recount(folder)


def edit_statistics(folder: Path) -> None:
    edit_rows(folder, "stats", lambda row: row.update(foreground_fraction_mean=row["foreground_fraction_mean"] * 2))


def edit_licence(folder: Path) -> None:
    edit_rows(folder, "collections", lambda row: row.update(license="CC0-1.0"))


def edit_licence_everywhere(folder: Path) -> None:
    for name in ("slices", "cases", "stats", "collections"):
        edit_rows(folder, name, lambda row: row.update(license="CC0-1.0"))


def edit_terms(folder: Path) -> None:
    edit_rows(folder, "cases", lambda row: row.update(commercial="yes"))


def edit_card(folder: Path) -> None:
    card = folder / "README.md"
    card.write_text(card.read_text().replace("**Do not publish this set**", "You may publish this set"))


def edit_spacing(folder: Path) -> None:
    edit_rows(folder, "slices", lambda row: row.update(spacing_row_mm=row["spacing_row_mm"] * 2))


def edit_geometry_everywhere(folder: Path) -> None:
    def change(row: dict[str, Any]) -> None:
        if row["collection"] != "acdc":  # of one that is not public the frame is fixed
            return
        scale = np.diag([2.0, 2.0, 2.0, 1.0])
        row["source_affine"] = (np.array(row["source_affine"]).reshape(4, 4) @ scale).reshape(-1).tolist()
        for column in ("spacing_row_mm", "spacing_col_mm", "through_plane_mm"):
            row[column] *= 2

    for name in ("slices", "cases"):
        edit_rows(folder, name, change)
    recount(folder)


def add_text(folder: Path) -> None:
    text = b"tEXtComment\0hidden"
    chunk = (len(text) - 4).to_bytes(4, "big") + text + zlib.crc32(text).to_bytes(4, "big")
    edit_member(folder, "png", lambda data: data[:33] + chunk + data[33:])


def add_bytes(folder: Path) -> None:
    with (folder / "train-000000.tar").open("ab") as stream:
        stream.write(b"hidden" + bytes(506))


def add_file(folder: Path) -> None:
    (folder / "names.csv").write_text("hidden\n")


def add_column(folder: Path) -> None:
    table = pq.read_table(folder / "cases.parquet")
    put_table(folder, "cases", table.append_column("hidden", pa.array(["x"] * table.num_rows)))


def edit_counts(folder: Path) -> None:
    edit_dataset(folder, lambda dataset: dataset["splits"]["train"].update(patients=1000))


def edit_recipe(folder: Path) -> None:
    edit_dataset(folder, lambda dataset: dataset["recipe"].update(ct_width_hu=401.0))


def edit_seed(folder: Path) -> None:
    edit_dataset(folder, lambda dataset: dataset.update(seed=7))


def edit_condition(folder: Path) -> None:
    edit_dataset(folder, lambda dataset: dataset.update(where="z > 1"))


TAMPERINGS: dict[str, Callable[[Path], None]] = {
    "pixels of an image painted": paint,
    "a mask mirrored": mirror,
    "a case removed, all counts fitted": remove_case,
    "a reject removed, all counts fitted": remove_reject,
    "statistics edited": edit_statistics,
    "licence edited in collections.parquet": edit_licence,
    "licence edited wherever it stands": edit_licence_everywhere,
    "terms edited in cases.parquet": edit_terms,
    "obligations edited in the data card": edit_card,
    "spacing edited in slices.parquet": edit_spacing,
    "affine and spacing edited wherever they stand": edit_geometry_everywhere,
    "a text chunk in a PNG": add_text,
    "bytes behind the end of a tar": add_bytes,
    "a stray file": add_file,
    "a column that no set has": add_column,
    "dataset.json: counts edited": edit_counts,
    "dataset.json: recipe edited": edit_recipe,
    "dataset.json: seed edited": edit_seed,
    "dataset.json: condition edited": edit_condition,
}
