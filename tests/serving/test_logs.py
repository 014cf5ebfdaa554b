"""Every line is JSON, and a log that cannot take lines stops nothing: python -m pytest tests/serving/test_logs.py

The log belongs to a whole process, so most of these run it in one of its own.
"""

import json
import logging
import os
import pty
import subprocess
import sys
from typing import Any

import pytest
from conftest import PATIENCE, ROOT

from src.serving import logs

CONFIGURE = """
import logging, os, sys, threading, time, warnings
from dataclasses import replace
from src.serving import logs, settings
log = logging.getLogger("bentoml.image_classifier")
logs.configure(replace(settings.read({}), access_log=1.0))
def ask(status=200, detail="", route="/predict"):
    logs.access("POST", route, status, 0.0012, "abc", "3", "north", detail, 812)
"""


def start(code: str, stdout: Any = subprocess.PIPE, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CONFIGURE + code]
    return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, cwd=ROOT, text=True, **options)


def told(code: str) -> list[dict[str, Any]]:
    """Return what the log of a process tells that runs `code`; it ends well and says nothing else."""
    process = start(code)
    out, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (0, "")
    return [json.loads(line) for line in out.splitlines()]


def test_whoever_speaks_speaks_json() -> None:
    lines = told(
        """
logging.getLogger("bentoml.serve").info("hello %s", "you")
logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
logging.getLogger("circus").error("broken")
logging.getLogger("some.library").info("not worth a line")
warnings.warn("old")
log.warning('a "quote",\\na line and a lone \\ud800')
log.info("%d arguments are wrong", "all")
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
log.info("the end")
"""
    )
    assert [(line["level"], line["logger"]) for line in lines[:3]] == [
        ("INFO", "bentoml.serve"), ("WARNING", "uvicorn.error"), ("ERROR", "circus"),
    ]  # fmt: skip
    assert lines[0]["message"] == "hello you"
    assert "UserWarning: old" in lines[3]["message"]
    assert lines[4]["message"] == 'a "quote",\na line and a lone \ud800'
    assert lines[5]["exception"] == "ZeroDivisionError"
    assert lines[6]["message"] == "the end"
    assert lines[5]["dropped"] == 1  # the one before, which could not be written
    assert all(line["time"][10] == "T" and line["time"][-5] == "." and line["time"][-1] == "Z" for line in lines)


def test_handlers_that_others_have_set_up_are_replaced_and_a_second_call_changes_nothing() -> None:
    lines = told(
        """
logging.getLogger("uvicorn.error").addHandler(logging.StreamHandler(sys.stdout))
logging.getLogger("uvicorn.error").propagate = False
logging.basicConfig(force=True, stream=sys.stdout)
for _ in range(3):
    logs.configure(replace(settings.read({}), access_log=1.0))
logging.getLogger("uvicorn.error").error("once")
"""
    )
    assert [line["message"] for line in lines] == ["once"]


def test_a_request_is_told_with_all_that_belongs_to_it_and_nothing_long() -> None:
    good, refused = told('ask()\nask(400, "x" * 9000)')
    assert {key: good[key] for key in good if key not in ("time", "message")} == {
        "level": "INFO", "logger": "bentoml.image_classifier.request", "request_id": "abc", "method": "POST",
        "route": "/predict", "status": 200, "seconds": 0.0012, "bytes": 812, "model_version": "3", "key": "north",
    }  # fmt: skip
    assert refused["detail"] == "x" * 200


def test_a_traceback_is_one_field_of_errors_only_and_a_line_never_grows_long() -> None:
    lines = told(
        """
def deep(depth):
    if depth:
        deep(depth - 1)
    raise ValueError("reason" + "\\U0001f600" * 5000)
for tell in (log.exception, log.warning):
    try:
        deep(50)
    except ValueError:
        tell("it failed", exc_info=True)
log.error("long " + "y" * 100_000)
"""
    )
    assert [line["message"][:9] for line in lines] == ["it failed", "it failed", "long yyyy"]
    assert lines[0]["exception"] == lines[1]["exception"] == "ValueError"
    assert "traceback" not in lines[1]
    assert all(len(json.dumps(line)) < 4096 for line in lines)
    assert lines[0]["traceback"].endswith("\U0001f600" * 50)


