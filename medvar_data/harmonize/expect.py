"""Expect what cases take of time, disk and memory.

The expectations come from the sizes that ingest noted from headers, calibrated by the finished cases of the workspace.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path

from medvar_data.errors import WorkspaceError
from medvar_data.records import Case
from medvar_data.storage.documents import read_json
from medvar_data.storage.store import write_json
from medvar_data.workspace.workspace import Workspace

# Measured by `python bench/memory.py` (docs/bench.md) on whole scans of several kinds, one process.
BASE_BYTES = 320_000_000  # of a process that has harmonized nothing yet


PEAK_BYTES_PER_VOXEL = 8.0  # beyond that and the inflated files, for images of 16-bit whole numbers


PEAK_BYTES_PER_WIDE_VOXEL = 14.0  # for floats, which are converted


PEAK_BYTES_PER_STACKED_VOXEL = 18.0  # for DICOM: slices are decoded apart, then stacked, and a tilted stack is moved


WIDE_VOXEL_BYTES = 4  # of image and label together; above, one of them is no 16-bit number


SECONDS_PER_CASE = 0.16


SECONDS_PER_BYTE = 10e-9  # of the inflated files, image and label, on one core


WRITTEN_BYTES_PER_VOXEL = 0.8


INFLATION = 4.0  # inflated over stored bytes, where no header tells


CALIBRATION_CASES = 5  # finished cases below which the defaults hold


CALIBRATION_FILE = "speed.json"


@dataclass(frozen=True)
class Calibration:
    """What finished cases took; kept in the workspace, added to by every run."""

    n_cases: int = 0
    seconds: float = 0.0
    inflated_bytes: int = 0
    n_voxels: int = 0
    written_bytes: int = 0


@dataclass(frozen=True)
class Expectation:
    """What the cases to do are expected to take.

    Attributes:
        core_seconds: of one core.
        wall_seconds: with the run's workers.
        written_bytes: of disk, in the workspace.
        peak_bytes: of memory, for the largest case.
        basis: where the figures come from, in words.
    """

    core_seconds: float
    wall_seconds: float
    written_bytes: int
    peak_bytes: int
    basis: str


def work_bytes(case: Case) -> int:
    """Bytes that reading a case inflates to, by its headers, else by the size of its files."""
    return case.inflated_bytes or int(case.n_bytes * INFLATION)


def n_voxels(case: Case) -> int:
    """Voxels of a case by its header, else by its bytes, two a voxel and a third of them the label's."""
    return case.n_voxels or work_bytes(case) // 3


def peak_bytes(case: Case) -> int:
    """Memory that one process is expected to need for a case."""
    wide = work_bytes(case) > WIDE_VOXEL_BYTES * n_voxels(case)
    per_voxel = PEAK_BYTES_PER_WIDE_VOXEL if wide else PEAK_BYTES_PER_VOXEL
    if case.reader != "volume":
        per_voxel = PEAK_BYTES_PER_STACKED_VOXEL
    return BASE_BYTES + int(per_voxel * n_voxels(case)) + work_bytes(case)


def usual_seconds(n_cases: int, inflated_bytes: int) -> float:
    """Seconds of one core that cases take where nothing better is known."""
    return SECONDS_PER_CASE * n_cases + SECONDS_PER_BYTE * inflated_bytes


def expect(cases: list[Case], known: Calibration, workers: int) -> Expectation:
    """Expect time, disk and memory for some cases."""
    calibrated = known.n_cases >= CALIBRATION_CASES and known.inflated_bytes > 0 and known.n_voxels > 0
    pace = known.seconds / usual_seconds(known.n_cases, known.inflated_bytes) if calibrated else 1.0
    written_per_voxel = known.written_bytes / known.n_voxels if calibrated else WRITTEN_BYTES_PER_VOXEL
    seconds = [pace * usual_seconds(1, work_bytes(case)) for case in cases]
    core_seconds = math.fsum(seconds)
    return Expectation(
        core_seconds=core_seconds,
        wall_seconds=max(core_seconds / max(1, workers), max(seconds, default=0.0)),
        written_bytes=int(written_per_voxel * sum(map(n_voxels, cases))),
        peak_bytes=max(map(peak_bytes, cases), default=0),
        basis=f"{known.n_cases} finished cases of this workspace" if calibrated else "defaults measured by medvar",
    )


def read_calibration(workspace: Workspace) -> Calibration:
    """Read what finished cases took; nothing is known where no run has ended yet."""
    file = workspace.path / CALIBRATION_FILE
    try:
        return read_json(file, Calibration, WorkspaceError, "")
    except (OSError, WorkspaceError):
        return Calibration()


def add_calibration(workspace: Workspace, took: list[tuple[Case, float, Path]]) -> None:
    """Add kept cases with the seconds that they took and their files to what is known of the workspace."""
    known = read_calibration(workspace)
    if took:
        write_json(
            workspace.path / CALIBRATION_FILE,
            asdict(
                Calibration(
                    n_cases=known.n_cases + len(took),
                    seconds=known.seconds + sum(seconds for _, seconds, _ in took),
                    inflated_bytes=known.inflated_bytes + sum(work_bytes(case) for case, _, _ in took),
                    n_voxels=known.n_voxels + sum(n_voxels(case) for case, _, _ in took),
                    written_bytes=known.written_bytes + sum(path.stat().st_size for _, _, path in took),
                )
            ),
        )
