"""A run's folder is not lost: damage, a second process, wrong places and too little memory are sentences."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.runs import PROCESS, run, tokenizer_spec, transformer_spec
from support.shard_sets import write_shard_set

from medvar_model.checkpoints.checkpoint import load_tokenizer, read_checkpoint
from medvar_model.config import TOKENIZERS, transformer_config
from medvar_model.errors import ConfigMismatch, FolderInUse, MissingCheckpoint, OutOfMemory, UnusableFolder
from medvar_model.machine import folders, memory
from medvar_model.machine.processes import Process, device_of
from medvar_model.sampling.sample import SampleSettings
from medvar_model.training.tokenizer import TokenizerObjective, check_tokenizer_training
from medvar_model.training.transformer import check_transformer_training


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shard_set(tmp_path_factory.mktemp("set"), {"train": 22, "val": 6})


@pytest.fixture(scope="module")
def finished(shards, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    spec = tokenizer_spec(shards, root / "tokenizer")
    run(spec)
    run(transformer_spec(shards, root / "transformer", root / "tokenizer"))
    return root


@pytest.fixture
def copied(shards, finished, tmp_path):
    """A finished tokenizer's run that a test may damage."""
    shutil.copytree(finished / "tokenizer", tmp_path / "run")
    return tokenizer_spec(shards, tmp_path / "run")


def contents(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        (["last/state"], r"holds a run \(best, last, a log of 8 lines\).*last/state/training\.safetensors.*missing"),
        (["last"], r"holds a run \(best, a log of 8 lines\).*last/model\.safetensors"),
        (["last/model.safetensors"], r"last/model\.safetensors missing.*--init-from .*best"),
        (["last", "best"], r"holds a run \(a log of 8 lines\)"),
    ],
)
def test_a_run_that_cannot_be_resumed_is_not_begun_anew(copied, lost, words):
    for name in lost:
        path = Path(copied.out) / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = contents(copied.out)
    with pytest.raises(MissingCheckpoint, match=words):
        run(copied)
    assert contents(copied.out) == before


def test_best_never_lies_without_last(shards, tmp_path):
    """A run killed between its first validation and its first checkpoint resumes instead of being refused."""

    class Killed(Exception):
        pass

    def report(log):
        if log.step == 3:
            raise Killed

    spec = tokenizer_spec(shards, tmp_path / "run", checkpoint_every=1000, validate_every=8)
    with pytest.raises(Killed):
        run(spec, report)
    assert (tmp_path / "run" / "best").is_dir()
    assert json.loads((tmp_path / "run" / "last" / "state" / "progress.json").read_text())["step"] == 0
    assert run(spec).is_finished


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("state/training.safetensors", b"x" * 40, r"training\.safetensors is damaged .*best beside it can be used"),
        ("state/progress.json", b"", r"progress\.json is damaged \(it is empty\).*--init-from"),
        ("state/progress.json", b'{"stp": 3}', "missing required field `step`"),
        ("config.json", b"{", r"config\.json is damaged \(it is no JSON: Input data was truncated"),
        ("run.json", b"{}", "does not say what the run was made from"),
    ],
)
def test_a_damaged_checkpoint_says_why_and_what_is_left(copied, name, data, words):
    (Path(copied.out) / "last" / name).write_bytes(data)
    with pytest.raises(MissingCheckpoint, match=words):
        run(replace(copied, loop=replace(copied.loop)))


def test_two_processes_do_not_train_in_one_folder(shards, tmp_path):
    spec = tokenizer_spec(shards, tmp_path / "run")
    holding = (
        "import sys, time\nfrom pathlib import Path\nfrom medvar_model.machine.folders import held\n"
        "with held(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", holding, spec.out], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    try:
        with pytest.raises(FolderInUse, match=r"Another process is at work in .*run at this moment.*-o"):
            run(spec)
        with pytest.raises(FolderInUse):
            check_tokenizer_training(spec, PROCESS)
    finally:
        other.kill()  # the lock dies with its process
        other.wait()
        other.stdout.close()
    assert run(spec).is_finished


def test_only_the_first_process_takes_the_lock(shards, finished, tmp_path):
    with folders.held(tmp_path):
        with folders.held(tmp_path / "other"):
            pass
        with pytest.raises(FolderInUse), folders.held(tmp_path):
            pass
    with folders.held(tmp_path):
        pass


def test_a_folder_that_is_something_else_is_refused(shards, finished, tmp_path):
    (tmp_path / "file").write_text("")
    for out, words in (
        (tmp_path / "file", "is a file; wanted a folder.*-o"),
        (tmp_path / "file" / "run", "cannot be made, since .*file is a file"),
        (shards, "is a shard set; wanted a folder for the run.*-o"),
        (finished / "tokenizer" / "best", "is a checkpoint"),
    ):
        for check in (run, lambda spec: check_tokenizer_training(spec, PROCESS)):
            with pytest.raises(UnusableFolder, match=words):
                check(tokenizer_spec(shards, out))
    assert (tmp_path / "file").is_file()


