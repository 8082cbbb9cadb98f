"""A sound set gives no finding; whatever is spoiled, by accident or with matching digests, is found."""

import json
import shutil
import struct
import tarfile
import zlib
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from support.tampering import edit_dataset, edit_rows, fit_digests, refit

from medvar_data.audit.verify import verify
from medvar_data.errors import ShardSetError
from medvar_data.shardset.schema import content_digest
from medvar_data.storage.codec import CODECS
from medvar_data.storage.store import Store, canonical_json
from medvar_data.storage.tar import read_tar


def folder(store: Store) -> Path:
    return Path(store.url)


def findings(store: Store) -> str:
    found = verify(store).findings
    assert found
    return "\n".join(found)


def edit(store: Store, name: str, change) -> None:
    """Change the rows of a table and make all digests fit again: only the content can give it away."""
    table = pq.read_table(folder(store) / name)
    rows = table.to_pylist()
    change(rows)
    table = pa.Table.from_pylist(rows, schema=table.schema)
    pq.write_table(table, folder(store) / name)
    dataset = json.loads(store.read("dataset.json"))
    dataset["tables"][name] = sha256(store.read(name)).hexdigest()
    dataset["digest"] = content_digest(pq.read_table(folder(store) / "slices.parquet"))
    (folder(store) / "dataset.json").write_text(canonical_json(dataset))


def test_a_sound_set(pipeline):
    result = verify(pipeline.store)
    assert result.findings == ()
    table = pq.read_table(pipeline.shards / "slices.parquet")
    assert result.n_slices == table.num_rows
    assert result.n_shards == len(list(pipeline.shards.glob("*.tar")))
    assert result.dataset_sha256 == sha256((pipeline.shards / "dataset.json").read_bytes()).hexdigest()
    assert (result.remade, result.sealed_by) == ((), "")


def test_findings_of_one_kind_do_not_hide_others(damaged):
    rows = pq.read_table(folder(damaged) / "slices.parquet").to_pylist()
    edit(damaged, "slices.parquet", lambda rows: [row.update(image_offset=row["image_offset"] + 1) for row in rows])
    edit(damaged, "cases.parquet", lambda rows: rows[0].update(license="another"))
    found = verify(damaged).findings
    lies = [finding for finding in found if " lies at byte " in finding]
    assert len(lies) == 11
    assert lies[-1].startswith(f"and {len(rows) - 10} more of this kind: ")
    (licence,) = [finding for finding in found if ": its license is 'another' in cases.parquet" in finding]
    assert "collections.parquet says" in licence


def test_progress_reaches_the_end(pipeline):
    seen = []
    verify(pipeline.store, seen.append)
    assert [p.done for p in seen] == list(range(1, len(seen) + 1))
    assert seen[-1].done == seen[-1].total


@pytest.mark.parametrize("place", [0, 300, 513, 3000, -1])
def test_one_flipped_byte_in_a_shard(damaged, place):
    path = folder(damaged) / "train-000001.tar"
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    assert "train-000001.tar does not have the digest" in findings(damaged)


def test_pixels_changed_with_all_file_digests_fitting(damaged):
    row = pq.read_table(folder(damaged) / "slices.parquet").to_pylist()[0]
    path = folder(damaged) / row["shard"]
    data = bytearray(path.read_bytes())
    data[row["image_offset"] + 60] ^= 0x10
    path.write_bytes(data)
    dataset = json.loads(damaged.read("dataset.json"))
    for entry in dataset["splits"][row["split"]]["shards"]:
        if entry["name"] == row["shard"]:
            entry["sha256"] = sha256(bytes(data)).hexdigest()
    (folder(damaged) / "dataset.json").write_text(canonical_json(dataset))
    assert row["key"] in findings(damaged)


def test_a_table_written_again(damaged):
    path = folder(damaged) / "cases.parquet"
    pq.write_table(pq.read_table(path), path, compression="none")
    assert "cases.parquet does not have the digest" in findings(damaged)


