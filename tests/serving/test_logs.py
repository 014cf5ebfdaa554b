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
def log(monkeypatch: pytest.MonkeyPatch) -> logging.Logger:
    """Return the logger of requests, of which all leave a line, with nobody above it."""
    monkeypatch.setattr(logs, "_access", logs._Access(1.0))
    monkeypatch.setattr(logs._requests, "propagate", False)
    monkeypatch.setattr(logs._requests, "level", logging.DEBUG)
    return logs._requests


@pytest.fixture
def told(log: logging.Logger) -> Iterator[Told]:
    """Return a function that ends the log and gives its lines."""
    reader, writer = os.pipe()
    handler = logs._Handler(writer, logs._line)
    log.addHandler(handler)

    def read() -> list[dict[str, Any]]:
        handler.close()
        os.close(writer)
        with open(reader) as lines:
            return [json.loads(line) for line in lines]

    yield read
    log.removeHandler(handler)


def ask(status: int = 200, detail: str = "") -> None:
    logs.access("POST", "/predict", status, 0.0012, "abc", "3", "north", detail, 812)


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
    odd = log.makeRecord(log.name, logging.WARNING, "", 0, text, (), None)
    next(handler for handler in log.handlers if isinstance(handler, logs._Handler)).emit(odd)
    lines = told()
    assert [line["message"][:9] for line in lines[:3]] == ["it failed", "it failed", "long yyyy"]
    assert lines[0]["exception"] == lines[1]["exception"] == "ValueError"
    assert "traceback" not in lines[1]
    assert all(len(json.dumps(line)) < 4096 for line in lines)
    assert lines[0]["traceback"].endswith("\U0001f600" * 50)
    assert lines[3]["message"] == text


def test_what_repeats_is_told_a_few_times_and_then_counted(log: logging.Logger, told: Told) -> None:
    for i in range(1000):
        log.warning("request %d was bad", i)
    log.warning("another")
    bad = log.makeRecord(log.name, logging.WARNING, "", 0, "%d arguments are wrong", ("all",), None)
    next(handler for handler in log.handlers if isinstance(handler, logs._Handler)).emit(bad)
    lines = told()
    expected = [*(f"request {i} was bad" for i in range(5)), "another", "request %d was bad"]
    assert [line["message"] for line in lines] == expected
    assert lines[-1]["left_out"] == 995
    assert lines[-1]["dropped"] == 1  # what could not be written


def test_refused_requests_are_sampled_and_counted_and_failed_ones_are_all_told(told: Told) -> None:
    for status, times in ((404, 500), (500, 50)):
        for _ in range(times):
            ask(status)
    lines = told()
    assert [line["status"] for line in lines[10:60]] == [500] * 50
    assert {line["level"] for line in lines[10:60]} == {"ERROR"}
    assert lines[60]["left_out"] == 490
    assert len(lines) == 61


def test_good_requests_leave_their_share_of_lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter([0.05, 0.2] * 2)
    monkeypatch.setattr(logs, "_access", logs._Access(0.1))
    monkeypatch.setattr("random.random", lambda: next(drawn))
    with caplog.at_level(logging.INFO):
        for _ in range(4):
            ask()
    assert len(caplog.records) == 2


@pytest.mark.parametrize("target", ["full disk", "pipe that nobody has", "pipe that nobody reads"])
def test_a_log_that_takes_nothing_stops_nothing_and_counts_what_was_lost(log: logging.Logger, target: str) -> None:
    reader, writer = os.pipe()
    if target == "full disk":
        os.close(writer)
        writer = os.open("/dev/full", os.O_WRONLY)
    if target != "pipe that nobody reads":
        os.close(reader)
    handler = logs._Handler(writer, logs._line)
    log.addHandler(handler)
    for i in range(3000):
        log.error("%s", "x" * 999, extra={"fields": {"number": i}})
    log.removeHandler(handler)
    if target == "pipe that nobody reads":
        assert handler._dropped > 900
        os.close(reader)
    handler.close()
    os.close(writer)


def test_a_person_at_a_terminal_gets_lines_to_read_that_cannot_steer_it() -> None:
    fields = {"time": "2026-01-01T10:11:12.000Z", "level": "INFO", "logger": "a", "message": "ready \x1b[2J"}
    assert logs._readable(fields) == "10:11:12 info    ready \\x1b[2J\n"
    assert logs._readable({**fields, "status": 404, "traceback": "one\ntwo"}).splitlines()[0].endswith("[2J status=404")


CONFIGURE = """
import logging, os, sys, threading, warnings
from dataclasses import replace
from src.serving import logs, settings
log = logging.getLogger("uvicorn.error")
log.addHandler(logging.StreamHandler(sys.stdout))
log.propagate = False
for _ in range(3):
    logs.configure(replace(settings.read({}), access_log=1.0))
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
    endless = [
        sys.executable,
        "-c",
        f"{CONFIGURE}for i in range(3000): logging.getLogger(f'bentoml.{{i}}').error('x' * 999)",
    ]
    with subprocess.Popen(endless, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.wait(PATIENCE) == 0
