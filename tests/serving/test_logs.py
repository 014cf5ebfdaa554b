"""Every line is JSON, and a log that cannot take lines stops nothing: python -m pytest tests/serving/test_logs.py"""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import PATIENCE, ROOT

from src.serving import logs

Told = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    """Return the logger of requests, with nobody above it."""
    found = logging.getLogger("bentoml.image_classifier.request")
    before, found.propagate = (found.propagate, found.level), False
    found.setLevel(logging.DEBUG)  # clears what loggers remember of their level, too
    yield found
    found.propagate = before[0]
    found.setLevel(before[1])


@pytest.fixture
def clock() -> list[float]:
    """Return the one time that the log reads; only a test moves it."""
    return [100.0]


@pytest.fixture
def told(log: logging.Logger, clock: list[float]) -> Iterator[Told]:
    """Return a function that ends the log and gives its lines."""
    reader, writer = os.pipe()
    handler, listener = logs.listen(writer, lambda: clock[0])
    log.addHandler(handler)

    def read() -> list[dict[str, Any]]:
        listener.stop()
        os.close(writer)
        with open(reader) as lines:
            return [json.loads(line) for line in lines]

    yield read
    log.removeHandler(handler)


def ask(status: int = 200, detail: str = "") -> None:
    fields = {"request_id": "abc", "method": "POST", "route": "/predict", "status": status, "seconds": 0.0012, "bytes": 812}
    logs.access({**fields, "model_version": "3", "key": "north", "detail": detail})


def test_a_request_is_told_with_all_that_belongs_to_it_and_nothing_long(told: Told) -> None:
    ask()
    ask(400, "x" * 9000)
    good, refused = told()
    assert {key: good[key] for key in good if key not in ("time", "message")} == {
        "level": "INFO", "logger": "bentoml.image_classifier.request", "request_id": "abc", "method": "POST",
        "route": "/predict", "status": 200, "seconds": 0.0012, "bytes": 812, "model_version": "3", "key": "north",
    }  # fmt: skip
    assert refused["detail"] == "x" * 200
    assert (good["time"][10], good["time"][-5], good["time"][-1]) == ("T", ".", "Z")


def deep(depth: int) -> None:
    if depth:
        deep(depth - 1)
    raise ValueError("reason" + "\U0001f600" * 5000)


def test_a_traceback_is_one_field_of_errors_only_and_a_line_never_grows_long(log: logging.Logger, told: Told) -> None:
    for tell in (log.exception, log.warning):
        try:
            deep(50)
        except ValueError:
            tell("it failed", exc_info=True)
    log.error("long %s", "y" * 100_000)
    text = 'a "quote",\na line and a lone \ud800'  # past pytest, which keeps what is logged and cannot send this to xdist
    log.handlers[0].handle(log.makeRecord(log.name, logging.WARNING, "", 0, text, (), None))
    lines = told()
    assert [line["message"][:9] for line in lines[:3]] == ["it failed", "it failed", "long yyyy"]
    assert lines[0]["exception"] == lines[1]["exception"] == "ValueError"
    assert "traceback" not in lines[1]
    assert all(len(json.dumps(line, ensure_ascii=False)) < 4096 for line in lines)
    assert lines[0]["traceback"].endswith("\U0001f600" * 50)
    assert lines[3]["message"] == text


def test_refused_requests_are_sampled_and_counted_and_failed_ones_are_all_told(told: Told, clock: list[float]) -> None:
    for status, times in ((404, 500), (500, 50)):
        for _ in range(times):
            ask(status)
    clock[0] += 11
    ask(404)
    lines = told()
    assert [line["status"] for line in lines] == [404] * 100 + [500] * 50 + [404]
    assert {line["level"] for line in lines[100:150]} == {"ERROR"}
    assert lines[-1]["left_out"] == 400


@pytest.mark.parametrize("target", ["full disk", "pipe that nobody has", "pipe that nobody reads"])
def test_a_log_that_takes_nothing_stops_nothing(log: logging.Logger, target: str) -> None:
    reader, writer = os.pipe()
    if target == "full disk":
        os.close(writer)
        writer = os.open("/dev/full", os.O_WRONLY)
    if target != "pipe that nobody reads":
        os.close(reader)
    handler, listener = logs.listen(writer)
    log.addHandler(handler)
    for i in range(3000):
        log.error("%d %s", i, "x" * 999, extra={"status": 500})
    log.removeHandler(handler)
    if target == "pipe that nobody reads":
        assert handler.queue.full()
        os.close(reader)
    listener.stop()
    os.close(writer)


CONFIGURE = """
import logging, os, sys, threading, warnings
from src.serving import logs
log = logging.getLogger("uvicorn.error")
log.addHandler(logging.StreamHandler(sys.stdout))
log.propagate = False
for _ in range(3):
    logs.configure()
logging.getLogger("bentoml.serve").info("hello %s", "you")
log.warning("Invalid HTTP request received.")
logging.getLogger("circus").error("broken")
logging.getLogger("some.library").info("not worth a line")
warnings.warn("old")
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
"""


@pytest.mark.journey
def test_whoever_speaks_speaks_json_once_and_the_process_ends_although_nobody_reads() -> None:
    command = [sys.executable, "-c", CONFIGURE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert done.stderr == ""
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["level"], line["logger"]) for line in lines[:3]] == [
        ("INFO", "bentoml.serve"), ("WARNING", "uvicorn.error"), ("ERROR", "circus"),
    ]  # fmt: skip
    assert lines[0]["message"] == "hello you"
    assert "UserWarning: old" in lines[3]["message"]
    assert [line.get("exception") for line in lines[4:]] == ["ZeroDivisionError"]
    endless = f"{CONFIGURE}for i in range(3000): logging.getLogger(f'bentoml.{{i}}').error('x' * 999)"
    with subprocess.Popen([sys.executable, "-c", endless], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.wait(PATIENCE) == 0
