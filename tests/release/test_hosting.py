"""Versions run, drain, stop and come back in containers: python -m pytest tests/release/test_hosting.py

Containers are of an image made here, in a real engine.
"""

import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE, until
from ports import free_port

from src.core.command import UserError
from src.release import containers, settings
from src.release.containers import Containers, open_host
from src.release.settings import Settings
from src.release.steps import steps
from src.release.workload import ABSENT, Workload

SERVER = """
import http.server, os, signal, subprocess, sys, threading, time

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/slow":
            time.sleep(4)
        if self.path == "/leak":
            hog.append(b"x" * 200_000_000)
        if self.path == "/child":
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        body = ("\\n".join(f"{name}={value}" for name, value in os.environ.items()) + f"\\nUID={os.getuid()}").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

hog = []
server = http.server.ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Handler)
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


# ---------------------------------------------------------------------------------------------------------------------
# Which host
# ---------------------------------------------------------------------------------------------------------------------


def pretend(folder: Path, engine: str, status: int) -> None:
    """Put a command of this name there that says why it fails, or nothing."""
    folder.mkdir(exist_ok=True)
    path = folder / engine
    path.write_text(f"#!/bin/sh\n[ {status} = 0 ] || echo 'no daemon here' >&2\nexit {status}\n")
    path.chmod(0o755)


@pytest.mark.journey
def test_the_first_engine_that_answers_is_taken_but_the_one_that_is_named_or_in_use_must_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = tmp_path / "tools"
    monkeypatch.setenv("PATH", str(tools))
    given = read(tmp_path)
    with pytest.raises(UserError, match="DEPLOY_ENGINE asks for docker, but docker is not installed"):
        open_host(read(tmp_path, DEPLOY_ENGINE="docker"))
    pretend(tools, "podman", 0)
    assert open_host(given).kind == "podman"
    pretend(tools, "docker", 1)
    assert open_host(given).kind == "podman"
    with pytest.raises(UserError, match=r"docker is installed and does not answer \(no daemon here\)"):
        open_host(read(tmp_path, DEPLOY_ENGINE="docker"))
    given.home.mkdir(parents=True)
    (given.home / "engine").write_text("docker\n")
    with pytest.raises(UserError, match="docker does not answer, and the versions of this host run in it"):
        open_host(given)
    pretend(tools, "docker", 0)
    assert open_host(given).kind == "docker"


@pytest.mark.journey
def test_without_an_engine_make_deploy_refuses_before_anything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(tmp_path / "tools", "podman", 1)
    monkeypatch.setenv("PATH", str(tmp_path / "tools"))
    monkeypatch.setenv("DEPLOY_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DEPLOY_ENGINE", raising=False)
    with pytest.raises(UserError, match=r"deploying needs Docker or Podman.*docker is not installed.*no daemon.*make serve"):
        steps(tmp_path / "out/release", again=False)
    assert [path.name for path in tmp_path.iterdir()] == ["tools"]


# ---------------------------------------------------------------------------------------------------------------------
# Containers
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.journey
def test_an_engine_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docker").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(containers, "_PATIENCE", 0.2)
    with pytest.raises(UserError, match=r"docker ps took over 0.2 s.*systemctl restart docker"):
        Containers(read(tmp_path), "docker").names()


def _docker_answers() -> bool:
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "info"], capture_output=True, timeout=120).returncode == 0


IMAGE = "test-hosting-small"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    if not _docker_answers():
        pytest.skip("no Docker engine answers: .ci/docker starts one")
    folder = tmp_path_factory.mktemp("image")
    (folder / "server.py").write_text(SERVER)
    (folder / "Dockerfile").write_text(
        'FROM python:3.11-slim\nCOPY server.py /server.py\nUSER 1034\nCMD ["python", "/server.py", "0.0.0.0", "3000"]\n'
    )
    build = ["docker", "build", "--quiet", "--tag", IMAGE, str(folder)]
    environment = {**os.environ, "DOCKER_BUILDKIT": "0"}  # there need not be a buildx
    subprocess.run(build, check=True, capture_output=True, env=environment, timeout=300)
    identity = subprocess.run(
        ["docker", "image", "inspect", "--format", "{{.Id}}", IMAGE], check=True, capture_output=True, text=True
    ).stdout.strip()
    yield {"image": IMAGE, "id": identity, "digest": identity, "engine": "docker", "bento": None}
    subprocess.run(["docker", "rmi", "--force", IMAGE], check=True, capture_output=True, timeout=PATIENCE)


@pytest.fixture
def docker(tmp_path: Path, image: dict[str, Any]) -> Iterator[Containers]:
    name = f"test-hosting-{os.getpid()}"
    host = open_host(read(tmp_path, MODEL_NAME=name, DEPLOY_ENGINE="docker", DEPLOY_MEMORY_MB="128"))
    assert isinstance(host, Containers)
    yield host
    for container in host.names():
        host.remove(container)


def contained(image: dict[str, Any], **environment: str) -> Workload:
    return Workload(f"test-hosting-{os.getpid()}-a", image, free_port(), environment)


@pytest.mark.journey
def test_a_container_starts_answers_is_known_and_goes(docker: Containers, image: dict[str, Any]) -> None:
    given = contained(image, SERVE_WORD="a b")
    assert docker.state(given.name) == ABSENT
    docker.pull(image)
    docker.start(given)
    answer = get(given.port)
    assert {"SERVE_WORD=a b", "UID=1034"} <= set(answer.splitlines())
    state = docker.state(given.name)
    assert (state.exists, state.running, state.restarts, state.oom, state.exit_code) == (True, True, 0, False, None)
    assert state.memory
    told = docker.ask_memory(given.name)
    assert told
    assert abs(told - state.memory) < 4e6
    assert docker.names() == [given.name]
    assert "serving" in docker.logs(given.name)
    docker.start(given)  # what is there gives way
    assert "UID=" in get(given.port)
    docker.remove(given.name)
    assert docker.state(given.name) == ABSENT
    assert (docker.names(), docker.logs(given.name)) == ([], "")
    docker.stop(given.name)
    docker.remove(given.name)


@pytest.mark.journey
def test_a_container_has_no_rights_and_no_disk_and_is_on_loopback_only(docker: Containers, image: dict[str, Any]) -> None:
    given = contained(image)
    docker.start(given)

    def inside(script: str) -> int:
        return subprocess.run(["docker", "exec", given.name, "sh", "-c", script], capture_output=True).returncode

    assert inside("touch /x") != 0
    assert inside("touch /tmp/x") == 0
    assert inside("grep -q '^CapEff:\t0*$' /proc/self/status") == 0
    assert inside("grep -q '^NoNewPrivs:\t1$' /proc/self/status") == 0
    shown = subprocess.run(["docker", "port", given.name], capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["3000/tcp", "->", f"127.0.0.1:{given.port}"]
    policy = subprocess.run(
        ["docker", "inspect", "--format", "{{.HostConfig.RestartPolicy.Name}} {{.HostConfig.Memory}}", given.name],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert policy.split() == ["unless-stopped", str(128 * 2**20)]


@pytest.mark.journey
@pytest.mark.parametrize("wait", [True, False])
def test_requests_in_flight_are_answered_before_a_container_stops_and_it_comes_back(
    docker: Containers, image: dict[str, Any], wait: bool
) -> None:
    given = contained(image)
    docker.start(given)
    get(given.port)
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(get, given.port, "/slow")
        time.sleep(1)
        started = time.monotonic()
        docker.stop(given.name, wait=wait)
        took = time.monotonic() - started
        assert "UID=" in answer.result()
    assert (took > 2) is wait
    until(lambda: not docker.state(given.name).running)
    state = docker.state(given.name)
    assert (state.exists, state.exit_code, state.memory) == (True, 0, None)
    docker.resume(given.name)
    docker.resume(given.name)
    assert "UID=" in get(given.port)


@pytest.mark.journey
def test_too_much_memory_and_restarts_are_seen(docker: Containers, image: dict[str, Any]) -> None:
    given = contained(image)
    docker.start(given)
    get(given.port)
    with pytest.raises(OSError, match=r"."):
        urllib.request.urlopen(f"http://127.0.0.1:{given.port}/leak", timeout=10)
    until(lambda: docker.state(given.name).restarts > 0)


@pytest.mark.journey
def test_what_a_container_cannot_have_is_named(docker: Containers, image: dict[str, Any], tmp_path: Path) -> None:
    given = contained(image)
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", given.port))
        stranger.listen()
        with pytest.raises(UserError, match=f"port {given.port} of 127.0.0.1 is taken by another program"):
            docker.start(given)
    assert docker.state(given.name) == ABSENT
    with pytest.raises(UserError, match=r"test-hosting-none .* is not on this machine: run make deploy again"):
        docker.pull({**image, "image": "test-hosting-none", "id": None})
    remote = f"127.0.0.1:{free_port()}/x@sha256:{'0' * 64}"
    with pytest.raises(UserError, match=r"cannot be pulled .*connection refused.*check that the registry answers"):
        docker.pull({**image, "image": remote, "id": None})
    with pytest.raises(UserError, match="there is no container nobody-here on this host"):
        docker.resume("nobody-here")


@pytest.mark.journey
def test_a_local_image_that_was_tagged_anew_is_not_taken(docker: Containers, image: dict[str, Any]) -> None:
    subprocess.run(["docker", "tag", "python:3.11-slim", f"{IMAGE}:moved"], check=True, capture_output=True)
    try:
        given = contained({**image, "image": f"{IMAGE}:moved"})
        docker.start(given)
        assert "UID=1034" in get(given.port)
    finally:
        subprocess.run(["docker", "rmi", f"{IMAGE}:moved"], check=True, capture_output=True)


@pytest.mark.journey
def test_an_engine_that_stops_answering_is_one_sentence(
    docker: Containers, image: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("DOCKER_HOST", "unix:///nowhere.sock")
        for call in (lambda: docker.state("x"), docker.names, lambda: docker.stop("x"), lambda: docker.remove("x")):
            with pytest.raises(UserError, match="docker could not .*Cannot connect.*systemctl restart docker"):
                call()
