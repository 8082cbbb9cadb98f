"""Harmonize the cases of a workspace: what is not finished yet, in parallel, each case to a file of its own."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from medvar_data.catalog.recipe import Recipe
from medvar_data.engine.engine import Engine, as_engine, run_tasks
from medvar_data.engine.memory import show_size
from medvar_data.errors import CaseRejected, Reason, SourceError
from medvar_data.harmonize.dependencies import recipe_for, wanted_inputs
from medvar_data.harmonize.expect import add_calibration, peak_bytes
from medvar_data.harmonize.harmonize import harmonize
from medvar_data.harmonize.plan import CaseTask, pending_cases
from medvar_data.harmonize.summary import HarmonizeSummary, summarize
from medvar_data.harmonize.unpack import unpacked_batches
from medvar_data.readers.read import read_scan
from medvar_data.records import Progress
from medvar_data.sources.archives import DEFAULT_ACCESS, AccessSpec, open_access, reading
from medvar_data.storage.store import remove_partials
from medvar_data.workspace.case_file import why_to_do, write_kept, write_rejected
from medvar_data.workspace.workspace import Workspace


@dataclass(frozen=True)
class _Outcome:
    name: str
    status: str  # kept, rejected or skipped
    seconds: float


def run_harmonize(
    workspace: Workspace,
    recipe: Recipe,
    engine: Engine | int,
    progress: Callable[[Progress], None],
    names: list[str] | None = None,
    archives: AccessSpec = DEFAULT_ACCESS,
) -> HarmonizeSummary:
    """Harmonize every ingested case that is not finished yet; the same call again goes on where it stopped.

    Args:
        workspace: with ingested collections.
        recipe: how.
        engine: who does the work; a number means so many processes of this machine.
        progress: called at the start and after every case.
        names: collections; all where None.
        archives: passwords, and where to unpack what cannot be read in place.

    Raises:
        SourceError: an archive needs another password or more scratch space. Nothing is rejected for that.
    """
    engine = as_engine(engine)
    remove_partials(workspace.path / "harmonized")
    pending = pending_cases(workspace, recipe, names, engine.part)
    done, total = pending.n_finished, len(pending.tasks) + pending.n_finished
    task_of = {task.name: task for task in pending.tasks}
    progress(Progress(done, total, "", "skipped"))
    took = []
    try:
        with open_access(archives) as access:
            for batch in unpacked_batches(pending.tasks, workspace.archive_notes(), access):
                for outcome in run_tasks(_harmonize_case, batch, engine, _killed, lambda task: peak_bytes(task.case)):
                    done += 1
                    if outcome.status == "kept":
                        task = task_of[outcome.name]
                        took.append((task.case, outcome.seconds, Path(task.path)))
                    progress(Progress(done, total, outcome.name, outcome.status))
    finally:
        remove_partials(workspace.path / "harmonized")
    add_calibration(workspace, took)
    return summarize(workspace, recipe, names or workspace.collections(), pending)


def _harmonize_case(task: CaseTask) -> _Outcome:
    """Read, harmonize and commit one case; a bad case becomes a rejected one."""
    path, case = Path(task.path), task.case
    inputs = wanted_inputs(case, task.spec, task.recipe)
    if not why_to_do(path, inputs, retry=True):
        return _Outcome(task.name, "skipped", 0.0)  # another run has finished it meanwhile
    if not Path(case.root).is_dir():
        raise SourceError(
            f"The folder that {case.collection} was found in is not there (any more) on this machine. Mount it, or run ingest "
            "again; nothing was rejected, and the same command goes on from here."
        )
    started = time.perf_counter()
    try:
        recipe_for(case, task.recipe)
        with reading(task.access):
            scan = read_scan(case, task.spec)
        volume = harmonize(scan, case, task.spec, task.recipe)
    except CaseRejected as error:
        write_rejected(path, error, case, inputs)
        return _Outcome(task.name, "rejected", time.perf_counter() - started)
    write_kept(path, volume, case, inputs)
    return _Outcome(task.name, "kept", time.perf_counter() - started)


def _killed(task: CaseTask) -> _Outcome:
    detail = (
        "its process died, or ran out of memory, twice, the second time alone; "
        f"it was expected to need {show_size(peak_bytes(task.case))} of memory"
    )
    inputs = wanted_inputs(task.case, task.spec, task.recipe)
    write_rejected(Path(task.path), CaseRejected(Reason.WORKER_KILLED, detail), task.case, inputs)
    return _Outcome(task.name, "rejected", 0.0)
