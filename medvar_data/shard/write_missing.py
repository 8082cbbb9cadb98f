"""Write the shards of a plan that are not there yet, by whatever engine does the work."""

from collections.abc import Callable, Sequence
from pathlib import Path

from medvar_data.engine.engine import Engine, run_tasks
from medvar_data.records import Progress
from medvar_data.shard.plan import ShardTask
from medvar_data.shard.write import is_written, raise_killed
from medvar_data.storage.store import Store, remove_partials

SLICE_MEMORY_BYTES = 400_000  # of a slice on its way: its pictures twice, its row


def missing_shards(tasks: Sequence[ShardTask], store: Store) -> list[ShardTask]:
    """The shards of a plan that are not there yet."""
    return [task for task in tasks if not is_written(task, store)]


def write_missing(
    write: Callable[[ShardTask], str],
    missing: Sequence[ShardTask],
    n_done: int,
    store: Store,
    engine: Engine,
    progress: Callable[[Progress], None],
) -> int:
    """Write the shards of the engine's part.

    Args:
        write: writes one and returns its name.
        missing: of `missing_shards`.
        n_done: shards that were there before.
        store: where they go.
        engine: who does the work.
        progress: called at the start and after every shard.

    Returns:
        How many are missing still, being other parts' work.
    """
    folders = {Path(task.plan) for task in missing} | {*filter(None, [store.folder])}
    todo = [task for task in missing if engine.part.holds(task.name)]
    total = n_done + len(todo)
    progress(Progress(n_done, total, "", "skipped"))
    try:
        names = run_tasks(write, todo, engine, raise_killed, lambda task: len(task.rows) * SLICE_MEMORY_BYTES)
        for done, name in enumerate(names, start=n_done + 1):
            progress(Progress(done, total, name, "kept"))
    finally:
        for folder in folders:
            remove_partials(folder)
    return 0 if engine.part.is_whole else len(missing_shards(missing, store))
