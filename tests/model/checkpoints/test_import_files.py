"""VAR's files as checkpoints: what is written can be read, the fold is compared, wrong files are told what they are."""

import pytest
import torch
from support.var_files import SIDES, transformer, write_var_files

from medvar_model.checkpoints.checkpoint import load_tokenizer, read_checkpoint, read_run
from medvar_model.checkpoints.import_files import ImportVar, import_var, tie_notes
from medvar_model.checkpoints.import_var import import_tokenizer
from medvar_model.config import TOKENIZERS, TokenizerConfig
from medvar_model.errors import ConfigMismatch, MissingCheckpoint, UnusableFolder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_var_files(tmp_path_factory.mktemp("var"))


def test_an_autoencoder_becomes_a_tokenizers_checkpoint(files, tmp_path):
    (one,) = import_var(ImportVar(str(files / "vae.pth"), str(tmp_path / "vae"), scale_sides=SIDES, check=True))
    assert (one.kind, one.folder) == ("tokenizer", tmp_path / "vae")
    assert one.difference < 1e-4
    read, direct = load_tokenizer(tmp_path / "vae"), import_tokenizer(files / "vae.pth", scale_sides=SIDES)
    image = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    assert all(torch.equal(a, b) for a, b in zip(read.encode(image), direct.encode(image), strict=True))
    said = read_run(tmp_path / "vae")["imported"]
    assert said["path"] == "vae.pth"
    assert len(said["digest"]) == 64


def test_a_training_checkpoint_becomes_a_run_with_both(files, tmp_path):
    written = import_var(ImportVar(str(files / "ar-ckpt-last.pth"), str(tmp_path / "run"), scale_sides=SIDES))
    assert [(one.kind, one.folder.name) for one in written] == [("tokenizer", "tokenizer"), ("transformer", "last")]
    kept = read_checkpoint(tmp_path / "run", "transformer")
    assert list(kept.conditions) == [f"class-000{n}" for n in range(6)]
    assert kept.run["tokenizer"]["digest"] == read_checkpoint(tmp_path / "run" / "tokenizer", "tokenizer").digest


def test_a_folder_with_something_in_it_is_left_alone(files, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UnusableFolder, match="not empty; wanted a new folder"):
        import_var(ImportVar(str(files / "vae.pth"), str(tmp_path), scale_sides=SIDES))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_other_wrappings_are_opened(tmp_path, wrapper):
    torch.save({wrapper: transformer(), "epoch": 1}, tmp_path / "w.pth")
    (one,) = import_var(ImportVar(str(tmp_path / "w.pth"), str(tmp_path / "out"), scale_sides=SIDES))
    assert one.kind == "transformer"


def test_a_file_of_something_else_is_told_what_it_holds(tmp_path):
    torch.save({"optimizer": {"state": 1}, "epoch": 3}, tmp_path / "other.pth")
    with pytest.raises(
        MissingCheckpoint, match=r"neither of VAR's networks.*found 'optimizer', 'epoch'; in it 'optimizer' with"
    ):
        import_var(ImportVar(str(tmp_path / "other.pth"), str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_a_check_needs_a_fold(files, tmp_path):
    spec = ImportVar(str(files / "vae.pth"), str(tmp_path / "out"), image_channels=3, scale_sides=SIDES, check=True)
    with pytest.raises(ConfigMismatch, match="--check compares"):
        import_var(spec)


def test_ties_between_smoothers_are_told():
    assert "Scales 3, 8 fall midway" in tie_notes(TOKENIZERS["paper"])[0]
    assert "written out here" in tie_notes(TOKENIZERS["paper"])[0]
    three = TokenizerConfig(image_side=64, scale_sides=(1, 2, 4), n_smoothers=2)
    assert "Scales 2 fall midway between two of 2 smoothers" in tie_notes(three)[0]
    assert tie_notes(TokenizerConfig(image_side=64, scale_sides=(1, 2, 3, 4), n_smoothers=2)) == ()