def test_a_shard_is_gone(damaged):
    (folder(damaged) / "val-000000.tar").unlink()
    assert "val-000000.tar is missing" in findings(damaged)


def test_a_shard_cut_short(damaged):
    path = folder(damaged) / "train-000000.tar"
    path.write_bytes(path.read_bytes()[:5000])
    assert "train-000000.tar" in findings(damaged)


def test_a_stray_shard(damaged):
    shutil.copy(folder(damaged) / "train-000000.tar", folder(damaged) / "train-000077.tar")
    assert "train-000077.tar lies in the folder" in findings(damaged)


def test_a_patient_moved_to_another_split(damaged):
    def change(rows):
        case = next(r for r in rows if r["collection"] == "acdc" and r["split"] == "train")
        case["split"] = "val"

    edit(damaged, "cases.parquet", change)
    assert "is in train and val" in findings(damaged)


def test_a_case_moved_whole_disagrees_with_its_shards(damaged):
    patient = next(
        r["patient"] for r in pq.read_table(folder(damaged) / "cases.parquet").to_pylist() if r["split"] == "train"
    )

    def change(rows):
        for row in rows:
            if row["patient"] == patient:
                row["split"] = "test"

    edit(damaged, "cases.parquet", change)
    edit(damaged, "slices.parquet", change)
    assert "the row says test, the shard is train" in findings(damaged)


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("image_offset", 1, "image lies at byte"),
        ("image_sha256", "0" * 64, "do not have the digest in image_sha256"),
        ("mask_sha256", "0" * 64, "do not have the digest in mask_sha256"),
        ("condition_id", 77, "condition"),
        ("has_label", None, "its JSON does not say what its row says"),
        ("low", 1.25, "its JSON does not say what its row says"),
        ("case", "another", "cases.parquet"),
        ("key", "Not A Key", "in order"),
        ("shard", "train-009999.tar", "train-009999.tar"),
        ("foreground_pixels", 3, "its JSON does not say"),
        ("label_pixels", [(1, 1)], "label_pixels"),
    ],
)
def test_one_cell_changed_with_all_digests_fitting(damaged, column, value, says):
    def change(rows):
        rows[3][column] = (not rows[3][column]) if value is None else value

    edit(damaged, "slices.parquet", change)
    assert says in findings(damaged)


def test_rows_lost_or_swapped(damaged):
    edit(damaged, "slices.parquet", lambda rows: rows.pop(2))
    assert "counts" in findings(damaged)


def test_rows_in_another_order(damaged):
    def change(rows):
        rows[0], rows[1] = rows[1], rows[0]

    edit(damaged, "slices.parquet", change)
    assert "in order" in findings(damaged)


def test_a_case_lost(damaged):
    edit(damaged, "cases.parquet", lambda rows: rows.pop(0))
    assert "does not list" in findings(damaged)


def test_the_sets_own_digest(damaged):
    dataset = json.loads(damaged.read("dataset.json"))
    dataset["digest"] = "0" * 64
    (folder(damaged) / "dataset.json").write_text(canonical_json(dataset))
    assert "digest" in findings(damaged)


@pytest.mark.parametrize(
    ("name", "content"),
    [("dataset.json", None), ("dataset.json", b"{"), ("dataset.json", b'{"schema_version": 99}'), ("dataset.json", b"[]"),
     ("slices.parquet", None), ("slices.parquet", b"PAR1"), ("cases.parquet", b"")],
)  # fmt: skip
def test_nothing_to_check_is_an_error(damaged, name, content):
    path = folder(damaged) / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(ShardSetError):
        verify(damaged)


def test_findings_do_not_run_on_forever(damaged):
    def change(rows):
        for row in rows:
            row["image_sha256"] = "0" * 64

    edit(damaged, "slices.parquet", change)
    assert 0 < len(verify(damaged).findings) <= 50


# What is made again from the rows. Each edit below has all digests fitting, and comes with what the finding says.


