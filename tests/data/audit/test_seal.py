"""A seal says who published a set: one key, one dataset.json, nothing else."""

import json
import shutil
import stat
import subprocess
from hashlib import sha256

import pytest

from medvar_data.audit import seal as sealing
from medvar_data.audit.seal import SEAL_FILE, check_seal, new_key, seal
from medvar_data.audit.verify import verify
from medvar_data.errors import ShardSetError, SpecError, WorkspaceError
from medvar_data.storage.store import Store

pytest.importorskip("cryptography")


@pytest.fixture
def keys(tmp_path):
    """A private key and its public one."""
    (tmp_path / "public.pem").write_text(new_key(tmp_path / "private.pem"))
    return tmp_path / "private.pem", tmp_path / "public.pem"


def test_a_sealed_set_is_sound_and_the_seal_names_the_key(damaged, keys):
    private, public = keys
    made = seal(damaged, private)
    result = verify(damaged, public_key=public)
    assert (result.findings, result.sealed_by) == ((), made.public_key_sha256)
    assert made.dataset_sha256 == sha256(damaged.read("dataset.json")).hexdigest()
    first = damaged.read(SEAL_FILE)
    seal(damaged, private)
    assert damaged.read(SEAL_FILE) == first, "neither a time nor chance is in it"


def test_whatever_is_not_the_sealed_set_is_noticed(damaged, keys, tmp_path):
    private, public = keys
    assert check_seal(damaged, public) == ["seal.json is missing: the set is not sealed"]
    seal(damaged, private)
    (tmp_path / "other.pem").write_text(new_key(tmp_path / "theirs.pem"))
    assert "another key" in check_seal(damaged, tmp_path / "other.pem")[0]
    text = json.loads(damaged.read(SEAL_FILE))
    dataset = damaged.read("dataset.json")
    folder = tmp_path / "set"
    (folder / "dataset.json").write_bytes(dataset + b"\n")
    assert "not the one that was sealed" in check_seal(damaged, public)[0]
    forged = text | {"dataset_sha256": sha256(dataset + b"\n").hexdigest()}
    (folder / SEAL_FILE).write_text(json.dumps(forged))
    assert "was not made by this key" in check_seal(damaged, public)[0]
    for wrong in ({**text, "signature": "00"}, {**text, "algorithm": "none"}, {}):
        (folder / SEAL_FILE).write_text(json.dumps(wrong))
        assert "seal.json is damaged" in check_seal(damaged, public)[0]
    assert len(verify(damaged, public_key=public).findings) >= 1


def test_another_keys_seal_is_not_replaced_unasked(damaged, keys, tmp_path):
    private, _ = keys
    (tmp_path / "theirs.public").write_text(new_key(tmp_path / "theirs.pem"))
    seal(damaged, tmp_path / "theirs.pem")
    with pytest.raises(WorkspaceError, match=r"seal of another key .* pass --replace"):
        seal(damaged, private)
    assert check_seal(damaged, tmp_path / "theirs.public") == []
    made = seal(damaged, private, replace=True)
    assert check_seal(damaged, keys[1]) == []
    (tmp_path / "set" / SEAL_FILE).write_text("{}")
    with pytest.raises(WorkspaceError, match="cannot be read"):
        seal(damaged, private)
    assert seal(damaged, private, replace=True) == made


def test_a_key_is_private_and_never_replaced(keys):
    private, _ = keys
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    before = private.read_bytes()
    with pytest.raises(WorkspaceError, match="never replaced"):
        new_key(private)
    assert private.read_bytes() == before


def test_what_is_no_key(damaged, keys, tmp_path):
    private, public = keys
    (tmp_path / "text").write_text("no key")
    (tmp_path / "text").chmod(0o600)
    for file in (tmp_path / "text", public):
        file.chmod(0o600)
        with pytest.raises(WorkspaceError, match="no private Ed25519 key"):
            seal(damaged, file)
    for file in (tmp_path / "text", private):
        with pytest.raises(WorkspaceError, match="no public Ed25519 key"):
            check_seal(damaged, file)
    with pytest.raises(SpecError, match="No key file"):
        seal(damaged, tmp_path / "none.pem")
    private.chmod(0o644)
    with pytest.raises(WorkspaceError, match="chmod 600"):
        seal(damaged, private)


def test_no_seal_without_a_finished_set(keys, tmp_path):
    with pytest.raises(ShardSetError, match=r"dataset\.json"):
        seal(Store(str(tmp_path / "none")), keys[0])


def test_a_missing_package_is_a_sentence(damaged, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    for call in (
        lambda: new_key(tmp_path / "k"),
        lambda: seal(damaged, tmp_path / "k"),
        lambda: check_seal(damaged, tmp_path / "k"),
    ):
        with pytest.raises(WorkspaceError, match=r"pip install 'medvar\[seal\]'"):
            call()
    assert sealing.NEEDED.endswith("'medvar[seal]'")


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
def test_openssl_reads_the_seal(damaged, keys, tmp_path):
    """As docs/auditing.md tells it to those who do not want medvar to check medvar."""
    private, public = keys
    made = seal(damaged, private)
    (tmp_path / "digest").write_bytes(sha256(damaged.read("dataset.json")).digest())
    (tmp_path / "signature").write_bytes(bytes.fromhex(made.signature))
    command = [
        "openssl",
        "pkeyutl",
        "-verify",
        "-pubin",
        "-inkey",
        str(public),
        "-rawin",
        "-in",
        str(tmp_path / "digest"),
    ]
    result = subprocess.run([*command, "-sigfile", str(tmp_path / "signature")], capture_output=True, text=True)
    assert "Verified Successfully" in result.stdout, result.stderr
