"""Count what harmonize left in a workspace: kept and rejected cases, labels that no case holds, labels that lose much.

In: a workspace and a recipe. Out: a `HarmonizeSummary`; it adds up, or it is a fault of ours. On the way the files of the
rejected cases are noted in the workspace.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from medvar_data.catalog.collection import CollectionSpec
from medvar_data.catalog.recipe import Recipe
from medvar_data.errors import MedvarError
from medvar_data.harmonize.dependencies import wanted_inputs
from medvar_data.harmonize.plan import Pending
from medvar_data.records import Case, HarmonizedCase, Reject
from medvar_data.workspace.case_file import read_case_file, why_to_do
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


@dataclass
class _Labels:
    """The labels of a collection over its kept cases, and what the thresholds for small components took of each."""

    n_labelled: int = 0
    all_mm3: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    lost_mm3: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    n_cases: Counter[int] = field(default_factory=Counter)
    n_shrunk: Counter[int] = field(default_factory=Counter)

    def add(self, case: HarmonizedCase) -> None:
        self.n_labelled += bool(case.label_digest)
        for label, mm3 in case.label_mm3.items():
            self.all_mm3[label] += mm3
            self.lost_mm3[label] += case.removed_label_mm3.get(label, 0.0)
        self.n_cases.update(case.label_mm3.keys())
        self.n_shrunk.update(label for label, share in case.removed_label_share().items() if share > MUCH_REMOVED)

    def never_met(self, spec: CollectionSpec) -> tuple[str, ...]:
        absent = dict.fromkeys(label.name for label in spec.labels if label.id not in self.n_cases)
        return tuple(absent) if self.n_labelled else ()

    def shrunk(self, spec: CollectionSpec) -> Iterator[ShrunkLabel]:
        names = {row.id: row.name for row in spec.labels}
        for label, n_shrunk in sorted(self.n_shrunk.items()):
            share = self.lost_mm3[label] / self.all_mm3[label]
            yield ShrunkLabel(spec.name, names[label], self.n_cases[label], n_shrunk, share)


@dataclass
class _Counts:
    kept: int = 0
    slices: int = 0
    elsewhere: int = 0
    found: int = 0
    rejects: list[Reject] = field(default_factory=list)


def summarize(workspace: Workspace, recipe: Recipe, names: list[str], pending: Pending) -> HarmonizeSummary:
    """Count over everything ingested of some collections.

    Args:
        workspace: after a run.
        recipe: of the run.
        names: collections.
        pending: what was to do before the run.
    """
    counts, never_met, shrunk = _Counts(), {}, list[ShrunkLabel]()
    for name in names:
        spec = workspace.spec(name)
        labels = _count_collection(workspace, recipe, spec, pending, counts)
        if absent := labels.never_met(spec):
            never_met[name] = absent
        shrunk += labels.shrunk(spec)
    if counts.found != counts.kept + len(counts.rejects) + counts.elsewhere:
        raise MedvarError(
            f"{counts.found} cases in, but {counts.kept} kept, {len(counts.rejects)} rejected and {counts.elsewhere} left to others; "
            "this is a fault of medvar, please report it."
        )
    return HarmonizeSummary(
        n_cases=counts.found,
        n_kept=counts.kept,
        n_rejected=len(counts.rejects),
        n_skipped=pending.n_finished,
        n_elsewhere=counts.elsewhere,
        n_slices=counts.slices,
        reasons=dict(Counter(reject.reason.value for reject in counts.rejects)),
        rejects=tuple(counts.rejects),
        never_met=never_met,
        shrunk=tuple(shrunk),
    )


def _count_collection(
    workspace: Workspace, recipe: Recipe, spec: CollectionSpec, pending: Pending, counts: _Counts
) -> _Labels:
    labels = _Labels()
    files: list[tuple[Case, Reject]] = []
    early = workspace.ingest_rejects(spec.name)
    counts.rejects += early
    counts.found += len(early)
    for case in workspace.cases(spec.name):
        counts.found += 1
        path = workspace.case_file(case)
        if pending.n_elsewhere and why_to_do(path, wanted_inputs(case, spec, recipe)):
            counts.elsewhere += 1
            continue
        file = read_case_file(path)
        if file.reject:
            counts.rejects.append(file.reject)
            files.append((case, file.reject))
        elif file.harmonized:
            counts.kept += 1
            counts.slices += file.harmonized.n_kept
            labels.add(file.harmonized)
    workspace.note_rejected_files(spec.name, files)
    return labels
