"""`make setup` on machines that lack something, is stopped, or holds another's environment, without a network.

python -m pytest tests/system/test_environment.py
"""

import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from conftest import ROOT

from src.core.files import sha256

LOCKS = ("run.txt", "yours.txt", "check.txt", "uv.txt", "torch.txt")
UV = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
NO_NVIDIA = not shutil.which("nvidia-smi") and not Path("/proc/driver/nvidia").exists()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with what setup needs; neither Git nor packages. Nothing can be had but what lies in `links` beside it."""
    fill(tmp_path / "project")
    return tmp_path / "project"


def fill(folder: Path) -> None:
    (folder / "src" / "system").mkdir(parents=True)
    (folder / "requirements").mkdir()
    (folder.parent / "links").mkdir()
    source = (ROOT / "src" / "system" / "environment.py").read_text()
    (folder / "src" / "system" / "environment.py").write_text(
        source.replace("https://download.pytorch.org/whl/cpu", "http://127.0.0.1:9")
    )
    shutil.copy(ROOT / "Makefile", folder)
    for name in LOCKS:
        (folder / "requirements" / name).write_text("# nothing to install\n")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The environment of a project in which nothing is to be installed."""
    folder = tmp_path_factory.mktemp("made") / "project"
    fill(folder)
    init(folder)
    assert "making .venv" in setup(folder).stdout
    assert setup(folder).stdout == ""
    return folder


@pytest.fixture
def ready(project: Path, made: Path) -> Path:
    """A clone with an environment that lacks what `add` adds."""
    init(project)
    shutil.copytree(made / ".venv", project / ".venv", symlinks=True)
    written = project / ".venv" / "pyvenv.cfg"
    written.write_text(written.read_text().replace(str(made), str(project)))
    return project


def add(project: Path, lock: str, name: str, version: str = "1.0") -> None:
    """Add a package to a lock, and its wheel, which holds one module."""
    wheel = project.parent / "links" / f"{name}-{version}-py3-none-any.whl"
    record = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"version = '{version}'\n",
        f"{record}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{record}/WHEEL": "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{record}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{record}/RECORD"])
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    pinned = version.partition("+")[0]
    line = f"{name}=={pinned}" + ("" if lock == "torch.txt" else f" --hash=sha256:{sha256(wheel)}")
    (project / "requirements" / lock).write_text(line + "\n")


def tools(folder: Path, *names: str) -> str:
    """Return a PATH that holds only the named tools."""
    folder.mkdir()
    for name in names:
        found = shutil.which(name)
        assert found
        (folder / name).symlink_to(found)
    return str(folder)


def settings(project: Path) -> dict[str, str]:
    here = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_", "TORCH_", "DVC_"))}
    here |= {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(project.parent / "links")}
    here["PATH"] = f"{Path(UV).parent}{os.pathsep}{here['PATH']}" if UV else here["PATH"]
    return here | {"UV_CACHE_DIR": str(project.parent / "cache"), "no_proxy": "127.0.0.1"}


def setup(project: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "src/system/environment.py", *arguments]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, env={**settings(project), **environment})


def versions(project: Path, *names: str) -> list[str]:
    """Return the versions of modules in the environment."""
    program = "".join(f"import {name}; print({name}.version);" for name in names)
    printed = subprocess.run(
        [project / ".venv/bin/python", "-c", program], capture_output=True, text=True, check=True
    ).stdout
    return printed.split()


def init(project: Path) -> None:
    subprocess.run(["git", "init", "--quiet"], cwd=project, check=True)


def require_sentence(result: subprocess.CompletedProcess[str], words: str) -> None:
    assert result.returncode == 1
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr


@pytest.mark.journey
def test_a_package_that_cannot_be_had_is_named_and_a_broken_download_is_refused_by_its_hash(ready: Path) -> None:
    (ready / "requirements" / "torch.txt").write_text("no-such-package-anywhere==1.0\n")
    result = setup(ready)
    require_sentence(result, "PyTorch could not be installed (ERROR: Could not find a version that satisfies")
    assert "the CPU builds does not answer" in result.stdout or not NO_NVIDIA
    add(ready, "run.txt", "broken")
    (ready.parent / "links" / "broken-1.0-py3-none-any.whl").write_bytes(b"half a wheel")
    require_sentence(
        setup(ready), "the locked packages could not be installed (ERROR: THESE PACKAGES DO NOT MATCH THE HASHES"
    )


@pytest.mark.journey
def test_a_second_run_does_nothing_and_a_changed_lock_is_installed_beside_what_is_there(ready: Path) -> None:
    add(ready, "run.txt", "first")
    add(ready, "check.txt", "second")
    add(ready, "yours.txt", "third")
    assert "making .venv" not in setup(ready).stdout
    assert setup(ready).stdout == ""
    assert "making .venv" not in setup(ready, "--checks").stdout
    assert setup(ready).stdout == setup(ready, "--checks").stdout == ""
    add(ready, "run.txt", "first", "2.0")
    assert "making .venv" not in setup(ready).stdout
    assert versions(ready, "first", "second", "third") == ["2.0", "1.0", "1.0"]