def set_all(name: str, **values):
    def change(folder: Path) -> None:
        edit_rows(folder, name, lambda row: row.update({k: v(row) if callable(v) else v for k, v in values.items()}))

    return change


def in_dataset(change):
    return lambda folder: edit_dataset(folder, change)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (set_all("stats", vanished_structures=9), "stats.parquet: vanished_structures of "),
        (set_all("stats", region="knee"), "rows for other groups"),
        (set_all("stats", source_bytes=1), "stats.parquet: source_bytes of "),
        (set_all("stats", labels=[]), "stats.parquet: labels of "),
        (set_all("stats", histogram_slices=[0] * 256), "stats.parquet: histogram_slices of "),
        (set_all("cases", source_rows=1), "its source_rows and source_columns are not those of its source_shape"),
        (set_all("cases", histogram_source=[1] * 130), "its histogram_source counts 130 voxels"),
        (set_all("cases", histogram_source_foreground=[0] * 130), "its histogram_source_foreground counts 0 voxels"),
        (set_all("cases", clipped_low=0.9), "its clipped_low or clipped_high is not what histogram_source gives"),
        (set_all("cases", histogram_slices=[1] * 256), "its histogram_slices counts 256 pixels"),
        (
            set_all("cases", histogram_slices=lambda row: row["histogram_slices"][::-1]),
            "its slices do not hold the pixels that histogram_slices counts",
        ),
        (set_all("cases", body_fraction=0.5), "its body_fraction is 0.5, its slices give "),
        (set_all("cases", foreground_mm2_median=1.0), "its foreground_mm2_median is 1.0, its slices give "),
        (set_all("slices", body_pixels=1), "stats.parquet: body_fraction_mean of "),
        (set_all("slices", high=lambda row: row["high"] + 1), "its high is not that of its case in cases.parquet"),
        (set_all("slices", source_affine=[1.0] * 16), "its source_affine is not that of its case"),
        (set_all("cases", n_without_foreground=99), "are neither kept nor counted as left out"),
        (set_all("cases", label_sha256=""), "has_label is True, its label_sha256 says otherwise"),
        (set_all("cases", spacing_row_mm=9.0), "its spacing_row_mm is 9.0, its source_affine gives "),
        (set_all("cases", orientation="RAS"), "its orientation or n_slices is not what its affine and shape give"),
        (set_all("cases", source_affine=[0.0] * 16), "name no grid"),
        (set_all("slices", slice_index=0), "its slice_index is not what z and the affine of its case give"),
        (set_all("cases", recipe_sha256="0" * 64), "it was made by another recipe"),
        (set_all("cases", pipeline_version=99), "its pipeline_version is 99"),
        (set_all("collections", license="MIT"), "collections.parquet says 'MIT' of its collection"),
        (
            set_all("collections", collection_sha256="0" * 64),
            f"collections.parquet says {'0' * 64!r} of its collection",
        ),
        (set_all("collections", commercial="perhaps"), "its commercial is 'perhaps'; wanted yes, no or unknown"),
        (set_all("collections", labels=[]), "which collections.parquet does not name"),
        (set_all("rejects", reason="not_selected"), "is not selected, but dataset.json names no condition"),
        (in_dataset(lambda d: d["splits"]["val"].update(cases=99)), "val: "),
        (in_dataset(lambda d: d["conditions"].update(knee=999)), "lists the condition knee, which no case has"),
        (in_dataset(lambda d: d["recipe"].update(side=64)), "does not have the digest that stands in it"),
        (in_dataset(lambda d: d["recipe"].pop("side")), "key 'side' is missing"),
        (in_dataset(lambda d: d["recipe"].update(aspect="none")), "aspect"),
        (in_dataset(lambda d: d["versions"].update(pipeline=99)), "dataset.json says 99"),
        (in_dataset(lambda d: d["splits"]["train"]["shards"].reverse()), "in the order of dataset.json"),
        (in_dataset(lambda d: d.update(seed=5)), "not in the order that the seed 5"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_follow_from_the_rows(damaged, change, says):
    change(folder(damaged))
    refit(folder(damaged))
    assert says in findings(damaged)


@pytest.mark.parametrize("name", ["NOTICE.md", "LICENSE", "LICENSE-data.txt", "CITATION.cff", "paper.bib"])
def test_what_a_publisher_may_add(damaged, name):
    (folder(damaged) / name).write_text("words")
    assert verify(damaged).findings == ()


@pytest.mark.parametrize("name", ["readme.txt", "thumbs.db", ".hidden", "slices.csv"])
def test_what_nobody_may_add(damaged, name):
    (folder(damaged) / name).write_text("words")
    assert verify(damaged).findings == (f"{name} lies in the folder but is not part of the set",)


def test_a_note_in_a_table(damaged):
    path = folder(damaged) / "cases.parquet"
    pq.write_table(pq.read_table(path).replace_schema_metadata({"medvar.schema_version": "3", "name": "x"}), path)
    refit(folder(damaged))
    assert findings(damaged) == "the metadata of cases.parquet is not as it was written: name"


def shard_with(store: Store, change) -> None:
    path = folder(store) / "train-000000.tar"
    path.write_bytes(change(path.read_bytes()))
    edit_dataset(folder(store), lambda dataset: fit_digests(folder(store), dataset))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data + bytes(512), "512 bytes lie behind its end"),
        (lambda data: data[:-512], "it does not end in two blocks of zeros"),
        (lambda data: other_mode(data), "the header of "),
        (lambda data: in_padding(data), "something lies between "),
    ],
    ids=["behind", "short", "mode", "padding"],
)
def test_an_archive_that_our_writer_does_not_write(damaged, change, says):
    shard_with(damaged, change)
    assert "train-000000.tar is not as it was written: " in findings(damaged)
    assert says in findings(damaged)


