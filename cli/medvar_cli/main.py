"""The entry points of the commands `medvar-data` and `medvar-model`."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def data() -> None:
    """Run `medvar-data`."""
    with _quiet_import():
        from medvar_cli.console import run
        from medvar_cli.data_commands import app
    run(app)


def model() -> None:
    """Run `medvar-model`; says how to install torch where it is missing."""
    from importlib.util import find_spec

    if find_spec("torch") is None:
        sys.exit("medvar-model needs the model side, which is not installed. Run: pip install 'medvar[model]'")
    with _quiet_import():
        from medvar_cli.console import run
        from medvar_cli.model_commands import app
    run(app)


@contextmanager
def _quiet_import() -> Iterator[None]:
    """Let an interrupt while libraries load end the process with a sentence, not in the middle of somebody's module."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # a shell's background job ignores interrupts, and goes on doing so
        signal.signal(signal.SIGINT, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _leave(number: int, frame: object) -> None:
    os.write(2, b"Stopped before anything began.\n")
    os._exit(128 + number)
