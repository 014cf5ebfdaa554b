"""What tests with a real container engine share: is there one, a registry of their own, and nothing left behind."""

import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import PATIENCE
from ports import free_port


def engine_answers() -> bool:
    """True when `docker info` does."""
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "info"], capture_output=True, timeout=120).returncode == 0


needs_engine = pytest.mark.skipif(not engine_answers(), reason="there is no Docker engine: .ci/docker starts one")
needs_registry = pytest.mark.skipif(
    shutil.which("docker-registry") is None, reason="there is no docker-registry: .ci/docker installs it"
)


def docker(*arguments: str, text: str | None = None) -> str:
    """Run Docker and return what it prints, stripped."""
    done = subprocess.run(["docker", *arguments], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def wait_for(url: str, seconds: float = PATIENCE) -> None:
    """Wait until an address answers with success."""
    until = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            assert time.monotonic() < until, f"{url} did not answer in {seconds} s"
            time.sleep(0.1)


@contextmanager
def registry(folder: Path) -> Iterator[str]:
    """Run a registry on a free port of this machine; yields its address."""
    port = free_port()
    config = {
        "version": 0.1,
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "registry")}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    path = folder / "registry.yml"
    path.write_text(json.dumps(config))
    process = subprocess.Popen(["docker-registry", "serve", str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(f"http://127.0.0.1:{port}/v2/")
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def remove_images(name: str) -> None:
    """Remove every image of a model, and the containers that run one."""
    wanted = ("--filter", f"label=ml.model.name={name}")
    containers = docker("ps", "--all", "--quiet", *wanted).split()
    if containers:
        docker("rm", "--force", *containers)
    images = set(docker("images", "--quiet", "--no-trunc", *wanted).split())
    if images:
        docker("image", "rm", "--force", *images)