def other_mode(data: bytes) -> bytes:
    info = tarfile.TarInfo.frombuf(data[:512], "ascii", "strict")
    info.mode = 0o755
    return info.tobuf(format=tarfile.USTAR_FORMAT) + data[512:]


def in_padding(data: bytes) -> bytes:
    member = next(m for m in read_tar(data) if m.size % 512)
    end = member.offset + member.size
    return data[:end] + b"x" + data[end + 1 :]


def test_pictures_that_our_writers_do_not_write():
    image = np.arange(64, dtype=np.uint8).reshape(8, 8)
    for codec in CODECS.values():
        assert codec.oddity(codec.encode(image)) == codec.oddity(codec.encode_mask(image)) == ""
    png, zstd = CODECS["png"].encode(image), CODECS["zstd"].encode(image)
    text = b"tEXta\0b"
    chunk = struct.pack(">I", 3) + text + struct.pack(">I", zlib.crc32(text))
    for odd in (
        png[:33] + chunk + png[33:],
        png + b"x",
        png[:29] + b"\0\0\0\0" + png[33:],
        png[:-12] + chunk + png[-12:],
    ):
        assert "more than the chunks" in CODECS["png"].oddity(odd)
    framed = zstandard.ZstdCompressor(write_checksum=True).compress(image.tobytes())
    assert "checksum" in CODECS["zstd"].oddity(zstd[:8] + framed)
    for behind in (b"x", zstandard.ZstdCompressor().compress(b"hidden")):
        with pytest.raises(ShardSetError):
            CODECS["zstd"].decode(zstd + behind)


def test_bytes_behind_the_pixels_of_a_png():
    image = np.arange(64, dtype=np.uint8).reshape(8, 8)
    png = CODECS["png"].encode(image)
    body = png[37:-16] + b"hidden"
    odd = png[:33] + struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) + png[-12:]
    with pytest.raises(ShardSetError, match="followed by 6 other bytes"):
        CODECS["png"].decode(odd)
