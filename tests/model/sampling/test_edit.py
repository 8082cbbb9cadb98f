"""Real slices drawn anew in part, and what the networks make of them."""

import math
from dataclasses import replace

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from support.shard_sets import CONDITIONS, write_shard_set

from medvar_data.stream import StreamSpec, open_stream
from medvar_model.checkpoints.checkpoint import Contents, load_tokenizer, load_transformer, write_checkpoint
from medvar_model.config import TOKENIZERS, transformer_config
from medvar_model.errors import ConfigMismatch, UnknownCondition, UnusableFolder
from medvar_model.loader import DataSpec, Loader
from medvar_model.machine.processes import Process
from medvar_model.networks.scales import ScaleSchedule
from medvar_model.networks.tokenizer import Tokenizer
from medvar_model.networks.transformer import Transformer
from medvar_model.sampling.edit import Edit, keep_where, write_edits
from medvar_model.sampling.features import Features, look_inside, surprise_maps, write_features
from medvar_model.sampling.opened import open_run
from medvar_model.sampling.sample_files import SampleFiles, write_samples

CPU = torch.device("cpu")
SCHEDULE = ScaleSchedule((1, 2, 3, 4))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A shard set `S`, and a run `run` of random networks that know its conditions."""
    folder = tmp_path_factory.mktemp("edit")
    write_shard_set(folder / "S", {"train": 6, "val": 3, "test": 5})
    tokenizer = Tokenizer(TOKENIZERS["tiny"], seeded(1))
    torch.nn.init.normal_(tokenizer.pyramid.codebook.codes, generator=seeded(2))
    transformer = Transformer(transformer_config("d2", tokenizer.config, 3), seeded(3))
    with torch.no_grad():
        transformer.head.weight.mul_(100)
        for block in transformer.blocks:
            block.modulation.weight.normal_(0, 0.1, generator=seeded(4))
    rows = {name: row for row, name in enumerate(CONDITIONS)}
    write_checkpoint(folder / "run" / "tokenizer", Contents(tokenizer.state_dict(), tokenizer.config, {}, {}))
    write_checkpoint(folder / "run" / "best", Contents(transformer.state_dict(), transformer.config, {}, rows))
    return folder


@pytest.fixture
def edit(place, tmp_path) -> Edit:
    return Edit(DataSpec(str(place / "S")), str(place / "run"), str(tmp_path / "out"), coarse=2, count=2, variants=3)


def test_continuing_keeps_the_coarse_scales_and_draws_variants(edit, place):
    files = write_edits(edit, CPU)
    assert len(files) == 6
    pictures = {file.name: file.read_bytes() for file in files}
    assert len(set(pictures.values())) == 6
    assert {name: file.read_bytes() for name, file in zip(pictures, write_edits(edit, CPU), strict=True)} == pictures
    write_edits(replace(edit, coarse=3), CPU)
    assert all(file.read_bytes() != pictures[file.name] for file in files)


def test_inpainting_an_empty_mask_gives_the_slice_through_the_tokenizer(edit, place, tmp_path):
    cv2.imwrite(str(tmp_path / "mask.png"), np.zeros((5, 5), np.uint8))
    files = write_edits(replace(edit, coarse=0, mask=str(tmp_path / "mask.png"), variants=1), CPU)
    tokenizer = load_tokenizer(place / "run" / "tokenizer")
    loader = Loader(edit.data, "test", 32, 2, 0, Process(1, 0, CPU))
    examples = next(iter(loader.passes(2, 2)))
    wanted = (tokenizer.decode(tokenizer.encode(examples.images))[:, 0] + 1) * 127.5
    for file, image in zip(files, wanted, strict=True):
        drawn = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
        assert np.abs(drawn - image.numpy()).max() <= 1


def test_tokens_are_kept_where_most_of_them_lies_outside_the_area():
    area = torch.zeros(32, 32, dtype=torch.bool)
    area[:16, :16] = True
    kept = keep_where(area, SCHEDULE, 0)
    assert kept[0].all()
    assert kept[1].view(2, 2).tolist() == [[False, True], [True, True]]
    assert (~kept[3].view(4, 4)).nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert all(where.all() for where in keep_where(~torch.zeros_like(area), SCHEDULE, 4))


def test_what_does_not_fit_is_refused(edit, tmp_path):
    with pytest.raises(ConfigMismatch, match="4 scales are to be kept of 4"):
        write_edits(replace(edit, coarse=4), CPU)
    with pytest.raises(ConfigMismatch, match="--box"):
        replace(edit, box=(0.5, 0.0, 0.2, 1.0))
    with pytest.raises(ConfigMismatch, match="--mask"):
        write_edits(replace(edit, mask=str(tmp_path / "none.png")), CPU)
    with pytest.raises(UnknownCondition):
        write_edits(replace(edit, condition="nobody-ct"), CPU)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.png").touch()
    with pytest.raises(UnusableFolder, match="PNGs"):
        write_edits(edit, CPU)


def test_features_hold_what_the_networks_compute(place, tmp_path):
    spec = Features(
        DataSpec(str(place / "S")), str(place / "run"), str(tmp_path / "in"), blocks=(1,), scan_maps=False, batch_size=2
    )
    assert write_features(spec, CPU) == 5
    table = pq.read_table(tmp_path / "in" / "slices.parquet").to_pylist()
    transformer, _ = load_transformer(place / "run" / "best")
    tokenizer = load_tokenizer(place / "run" / "tokenizer")
    loader = Loader(spec.data, "test", 32, 2, 0, Process(1, 0, CPU))
    for number, examples in enumerate(loader.passes(2)):
        kept = load_file(tmp_path / "in" / f"maps-{number:06d}.safetensors")
        tokens = torch.cat(tokenizer.encode(examples.images), 1)
        assert torch.equal(kept["tokens"].long(), tokens)
        assert kept["hidden.1"].shape == (len(examples), 128, 4, 4)
        with torch.no_grad():
            logits = transformer(
                examples.conditions, torch.cat(tokenizer.pyramid.inputs(list(tokens.split((1, 4, 9, 16), 1))), 1)
            )
        chances = logits.log_softmax(-1).gather(-1, tokens[..., None]).sum((1, 2))
        for n, key in enumerate(examples.keys):
            row = table[2 * number + n]
            assert (row["key"], row["place"]) == (key, n)
            assert row["log_likelihood"] == pytest.approx(float(chances[n]), rel=1e-5)
            assert sum(row["scale_nats"]) == pytest.approx(-row["log_likelihood"], rel=1e-9)
            assert float(kept["surprise"][n].sum()) == pytest.approx(-row["log_likelihood"], rel=1e-4)
    with pytest.raises(UnusableFolder, match="not empty"):
        write_features(spec, CPU)
    with pytest.raises(ConfigMismatch, match="--block"):
        write_features(replace(spec, out=str(tmp_path / "new"), blocks=(2,)), CPU)


def test_a_surprise_stands_where_its_token_stands():
    nats = torch.zeros(1, 30)
    nats[0, 14 + 5] = 3.0  # row 1, column 1 of the finest map
    found = surprise_maps(nats, SCHEDULE, 32)[0]
    assert found[8:16, 8:16].sum() == pytest.approx(3.0, rel=1e-5)
    assert found.sum() == pytest.approx(3.0, rel=1e-5)


def test_looking_inside_leaves_no_hook_behind(place):
    transformer, tokenizer = open_run(str(place / "run")).networks(CPU)
    images = torch.zeros(1, 1, 32, 32)
    inside = look_inside(transformer, tokenizer, images, torch.tensor([0]), (0, 1))
    assert set(inside.hidden) == {0, 1}
    assert not any(block._forward_hooks for block in transformer.blocks)
    assert math.isfinite(float(inside.nats.sum()))


def test_samples_are_written_as_strips_dicom_and_a_set_that_streams(place, tmp_path):
    spec = SampleFiles(
        str(place / "run"),
        str(tmp_path),
        ("alpha-ct", "beta-mr"),
        3,
        strips=True,
        dicom=True,
        shards=True,
        batch_size=2,
    )
    for _ in range(2):  # a second call replaces what the first left
        write_samples(spec, CPU)
    assert len(list(tmp_path.glob("*.dcm"))) == 6
    assert (tmp_path / "strips.png").stat().st_size > 0
    stream = open_stream(StreamSpec(str(tmp_path / "shards"), batch_size=6))
    batch = stream.batch(0, stream.rows(0))
    drawn = {cv2.imread(str(file), cv2.IMREAD_GRAYSCALE).tobytes() for file in tmp_path.glob("*-000?.png")}
    assert {image.tobytes() for image in batch.images} == drawn
    write_samples(replace(spec, strips=False, dicom=False, count=1), CPU)
    assert not list(tmp_path.glob("*.dcm"))
    assert len(list(tmp_path.glob("*.png"))) == 3
