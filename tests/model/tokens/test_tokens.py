"""The token cache: ids of one image alone, resumed after any kill, and trained from as from images."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.runs import PROCESS, run, same_files, tokenizer_spec, transformer_spec
from support.shard_sets import write_shard_set

from medvar_model.checkpoints.checkpoint import load_tokenizer
from medvar_model.errors import ConfigMismatch, MissingCheckpoint, ShardSetMismatch, UnusableFolder
from medvar_model.loader import DataSpec, Loader
from medvar_model.machine.processes import Process
from medvar_model.tokens import tokenize as tokenizing
from medvar_model.tokens.cache import Origin, open_tokens, origin_of
from medvar_model.tokens.read import TokenLoader
from medvar_model.tokens.tokenize import Tokenize, check_tokenize, encode_each, tokenize
from medvar_model.training.log import read_log

CPU = torch.device("cpu")
SLICES = {"train": 140, "val": 7, "test": 3}  # three blocks of training slices


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shard_set(tmp_path_factory.mktemp("set"), SLICES)


@pytest.fixture(scope="module")
def tokenizer(shards, tmp_path_factory):
    spec = tokenizer_spec(shards, tmp_path_factory.mktemp("runs") / "tokenizer")
    run(spec)
    return spec.out


@pytest.fixture(scope="module")
def cache(shards, tokenizer, tmp_path_factory):
    return tokenize(Tokenize(str(tmp_path_factory.mktemp("tokens") / "made"), DataSpec(str(shards)), tokenizer), CPU)


def test_rows_are_those_of_the_set_and_ids_those_of_each_image_alone(shards, tokenizer, cache):
    network = load_tokenizer(Path(tokenizer))
    assert {split: cache.ids(split).shape for split in SLICES} == {split: (n, 30) for split, n in SLICES.items()}
    for split in SLICES:
        loader = Loader(DataSpec(str(shards)), split, 32, 4, 0, PROCESS)
        ids = iter(cache.ids(split))
        for examples in loader.passes(4):
            for image in examples.images:
                wanted = torch.cat(network.encode(image[None]), 1)[0]
                assert next(ids).tolist() == wanted.tolist()
    assert len(np.unique(cache.ids("train"))) > 10


def test_ids_depend_on_no_other_image_and_on_no_autocast(shards, tokenizer):
    network = load_tokenizer(Path(tokenizer))
    images = next(iter(Loader(DataSpec(str(shards)), "train", 32, 4, 0, PROCESS).passes(12))).images
    alone = encode_each(network, images)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    assert np.array_equal(encode_each(network, images[order]), alone[order.numpy()])
    with torch.autocast("cpu", torch.bfloat16):
        assert np.array_equal(encode_each(network, images), alone)


def test_batches_are_those_of_the_images(shards, tokenizer, cache):
    """Two processes, a mixture and a start in the middle: the same keys, conditions and ids as the pictures have."""
    spec = DataSpec(str(shards), mixture=(("alpha-ct", 1.0), ("beta-mr", 2.0)), workers=0)
    network = load_tokenizer(Path(tokenizer))
    for rank in range(2):
        process = Process(2, rank, CPU)
        pictures, coded = Loader(spec, "train", 32, 6, 3, process), TokenLoader(spec, "train", cache, 6, 3, process)
        assert (len(coded), coded.conditions, coded.digest) == (len(pictures), pictures.conditions, pictures.digest)
        streams = pictures.batches(5), coded.batches(5)
        for _ in range(3):
            a, b = (next(stream) for stream in streams)
            assert (a.step, a.keys) == (b.step, b.keys)
            assert torch.equal(a.conditions, b.conditions)
            assert np.array_equal(encode_each(network, a.images), b.tokens.numpy())
        for stream in streams:
            stream.close()
        assert [e.keys for e in pictures.passes(2, 5)] == [e.keys for e in coded.passes(2, 5)]


def test_training_from_tokens_opens_no_picture_and_gives_the_same_run(shards, tokenizer, cache, tmp_path, monkeypatch):
    """One image a pass, as the cache was encoded: the same weights, moments, losses and validations, bit for bit."""
    spec = transformer_spec(shards, tmp_path / "images", tokenizer, micro_batch=1)
    run(spec)
    monkeypatch.setattr("medvar_data.stream.read.ShardReader.read", lambda *_: pytest.fail("a picture was read"))
    run(replace(spec, out=str(tmp_path / "tokens"), tokens=str(cache.folder)))
    for name in ("last/model.safetensors", "last/state/training.safetensors", "best/model.safetensors"):
        assert same_files(tmp_path / "images" / name, tmp_path / "tokens" / name), name
    timed = ("images_per_second", "waiting", "mfu")
    logs = [
        [{k: v for k, v in line.items() if k not in timed} for line in read_log(tmp_path / kind / "log.jsonl")]
        for kind in ("images", "tokens")
    ]
    assert logs[0] == logs[1]


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", [64, 128, 140, 147])
def test_stopped_and_called_again_is_undisturbed(shards, tokenizer, cache, tmp_path, at):
    spec = Tokenize(str(tmp_path / "tokens"), DataSpec(str(shards)), tokenizer)

    def stop(done, total):
        assert total == sum(SLICES.values())
        if done == at:
            raise Killed

    with pytest.raises(Killed):
        tokenize(spec, CPU, stop)
    with pytest.raises(MissingCheckpoint, match=rf"tokens of {at} slices only: .* goes on from there"):
        open_tokens(tmp_path / "tokens")
    seen = []
    tokenize(spec, CPU, lambda done, total: seen.append(done))
    assert min(seen) > at
    for path in cache.folder.iterdir():
        assert path.name == ".lock" or same_files(path, tmp_path / "tokens" / path.name)
    tokenize(spec, CPU, lambda done, total: pytest.fail("a finished cache was made again"))


@pytest.mark.slow
def test_killed_outright_between_two_notes_goes_on(shards, tokenizer, cache, tmp_path):
    out = tmp_path / "tokens"
    program = textwrap.dedent(f"""
        import os, signal
        import torch
        from medvar_model.loader import DataSpec
        from medvar_model.tokens import tokenize as t
        torch.set_num_threads(1)
        t.SAVE_SECONDS = 0.0 if {{first}} else 1e9
        def say(done, total):
            if done >= 128:
                os.kill(os.getpid(), signal.SIGKILL)
        t.tokenize(t.Tokenize({str(out)!r}, DataSpec({str(shards)!r}), {tokenizer!r}), torch.device("cpu"), say)
        """)
    for first in (True, False):
        done = subprocess.run(
            [sys.executable, "-c", program.replace("{first}", str(first))], env=os.environ, check=False
        )
        assert done.returncode == -signal.SIGKILL
        with (out / "train.u16").open("ab") as file:
            file.write(b"half a row")
    tokenize(Tokenize(str(out), DataSpec(str(shards)), tokenizer), CPU)
    assert same_files(out / "train.u16", cache.folder / "train.u16")
    assert same_files(out / "tokens.json", cache.folder / "tokens.json")


def test_encoding_together_says_how_many_ids_agree(shards, tokenizer, tmp_path, monkeypatch):
    spec = Tokenize(str(tmp_path / "tokens"), DataSpec(str(shards)), tokenizer, together=5)
    note = tokenize(spec, CPU).note
    assert note.origin.together == 5
    assert note.agreement is not None
    assert (note.agreement.images, note.agreement.share >= 0.999) == (140, True)

    def coarse(network, images, together=1):
        ids = encode_each(network, images, together)
        return ids if together == 1 else np.where(np.arange(ids.size).reshape(ids.shape) % 500 == 0, 0, ids)

    monkeypatch.setattr(tokenizing, "encode_each", coarse)
    with pytest.raises(
        ConfigMismatch, match=r"Of the ids of 140 images only 99\.[78]\d% .* wanted 99\.9%.*--device cpu"
    ):
        tokenize(replace(spec, out=str(tmp_path / "other")), CPU)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpus_ids_agree_with_the_cpus(shards, tokenizer, cache, tmp_path):
    made = tokenize(Tokenize(str(tmp_path / "tokens"), DataSpec(str(shards)), tokenizer), torch.device("cuda", 0))
    assert made.note.origin.device == "cuda"
    assert made.note.agreement is not None
    assert (made.ids("train") == cache.ids("train")).mean() >= 0.999


def copied(cache, folder, **changes):
    folder.mkdir()
    for path in cache.folder.glob("*.u16"):
        (folder / path.name).write_bytes(path.read_bytes())
    note = json.loads((cache.folder / "tokens.json").read_text())
    note["origin"] |= changes
    (folder / "tokens.json").write_text(json.dumps(note))
    return folder


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vocabulary": 32}, r"the vocabulary is 32 there, 64 here.*tokenize into a new folder"),
        ({"scale_sides": [1, 2, 5]}, r"the schedule of scales is \[1, 2, 5\] there, \[1, 2, 3, 4\] here"),
        ({"image_side": 64}, r"the side of an image is 64 there, 32 here"),
        ({"tokenizer": "0" * 64}, r"the tokenizer's digest is 000000000000 there, .* here"),
    ],
)
def test_tokens_of_another_tokenizer_are_refused(shards, tokenizer, cache, tmp_path, change, words):
    spec = transformer_spec(shards, tmp_path / "run", tokenizer)
    with pytest.raises(ConfigMismatch, match=words):
        run(replace(spec, tokens=str(copied(cache, tmp_path / "tokens", **change))))
    assert not (tmp_path / "run").exists()


def test_tokens_of_another_set_are_refused(tokenizer, cache, tmp_path):
    other = write_shard_set(tmp_path / "other", SLICES | {"test": 4})
    spec = replace(transformer_spec(other, tmp_path / "run", tokenizer), tokens=str(cache.folder))
    with pytest.raises(ShardSetMismatch, match=r"the shard set's digest is \w{12} there, \w{12} here"):
        run(spec)


def test_keys_in_another_order_are_refused(shards, tokenizer, cache, tmp_path):
    folder = copied(cache, tmp_path / "tokens")
    note = json.loads((folder / "tokens.json").read_text())
    note["splits"]["train"]["keys_sha256"] = "1" * 64
    (folder / "tokens.json").write_text(json.dumps(note))
    with pytest.raises(ShardSetMismatch, match="140 train slices, whose keys are not those of the 140 in"):
        run(replace(transformer_spec(shards, tmp_path / "run", tokenizer), tokens=str(folder)))


def test_damage_is_named(cache, tmp_path):
    folder = copied(cache, tmp_path / "cut")
    data = (folder / "val.u16").read_bytes()
    (folder / "val.u16").write_bytes(data[:-1])
    with pytest.raises(MissingCheckpoint, match=r"val\.u16 has 419 bytes; wanted 420 \(7 slices of 30 tokens\)"):
        open_tokens(folder)
    (folder / "val.u16").write_bytes(bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(MissingCheckpoint, match=r"val\.u16 is not the file .*sha256 differs"):
        open_tokens(folder)
    (folder / "val.u16").unlink()
    with pytest.raises(MissingCheckpoint, match=r"val\.u16 is missing; wanted 420"):
        open_tokens(folder)
    (folder / "tokens.json").write_text("{}")
    with pytest.raises(MissingCheckpoint, match=r"tokens\.json is damaged .*Run `medvar-model tokenize` again"):
        open_tokens(folder)
    with pytest.raises(MissingCheckpoint, match=r"holds no tokens\.json; wanted a folder that"):
        open_tokens(tmp_path)


@pytest.mark.parametrize("name", ["tokens.json", "progress.json"])
def test_a_split_that_leads_elsewhere_is_refused(shards, tokenizer, cache, tmp_path, name):
    folder = copied(cache, tmp_path / "tokens")
    note = json.loads((folder / "tokens.json").read_text())
    if name == "progress.json":
        note = {"origin": note["origin"], "slices": {"../stray": 0}}
        (folder / "tokens.json").unlink()
    else:
        note["splits"]["../stray"] = note["splits"].pop("test")
    (folder / name).write_text(json.dumps(note))
    with pytest.raises(MissingCheckpoint, match=rf"{name} is damaged"):
        tokenize(Tokenize(str(folder), DataSpec(str(shards)), tokenizer), CPU)
    assert not (tmp_path / "stray.u16").exists()


def test_a_view_that_was_altered_is_refused(cache, tmp_path):
    with pytest.raises(MissingCheckpoint, match="view 'flipped'; this medvar reads format 1 of slices as stored"):
        open_tokens(copied(cache, tmp_path / "tokens", view="flipped"))


def test_folders_that_hold_something_else_are_refused(shards, tokenizer, cache, tmp_path):
    spec = Tokenize(str(cache.folder), DataSpec(str(shards)), tokenizer)
    assert check_tokenize(spec, CPU)[1] == 150
    with pytest.raises(ConfigMismatch, match=r"holds tokens of something else: the batch is 1 there, 2 here"):
        tokenize(replace(spec, together=2), CPU)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UnusableFolder, match=r"holds other things \(notes\.txt\)"):
        tokenize(replace(spec, out=str(tmp_path)), CPU)


def test_more_codes_than_sixteen_bits_are_refused(tokenizer):
    config = load_tokenizer(Path(tokenizer)).config
    assert isinstance(origin_of("a" * 64, config, "b" * 64), Origin)
    with pytest.raises(
        ConfigMismatch, match=r"has 65,537 codes; .* at most 65,536\. Train from images, without --tokens"
    ):
        origin_of("a" * 64, replace(config, vocabulary=65_537), "b" * 64)
