"""What both commands share: how errors end a command, how progress and tables are shown."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from medvar_data.errors import MedvarError

OK, SOME_REJECTED, WRONG = 0, 1, 2
INTERRUPTED = 130  # the shell's number for a process that an interrupt ended
REPORT_SECONDS = 30.0  # between two lines of progress where no terminal shows a bar
STOPPED = "Stopped. What is finished stays; the same command goes on from here."
PIPED_WIDTH = 160  # columns where the output is no terminal
console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPED_WIDTH)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


def run(app: typer.Typer, *, tells_stops: bool = False) -> None:
    """Run an app; an error of ours becomes one sentence on standard error and exit code 2.

    Args:
        app: the commands.
        tells_stops: the app itself says what an interrupt left behind; otherwise a sentence of ours does.
    """
    try:
        app()
    except MedvarError as error:
        fail(str(error))
    except OSError as error:
        typed = {part for argument in sys.argv for part in (argument, argument.partition("=")[2])}
        fail(f"{error.strerror or error}{f': {error.filename}' if str(error.filename) in typed else ''}")
    except KeyboardInterrupt:
        interrupted(STOPPED)
    except SystemExit as left:  # Typer's own answer to Ctrl-C is silence
        if left.code == INTERRUPTED and not tells_stops:
            interrupted(STOPPED)
        raise


def fail(sentence: str) -> None:
    """Print one sentence and leave with exit code 2."""
    errors.print(f"error: {sentence}", markup=False)
    sys.exit(WRONG)


def interrupted(sentence: str) -> NoReturn:
    """Print one sentence and leave as a process that was interrupted."""
    errors.print(sentence, markup=False)
    sys.exit(INTERRUPTED)


def print_json(value: Any) -> None:
    """Print one JSON document, for machines."""
    print(json.dumps(value, indent=2, default=str))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; columns of numbers are set flush right."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    for n, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[n], int | float) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", no_wrap=n < len(columns) - 1)
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    console.print(table)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


class _LineReport:
    """Progress for logs: a line every half minute."""

    def __init__(self, title: str) -> None:
        self.title, self.last = title, time.monotonic()

    def __call__(self, progress: Any) -> None:
        if time.monotonic() - self.last >= REPORT_SECONDS:
            self.last = time.monotonic()
            errors.print(f"{self.title}: {progress.done:,} of {progress.total:,}", markup=False)


@contextmanager
def progress_bar(title: str, *, quiet: bool = False) -> Iterator[Callable[[Any], None]]:
    """Show a bar that is fed `Progress` records, or a line now and then where no terminal is attached; or be silent."""
    if not quiet and not errors.is_terminal:
        yield _LineReport(title)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=errors, disable=quiet, transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda p: bar.update(task, completed=p.done, total=p.total, description=f"{title} {p.name}")
