"""Versions run, drain, stop and come back in containers: python -m pytest tests/release/test_hosting.py

Containers are of an image made here, in a real engine.
"""

import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import PATIENCE, until
from docker_engine import docker, needs_engine
from ports import free_port

from src.core.command import UserError
from src.release import probes, settings
from src.release.client import Client
from src.release.containers import Containers, State, open_host
from src.release.golden import FaultError
from src.release.reviewed import ImageFile
from src.release.settings import Settings
from src.release.steps import steps

NAME = f"test-hosting-{os.getpid()}"
IMAGE = f"{NAME}-small"
SERVER = """
import http.server, os, signal, threading, time

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/slow":
            print("slow", flush=True)
            time.sleep(3)
        body = ("\\n".join(f"{name}={value}" for name, value in os.environ.items()) + f"\\nUID={os.getuid()}").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

server = http.server.ThreadingHTTPServer(("0.0.0.0", 3000), Handler)
server.daemon_threads = False
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
print("serving", flush=True)
server.serve_forever()
server.server_close()
"""


def get(port: int, path: str = "/") -> str:
    """Return the answer, as soon as there is one."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE) as response:
                return str(response.read().decode())
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def read(home: Path, **given: str) -> Settings:
    return settings.read({"DEPLOY_HOME": str(home), "DEPLOY_DRAIN_SECONDS": "20", "MODEL_NAME": "test-hosting", **given})


# Which host


def pretend(folder: Path, engine: str, status: int) -> None:
    """Put a command of this name there that says why it fails, or nothing."""
    folder.mkdir(exist_ok=True)
    path = folder / engine
    path.write_text(f"#!/bin/sh\n[ {status} = 0 ] || echo 'no daemon here' >&2\nexit {status}\n")
    path.chmod(0o755)


@pytest.mark.journey
def test_without_an_engine_make_deploy_refuses_before_anything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(tmp_path / "tools", "podman", 1)
    monkeypatch.setenv("PATH", str(tmp_path / "tools"))
    monkeypatch.setenv("DEPLOY_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DEPLOY_ENGINE", raising=False)
    with pytest.raises(UserError, match=r"deploying needs Docker or Podman.*docker is not installed.*no daemon.*make serve"):
        steps(tmp_path / "out/release", again=False)
    assert [path.name for path in tmp_path.iterdir()] == ["tools"]


# Containers


@pytest.fixture(scope="module")
def image() -> Iterator[ImageFile]:
    """An image of the small server: the stand-in for the base image with one layer more."""
    base = docker("create", "python:3.11-slim")
    change = f"--change=CMD {json.dumps(['python', '-c', SERVER])}"
    digest = docker("commit", change, "--change=USER 1034", base, IMAGE)
    docker("rm", base)
    yield ImageFile("a" * 64, "1", IMAGE, digest, digest)
    docker("rmi", "--force", IMAGE)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Containers]:
    given = {"MODEL_NAME": NAME, "DEPLOY_ENGINE": "docker", "DEPLOY_MEMORY_MB": "128"}
    host = open_host(read(tmp_path, **given))
    yield host
    for container in host.names():
        host.remove(container)


@pytest.mark.journey
@needs_engine
def test_a_container_starts_without_rights_answers_is_known_and_goes(host: Containers, image: ImageFile) -> None:
    assert host.state(NAME) == State()
    host.pull(image)
    docker("tag", "python:3.11-slim", f"{IMAGE}:moved")
    moved, port = replace(image, image=f"{IMAGE}:moved"), free_port()
    host.start(NAME, moved, port, {"SERVE_WORD": "a b"})  # by its id, whatever the name is now at
    docker("rmi", f"{IMAGE}:moved")
    assert {"SERVE_WORD=a b", "UID=1034"} <= set(get(port).splitlines())
    state = host.state(NAME)
    assert (state.exists, state.running, state.restarts, state.oom, state.exit_code) == (True, True, 0, False, None)
    assert 2**20 < (state.memory or 0) < 100 * 2**20
    assert host.names() == [NAME]
    assert "serving" in host.logs(NAME)

    def inside(script: str) -> int:
        return subprocess.run(["docker", "exec", NAME, "sh", "-c", script], capture_output=True).returncode

    assert [inside(f"touch {path}") == 0 for path in ("/x", "/tmp/x")] == [False, True]
    assert inside("grep -q '^CapEff:\t0*$' /proc/self/status") == 0
    assert inside("grep -q '^NoNewPrivs:\t1$' /proc/self/status") == 0
    assert docker("port", NAME).split() == ["3000/tcp", "->", f"127.0.0.1:{port}"]
    keys = ("RestartPolicy.Name", "Memory", "MemorySwap", "PidsLimit", "ReadonlyRootfs", "CapDrop")
    limits = docker("inspect", "--format", " ".join(f"{{{{.HostConfig.{key}}}}}" for key in keys), NAME)
    assert limits.split() == ["unless-stopped", str(2**27), str(2**27), "256", "true", "[ALL]"]

    host.start(NAME, image, port, {})  # what is there gives way
    assert "SERVE_WORD" not in get(port)
    host.remove(NAME)
    assert (host.state(NAME), host.names(), host.logs(NAME)) == (State(), [], "")
    host.stop(NAME)
    host.remove(NAME)


@pytest.mark.journey
@needs_engine
@pytest.mark.parametrize("wait", [True, False])
def test_requests_in_flight_are_answered_before_a_container_stops_and_it_comes_back(
    host: Containers, image: ImageFile, wait: bool
) -> None:
    port = free_port()
    host.start(NAME, image, port, {})
    get(port)
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(get, port, "/slow")
        until(lambda: "slow" in host.logs(NAME))
        started = time.monotonic()
        host.stop(NAME, wait=wait)
        took = time.monotonic() - started
        assert "UID=" in answer.result()
    assert (took > 1) is wait
    until(lambda: not host.state(NAME).running)
    state = host.state(NAME)
    assert (state.exists, state.exit_code, state.memory) == (True, 0, None)
    host.resume(NAME)
    host.resume(NAME)
    assert "UID=" in get(port)


@pytest.mark.journey
@needs_engine
@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import time; time.sleep(0.5); raise SystemExit(3)", "it crashed|it ended by itself with exit code 3"),
        ("import time; time.sleep(0.5); kept = bytearray(10**9)", "it needed more memory than it may have"),
    ],
)
def test_a_container_that_cannot_start_is_found_although_it_is_tried_again(
    host: Containers, image: ImageFile, code: str, words: str
) -> None:
    base = docker("create", "python:3.11-slim")
    digest = docker("commit", f"--change=CMD {json.dumps(['python', '-c', code])}", base)
    docker("rm", base)
    port, started = free_port(), time.monotonic()
    host.start(NAME, replace(image, image=digest, id=digest), port, {})
    with pytest.raises(FaultError, match=words):
        probes.wait_ready(Client(f"http://127.0.0.1:{port}"), PATIENCE, lambda: host.state(NAME))
    assert time.monotonic() - started < PATIENCE / 2
    host.remove(NAME)
    docker("rmi", digest)
