"""Tell what harmonize is to do and why, what it will take of time, disk and memory, without doing it.

The expectations come from the sizes that ingest noted from headers, calibrated by the finished cases of the workspace.
"""

from collections import Counter
from dataclasses import dataclass, field

from medvar_data.catalog.collection import CollectionSpec
from medvar_data.catalog.recipe import Recipe
from medvar_data.engine.engine import WHOLE, Engine, Part
from medvar_data.harmonize.dependencies import wanted_inputs
from medvar_data.harmonize.expect import Expectation, expect, read_calibration, work_bytes
from medvar_data.records import Case
from medvar_data.sources.archives import NOTHING_OPEN, Access
from medvar_data.workspace.case_file import why_to_do
from medvar_data.workspace.workspace import Workspace


@dataclass(frozen=True)
class CaseTask:
    """One case to harmonize, why, and where its result goes."""

    case: Case = field(repr=False)  # what a scheduler logs of a task names no person and no path
    spec: CollectionSpec = field(repr=False)
    recipe: Recipe = field(repr=False)
    path: str = field(repr=False)
    why: tuple[str, ...]
    access: Access = NOTHING_OPEN  # to packed sources

    @property
    def name(self) -> str:
        """Collection and case, as people are told."""
        return f"{self.case.collection}/{self.case.case}"


@dataclass(frozen=True)
class Pending:
    """Cases to do, the largest first so that no giant is left to the end, and how the others stand."""

    tasks: tuple[CaseTask, ...]
    n_finished: int
    n_elsewhere: int  # to do, but of other parts


@dataclass(frozen=True)
class Todo:
    """One case to do, and why."""

    collection: str
    case: str
    why: str


@dataclass(frozen=True)
class HarmonizePlan:
    """What harmonize would do."""

    n_todo: int
    n_finished: int
    n_elsewhere: int
    todo_bytes: int  # of source files
    todo_by_collection: dict[str, int]
    todo_by_reason: dict[str, int]
    expected: Expectation
    todo: tuple[Todo, ...]


def plan_harmonize(
    workspace: Workspace, recipe: Recipe, names: list[str] | None = None, engine: Engine | None = None
) -> HarmonizePlan:
    """Tell what `run_harmonize` would do with the same arguments."""
    engine = engine or Engine()
    pending = pending_cases(workspace, recipe, names, engine.part)
    todo = tuple(Todo(t.case.collection, t.case.case, ", ".join(t.why)) for t in pending.tasks)
    return HarmonizePlan(
        n_todo=len(todo),
        n_finished=pending.n_finished,
        n_elsewhere=pending.n_elsewhere,
        todo_bytes=sum(t.case.n_bytes for t in pending.tasks),
        todo_by_collection=dict(sorted(Counter(t.collection for t in todo).items())),
        todo_by_reason=dict(Counter(t.why for t in todo).most_common()),
        expected=expect([t.case for t in pending.tasks], read_calibration(workspace), engine.workers),
        todo=tuple(sorted(todo, key=lambda t: (t.collection, t.case))),
    )


def pending_cases(workspace: Workspace, recipe: Recipe, names: list[str] | None = None, part: Part = WHOLE) -> Pending:
    """Find the cases whose result is missing, damaged or made from other inputs."""
    tasks, finished, elsewhere = [], 0, 0
    for name in names or workspace.collections():
        spec = workspace.spec(name)
        for case in workspace.cases(name):
            path = workspace.case_file(case)
            why = why_to_do(path, wanted_inputs(case, spec, recipe), retry=True)
            if not why:
                finished += 1
            elif part.holds(f"{case.collection}/{case.case}"):
                tasks.append(CaseTask(case, spec, recipe, str(path), why))
            else:
                elsewhere += 1
    tasks.sort(key=lambda t: (-work_bytes(t.case), t.case.collection, t.case.case))
    return Pending(tuple(tasks), finished, elsewhere)
