"""Harmonize the cases of a workspace: what is not finished yet, in parallel, each case to a file of its own."""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from medvar_data.catalog.collection import CollectionSpec
from medvar_data.catalog.recipe import Recipe
from medvar_data.engine.engine import Engine, as_engine, run_tasks
from medvar_data.engine.memory import show_size
from medvar_data.errors import CaseRejected, MedvarError, Reason, SourceError
from medvar_data.harmonize.dependencies import recipe_for, wanted_inputs
from medvar_data.harmonize.expect import add_calibration, peak_bytes
from medvar_data.harmonize.harmonize import harmonize
from medvar_data.harmonize.plan import CaseTask, Pending, pending_cases
from medvar_data.harmonize.unpack import unpacked_batches
from medvar_data.readers.read import read_scan
from medvar_data.records import HarmonizedCase, Progress, Reject
from medvar_data.sources.archives import DEFAULT_ACCESS, AccessSpec, open_access, reading
from medvar_data.storage.store import remove_partials
from medvar_data.workspace.case_file import read_case_file, why_to_do, write_kept, write_rejected
from medvar_data.workspace.workspace import Workspace

MUCH_REMOVED = 0.1  # of a label's volume in a case


@dataclass(frozen=True)
class ShrunkLabel:
    """A label of which the thresholds for small components take more than a tenth in some case."""

    collection: str
    label: str
    n_cases: int  # that hold it
    n_shrunk: int  # that lose more than a tenth of it
    share: float  # of its volume over all cases


@dataclass(frozen=True)
class HarmonizeSummary:
    """What one run of harmonize did; found = kept + rejected + left to other parts, over everything ingested."""

    n_cases: int
    n_kept: int
    n_rejected: int
    n_skipped: int  # finished before this run
    n_elsewhere: int  # left to other parts and not finished yet
    n_slices: int
    reasons: dict[str, int]
    rejects: tuple[Reject, ...]
    never_met: dict[str, tuple[str, ...]]  # per collection, labels that it defines and no kept case holds
    shrunk: tuple[ShrunkLabel, ...]  # labels of which the thresholds for small components take much


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
    return _summary(workspace, recipe, names or workspace.collections(), pending)


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
    write_kept(path, volume, case, inputs, task.recipe.codec)
    return _Outcome(task.name, "kept", time.perf_counter() - started)


def _killed(task: CaseTask) -> _Outcome:
    detail = (
        "its process died, or ran out of memory, twice, the second time alone; "
        f"it was expected to need {show_size(peak_bytes(task.case))} of memory"
    )
    inputs = wanted_inputs(task.case, task.spec, task.recipe)
    write_rejected(Path(task.path), CaseRejected(Reason.WORKER_KILLED, detail), task.case, inputs)
    return _Outcome(task.name, "rejected", 0.0)


def _summary(workspace: Workspace, recipe: Recipe, names: list[str], pending: Pending) -> HarmonizeSummary:
    rejects: list[Reject] = []
    never_met: dict[str, tuple[str, ...]] = {}
    shrunk: list[ShrunkLabel] = []
    kept = slices = found = elsewhere = 0
    for name in names:
        spec = workspace.spec(name)
        early = workspace.ingest_rejects(name)
        rejects += early
        found += len(early)
        met: set[int] = set()
        n_labelled = 0
        losses = _LabelLosses()
        for case in workspace.cases(name):
            found += 1
            path = workspace.case_file(case)
            if pending.n_elsewhere and why_to_do(path, wanted_inputs(case, spec, recipe)):
                elsewhere += 1
                continue
            file = read_case_file(path)
            if file.reject:
                rejects.append(file.reject)
            elif file.harmonized:
                kept += 1
                slices += file.harmonized.n_kept
                met |= file.harmonized.label_mm3.keys()
                n_labelled += bool(file.harmonized.label_digest)
                losses.add(file.harmonized)
        absent = tuple(dict.fromkeys(label.name for label in spec.labels if label.id not in met))
        if n_labelled and absent:
            never_met[name] = absent
        shrunk += losses.shrunk(spec)
    if found != kept + len(rejects) + elsewhere:
        raise MedvarError(
            f"{found} cases in, but {kept} kept, {len(rejects)} rejected and {elsewhere} left to others; "
            "this is a fault of medvar, please report it."
        )
    reasons = dict(Counter(reject.reason.value for reject in rejects))
    return HarmonizeSummary(
        found,
        kept,
        len(rejects),
        pending.n_finished,
        elsewhere,
        slices,
        reasons,
        tuple(rejects),
        never_met,
        tuple(shrunk),
    )


@dataclass
class _LabelLosses:
    """What the thresholds for small components took of each label, over the cases of a collection."""

    all_mm3: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    lost_mm3: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    n_cases: Counter[int] = field(default_factory=Counter)
    n_shrunk: Counter[int] = field(default_factory=Counter)

    def add(self, case: HarmonizedCase) -> None:
        for label, mm3 in case.label_mm3.items():
            self.all_mm3[label] += mm3
            self.lost_mm3[label] += case.removed_label_mm3.get(label, 0.0)
        self.n_cases.update(case.label_mm3.keys())
        self.n_shrunk.update(label for label, share in case.removed_label_share().items() if share > MUCH_REMOVED)

    def shrunk(self, spec: CollectionSpec) -> Iterator[ShrunkLabel]:
        names = {row.id: row.name for row in spec.labels}
        for label, n_shrunk in sorted(self.n_shrunk.items()):
            share = self.lost_mm3[label] / self.all_mm3[label]
            yield ShrunkLabel(spec.name, names[label], self.n_cases[label], n_shrunk, share)