def test_a_folder_that_may_not_be_written_is_refused(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(folders.os, "access", lambda path, mode: False)
    with pytest.raises(UnusableFolder, match=r"may not be written by you.*-o"):
        run(tokenizer_spec(shards, tmp_path / "run"))


class TestInitFrom:
    def test_a_tokenizer_begins_with_its_weights_and_keeps_its_codes(self, shards, finished, tmp_path, monkeypatch):
        spec = replace(tokenizer_spec(shards, tmp_path / "run"), init_from=str(finished / "tokenizer"))
        begun = []
        monkeypatch.setattr(TokenizerObjective, "_start_codebook", lambda *_: pytest.fail("the codes were replaced"))
        from medvar_model.training.tokenizer import train_tokenizer

        train_tokenizer(spec, PROCESS, stop=lambda: True, begun=begun.append)
        assert begun[0].init_from == str(finished / "tokenizer")
        kept = read_checkpoint(finished / "tokenizer", "tokenizer")
        said = json.loads((tmp_path / "run" / "last" / "run.json").read_text())
        assert said["init_from"] == {"path": spec.init_from, "digest": kept.digest}
        codes = load_tokenizer(tmp_path / "run").pyramid.codebook.codes
        assert (codes - kept.weights["pyramid.codebook.codes"]).abs().max() < 0.02  # one step away
        assert run(spec).is_finished
        assert json.loads((tmp_path / "run" / "last" / "run.json").read_text())["init_from"] == said["init_from"]
        with pytest.raises(ConfigMismatch, match=r"--init-from was .*, now not given"):
            run(replace(spec, init_from=""))

    def test_a_transformer_keeps_the_rows_of_the_conditions_it_knows(self, finished, tmp_path):
        conditions = {"new-ct": 1, "beta-mr": 7, "gamma-mr": 12}
        other = write_shard_set(tmp_path / "set", {"train": 22, "val": 6}, conditions=conditions)
        spec = transformer_spec(other, tmp_path / "run", finished / "tokenizer", samples=4, base_learning_rate=1e-9)
        run(replace(spec, init_from=str(finished / "transformer")))
        before, after = (
            read_checkpoint(path, "transformer") for path in (finished / "transformer", tmp_path / "run" / "last")
        )
        table = "condition_embedding.weight"
        for name in ("beta-mr", "gamma-mr"):
            old, new = before.weights[table][before.conditions[name]], after.weights[table][after.conditions[name]]
            torch.testing.assert_close(old, new, atol=1e-6, rtol=1e-3)
        assert not torch.allclose(before.weights[table][0], after.weights[table][0], atol=1e-4)
        torch.testing.assert_close(before.weights["head.weight"], after.weights["head.weight"], atol=1e-6, rtol=1e-3)

    def test_weights_of_another_network_or_tokenizer_are_refused(self, shards, finished, tmp_path):
        spec = transformer_spec(shards, tmp_path / "run", finished / "tokenizer")
        with pytest.raises(ConfigMismatch, match=r"depth is 2 there, 3 here.*--size"):
            run(replace(spec, size="d3", init_from=str(finished / "transformer")))
        with pytest.raises(MissingCheckpoint, match="wanted a transformer"):
            run(replace(spec, init_from=str(finished / "tokenizer")))
        run(tokenizer_spec(shards, tmp_path / "tok", seed=9, samples=4, validate_every=0))
        with pytest.raises(ConfigMismatch, match="tokens mean other things"):
            run(replace(spec, tokenizer=str(tmp_path / "tok"), init_from=str(finished / "transformer")))
        assert not (tmp_path / "run").exists()


def test_precision_may_change_when_a_run_goes_on(copied):
    assert run(replace(copied, loop=replace(copied.loop, precision="bfloat16"))).is_finished


def test_checks_before_a_run_write_nothing(shards, finished, tmp_path):
    made = check_tokenizer_training(tokenizer_spec(shards, tmp_path / "run"), PROCESS)
    assert (made.loader.set_side, made.loader.image_side) == (32, 32)
    check_transformer_training(transformer_spec(shards, tmp_path / "run", finished / "tokenizer"), PROCESS)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigMismatch, match="--seed was 0, now 3"):
        check_tokenizer_training(tokenizer_spec(shards, finished / "tokenizer", seed=3), PROCESS)


