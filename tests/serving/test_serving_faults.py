"""What befalls the service from outside leaves it answering, or ends it in one sentence.

python -m pytest tests/serving/test_serving_faults.py
"""

import contextlib
import re
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from conftest import PATIENCE, ROOT, until
from test_serving import PNG, SERVICE, picture, served, wait_ready, write_model

GOOD = picture()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("faults") / "model")


def workers(server: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the processes that answer: those that the server has started and that listen as it does."""
    found = []
    for one in psutil.Process(server.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any(connection.status == psutil.CONN_LISTEN for connection in one.net_connections("tcp")):
                found.append(one)
    return found


CLIENTS = 4


@contextlib.contextmanager
def asking(url: str) -> Iterator[Counter[str]]:
    """Let clients ask over connections of their own until the end; count what comes back."""
    seen, over, lock = Counter[str](), threading.Event(), threading.Lock()

    def ask() -> None:
        with httpx.Client(base_url=url, timeout=30, headers=PNG) as client:
            while not over.is_set():
                try:
                    answer = client.post("/predict", content=GOOD)
                    told = answer.json()["label"] if answer.status_code == 200 else str(answer.status_code)
                except httpx.TransportError as error:  # broken: the connection was there, and the answer was not
                    told = "refused" if isinstance(error, httpx.ConnectError) else "broken"
                    time.sleep(0.01)
                with lock:
                    seen[told] += 1

    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(ask) for _ in range(CLIENTS)]
        try:
            yield seen
        finally:
            over.set()
    for client in clients:
        client.result()


@pytest.mark.journey
def test_sigterm_under_load_breaks_no_request_that_was_taken(model: Path, tmp_path: Path) -> None:
    """A client that asks over a kept connection may meet its end, which HTTP has it ask again for; then nobody listens."""
    with served(tmp_path, SERVICE, ROOT, SERVE_MODEL=str(model), SERVE_WORKERS="2") as (process, url):
        wait_ready(url)
        with asking(url) as seen:
            until(lambda: seen["red"] > 200)
            process.terminate()
            assert process.wait(PATIENCE) == 0
        assert set(seen) <= {"red", "refused", "broken"}
        # the end of each client's connection to each worker, of one that came as it stopped, and of one that nobody took
        assert seen["broken"] <= 4 * CLIENTS


@pytest.mark.journey
def test_a_killed_worker_is_replaced_and_only_its_own_requests_are_lost(model: Path, tmp_path: Path) -> None:
    with served(tmp_path, SERVICE, ROOT, SERVE_MODEL=str(model), SERVE_WORKERS="2") as (process, url):
        wait_ready(url)
        until(lambda: len(workers(process)) == 2)
        with asking(url) as seen:
            until(lambda: seen["red"] > 200)
            killed = workers(process)[0]
            killed.kill()
            until(lambda: len({worker.pid for worker in workers(process)} - {killed.pid}) == 2)
            answered = seen["red"]
            until(lambda: seen["red"] > answered + 500)
        assert process.poll() is None
        assert set(seen) <= {"red", "broken", "503"}  # 503: the new worker loads its model, and says so
        assert seen["broken"] <= CLIENTS
        text = httpx.get(f"{url}/metrics").text
        told = re.search(r'model_predictions_total\{label="red",model_version="unregistered"\} (\d+)', text)
        assert told
        assert int(told[1]) >= seen["red"]  # what the killed one had counted is not lost


# The disk is full

SMALL_DISK = """
set -e
mount -t tmpfs -o size=4m tmpfs "$1"; mkdir "$1/tmp" "$1/home"
export TMPDIR="$1/tmp" BENTOML_HOME="$1/home"
( while [ ! -e "$2" ]; do sleep 0.05; done; cat /dev/zero > "$1/fill" 2>/dev/null || true; rm "$2" ) &
shift 2
exec "$@" > "$TMPDIR/log" 2>&1
"""


def has_namespaces() -> bool:
    command = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return bool(shutil.which("unshare")) and subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.journey
@pytest.mark.skipif(not has_namespaces(), reason="this system lets no user mount a small disk (unshare --mount)")
def test_with_a_full_disk_the_service_goes_on_answering(model: Path, tmp_path: Path) -> None:
    disk, full = tmp_path / "disk", tmp_path / "fill-it"
    disk.mkdir()
    private = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", SMALL_DISK, "sh", str(disk), str(full)]
    with served(tmp_path, SERVICE, ROOT, private, SERVE_MODEL=str(model), SERVE_WORKERS="2") as (process, url):
        wait_ready(url)
        until(lambda: len(workers(process)) == 2)
        full.touch()
        until(lambda: not full.exists())
        killed = workers(process)[0]
        killed.kill()  # its successor finds no space
        until(lambda: len({worker.pid for worker in workers(process)} - {killed.pid}) == 2)
        wait_ready(url)
        with httpx.Client(base_url=url) as client:
            for _ in range(30):
                assert client.post("/predict", content=picture(), headers=PNG).status_code == 200
                assert client.post("/predict", content=b"x", headers=PNG).status_code == 400
            assert client.get("/metrics").status_code == 200
        assert process.poll() is None