@pytest.mark.journey
def test_the_plug_in_of_a_dvc_remote_is_installed_when_a_remote_is_added(ready: Path) -> None:
    for number, lock in enumerate(("run.txt", "remote-s3.txt", "remote-gs.txt", "remote-azure.txt", "remote-ssh.txt")):
        add(ready, lock, f"package{number}")
    (ready / ".dvc").mkdir()
    (ready / ".dvc" / "config").write_text("['remote \"a\"']\n    url = ../starter\n    endpointurl = ssh://no\n")
    assert setup(ready, "--plugins").stdout == ""
    (ready / ".dvc" / "config").write_text('[\'remote "b"\']\n    url = "gs://b/#"\n')
    (ready / ".dvc" / "config.local").write_text("['remote \"c\"']\n    url=azure://c")
    setup(ready, "--plugins", DVC_REMOTE_URL="s3://bucket")
    installed = {path.name.split("-")[0] for path in (ready / ".venv").rglob("package*.dist-info")}
    assert installed == {"package1", "package2", "package3"}
    setup(ready)
    assert list((ready / ".venv").rglob("package0-*.dist-info"))
    assert setup(ready, DVC_REMOTE_URL="s3://bucket").stdout == ""


@pytest.mark.journey
def test_an_environment_whose_installation_was_killed_is_made_anew(ready: Path) -> None:
    add(ready, "run.txt", "first")
    setup(ready)
    next(ready.glob(".venv/lib/*/site-packages/first.py")).unlink()
    (ready / ".venv" / "installed").write_text("run.txt unfinished\n")
    result = setup(ready)
    assert (result.returncode, "making .venv" in result.stdout) == (0, True)
    assert versions(ready, "first") == ["1.0"]


@pytest.mark.journey
@pytest.mark.parametrize(
    ("kind", "words"), [("link", "is a link"), ("folder", "was not made by setup"), ("file", "was not made")]
)
def test_an_environment_of_somebody_else_is_left_alone(project: Path, tmp_path: Path, kind: str, words: str) -> None:
    init(project)
    other = tmp_path / "other"
    if kind == "file":
        other.write_text("")
    else:
        other.mkdir()
        (other / "pyvenv.cfg").write_text("uv = 0.13\n")
    (project / ".venv").symlink_to(other) if kind == "link" else other.rename(project / ".venv")
    before = sorted(path.name for path in (project / ".venv").glob("*"))
    require_sentence(setup(project), words)
    assert sorted(path.name for path in (project / ".venv").glob("*")) == before


@pytest.mark.journey
def test_a_stop_is_one_sentence_and_the_next_run_goes_on(ready: Path, tmp_path: Path) -> None:
    add(ready, "run.txt", "first")
    path = tools(tmp_path / "bin", "git", "sh", "cat")
    os.mkfifo(tmp_path / "started")
    waiting = f"#!/bin/sh\ntest $1 = --version && exit\necho ready >{tmp_path}/started\nexec cat {tmp_path}/started\n"
    (tmp_path / "bin" / "uv").write_text(waiting)
    (tmp_path / "bin" / "uv").chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, "src/system/environment.py"],
        cwd=ready,
        env={**settings(ready), "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert (tmp_path / "started").read_text() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, errors = process.communicate()
    assert process.returncode == 130
    assert errors == "setup: stopped: run it again, and it goes on with what is downloaded\n"
    assert setup(ready).returncode == 0
    assert versions(ready, "first") == ["1.0"]


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve the files of a folder; yields the address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.journey
@pytest.mark.skipif(not NO_NVIDIA or not sys.platform.startswith("linux"), reason="this machine gets the build with CUDA")
def test_without_a_gpu_pytorch_is_its_cpu_build_unless_a_variable_names_another_index(ready: Path, tmp_path: Path) -> None:
    for folder, version in (("cpu", "1.0+cpu"), ("other", "1.0+other"), ("extra", "1.0+zzz")):
        add(ready, "torch.txt", "torch", version)
        (tmp_path / folder / "torch").mkdir(parents=True)
        (tmp_path / "links" / f"torch-{version}-py3-none-any.whl").rename(
            tmp_path / folder / "torch" / f"torch-{version}-py3-none-any.whl"
        )
    with serving(tmp_path) as address:
        script = ready / "src" / "system" / "environment.py"
        script.write_text(script.read_text().replace("http://127.0.0.1:9", f"{address}/cpu"))
        further = tmp_path / "pip.conf"
        further.write_text(f"[global]\nextra-index-url = {address}/extra\n")
        reached = {"PIP_NO_INDEX": "0", "PIP_TRUSTED_HOST": "127.0.0.1", "PIP_CONFIG_FILE": str(further)}
        assert "its CPU build: no NVIDIA GPU here" in setup(ready, **reached).stdout
        assert versions(ready, "torch") == ["1.0+cpu"]
        reached["PIP_EXTRA_INDEX_URL"] = f"{address}/extra"
        assert setup(ready, TORCH_INDEX_URL=f"{address}/other", **reached).returncode == 0
        assert versions(ready, "torch") == ["1.0+other"]
