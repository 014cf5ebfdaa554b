"""What a version must keep showing while it has the traffic: life, right answers, speed, and memory below its limit."""

import statistics
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from src.release.client import Client
from src.release.golden import Example, FaultError, expect, golden_examples
from src.release.life import CLOCK, Clock, Life, Look, mib
from src.release.smoke import p95

_MIB = 2**20


def watch(
    through: Client,
    direct: Client,
    golden: Path,
    version: str,
    tolerance: float,
    latency_ms: float,
    seconds: float,
    state: Look,
    memory: int,
    clock: Clock = CLOCK,
) -> dict[str, float]:
    """Watch the version that has the traffic, four times a second, for `seconds`; return what was measured.

    `through` asks the proxy, as users do, `direct` the version itself; `memory` is its limit in bytes.

    Raises:
        FaultError: as soon as there is no doubt.
    """
    watching = _Watch(through, direct, golden_examples(golden), version, tolerance, latency_ms, memory, Life(state, clock))
    started = clock.now()
    while True:
        began = clock.now()
        watching.round(began - started)
        now = clock.now()
        if now - started >= seconds:
            return watching.numbers() | {"seconds": round(now - started, 2)}
        clock.pause(min(max(0.0, began + _Watch.EVERY - now), seconds - (now - started)))


class _Watch:
    """Rounds of probes, and what they have found so far."""

    EVERY = 0.25  # seconds from one round to the next
    _WINDOW = 80  # probes, twenty seconds, in which three faults are too many
    _SLOW = 5.0  # seconds in which every probe is too slow: twenty of them, where they are just so

    def __init__(
        self,
        through: Client,
        direct: Client,
        examples: Sequence[Example],
        version: str,
        tolerance: float,
        latency_ms: float,
        memory: int,
        life: Life,
    ) -> None:
        self._through, self._direct, self._examples = through, direct, examples
        self._version, self._tolerance, self._slow_ms = version, tolerance, 2 * latency_ms
        self._life = life
        self._limit = memory
        self._memory: int | None = None  # bytes at the last look
        self._unready = self._probes = 0
        self._faults: list[int] = []  # which probes they were
        self._slow: list[float] = []  # when each probe of the present row of slow ones was made
        self._latencies: deque[float] = deque(maxlen=10_000)

    def round(self, at: float) -> None:
        """Probe everything once; `at` is seconds since the start."""
        state = self._life.check()
        before, self._memory = self._memory, state.memory
        if before and state.memory and min(before, state.memory) > 0.9 * self._limit:  # twice: one odd reading is no leak
            used, limit = mib(state.memory), mib(self._limit)
            raise FaultError(f"its memory is at {used} of the {limit} MiB that it may have")
        self._check_ready()
        self._check_answer()
        self._check_speed(at)

    def _check_ready(self) -> None:
        self._unready = 0 if self._direct.ready(timeout=0.5) else self._unready + 1
        if self._unready == 2:
            self._life.explain()
            raise FaultError("it stopped saying that it is ready (/readyz failed twice in a row)")

    def _check_answer(self) -> None:
        example = self._examples[self._probes % len(self._examples)]
        self._probes += 1
        answer = self._through.predict(example.content, len(example.probabilities))
        if answer.status == 0:
            answer = self._through.predict(example.content, len(example.probabilities))
        self._latencies.append(answer.milliseconds)
        try:
            expect(example, answer, self._version, self._tolerance)
        except FaultError as fault:
            self._faults.append(self._probes)
            recent = [probe for probe in self._faults if probe > self._probes - self._WINDOW]
            if len(recent) == 3 or self._probes - 1 in recent:
                self._life.explain()
                raise FaultError(f"through the proxy, {fault}") from None

    def _check_speed(self, at: float) -> None:
        if self._latencies[-1] <= self._slow_ms:
            self._slow.clear()
            return
        self._slow.append(at)
        if len(self._slow) >= 3 and at - self._slow[0] >= self._SLOW - self.EVERY:
            slow = f"one image took over {self._slow_ms:.0f} ms {len(self._slow)} times in a row"
            raise FaultError(f"it is slow: {slow}, and half of that is the budget")

    def numbers(self) -> dict[str, float]:
        """Return what was measured."""
        found = {
            "probes": self._probes,
            "faults": len(self._faults),
            "latency_p50_ms": statistics.median(self._latencies),
            "latency_p95_ms": p95(self._latencies),
        }
        found |= {"memory_mib": self._memory / _MIB} if self._memory else {}
        return {name: round(value, 3) for name, value in found.items()}
