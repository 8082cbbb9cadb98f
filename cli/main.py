"""The entry points of the commands `medvar-data` and `medvar-model`."""

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
    from medvar_cli.console import run
    from medvar_cli.model import app

    run(app)
