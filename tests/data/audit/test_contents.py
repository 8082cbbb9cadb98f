import numpy as np
import pyarrow.parquet as pq
import pytest

from medvar_data.audit.contents import contents_of
from medvar_data.audit.figures import figure2, figure2_counts
from medvar_data.errors import ShardSetError, SpecError, WorkspaceError
from medvar_data.shard.tally import BY
from medvar_data.shardset.schema import STATS_SCHEMA


class TestAWorkspace:
    def test_it_says_before_sharding_what_the_set_will_say_but_for_the_splits(self, pipeline):
        before = contents_of(str(pipeline.workspace.path), pipeline.spec.recipe)
        after = contents_of(str(pipeline.shards), pipeline.spec.recipe)
        assert before.cases.drop_columns("split").equals(after.cases.drop_columns("split"))
        assert before.collections.equals(after.collections)
        assert set(before.rejects) == set(after.rejects)
        assert before.statistics.schema.names == STATS_SCHEMA.names
        assert set(before.statistics["split"].to_pylist()) == {""}
        sums = ("cases", "slices", "slice_bytes", "source_bytes", "slices_without_foreground")
        for name in sums:
            assert sum(before.statistics[name].to_pylist()) == sum(after.statistics[name].to_pylist()), name
        for name in ("histogram_source", "histogram_slices_foreground"):
            one, other = (np.sum(c.statistics[name].to_pylist(), axis=0).tolist() for c in (before, after))
            assert one == other, name

    def test_one_that_is_not_harmonized_is_refused(self, pipeline, tmp_path):
        (tmp_path / "w").mkdir()
        for name in ("ingest", "collections", "salt"):
            (tmp_path / "w" / name).symlink_to(pipeline.workspace.path / name)
        with pytest.raises(WorkspaceError, match=r"no case that recipe .* kept; \d+ are not harmonized"):
            contents_of(str(tmp_path / "w"), pipeline.spec.recipe)

    def test_a_folder_that_is_neither_is_refused(self, pipeline, tmp_path):
        with pytest.raises(ShardSetError, match=r"no dataset\.json"):
            contents_of(str(tmp_path), pipeline.spec.recipe)


class TestASet:
    def test_histograms_are_those_of_the_decoded_slices(self, pipeline):
        rows = pq.read_table(pipeline.shards / "stats.parquet").to_pylist()
        slices = pq.read_table(pipeline.shards / "slices.parquet").to_pylist()
        for row in rows:
            mine = [s for s in slices if all(s[name] == row[name] for name in BY)]
            assert sum(row["histogram_slices"]) == len(mine) * 32**2
            assert sum(row["histogram_slices_foreground"]) == sum(s["foreground_pixels"] for s in mine)
            assert row["slice_bytes"] == sum(s["image_size"] + s["mask_size"] for s in mine)
            held = {label["id"]: label["pixels"] for label in row["labels"] if label["pixels"]}
            ids = {label for s in mine for label, _ in s["label_pixels"]}
            assert held == {i: sum(n for s in mine for label, n in s["label_pixels"] if label == i) for i in ids}

    def test_channels_and_frames_of_one_scan_are_one_volume(self, pipeline):
        cases = pq.read_table(pipeline.shards / "cases.parquet").to_pylist()
        volumes = {
            name: {c["volume"] for c in cases if c["collection"] == name} for name in ("acdc", "msd-brain-tumour")
        }
        patients = {name: {c["patient"] for c in cases if c["collection"] == name} for name in volumes}
        n_cases = {name: sum(c["collection"] == name for c in cases) for name in volumes}
        for name in volumes:
            assert len(volumes[name]) == len(patients[name]) < n_cases[name]
            assert not volumes[name] & patients[name]


class TestFigure2:
    def test_it_counts_volumes_and_holds_the_papers_numbers(self, pipeline):
        counts = figure2_counts(contents_of(str(pipeline.shards), pipeline.spec.recipe).cases)
        of = {(count.region, count.modality): count for count in counts}
        assert sum(count.paper for count in counts) == 3146 + 5179
        assert of["heart", "MR"].paper == of["heart", "MR"].published == 270
        cases = pq.read_table(pipeline.shards / "cases.parquet").to_pylist()
        assert of["heart", "MR"].read_as == len({c["volume"] for c in cases if c["collection"] == "acdc"})
        assert of["brain", "MR"].read_as == 0
        assert sum(count.here for count in counts) == len({(c["collection"], c["volume"]) for c in cases})

    def test_the_same_counts_give_the_same_bytes_without_a_date(self, pipeline):
        counts = figure2_counts(contents_of(str(pipeline.shards), pipeline.spec.recipe).cases)
        for kind, begins in (("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")):
            picture = figure2(counts, kind)
            assert picture.startswith(begins)
            assert picture == figure2(counts, kind)
        assert b"<dc:date>" not in figure2(counts, "svg")
        assert b"3,410" in figure2(counts, "svg")

    def test_another_kind_of_picture_is_refused(self):
        with pytest.raises(SpecError, match="'gif'; wanted one of svg, png, pdf"):
            figure2([], "gif")
