"""Part the cases of a run so that what has to be unpacked for each part fits into scratch, and unpack it in time.

In: cases to harmonize and what the workspace noted of their archives. Out: batches; a batch's archives are unpacked when it is
given out, and gone when the next one is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from medvar_data.errors import CaseRejected, Reason, SourceError
from medvar_data.harmonize.plan import CaseTask
from medvar_data.records import Case
from medvar_data.sources.archives import SEPARATOR, Access, clear_scratch, list_archive, room_bytes
from medvar_data.workspace.workspace import ArchiveNote, archives_of


def unpacked_batches(
    tasks: Sequence[CaseTask], notes: dict[Path, ArchiveNote], access: Access
) -> Iterator[list[CaseTask]]:
    """Give out the tasks in batches, first those that need nothing unpacked; each task carries `access`.

    Raises:
        SourceError: an archive of a case needs another password or more scratch space.
    """
    ready = [replace(task, access=access) for task in tasks]
    packed = {
        t.name: {a: notes[a] for a in archives_of(t.case) if a in notes and notes[a].scratch_bytes} for t in ready
    }
    users: dict[Path, list[Case]] = {}
    for task in ready:
        for archive in archives_of(task.case) & notes.keys():
            users.setdefault(archive, []).append(task.case)
    for archive, cases in users.items():
        if notes[archive].encrypted and not notes[archive].scratch_bytes:
            _check_opens(archive, cases)
    if plain := [task for task in ready if not packed[task.name]]:
        yield plain
    batch: list[CaseTask] = []
    held: dict[Path, int] = {}
    for task in sorted((t for t in ready if packed[t.name]), key=lambda t: min(packed[t.name])):
        more = {a: note.scratch_bytes for a, note in packed[task.name].items()}
        if batch and sum((held | more).values()) > room_bytes():
            yield batch
            clear_scratch()
            batch, held = [], {}
        for archive in more.keys() - held.keys():
            _check_opens(archive, users[archive])
        batch.append(task)
        held |= more
    if batch:
        yield batch


def _check_opens(archive: Path, cases: list[Case]) -> None:
    """List an archive again, which unpacks what has to be and tries the passwords; damage is left to its cases to tell."""
    root = Path(cases[0].root)
    path = archive.relative_to(root).as_posix()
    try:
        failed = list_archive(root, path).broken
    except CaseRejected as error:
        failed = (("", error.reason, error.detail),)
    for inner, reason, detail in failed:
        within = f"{path}{SEPARATOR}{inner}" if inner else path
        used = any(name.startswith(f"{within}{SEPARATOR}") for case in cases for name in (*case.image, *case.label))
        if used and reason in (Reason.ARCHIVE_PASSWORD, Reason.SCRATCH_FULL):
            raise SourceError(f"{cases[0].collection}: {detail}.")
