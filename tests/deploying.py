"""Runs a command of the release on small versions instead of BentoML's: python tests/deploying.py COMMAND [ARGUMENT ...]

KILL_AT=n ends it with -9 as it has written the n-th line of its journal. The guard beside it is the real one.
"""

import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

from src.release import site
from src.release.journal import Journal
from src.release.processes import Processes


class SmallProcesses(Processes):
    """Processes with a small server in place of BentoML; nothing is to be installed."""

    def _command(self, bento: Path, port: int) -> list[str]:
        return [sys.executable, str(Path(__file__).with_name("small_version.py")), str(bento), str(port)]

    def _python(self, bento: Path) -> Path:
        return Path(sys.executable)


def kill_at(line: int) -> None:
    """End this process when so many lines were written."""
    write, lines = Journal.note, [0]

    def note(self: Journal, *arguments: Any, **facts: Any) -> None:
        write(self, *arguments, **facts)
        lines[0] += 1
        if lines[0] == line:
            os.kill(os.getpid(), signal.SIGKILL)

    Journal.note = note  # type: ignore[method-assign]


if __name__ == "__main__":
    site.open_host = SmallProcesses  # type: ignore[assignment]
    kill_at(int(os.environ.get("KILL_AT", "0")))
    command = sys.argv.pop(1)
    runpy.run_module(f"src.release.{command}", run_name="__main__")
