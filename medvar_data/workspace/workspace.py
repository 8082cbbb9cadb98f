"""The private workspace W: what ingest found, the salt, finished cases. A POSIX folder, shared by a cluster's nodes.

W/salt                              32 random bytes, hex; never leaves the workspace
W/collections/<name>.toml           the description that ingest used
W/conditions.json                   ids given to users' own conditions, append-only
W/archives.json                     digest of each archive that ingest read, and what it takes to read it again
W/ingest/<name>.parquet             one row a case          (+ .rejects.parquet, .json with counts)
W/rejected/<name>.json              the files of cases that ingest rejected, which are named nowhere else
W/rejected/<name>.harmonize.json    the files of those that harmonize rejected
W/harmonized/<name>/<case>.parquet  one file a finished case
W/comparisons.parquet               which scans were compared, to find the same scan in two cases
W/shards/<plan>/                    rows of finished shards, for resuming; while they are written, the plan
"""

import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from hmac import new as hmac
from pathlib import Path
from typing import Annotated, Any

import msgspec

from medvar_data.catalog.collection import CollectionSpec
from medvar_data.catalog.load import OWN_CONDITION_IDS, load_conditions, parse_collection
from medvar_data.errors import Reason, WorkspaceError
from medvar_data.naming import Count, Digest, Name, is_name
from medvar_data.records import Case, Ingested, LayoutCount, Reject
from medvar_data.shardset.rejects import read_rejects, write_rejects
from medvar_data.sources.archives import split_path
from medvar_data.sources.tree import SEPARATOR, Tree
from medvar_data.storage.documents import read_json
from medvar_data.storage.store import file_digest, write_bytes, write_json, write_new
from medvar_data.workspace.case_file import read_case_file
from medvar_data.workspace.tables import read_cases, write_cases

SALT_PATTERN, SALT_BYTES = re.compile(rb"[0-9a-f]{64}"), 256


INGEST_AGAIN = "Run `medvar-data ingest` of this collection again."
OwnId = Annotated[int, msgspec.Meta(ge=OWN_CONDITION_IDS.start, lt=OWN_CONDITION_IDS.stop)]


@dataclass(frozen=True)
class ArchiveNote:
    """What the workspace knows of an archive: `sha256` holds as long as size and time do."""

    n_bytes: Count
    modified_ns: int
    sha256: Digest
    encrypted: bool  # a password was needed
    scratch_bytes: Count  # to unpack before a member can be read; 0 where members are read in place


@dataclass(frozen=True)
class _IngestNote:
    """What W/ingest/<name>.json says beside the tables."""

    counts: tuple[LayoutCount, ...]
    notes: tuple[str, ...]
    own: bool  # the description is the user's
    tables: dict[str, Digest] = field(default_factory=dict)  # of the two tables beside it


def archives_of(case: Case) -> set[Path]:
    """The archives on disk that hold a case's files."""
    chains = (split_path(path) for path in (*case.image, *case.label))
    return {Path(case.root) / chain[0] for chain in chains if len(chain) > 1}


