"""All that is asked of a running version over HTTP. Each of these raises FaultError with its reason.

wait_ready   after the start, until it is ready
smoke        before the switch: everything, in a few seconds
watch        after the switch: again and again, through the proxy
quick        for a rollback: the least, in a tenth of a second
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from src.release.client import Answer, Client
from src.release.containers import State
from src.release.golden import Example, FaultError, compare, expect, expect_version, golden_examples
from src.release.reviewed import Release

Look = Callable[[], State]
_MIB = 2**20
_BATCH = 8  # golden examples in one batch: under any sensible SERVE_MAX_BATCH
_TIMED = 100  # requests whose latency is measured
_REPEATED = 300  # requests in which the memory must not grow
_LOOK = 25  # requests from one look at the memory to the next
_EVERY = 0.25  # seconds from one round of the watch to the next
_WINDOW = 80  # probes of the watch, twenty seconds, in which three faults are too many


class Clock:
    """The time in seconds, and a way to let some of it pass; a test hands in one of its own."""

    now = staticmethod(time.monotonic)
    pause = staticmethod(time.sleep)


CLOCK = Clock()


@dataclass(frozen=True)
class Limits:
    """What a version may need: p95 of one image in ms, difference of a probability, bytes of memory."""

    latency_ms: float
    tolerance: float
    memory: int


class Life:
    """Notices that a version died or was restarted since this was made; `look` asks the engine for its state."""

    def __init__(self, look: Look, clock: Clock = CLOCK) -> None:
        self._look, self._clock = look, clock
        self._first = self._last = look()
        self._judge(self._first)

    def check(self) -> State:
        """Look again.

        Raises:
            FaultError: it is dead, or not the process that it was.
            UserError: the engine gives no answer.
        """
        state = self._look()
        self._judge(state)
        self._last = replace(state, memory=state.memory or self._last.memory)
        return state

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
            used = f"; at the last look it used {_mib(self._last.memory)} MiB of memory" if self._last.memory else ""
            raise FaultError(f"it crashed{code} and was started again by the engine{used}")
        if not state.running:
            raise FaultError(f"it ended by itself{code}")


def wait_ready(client: Client, seconds: float, look: Look, clock: Clock = CLOCK) -> float:
    """Wait until it says that it is ready; return after how many seconds it did.

    Raises:
        FaultError: it died or was restarted, which ends the wait at once; or the time is up.
    """
    started = clock.now()
    life = Life(look, clock)
    while not client.ready(timeout=min(1.0, seconds)):
        life.check()
        if clock.now() - started > seconds:
            raise FaultError(f"it was not ready within {seconds:g} s")
        clock.pause(0.05)
    return clock.now() - started


def quick(client: Client, golden: Path, version: str, tolerance: float, images: int = 3) -> None:
    """Check in a tenth of a second that it is ready, is this version, and answers as reviewed; for a rollback.

    Raises:
        FaultError: it does not.
    """
    examples = golden_examples(golden, images)
    if not client.ready():
        raise FaultError("it does not say that it is ready")
    for example in examples:
        expect(example, client.predict(example.content, len(example.probabilities)), version, tolerance)


# ---------------------------------------------------------------------------------------------------------------------
# Before the switch
# ---------------------------------------------------------------------------------------------------------------------


def smoke(
    client: Client,
    golden: Path,
    release: Release,
    version: str,
    limits: Limits,
    look: Look,
    clock: Clock = CLOCK,
) -> dict[str, float]:
    """Try a version that has no traffic yet; return what was measured.

    Raises:
        FaultError: at the first check that fails.
    """
    started = clock.now()
    trial = _Trial(client, golden_examples(golden), release, version, limits, Life(look, clock))
    trial.introduce()
    numbers = trial.answer_golden() | trial.answer_fast() | trial.refuse_garbage() | trial.keep_memory()
    return {name: round(value, 6) for name, value in numbers.items()} | {"seconds": round(clock.now() - started, 2)}


@dataclass(frozen=True)
class _Trial:
    """The checks of `smoke`, in the order in which a fault is cheapest to find."""

    client: Client
    examples: Sequence[Example]
    release: Release
    version: str
    limits: Limits
    life: Life

    def introduce(self) -> None:
        """Check its health, and that it is what it should be."""
        for path in ("/livez", "/readyz"):
            answer = self.client.send("GET", path)
            if answer.status != 200:
                self.life.explain()
                raise FaultError(f"{path} got {answer}")
        release, told = self.release, self.client.model()
        expected = {
            "version": self.version,
            "manifest": release.manifest,
            "model_sha256": release.model_sha256,
            "classes": release.classes,
            "precision": release.precision,
            "served_sha256": release.served_sha256,
        }
        for name, value in expected.items():
            if told.get(name) != value:
                raise FaultError(f"/model says {name} {told.get(name)} instead of {value}")

    def answer_golden(self) -> dict[str, float]:
        """Ask for all golden examples, one by one, by a form, and in batches."""
        largest = max(self._predict(example) for example in self.examples)
        example, classes = self.examples[0], len(self.release.classes)
        self._expect(example, self.client.upload("/predict", "image", [example.content], classes))
        for first in range(0, len(self.examples), _BATCH):
            batch = self.examples[first : first + _BATCH]
            what = f"a batch of {len(batch)} golden images"
            answer = self.client.upload("/predict_batch", "images", [one.content for one in batch], classes)
            self._expect_release(answer, what)
            given = answer.body.get("predictions")
            if not isinstance(given, list) or len(given) != len(batch):
                raise FaultError(f"{what} was not answered with as many predictions")
            for example, prediction in zip(batch, given, strict=True):
                try:
                    compare(example, prediction, self.limits.tolerance)
                except FaultError as fault:
                    raise FaultError(f"in a batch, {fault}") from None
        return {"golden": len(self.examples), "largest_difference": largest}

    def answer_fast(self) -> dict[str, float]:
        """Ask for one image at a time. Too slow is only what is so twice: a busy moment of the machine is nobody's fault."""
        for _ in range(2):
            taken = list[float]()
            for number in range(_TIMED):
                example = self.examples[number % len(self.examples)]
                answer = self.client.predict(example.content)
                self._expect_release(answer, f"golden image {example.file}")
                taken.append(answer.milliseconds)
                if sum(value > self.limits.latency_ms for value in taken) > 0.05 * _TIMED:
                    break  # the budget cannot be kept any more
            self._check_memory()
            if p95(taken) <= self.limits.latency_ms:
                return {"latency_p50_ms": statistics.median(taken), "latency_p95_ms": p95(taken)}
        told = f"p95 of one image is {p95(taken):.0f} ms, over the budget of {self.limits.latency_ms:g} ms"
        raise FaultError(f"it is slow: {told}")

    def refuse_garbage(self) -> dict[str, float]:
        """Damaged requests get a status from 400 to 499 and leave it able to answer; tests/serving asks for far worse."""
        example = self.examples[0]
        bad = {
            "garbage bytes": bytes(range(256)) * 8,
            "an image cut off in the middle": example.content[: len(example.content) // 2],
            "an empty body": b"",
        }
        for name, content in bad.items():
            answer = self.client.predict(content)
            if not 400 <= answer.status < 500:
                self.life.explain()
                raise FaultError(f"it answered {name} with {answer} instead of refusing it")
        self._predict(example)
        return {"refused": len(bad)}

    def keep_memory(self) -> dict[str, float]:
        """Ask many times, and compare the memory with that when it was warm."""
        before = after = self._check_memory()
        for done in range(1, _REPEATED + 1):
            self._predict(self.examples[done % len(self.examples)])
            if done % _LOOK:
                continue
            after = self._check_memory()
            if before and after and after - before > max(48 * _MIB, 0.15 * self.limits.memory):
                raise FaultError(f"its memory grew from {_mib(before)} to {_mib(after)} MiB in {done} requests")
        if before is None or after is None:
            return {}
        return {"memory_mib": after / _MIB, "memory_growth_mib": (after - before) / _MIB}

    def _check_memory(self) -> int | None:
        used = self.life.check().memory
        if used is not None and used > 0.85 * self.limits.memory:
            raise FaultError(f"its memory is at {_mib(used)} of the {_mib(self.limits.memory)} MiB that it may have")
        return used

    def _predict(self, example: Example) -> float:
        return self._expect(example, self.client.predict(example.content, len(example.probabilities)))

    def _expect(self, example: Example, answer: Answer) -> float:
        self._expect_release(answer, f"golden image {example.file}")
        return compare(example, answer.body, self.limits.tolerance)

    def _expect_release(self, answer: Answer, what: str) -> None:
        if answer.status == 0:
            self.life.explain()
        expect_version(answer, self.version, what)
        if {answer.manifest, answer.body.get("manifest")} != {self.release.manifest}:
            raise FaultError(f"{what} was answered with manifest {answer.manifest} instead of {self.release.manifest}")


# ---------------------------------------------------------------------------------------------------------------------
# After the switch
# ---------------------------------------------------------------------------------------------------------------------


def watch(
    through: Client,
    direct: Client,
    golden: Path,
    version: str,
    limits: Limits,
    seconds: float,
    look: Look,
    clock: Clock = CLOCK,
) -> dict[str, float]:
    """Watch the version that has the traffic, four times a second, for `seconds`; return what was measured.

    `through` asks the proxy, as users do, `direct` the version itself.

    Raises:
        FaultError: as soon as there is no doubt.
    """
    examples, life, started = golden_examples(golden), Life(look, clock), clock.now()
    memory: int | None = None
    latencies, faults = list[float](), list[int]()  # of each probe; which probes they were
    unready = 0  # in a row
    while True:
        began = clock.now()
        before, memory = memory, life.check().memory
        if before and memory and min(before, memory) > 0.9 * limits.memory:  # twice: one odd reading is no leak
            raise FaultError(f"its memory is at {_mib(memory)} of the {_mib(limits.memory)} MiB that it may have")

        unready = 0 if direct.ready(timeout=0.5) else unready + 1
        if unready == 2:
            life.explain()
            raise FaultError("it stopped saying that it is ready (/readyz failed twice in a row)")

        example, number = examples[len(latencies) % len(examples)], len(latencies) + 1
        answer = through.predict(example.content, len(example.probabilities))
        if answer.status == 0:
            answer = through.predict(example.content, len(example.probabilities))
        latencies.append(answer.milliseconds)
        try:
            expect(example, answer, version, limits.tolerance)
        except FaultError as fault:
            faults.append(number)
            if number - 1 in faults or sum(probe > number - _WINDOW for probe in faults) == 3:
                life.explain()
                raise FaultError(f"through the proxy, {fault}") from None

        now = clock.now()
        if now - started >= seconds:
            found = {"probes": len(latencies), "faults": len(faults), "seconds": now - started}
            found |= {"latency_p50_ms": statistics.median(latencies), "latency_p95_ms": p95(latencies)}
            found |= {"memory_mib": memory / _MIB} if memory else {}
            return {name: round(value, 3) for name, value in found.items()}
        clock.pause(min(max(0.0, began + _EVERY - now), seconds - (now - started)))


def p95(values: Sequence[float]) -> float:
    """Return the value that 95 of 100 do not exceed."""
    return sorted(values)[max(0, -(-len(values) * 95 // 100) - 1)]


def _mib(size: float) -> str:
    return f"{size / 2**20:.0f}"