def test_what_repeats_is_told_a_few_times_and_then_counted() -> None:
    lines = told("for i in range(1000): log.warning('request %d was bad', i)\nlog.warning('another')")
    assert [line["message"] for line in lines] == [
        *(f"request {i} was bad" for i in range(5)),
        "another",
        "request %d was bad",
    ]
    assert lines[-1]["left_out"] == 995


def test_refused_requests_are_sampled_and_counted_and_failed_ones_are_all_told() -> None:
    lines = told("for _ in range(500): ask(404)\nfor _ in range(50): ask(500)")
    assert [line["status"] for line in lines[10:60]] == [500] * 50
    assert {line["level"] for line in lines[10:60]} == {"ERROR"}
    assert lines[60]["left_out"] == 490
    assert len(lines) == 61


def test_good_requests_leave_their_share_of_lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    with caplog.at_level(logging.INFO):
        for share, low, high in ((0.0, 0, 0), (0.1, 130, 270), (1.0, 2000, 2000)):  # 200 expected; 5 standard deviations
            caplog.clear()
            monkeypatch.setattr(logs._access, "share", share)
            for _ in range(2000):
                logs.access("GET", "/model", 200, 0.001, "abc", "3", "")
            assert low <= len(caplog.records) <= high


STOPPED = """
for i in range(3000):
    logging.getLogger(f"bentoml.{i}").error("x" * 1000)
print("went on", file=sys.stderr)
sys.stdin.readline()
time.sleep(0.3)
log.error("the end")
"""


def test_a_log_that_nobody_reads_stops_nothing_and_tells_later_how_much_was_lost() -> None:
    with start(STOPPED, stdin=subprocess.PIPE) as process:
        assert process.stderr
        assert process.stdout
        assert process.stderr.readline() == "went on\n"
        print(file=process.stdin, flush=True)
        lines = [json.loads(line) for line in process.stdout]
    assert process.returncode == 0
    assert lines[-1]["message"] == "the end"
    assert sum(line.get("dropped", 0) for line in lines) + len(lines) - 1 == 3000


def test_a_process_ends_although_nobody_reads_its_log() -> None:
    with start(STOPPED, stdin=subprocess.DEVNULL) as process:
        assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize("target", ["full disk", "closed pipe", "closed"])
def test_a_log_that_takes_nothing_stops_nothing(target: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    options: dict[str, Any] = {"preexec_fn": lambda: os.close(1)} if target == "closed" else {}
    with open("/dev/full", "w") as full:
        given = {"full disk": full, "closed pipe": writer, "closed": None}[target]
        process = start("for _ in range(20): log.exception('a'); ask(500)\ntime.sleep(0.1)\nos._exit(7)", given, **options)
    os.close(writer)
    assert process.communicate(timeout=PATIENCE)[1] == ""
    assert process.returncode == 7


def test_a_person_at_a_terminal_gets_lines_to_read_that_cannot_steer_it() -> None:
    leader, follower = pty.openpty()
    with start(
        'log.info("ready %s", "\\x1b[2J")\nask(404, "no such address")\nlog.error("bad", exc_info=ValueError("why"))',
        follower,
    ) as process:
        process.wait(PATIENCE)
        assert process.stderr
        assert process.stderr.read() == ""
    os.close(follower)
    first, second, *rest = os.read(leader, 10_000).decode().splitlines()
    os.close(leader)
    assert first.endswith("info    ready \\x1b[2J")
    assert "request request_id=abc method=POST route=/predict status=404" in second
    assert rest[-1] == "ValueError: why"
    assert not any(line.startswith("{") for line in (first, second, *rest))
