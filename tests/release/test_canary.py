"""A worse version is found on few requests, an equal one is left alone: python -m pytest tests/release/test_canary.py"""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from conftest import until
from ports import free_port
from scipy.stats import fisher_exact
from test_proxy import Version, needs_nginx, proxy, versions

from src.release import canary, settings
from src.release.canary import Sample
from src.release.client import Client
from src.release.proxy import Proxy, Route

__all__ = ["proxy", "versions"]  # fixtures
SETTINGS = settings.read({})  # 200 requests, a tenth of the traffic
MIX = np.array([0.3, 0.2, 0.15, 0.1, 0.08, 0.06, 0.05, 0.03, 0.02, 0.01])


def draw(
    random: np.random.Generator,
    n: int,
    errors: float = 0.0,
    refused: float = 0.0,
    slower: float = 1.0,
    mix: np.ndarray = MIX,
) -> list[Sample]:
    """Draw requests as a service answers them: log-normal latencies with a long tail, a median of 20 ms."""
    failed = random.random(n) < errors
    bad = ~failed & (random.random(n) < refused)
    took = slower * random.lognormal(np.log(20), 0.7, n)
    labels = random.choice(len(mix), n, p=mix)
    status = np.where(failed, 503, np.where(bad, 400, 200))
    return [
        Sample(int(s), float(t), str(label) if s == 200 else "") for s, t, label in zip(status, took, labels, strict=True)
    ]


@pytest.mark.parametrize(("errors", "refused", "live"), [(0.0, 0.0, 1800), (0.02, 0.05, 200), (0.2, 0.3, 1800)])
def test_two_equal_versions_raise_a_false_alarm_in_fewer_than_one_of_a_hundred_canaries(
    errors: float, refused: float, live: int
) -> None:
    """Of 4000 canaries of each kind 0, 7 and 24 were false alarms; here are fewer, for speed."""
    random = np.random.default_rng(10)
    canaries = [
        canary.judge(draw(random, live, errors, refused), draw(random, 200, errors, refused), SETTINGS) for _ in range(400)
    ]
    assert sum(verdict.ok is False for verdict in canaries) < 4


def test_looking_again_and_again_raises_no_false_alarm() -> None:
    random = np.random.default_rng(12)
    alarms = 0
    for _ in range(100):
        old, new = draw(random, 1791, 0.05), draw(random, 199, 0.05)
        alarms += any(canary.judge(old[: 9 * n], new[:n], SETTINGS).ok is False for n in range(1, 200, 4))
    assert alarms == 0


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"errors": 0.05}, "requests failed"),
        ({"refused": 0.05}, "were refused"),
        ({"slower": 2.0}, "p95 of its latency"),
        ({"mix": np.array([0.02, 0.05, 0.05, 0.08, 0.1, 0.1, 0.1, 0.15, 0.15, 0.2])}, "another mix of classes"),
        ({"mix": np.eye(10)[0]}, "0 is 100% of its predictions"),
    ],
)
def test_a_worse_version_is_found_on_200_requests(fault: dict[str, object], words: str) -> None:
    random = np.random.default_rng(13)
    verdicts = [canary.judge(draw(random, 1800), draw(random, 200, **fault), SETTINGS) for _ in range(40)]
    found = [verdict for verdict in verdicts if verdict.ok is False and words in "; ".join(verdict.reasons)]
    assert len(found) >= 38


def test_too_few_requests_are_no_verdict_and_the_sentence_says_what_to_change() -> None:
    random = np.random.default_rng(17)
    verdict = canary.judge(draw(random, 100), draw(random, 12), SETTINGS)
    assert verdict.ok is None
    assert "only 12 of 200 requests came in 600 s: lower CANARY_REQUESTS" in verdict.reasons[0]
    assert "the old version stays" in verdict.reasons[0]
    verdict = canary.judge(draw(random, 5), draw(random, 400), SETTINGS)
    assert verdict.ok is None
    assert "only 5 requests of the live version came" in verdict.reasons[0]
    assert "CANARY_SHARE" not in canary.judge([], [], replace(SETTINGS, strategy="shadow")).reasons[0]


def test_the_chance_is_that_of_fishers_exact_test() -> None:
    for mine, n, theirs, m in ((10, 200, 3, 1800), (0, 50, 4, 60), (7, 7, 0, 30)):
        table = [[mine, n - mine], [theirs, m - theirs]]
        expected = fisher_exact(table, alternative="greater").pvalue
        assert canary.more_by_chance(mine, n, theirs, m) == pytest.approx(expected)


# The real proxy's log


@pytest.mark.journey
@needs_nginx
@pytest.mark.parametrize(
    ("mirror", "status", "expected"),
    [
        (True, 200, (200, "7")),
        (False, 500, (500, "")),
        (False, 400, (400, "")),
        (True, 0, (502, "")),  # nobody listens
    ],
)
def test_what_nginx_tells_of_a_candidate_is_read_as_what_it_did(
    proxy: Proxy, versions: tuple[Version, Version], mirror: bool, status: int, expected: tuple[int, str]
) -> None:
    live, candidate = versions
    candidate.status = status
    port = candidate.port if status else free_port()
    proxy.point(Route(live.port, "1", candidate=port, candidate_version="2", share=0.5, mirror=mirror))
    client = Client(proxy.settings.url)
    answers = Counter(client.predict(b"image").status for _ in range(40))
    client.send("GET", "/model")  # which counts against no version
    until(lambda: sum(map(len, canary.read(proxy.log))) >= (80 if mirror else 40))
    old, new = canary.read(proxy.log)
    refused = answers.pop(400, 0)
    assert refused == (len(new) if status == 400 else 0)
    assert answers == {200: 40 - refused}  # what the candidate drops, live answers
    assert (len(new), len(old)) == (40, 40) if mirror else 5 < len(new) == 40 - len(old) < 35
    assert {(sample.status, sample.prediction) for sample in new} == {expected}
    assert {(sample.status, sample.prediction) for sample in old} == {(200, "7")}
    assert all(0 < sample.milliseconds < 5000 for sample in old)
