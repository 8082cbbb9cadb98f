"""Write phantom collections to disk, patient by patient, in one process or several.

In: a folder, a seed, how many patients. Out: one folder per collection, ready for `medvar-data ingest`. What describes a
whole collection (dataset.json, the CHAOS archive) is written last, by one process.
"""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from medvar_data.demo.phantoms.anatomy import CELLS
from medvar_data.demo.phantoms.broken import write_broken
from medvar_data.demo.phantoms.layouts import LAYOUTS, Order
from medvar_data.errors import SpecError

CHAOS_PATIENTS = 2  # a CT case there is dozens of files


def write_phantoms(
    root: Path,
    *,
    seed: int = 0,
    patients: int = 8,
    cells: Sequence[str] | None = None,
    broken: bool = True,
    workers: int = 1,
    canary: str | None = None,
) -> dict[str, Path]:
    """Write phantom collections below `root`.

    Args:
        root: where the collections' folders go.
        seed: the same seed gives the same bytes, whatever `workers` is.
        patients: of each collection (CHAOS: at most 2, as DICOM).
        cells: keys of `CELLS` to write; all where None.
        broken: add the cases of `write_broken`.
        workers: processes.
        canary: text to put into every header field that could name a person, for a privacy test.

    Returns:
        Name of each collection written -> the folder to ingest.

    >>> write_phantoms(Path("data"), patients=2, cells=["heart-mr"])
    {'acdc': PosixPath('data/acdc')}
    """
    chosen = tuple(CELLS if cells is None else cells)
    unknown = sorted(set(chosen) - set(CELLS))
    if unknown or patients < 1:
        raise SpecError(
            f"Cannot write phantoms of {', '.join(unknown) or 'no patients'}; "
            f"choose at least one patient and cells among {', '.join(CELLS)}."
        )
    folders = {name: root / name for name, layout in LAYOUTS.items() if layout.cell in chosen}
    orders = [
        (name, Order(folder, patient, seed, canary))
        for name, folder in folders.items()
        for patient in range(min(patients, CHAOS_PATIENTS) if name == "chaos" else patients)
    ]
    for stale in root.glob("chaos/CHAOS_Train_Sets.zip"):
        stale.unlink()  # members are appended
    parallel = [order for order in orders if order[0] != "chaos"]  # one archive, one writer
    if workers > 1:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            list(pool.map(_write_one, *zip(*parallel, strict=True), chunksize=4)) if parallel else None
    else:
        for name, order in parallel:
            _write_one(name, order)
    for name, order in orders:
        if name == "chaos":
            _write_one(name, order)
    if broken:
        write_broken(root, seed=seed, collections=tuple(folders), canary=canary)
    for name, folder in folders.items():
        LAYOUTS[name].finish(folder)
    return folders


def _write_one(name: str, order: Order) -> None:
    LAYOUTS[name].write(order)
