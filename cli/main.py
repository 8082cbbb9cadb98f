"""The entry points of the commands `medvar-data` and `medvar-model`."""

import signal
import sys


def data() -> None:
    """Run `medvar-data`; Ctrl-C while libraries load ends it at once and without a word."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from medvar_cli.console import run
    from medvar_cli.data import app

    signal.signal(signal.SIGINT, handler)
    run(app)


def model() -> None:
    """Run `medvar-model`; says how to install torch where it is missing."""
    from importlib.util import find_spec

    if find_spec("torch") is None:
        sys.exit("medvar-model needs the model side, which is not installed. Run: pip install 'medvar[model]'")
    from medvar_cli.console import run
    from medvar_cli.model import app

    run(app)