class TestMemory:
    def test_what_cannot_fit_is_refused_before_the_work(self, shards, tmp_path):
        spec = tokenizer_spec(shards, tmp_path / "run", samples=10**7, batch_size=10**6, validate_every=0)
        with pytest.raises(OutOfMemory, match=r"at least [\d,]+ GB, and this machine has .*--micro-batch"):
            run(replace(spec, config=TOKENIZERS["tiny"]))
        spec = tokenizer_spec(shards, tmp_path / "run", samples=10**9, batch_size=10**8, validate_every=0)
        with pytest.raises(OutOfMemory, match="--batch-size"):
            run(spec)
        assert not (tmp_path / "run").exists()

    def test_the_bound_is_below_what_a_pass_keeps(self):
        """Counted from the tensors that autograd keeps for the backward pass."""
        from medvar_model.networks.tokenizer import Tokenizer
        from medvar_model.networks.transformer import Transformer

        def kept_by(network, *inputs):
            own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
            kept = {}

            def pack(tensor):
                kept[tensor.untyped_storage().data_ptr()] = tensor
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                outcome = network(*inputs)
                drawn = getattr(outcome, "images", outcome)
                loss = drawn.float().log_softmax(-1).mean()
            assert loss.requires_grad
            return sum(value.untyped_storage().nbytes() for process, value in kept.items() if process not in own)

        for config in (TOKENIZERS["tiny"], TOKENIZERS["demo"]):
            images = torch.rand(4, 1, config.image_side, config.image_side)
            bound = 4 * memory.least_training_bytes(config, 4)
            assert bound < kept_by(Tokenizer(config), images) < 12 * bound
            size = transformer_config("d3", config, 3)
            inputs = torch.zeros(4, dtype=torch.int64), torch.rand(4, size.n_tokens - 1, size.latent_channels)
            bound = 4 * memory.least_training_bytes(size, 4)
            assert bound < kept_by(Transformer(size).eval(), *inputs) < 12 * bound

    @pytest.mark.parametrize(
        "error",
        [
            MemoryError("Unable to allocate 4 TiB"),
            RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        ],
        ids=["numpy", "cpu", "cuda"],
    )
    def test_running_out_in_a_step_names_the_options(self, shards, tmp_path, monkeypatch, error):
        def forward(self, examples, draw):
            raise error

        monkeypatch.setattr(TokenizerObjective, "forward", forward)
        with pytest.raises(OutOfMemory, match=r"A pass of 4 images on cpu .*--micro-batch.*--batch-size \(now 4\)"):
            run(tokenizer_spec(shards, tmp_path / "run"))

    def test_other_errors_pass(self):
        with pytest.raises(RuntimeError, match="shape"), memory.told_when_memory_ends("x", "y"):
            raise RuntimeError("shape mismatch")


class TestDevice:
    @pytest.fixture(autouse=True)
    def _no_gpu(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    @pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7"])
    def test_without_cuda(self, name):
        with pytest.raises(ConfigMismatch, match=r"no CUDA here.*wanted auto, cpu, cuda or cuda:N"):
            device_of(name)

    @pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "", "mps", "cpu:0"])
    def test_unknown(self, name):
        with pytest.raises(ConfigMismatch, match=r"no device .*wanted auto, cpu, cuda or cuda:N"):
            device_of(name)

    def test_a_gpu_that_is_not_there(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        with pytest.raises(ConfigMismatch, match="no GPU 2 here, only 0, 1"):
            device_of("cuda:2")
        with pytest.raises(ConfigMismatch, match="at most 2 processes"):
            device_of("cuda", local_rank=3)

    def test_auto_and_cpu(self):
        assert Process.alone("auto") == Process.alone("cpu") == PROCESS


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"guidance": float("nan")}, "--guidance is nan"),
        ({"guidance": float("inf")}, "--guidance is inf"),
        ({"guidance": -1.0}, "--guidance is -1"),
        ({"top_k": -1}, "--top-k is -1"),
        ({"top_p": float("nan")}, "--top-p is nan"),
        ({"top_p": 1.5}, "--top-p is 1.5"),
    ],
)
def test_samplings_that_make_no_sense_name_the_option(change, words):
    with pytest.raises(ConfigMismatch, match=words):
        SampleSettings(**change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"base_learning_rate": float("nan")}, "--base-learning-rate is nan; wanted a number above 0"),
        ({"base_learning_rate": float("inf")}, "--base-learning-rate is inf"),
        ({"average": float("nan")}, "--average is nan"),
        ({"batch_size": 1000}, "--samples is 32, less than one step of --batch-size 1,000"),
        ({"clip": float("nan")}, "^clip is nan"),
        ({"micro_batch": -1}, "--micro-batch is -1"),
    ],
)
def test_loops_that_make_no_sense_name_the_option(change, words):
    with pytest.raises(ConfigMismatch, match=words):
        tokenizer_spec("S", "out", **change)


def test_a_wrong_folder_names_what_would_fit(shards, finished, tmp_path):
    with pytest.raises(Exception, match=r"^There is no folder .*nowhere; wanted a shard set"):
        folders.check_shard_set(str(tmp_path / "nowhere"))
    with pytest.raises(Exception, match=r"holds no dataset\.json.*Below it, .*set\d+.* would be a shard set"):
        folders.check_shard_set(str(shards.parent))
    folders.check_shard_set("memory://anything")
    with pytest.raises(MissingCheckpoint, match=r"There is no folder .*nowhere"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(MissingCheckpoint, match="is a file and holds no checkpoint"):
        load_tokenizer(shards / "dataset.json")
    with pytest.raises(MissingCheckpoint, match=r"holds no checkpoint.*Below it, .*tokenizer, .*transformer would be"):
        load_tokenizer(finished)
