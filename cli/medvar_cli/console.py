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
from rich.text import Text
from typer.core import TyperGroup

from medvar_data.errors import MedvarError
from medvar_data.naming import printable

OK, SOME_REJECTED, WRONG = 0, 1, 2
DIFFERENT = 1  # of two sets
INTERRUPTED = 130  # the shell's number for a process that an interrupt ended
REPORT_SECONDS = 30.0  # between two lines of progress where no terminal shows a bar
STOPPED = "Stopped. What is finished stays; the same command goes on from here."
REDONE = "Stopped. What was not finished is left out; the same command does it again."
STOPPED_AT = {
    "train": "Stopped at once. The same command goes on from the last checkpoint.", "sample": REDONE, "evaluate": REDONE,
    "utility": REDONE,
}  # fmt: skip
HELP_NAMES: dict[str, Any] = {"help_option_names": ["-h", "--help"]}
PIPED_WIDTH = 160  # columns where the output is no terminal
MOST_LETTERS = 4000  # of a cell or an error
console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPED_WIDTH)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


class Program(TyperGroup):
    """The commands of a program. How an error ends one of them is said here, and nowhere else.

    An error of ours and one of the operating system become one sentence on standard error and exit code 2; an interrupt
    becomes a sentence that says what it left behind, and exit code 130.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except MedvarError as error:
            fail(str(error))
        except BrokenPipeError:  # the reader of a pipe has left: Typer ends without a word
            raise
        except OSError as error:
            fail(_os_sentence(error, names_files=bool(ctx.obj)))
        except KeyboardInterrupt:
            interrupted(STOPPED_AT.get(ctx.invoked_subcommand or "", STOPPED))


def program(help_text: str, *, names_files: bool) -> typer.Typer:
    """Begin a program without commands.

    Args:
        help_text: what the program is for.
        names_files: an error of the operating system may name any file. Otherwise it names what the user typed alone,
            since other names may be those of patients.
    """
    return typer.Typer(
        cls=Program,
        help=help_text,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
        context_settings={**HELP_NAMES, "obj": names_files},
    )


def run(app: typer.Typer) -> None:
    """Run a program on the arguments of this process, and leave with its exit code."""
    app()


def _os_sentence(error: OSError, *, names_files: bool) -> str:
    typed = {part for argument in sys.argv for part in (argument, argument.partition("=")[2])}
    file = f": {error.filename}" if error.filename and (names_files or str(error.filename) in typed) else ""
    return f"{error.strerror or error}{file}. Check the path, its permissions and the space left on that disk."


def fail(sentence: str) -> NoReturn:
    """Print one sentence and leave with exit code 2."""
    errors.print(f"error: {printable(sentence, MOST_LETTERS, lines=True)}", markup=False)
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
        table.add_row(*(Text(printable(_cell(value), MOST_LETTERS)) for value in row))  # as it is, brackets and all
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