@dataclass(frozen=True)
class Workspace:
    """A workspace by its folder; nothing is opened until asked for."""

    path: Path

    @property
    def comparisons(self) -> Path:
        """The table of scans that were compared."""
        return self.path / "comparisons.parquet"

    def collections(self) -> list[str]:
        """Names of the collections that were ingested, sorted.

        Raises:
            WorkspaceError: nothing was ingested yet.
        """
        names = self.ingested()
        if not names:
            raise WorkspaceError(
                f"{self.path} holds no ingested collection. Run `medvar-data ingest NAME=PATH -w {self.path}` first."
            )
        return names

    def ingested(self) -> list[str]:
        """Names of the collections that were ingested, sorted; none where nothing was yet."""
        return sorted(
            name for p in (self.path / "ingest").glob("*.json") if is_name(name := p.name.removesuffix(".json"))
        )

    def salt(self) -> bytes:
        """The secret behind patient hashes; made at the first call."""
        file = self.path / "salt"
        if not file.exists():
            return self._adopt_salt(secrets.token_bytes(32))
        text = file.read_bytes()[:SALT_BYTES].strip()
        if not SALT_PATTERN.fullmatch(text):
            raise WorkspaceError(f"{file} is damaged; wanted 64 hexadecimal digits. Restore it, or hashes will change.")
        return bytes.fromhex(text.decode())

    def salt_to_use(self, wanted: bytes | None = None) -> bytes:
        """The workspace's salt, else the wanted one, else a new one; nothing is written.

        Raises:
            WorkspaceError: the workspace has another salt than the wanted one.
        """
        if not (self.path / "salt").exists():
            return wanted or secrets.token_bytes(32)
        if wanted:
            self.set_salt(wanted)
        return self.salt()

    def salt_digest(self) -> str:
        """Names the salt without telling it, 16 hex digits."""
        return hmac(self.salt(), b"medvar shard set", sha256).hexdigest()[:16]

    def set_salt(self, salt: bytes) -> None:
        """Fix the salt of a new workspace, so that two workspaces give the same hashes.

        Raises:
            WorkspaceError: the workspace has another salt already.
        """
        if self._adopt_salt(salt) != salt:
            raise WorkspaceError(f"{self.path / 'salt'} holds another salt; a salt never changes. Use a new workspace.")

    def _adopt_salt(self, salt: bytes) -> bytes:
        """Write a salt where there is none; gives the one that holds, which another process may have written meanwhile."""
        file = self.path / "salt"
        if not file.exists():
            write_new(file, (salt.hex() + "\n").encode(), mode=0o600)
        return self.salt()

    def patient_hash(self, group: str) -> str:
        """Salted hash of a patient, 16 hex digits."""
        return hmac(self.salt(), group.encode(), sha256).hexdigest()[:16]

    def keyed_digest(self, digest: str) -> str:
        """A digest that nobody without the salt can compare with a file's, 64 hex digits; equal for equal digests.

        The key is made from the salt for this use alone.
        """
        key = hmac(self.salt(), b"medvar key of source digests", sha256).digest()
        return hmac(key, digest.encode(), sha256).hexdigest()

    def save_ingested(self, spec: CollectionSpec, toml: str, result: Ingested, *, own: bool) -> None:
        """Write what ingest found; the counts come last and mark it complete. `own`: the TOML is the user's."""
        folder = self.path / "ingest"
        write_bytes(self.path / "collections" / f"{spec.name}.toml", toml.encode())
        write_cases(folder / f"{spec.name}.parquet", result.cases, {"medvar.collection_sha256": spec.digest})
        write_rejects(folder / f"{spec.name}.rejects.parquet", result.rejects)
        rows = [_rejected_row(reject.case, reject.reason, reject.files) for reject in result.rejects]
        write_json(self.path / "rejected" / f"{spec.name}.json", rows)
        tables = {name: file_digest(folder / name) for name in _tables_of(spec.name)}
        write_json(folder / f"{spec.name}.json", asdict(_IngestNote(result.counts, result.notes, own, tables)))

    def note_rejected_files(self, name: str, rejects: Iterable[tuple[Case, Reject]]) -> None:
        """Name the files of the cases of a collection that harmonize rejected, so that a hashed key can be found again."""
        rows = [_rejected_row(case.case, reject.reason, (*case.image, *case.label)) for case, reject in rejects]
        file = self.path / "rejected" / f"{name}.harmonize.json"
        if rows or file.exists():
            write_json(file, rows)

    def note_archives(self, tree: Tree) -> None:
        """Note digest, size and needs of a tree's archives, the broken ones included; unchanged ones are not read again."""
        known = self.archive_notes()
        needs = {a.path: (a.encrypted, a.scratch_bytes) for a in tree.archives}
        needs |= {path: (False, 0) for path, _, _ in tree.broken if SEPARATOR not in path}
        for path, (encrypted, scratch_bytes) in needs.items():
            file = tree.root / path
            stat, old = file.stat(), known.get(file)
            same = old is not None and (old.n_bytes, old.modified_ns) == (stat.st_size, stat.st_mtime_ns)
            try:
                digest = old.sha256 if old and same else file_digest(file)
            except OSError:  # a broken archive, which is reported as such
                continue
            known[file] = ArchiveNote(stat.st_size, stat.st_mtime_ns, digest, encrypted, scratch_bytes)
        if needs:
            write_json(self.path / "archives.json", {str(file): asdict(note) for file, note in known.items()})

    def archive_notes(self) -> dict[Path, ArchiveNote]:
        """What was noted of archives, by their absolute paths."""
        file = self.path / "archives.json"
        if not file.exists():
            return {}
        way_on = "Delete it and run `medvar-data ingest` of the packed collections again."
        notes = read_json(file, dict[str, ArchiveNote], WorkspaceError, way_on)
        return {Path(path): note for path, note in notes.items()}

    def spec(self, name: str) -> CollectionSpec:
        """The description that ingest used for a collection."""
        file = self.path / "collections" / f"{name}.toml"
        if not file.exists():
            raise WorkspaceError(
                f"{self.path} holds no collection {name!r}; ingested are {', '.join(self.collections())}."
            )
        return parse_collection(file.read_text(encoding="utf-8"), f"collection {name}", own=self._note(name).own)

    def cases(self, name: str) -> list[Case]:
        """Cases of one collection, in ingest's order."""
        return read_cases(*self._ingest_table(f"{name}.parquet", name), name)

    def ingest_rejects(self, name: str) -> list[Reject]:
        """Cases that ingest left out."""
        return read_rejects(*self._ingest_table(f"{name}.rejects.parquet", name), WorkspaceError, INGEST_AGAIN)

    def counts(self, name: str) -> list[LayoutCount]:
        """Found beside expected, a row a layout."""
        return list(self._note(name).counts)

    def case_file(self, case: Case) -> Path:
        """Where a case's result lies."""
        return self.case_path(case.collection, case.case)

    def case_path(self, collection: str, case: str) -> Path:
        """Where the result of a case lies, by its two names."""
        return self.path / "harmonized" / collection / f"{case}.parquet"

    def harmonize_rejects(self, name: str) -> Iterator[Reject]:
        """Cases of one collection that harmonize rejected."""
        for case in self.cases(name):
            path = self.case_file(case)
            if path.exists() and (reject := read_case_file(path).reject):
                yield reject

    def kept(self, name: str) -> tuple[int, int]:
        """Cases of one collection that harmonize kept, and their slices."""
        paths = [self.case_file(case) for case in self.cases(name)]
        done = [read_case_file(path).harmonized for path in paths if path.exists()]
        counts = [d.n_kept for d in done if d]
        return len(counts), sum(counts)

    def condition_ids(self, names: set[str]) -> dict[str, int]:
        """Ids of the conditions in use: the public vocabulary's, and from 1000 the user's own, kept in the workspace."""
        public = load_conditions()
        file = self.path / "conditions.json"
        way_on = "Restore it from a copy, or begin a new workspace: ids of conditions never change."
        own = read_json(file, dict[Name, OwnId], WorkspaceError, way_on) if file.exists() else {}
        if len(set(own.values())) != len(own):
            raise WorkspaceError(f"{file} is damaged (two conditions have one id). {way_on}")
        fresh = sorted(names - public.keys() - own.keys())
        free = iter(i for i in OWN_CONDITION_IDS if i not in own.values())
        own.update(zip(fresh, free, strict=False))
        if fresh:
            write_json(file, own)
        known = {**own, **public}
        if missing := names - known.keys():
            raise WorkspaceError(
                f"All {len(OWN_CONDITION_IDS)} ids for own conditions are taken; {sorted(missing)[0]!r} has none."
            )
        return {name: known[name] for name in sorted(names)}

    def _note(self, name: str) -> _IngestNote:
        file = self.path / "ingest" / f"{name}.json"
        if not file.exists():
            raise WorkspaceError(f"Collection {name!r} was not ingested into {self.path}.")
        return read_json(file, _IngestNote, WorkspaceError, INGEST_AGAIN)

    def _ingest_table(self, table: str, name: str) -> tuple[bytes, str]:
        """The bytes of a table that ingest wrote, and its name for messages.

        Raises:
            WorkspaceError: it is gone, or not the one that ingest wrote.
        """
        file = self.path / "ingest" / table
        try:
            data = file.read_bytes()
        except OSError:
            raise WorkspaceError(f"{file} is gone, or cannot be read. {INGEST_AGAIN}") from None
        if sha256(data).hexdigest() != self._note(name).tables.get(table):
            raise WorkspaceError(f"{file} is not the one that ingest wrote: it was damaged or edited. {INGEST_AGAIN}")
        return data, str(file)


def _rejected_row(case: str, reason: Reason, files: Iterable[str]) -> dict[str, Any]:
    return {"case": case, "reason": reason.value, "files": list(files)}


def _tables_of(name: str) -> tuple[str, str]:
    return f"{name}.parquet", f"{name}.rejects.parquet"
