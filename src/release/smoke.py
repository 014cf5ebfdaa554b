"""What a version must show before it gets any traffic: that it is what was reviewed, answers so, fast, and unharmed."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from src.release.client import Answer, Client, Request
from src.release.golden import Example, FaultError, compare, expect_version, golden_examples
from src.release.life import CLOCK, Clock, Life, Look, mib
from src.release.reviewed import Release

_MIB = 2**20
_BATCH = 8  # golden examples in one batch: under any sensible SERVE_MAX_BATCH
_TIMED = 100  # requests whose latency is measured
_REPEATED = 300  # requests in which the memory must not grow
_LOOK = 25  # requests from one look at the memory to the next


@dataclass(frozen=True)
class Limits:
    """What a version may need: p95 of one image in ms, difference of a probability, bytes of memory."""

    latency_ms: float
    tolerance: float
    memory: int


def smoke(
    client: Client,
    golden: Path,
    release: Release,
    version: str,
    limits: Limits,
    state: Look,
    against: Client | None = None,
    clock: Clock = CLOCK,
) -> dict[str, float]:
    """Try a version that has no traffic yet; return what was measured. `against` is the version that serves.

    Raises:
        FaultError: at the first check that fails.
    """
    started = clock.now()
    trial = _Trial(client, golden_examples(golden), release, version, limits, Life(state, clock))
    numbers = trial.introduce() | trial.answer_golden() | trial.answer_fast(against)
    numbers |= trial.refuse_garbage() | trial.keep_memory()
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

    def introduce(self) -> dict[str, float]:
        """Health, and whether it is what it should be."""
        for path in ("/livez", "/readyz"):
            answer = self.client.send(Request("GET", path))
            if answer.status != 200:
                self.life.explain()
                raise FaultError(f"{path} got {answer}")
        release = self.release
        told = self.client.model()
        told = {"precision": "fp32", "served_sha256": told.get("model_sha256"), **told}  # a service of an earlier day
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
        return {}

    def answer_golden(self) -> dict[str, float]:
        """All golden examples, one by one, by a form, and in batches."""
        largest = max(self._predict(example) for example in self.examples)
        example = self.examples[0]
        self._expect(example, self.client.predict_form(example.content, len(example.probabilities)))
        for first in range(0, len(self.examples), _BATCH):
            self._answer_batch(self.examples[first : first + _BATCH])
        return {"golden": len(self.examples), "largest_difference": largest}

    def _answer_batch(self, examples: Sequence[Example]) -> None:
        answer = self.client.predict_batch([example.content for example in examples], len(self.release.classes))
        self._expect_release(answer, f"a batch of {len(examples)} golden images")
        given = answer.body.get("predictions")
        if not isinstance(given, list) or len(given) != len(examples):
            raise FaultError(f"a batch of {len(examples)} golden images was not answered with as many predictions")
        for example, prediction in zip(examples, given, strict=True):
            try:
                compare(example, prediction, self.limits.tolerance)
            except FaultError as fault:
                raise FaultError(f"in a batch, {fault}") from None

    def answer_fast(self, against: Client | None) -> dict[str, float]:
        """One image at a time, in turns with the version that serves.

        Too slow is only what is so twice: a busy moment of the machine is nobody's fault.
        """
        reason = ""
        for _ in range(2):
            mine, theirs = self._time(against)
            numbers = {"latency_p50_ms": statistics.median(mine), "latency_p95_ms": p95(mine)}
            if theirs:
                numbers["live_latency_p95_ms"] = p95(theirs)
            reason = _too_slow(numbers, self.limits.latency_ms)
            if not reason:
                return numbers
        raise FaultError(reason)

    def _time(self, against: Client | None) -> tuple[list[float], list[float]]:
        """Return milliseconds of each; ends early where the budget cannot be kept any more."""
        mine: list[float] = []
        theirs: list[float] = []
        for example in self._in_turns(_TIMED):
            answer = self.client.predict(example.content)
            self._expect_release(answer, f"golden image {example.file}")
            mine.append(answer.milliseconds)
            other = against.predict(example.content) if against else None
            if other and other.status == 200:
                theirs.append(other.milliseconds)
            if sum(value > self.limits.latency_ms for value in mine) > 0.05 * _TIMED:
                break
        return mine, theirs

    def _in_turns(self, requests: int) -> Iterator[Example]:
        for i in range(requests):
            yield self.examples[i % len(self.examples)]
            if i % _LOOK == _LOOK - 1:
                self._check_memory()

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
        self._check_memory()
        self._predict(example)
        return {"refused": len(bad)}

    def keep_memory(self) -> dict[str, float]:
        """Memory after many requests, against memory when it was warm."""
        before = after = self._check_memory()
        for done, example in enumerate(self._in_turns(_REPEATED)):
            if done % _LOOK == 0:
                after = self._check_growth(before, done)
            self._predict(example)
        after = self._check_growth(before, _REPEATED)
        if before is None or after is None:
            return {}
        return {"memory_mib": after / _MIB, "memory_growth_mib": (after - before) / _MIB}

    def _check_growth(self, before: int | None, requests: int) -> int | None:
        now = self._check_memory()
        if before is not None and now is not None and now - before > max(48 * _MIB, 0.15 * self.limits.memory):
            raise FaultError(f"its memory grew from {mib(before)} to {mib(now)} MiB in {requests} requests")
        return now

    def _check_memory(self) -> int | None:
        used = self.life.check().memory
        if used is not None and used > 0.85 * self.limits.memory:
            raise FaultError(f"its memory is at {mib(used)} of the {mib(self.limits.memory)} MiB that it may have")
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


def p95(values: Sequence[float]) -> float:
    """Return the value that 95 of 100 do not exceed."""
    return sorted(values)[max(0, -(-len(values) * 95 // 100) - 1)]


def _too_slow(numbers: dict[str, float], budget: float) -> str:
    mine, theirs = numbers["latency_p95_ms"], numbers.get("live_latency_p95_ms")
    if mine > budget:
        return f"it is slow: p95 of one image is {mine:.0f} ms, over the budget of {budget:g} ms"
    if theirs is not None and mine > 3 * theirs and mine - theirs > 20:
        return f"it is slow: p95 of one image is {mine:.0f} ms, of the version that serves {theirs:.0f} ms"
    return ""
