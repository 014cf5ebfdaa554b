"""The load that proves a deploy counts what users would feel: python -m pytest tests/lab/test_deploy_load.py"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from src.lab.benchmarks.deploy_load import Asked, load, summarize, switches


class Service(ThreadingHTTPServer):
    """Answers every prediction with its version; `fault` names what goes wrong with each fifth."""

    daemon_threads = True
    version, fault, asked = "1", "", 0
    lock = threading.Lock()

    def count(self) -> int:
        with self.lock:
            self.asked += 1
            return self.asked

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the test."""


class Handler(BaseHTTPRequestHandler):
    """One connection, kept open."""

    protocol_version = "HTTP/1.1"
    server: Service

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        server = self.server
        self.rfile.read(int(self.headers["Content-Length"]))
        fault = server.fault if server.count() % 5 == 0 else ""
        if fault == "hang up":
            self.close_connection = True
            return
        body = {"label": "7", "model_version": "9" if fault == "mixed" else server.version}
        content = b"no JSON" if fault == "nonsense" else json.dumps(body).encode()
        self.send_response(502 if fault == "502" else 200)
        self.send_header("X-Model-Version", server.version)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def service() -> Iterator[Service]:
    with Service(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def url(service: Service) -> str:
    return f"http://127.0.0.1:{service.server_address[1]}"


def lasting(seconds: float) -> Any:
    until = time.monotonic() + seconds
    return lambda: time.monotonic() > until


def test_without_a_fault_every_request_is_counted_as_good(service: Service) -> None:
    found = summarize(load(url(service), b"image", 4, lasting(0.5)))
    assert found["requests"] == found["ok"] == service.asked > 0
    assert found["failed"] == {}
    [version] = found["versions"]
    assert (version["version"], version["labels"]) == ("1", ["7"])
    assert 0 < version["over_new_connections"] < version["answers"]
    assert 0 < found["latency_ms"]["p50"] <= found["latency_ms"]["p100"]


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("502", "status 502"),
        ("hang up", "the connection was closed before an answer came"),
        ("mixed", "an answer of two versions (1 and 9)"),
        ("nonsense", "an answer that is no prediction"),
    ],
)
def test_every_failure_is_counted_by_its_kind(service: Service, fault: str, kind: str) -> None:
    service.fault = fault
    found = summarize(load(url(service), b"image", 2, lasting(0.3)))
    failed = {name.replace(" (a kept connection)", "") for name in found["failed"]}
    assert failed == {kind}
    assert sum(found["failed"].values()) == service.asked // 5
    assert found["ok"] == found["requests"] - sum(found["failed"].values())


def test_a_switch_is_seen_with_both_versions_and_no_stray_answer(service: Service) -> None:
    switching = threading.Timer(0.7, setattr, (service, "version", "2"))
    switching.start()
    found = summarize(load(url(service), b"image", 4, lasting(1.5)))
    switching.join()
    assert [entry["version"] for entry in found["versions"]] == ["1", "2"]
    [switch] = found["switches"]
    assert (switch["from"], switch["to"]) == ("1", "2")
    assert 0.6 < switch["at"] < 1.4
    assert found["stray"] == 0


def line(*versions: tuple[float, str], kept: bool = False) -> list[Asked]:
    return [Asked(at, at + 0.01, kept, None, version, "7") for at, version in versions]


def steady(start: float, end: float, version: str) -> list[Asked]:
    return line(*((start + i * 0.05, version) for i in range(round((end - start) / 0.05))))


def test_the_old_version_after_the_switch_is_stray_and_just_at_it_is_mixed() -> None:
    asked = [*steady(0, 2, "1"), *steady(2, 6, "2"), *line((2.1, "1"), (4.01, "1"))]
    assert switches(asked) == ([{"at": 2.0, "from": "1", "to": "2", "mixed_ms": 100.0}], 1)


def test_a_way_back_is_a_switch_too() -> None:
    found, stray = switches([*steady(0, 2, "1"), *steady(2, 4, "2"), *steady(4, 6, "1")])
    assert [(switch["from"], switch["to"]) for switch in found] == [("1", "2"), ("2", "1")]
    assert stray == 0


def test_a_kept_connection_may_stay_where_it_is() -> None:
    asked = [*steady(0, 2, "1"), *steady(2, 6, "2"), *line((5.0, "1"), kept=True)]
    assert switches(asked)[1] == 0


def run(service: Service, folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    (folder / "image.png").write_bytes(b"image")
    command = [sys.executable, "-m", "src", "bench-deploy", url(service), str(folder / "image.png"), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_load_lasts_as_long_as_a_command_and_writes_its_numbers(service: Service, tmp_path: Path) -> None:
    done = run(
        service, tmp_path, "--json", str(tmp_path / "load.json"), "--", sys.executable, "-c", "import time; time.sleep(1)"
    )
    assert done.returncode == 0, done.stderr
    assert "failed: none" in done.stdout
    found = json.loads((tmp_path / "load.json").read_text())
    assert found["command"]["exit_status"] == 0
    assert 0.5 < found["versions"][0]["last"] < 20


def test_a_failure_is_a_sentence_and_an_exit_status(service: Service, tmp_path: Path) -> None:
    service.fault = "502"
    done = run(service, tmp_path, "--seconds", "0.5", "--concurrency", "2")
    assert done.returncode == 1
    assert "x status 502" in done.stdout
    assert "requests went wrong" in done.stderr
    assert "Traceback" not in done.stderr
