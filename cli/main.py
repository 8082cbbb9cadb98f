"""The entry points of the commands `medvar-data` and `medvar-model`."""

import os
import signal
import sys


def data() -> None:
    """Run `medvar-data`."""
    from medvar_cli.console import run
    from medvar_cli.data import app

    run(app)


def model() -> None:
    """Run `medvar-model`; says how to install torch where it is missing."""
    from importlib.util import find_spec

    if find_spec("torch") is None:
        sys.exit("medvar-model needs the model side, which is not installed. Run: pip install 'medvar[model]'")
    # An interrupt while torch is imported would come out of the middle of somebody's module.
    before = signal.signal(signal.SIGINT, _leave)
    from medvar_cli.console import run
    from medvar_cli.model import app

    signal.signal(signal.SIGINT, before)
    run(app)


def _leave(number: int, frame: object) -> None:
    os.write(2, b"Stopped before anything began.\n")
    os._exit(128 + number)
