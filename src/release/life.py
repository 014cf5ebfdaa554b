"""Whether a version lives: what the engine says of its container or process, and when it is ready."""

import time
from collections.abc import Callable

from src.core.command import UserError
from src.release.client import Client
from src.release.golden import FaultError
from src.release.workload import State

Look = Callable[[], State]


class Clock:
    """The time in seconds, and a way to let some of it pass; a test hands in one of its own."""

    now = staticmethod(time.monotonic)
    pause = staticmethod(time.sleep)


CLOCK = Clock()


class Life:
    """Notices that a version died or was restarted since this was made; `look` asks the engine for its state."""

    _PATIENCE = 3  # looks in a row in which the engine, not the version, gives no answer

    def __init__(self, look: Look, clock: Clock = CLOCK) -> None:
        self._look, self._clock = look, clock
        self._unanswered = self._peak = 0
        self._first = self._last = look()
        self._judge(self._first)

    def check(self) -> State:
        """Look again.

        Raises:
            FaultError: it is dead, or not the process that it was.
            UserError: the engine failed three times in a row.
        """
        try:
            self._last, self._unanswered = self._look(), 0
        except UserError:
            self._unanswered += 1
            if self._unanswered == self._PATIENCE:
                raise
        self._judge(self._last)
        self._peak = max(self._peak, self._last.memory or 0)
        return self._last

    def explain(self) -> None:
        """Look again after an answer that did not come: a death is the better reason, and the engine needs a moment."""
        self._clock.pause(0.2)
        self.check()

    def _judge(self, state: State) -> None:
        if state.oom and not (self._first.oom and state.running):  # engines remember one of long ago
            raise FaultError("it was killed because it needed more memory than it may have")
        if not state.exists:
            raise FaultError("it is gone: somebody removed it")
        code = f" with exit code {state.exit_code}" if state.exit_code is not None else ""
        if state.restarts > self._first.restarts or (state.running and state.started != self._first.started):
            memory = f"; at the last look it used {mib(self._peak)} MiB of memory" if self._peak else ""
            raise FaultError(f"it crashed{code} and was started again by the engine{memory}")
        if not state.running:
            raise FaultError(f"it ended by itself{code}")


def wait_ready(client: Client, seconds: float, state: Look, clock: Clock = CLOCK) -> float:
    """Wait until it says that it is ready; return after how many seconds it did.

    Raises:
        FaultError: it died or was restarted, which ends the wait at once; or the time is up.
    """
    started = clock.now()
    life = Life(state, clock)
    while not client.ready(timeout=min(1.0, seconds)):
        life.check()
        if clock.now() - started > seconds:
            raise FaultError(f"it was not ready within {seconds:g} s")
        clock.pause(0.05)
    return clock.now() - started


def mib(size: float) -> str:
    """Return bytes as a number of MiB, for a sentence."""
    return f"{size / 2**20:.0f}"
