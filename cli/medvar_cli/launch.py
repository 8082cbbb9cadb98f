"""Start `medvar-model train` on several GPUs: torchrun, but a stop or a wrong option ends it in the sentence of the command itself.

`python -m medvar_cli.launch --nproc-per-node 8 train tokenizer SHARDS -o RUN` takes torchrun's options before the command and leaves
with the command's exit code: 2 where something is wrong; where it was stopped, 128 and the signal's number, or 0 with `--stop-is-success`.
"""

import os
import sys
import tempfile
from pathlib import Path

from medvar_cli.model_feedback import STOPPED_NOTE

COMMAND = "medvar_cli.model_commands"


def main() -> None:
    """Run torchrun on this module's arguments."""
    from torch.distributed.elastic.multiprocessing.api import SignalException  # slow to import
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    at = next((n for n, word in enumerate(sys.argv[1:]) if word in ("train", "sample", "evaluate")), None)
    if at is None:
        print(
            "error: no command; wanted torchrun's options and then train, sample or evaluate with theirs.",
            file=sys.stderr,
        )
        sys.exit(2)
    options, command = sys.argv[1 : at + 1], sys.argv[at + 1 :]
    with tempfile.TemporaryDirectory() as folder:
        note = Path(folder) / "stopped"
        os.environ[STOPPED_NOTE] = str(note)
        try:
            torchrun([*options, "-m", COMMAND, *command])
        except SignalException as stopped:
            sys.exit(0 if note.exists() else 128 + int(stopped.sigval))
        except ChildFailedError as failed:
            codes = [failure.exitcode for failure in failed.failures.values()]
            sys.exit(next((code for code in codes if code > 0), 1))


if __name__ == "__main__":
    main()
