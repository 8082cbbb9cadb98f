"""Say who published a set: a detached Ed25519 signature over its dataset.json, which holds the digests of tables and shards.

In: a finished set and a private key in a file of one's own. Out: `seal.json` beside the set's files; and, for whoever has the public
key, whether this set is the one that was signed. The seal names no person and no time. It needs the package `cryptography`.
"""

import stat
import tempfile
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from medvar_data.errors import ShardSetError, SpecError, WorkspaceError
from medvar_data.naming import Digest
from medvar_data.shardset.dataset import DATASET_FILE, read_dataset
from medvar_data.storage.documents import decode_json
from medvar_data.storage.store import Store, canonical_json, write_new

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SEAL_FILE = "seal.json"
SIGNS = "the 32 bytes of the sha256 of dataset.json"
MOST_KEY_BYTES = 1 << 14
WAY_ON = "Run `medvar-data seal` again, or fetch the set again."
NEEDED = "Sealing needs the package cryptography, which is not installed. Run: pip install 'medvar[seal]'"


@dataclass(frozen=True)
class Seal:
    """The content of `seal.json`.

    Attributes:
        algorithm: of the signature.
        signs: what the signature is over.
        dataset_sha256: of dataset.json as it was signed.
        public_key_sha256: names the key: sha256 of the public key in DER.
        signature: 64 bytes, hex.
    """

    algorithm: Literal["Ed25519"]
    signs: str
    dataset_sha256: Digest
    public_key_sha256: Digest
    signature: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{128}$")]


def new_key(path: Path) -> str:
    """Make a private key in a new file that its owner alone may read; gives the public key as PEM.

    Raises:
        WorkspaceError: the file is there already, or `cryptography` is missing.
    """
    _require_package()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    if not write_new(path, text, mode=0o600):
        raise WorkspaceError(f"{path} is there already; a key is never replaced. Give another name.")
    return public_pem(key.public_key())


def public_pem(key: "Ed25519PublicKey") -> str:
    """A public key as PEM."""
    from cryptography.hazmat.primitives import serialization

    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()


def seal(store: Store, key: Path, *, replace: bool = False) -> Seal:
    """Sign a finished set and write `seal.json` into it.

    Args:
        store: the set.
        key: file with the private key, PEM.
        replace: put the seal in the place of another key's, too.

    Raises:
        ShardSetError: there is no finished set.
        WorkspaceError: the file holds no such key, or others may read it; the set has another key's seal; or `cryptography` is missing.
    """
    _require_package()
    read_dataset(store)
    private = _private_key(key)
    if not replace:
        _refuse_anothers_seal(store, private)
    digest = sha256(store.read(DATASET_FILE))
    made = Seal(
        "Ed25519", SIGNS, digest.hexdigest(), _fingerprint(private.public_key()), private.sign(digest.digest()).hex()
    )
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / SEAL_FILE
        local.write_text(canonical_json(asdict(made)), encoding="utf-8")
        store.put(local, SEAL_FILE)
    return made


def _refuse_anothers_seal(store: Store, private: "Ed25519PrivateKey") -> None:
    try:
        found = _read_seal(store)
    except OSError:
        return  # it has none
    except ShardSetError:
        found = None
    if found is None or found.public_key_sha256 != _fingerprint(private.public_key()):
        whose = f"of another key ({found.public_key_sha256[:16]}…)" if found else "that cannot be read"
        raise WorkspaceError(
            f"The set has a seal {whose}, by which others may know it. Sign a copy of the set, or pass --replace to put yours in its "
            "place."
        )


def key_digest(public_key: Path) -> str:
    """Name a public key as seals do: the sha256 of its DER form.

    Raises:
        WorkspaceError: the file holds no such key; or `cryptography` is missing.
    """
    _require_package()
    return _fingerprint(_public_key(public_key))


def check_seal(store: Store, public_key: Path) -> list[str]:
    """Say what is wrong with a set's seal; nothing where this key signed this dataset.json.

    Args:
        store: the set.
        public_key: file with the publisher's public key, PEM, which came by a way that you trust.

    Raises:
        WorkspaceError: the file holds no such key; or `cryptography` is missing.
    """
    _require_package()
    from cryptography.exceptions import InvalidSignature

    key = _public_key(public_key)
    try:
        found = _read_seal(store)
    except OSError:
        return [f"{SEAL_FILE} is missing: the set is not sealed"]
    except ShardSetError as error:
        return [str(error)]
    if found.public_key_sha256 != _fingerprint(key):
        return [f"{SEAL_FILE} was made by another key ({found.public_key_sha256[:16]}…)"]
    digest = sha256(store.read(DATASET_FILE))
    if found.dataset_sha256 != digest.hexdigest():
        return ["dataset.json is not the one that was sealed"]
    try:
        key.verify(bytes.fromhex(found.signature), digest.digest())
    except InvalidSignature:
        return [f"the signature in {SEAL_FILE} was not made by this key over this dataset.json"]
    return []


def _read_seal(store: Store) -> Seal:
    return decode_json(store.read(SEAL_FILE), Seal, SEAL_FILE, ShardSetError, WAY_ON)


def _require_package() -> None:
    from importlib.util import find_spec

    if find_spec("cryptography") is None:
        raise WorkspaceError(NEEDED)


def _private_key(path: Path) -> "Ed25519PrivateKey":
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = _key_bytes(path)
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise WorkspaceError(f"Others than its owner may open {path}, which holds a private key. Run: chmod 600 {path}")
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # no key, one behind a password, or one of another kind
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise WorkspaceError(
            f"{path} holds no private Ed25519 key in PEM; `medvar-data seal --new-key FILE` makes one."
        )
    return key


def _public_key(path: Path) -> "Ed25519PublicKey":
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(_key_bytes(path))
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise WorkspaceError(f"{path} holds no public Ed25519 key in PEM; wanted the one that its publisher gives.")
    return key


def _key_bytes(path: Path) -> bytes:
    if not path.is_file():
        raise SpecError(f"No key file at {path}.")
    with path.open("rb") as stream:
        return stream.read(MOST_KEY_BYTES)


def _fingerprint(key: "Ed25519PublicKey") -> str:
    from cryptography.hazmat.primitives import serialization

    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return sha256(der).hexdigest()
