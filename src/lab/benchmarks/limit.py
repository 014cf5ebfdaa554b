"""What the cores reach at most: decode and `session.run` in plain loops without any HTTP, in several layouts."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from src.core.command import UserError, cores

_BATCH = 16


class Layout(NamedTuple):
    """So many processes, each with so many threads and images in a batch."""

    processes: int
    threads: int
    batch: int

    def __str__(self) -> str:
        processes = "1 process" if self.processes == 1 else f"{self.processes} processes"
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{processes} x {threads}, batches of {self.batch}"


class Limit(NamedTuple):
    """Images a second in each layout, and the median ms of one image alone, in the layout that is quickest with it."""

    rates: dict[str, float]
    p50_ms: float

    @property
    def best(self) -> float:
        """Images a second in the best layout."""
        return max(self.rates.values())


def layouts() -> list[Layout]:
    """Return what is tried: one thread, all threads, one process a core; images alone and in batches."""
    n = cores()
    tried = [Layout(1, 1, 1), Layout(1, n, 1), Layout(n, 1, 1), Layout(n, 1, _BATCH), Layout(1, n, _BATCH)]
    return list(dict.fromkeys(tried))


class Loops:
    """One process a core, which wait while others are measured."""

    def __init__(self, model: Path, precision: str, files: Sequence[Path]) -> None:
        """Start them.

        Args:
            model: folder of the model.
            precision: fp32 or int8.
            files: images to decode, in turns.
        """
        names = [str(model), *map(str, files), "--precision", precision]
        self._command = [sys.executable, "-m", "src", "bench-raw", *names]
        self._processes = [
            subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(cores())
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()

    def measure(self, seconds: float) -> Limit:
        """Measure every layout for so many seconds.

        Raises:
            UserError: a loop failed.
        """
        rates, alone = {}, []
        for layout in layouts():
            told = self._side_by_side(layout, seconds)
            rates[str(layout)] = sum(one["images"] / one["seconds"] for one in told)
            alone += [one["p50_ms"] for one in told if layout.processes == layout.batch == 1]
        return Limit(rates, min(alone))

    def _side_by_side(self, layout: Layout, seconds: float) -> list[dict[str, Any]]:
        """Let some processes work, from the same moment on."""
        chosen = self._processes[: layout.processes]
        asked = {"threads": layout.threads, "batch": layout.batch, "seconds": seconds}
        try:
            for process in chosen:
                _say(process, json.dumps(asked))
            for process in chosen:
                _hear(process)
            for process in chosen:
                _say(process, "go")
            return [json.loads(_hear(process)) for process in chosen]
        except (ValueError, OSError):
            by_itself = " ".join(self._command[1:5])
            raise UserError(f"decode and session.run failed ({layout}): run python {by_itself} to see why") from None


def _say(process: "subprocess.Popen[str]", line: str) -> None:
    assert process.stdin
    process.stdin.write(line + "\n")
    process.stdin.flush()


def _hear(process: "subprocess.Popen[str]") -> str:
    assert process.stdout
    return process.stdout.readline()
