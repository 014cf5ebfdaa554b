"""Where CI keeps data and models: python -m pytest tests/release/test_storage.py"""

import base64
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT
from ruamel.yaml import YAML
from s3 import BUCKET, S3, make_project
from standin import GitHub

from src.release import storage
from src.release.storage import artifact_name

pytestmark = pytest.mark.slow
READ = {"contents": "read", "actions": "read", "metadata": "read"}
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def github(tmp_path: Path) -> Iterator[GitHub]:
    with GitHub(tmp_path) as github:
        yield github


@pytest.fixture
def command(github: GitHub, tmp_path: Path) -> Command:
    """Run a Python module in a folder, as a job does."""

    def go(
        folder: Path, module: str, *arguments: str, python: Path = Path(sys.executable), **variables: str
    ) -> subprocess.CompletedProcess[str]:
        told = {
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(tmp_path / "site"),
            "GITHUB_API_URL": github.url,
            "GITHUB_ENV": str(folder / "github-env"),
            "GITHUB_REPOSITORY": "team/models",
            "GITHUB_TOKEN": github.token(READ),
            "LOCAL_DVC_REMOTE": "",
            "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT if python == Path(sys.executable) else python.parents[2]),
            **variables,
        }
        line = [python, "-m", module, *arguments]
        done = subprocess.run(line, cwd=folder, env={**os.environ, **told}, capture_output=True, text=True)
        assert "Traceback" not in done.stderr
        return done

    return go


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with S3(tmp_path_factory.mktemp("s3") / "server") as s3:
        yield s3


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment of its own, in which a plug-in may be installed."""
    return make_project(tmp_path_factory.mktemp("python") / "project")


@pytest.fixture
def repository(tmp_path: Path, command: Command) -> Path:
    """A repository whose one stage has run: its output is different each time that it is made."""
    folder = tmp_path / "repository"
    folder.mkdir()
    for line in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(line, cwd=folder, check=True, capture_output=True)
    stage = "import uuid; open('model', 'w').write(str(uuid.uuid4()))"
    (folder / "stage.py").write_text(stage)
    with (folder / "dvc.yaml").open("w") as file:
        YAML().dump({"stages": {"train": {"cmd": "python stage.py", "deps": ["stage.py"], "outs": ["model"]}}}, file)
    assert command(folder, "dvc", "repro").returncode == 0
    return folder


def fresh(repository: Path, tmp_path: Path) -> Path:
    """Copy what Git would hold into an empty folder."""
    folder = tmp_path / "fresh"
    folder.mkdir()
    for line in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(line, cwd=folder, check=True, capture_output=True)
    for name in ("dvc.yaml", "dvc.lock", "stage.py", "manifest.json"):
        if (repository / name).exists():
            (folder / name).write_bytes((repository / name).read_bytes())
    return folder


@pytest.mark.parametrize("variable", ["DVC_REMOTE_URL", "LOCAL_DVC_REMOTE"])
def test_what_one_run_pushes_the_next_does_not_make_again(
    repository: Path, tmp_path: Path, command: Command, variable: str
) -> None:
    store = {variable: str(tmp_path / "remote")}
    for action in ("connect", "push"):
        assert command(repository, "src", "storage", action, **store).returncode == 0
    assert (tmp_path / "remote/runs").is_dir()  # the run cache too
    next_run = fresh(repository, tmp_path)
    assert command(next_run, "src", "storage", "connect", **store).returncode == 0
    done = command(next_run, "dvc", "repro", "--pull", **store)
    assert "Running stage" not in done.stdout
    assert (next_run / "model").read_text() == (repository / "model").read_text()


def test_the_plug_in_for_s3_is_installed_and_one_run_brings_what_another_pushed(
    repository: Path, tmp_path: Path, command: Command, s3: S3
) -> None:
    """The second run has its key in a file, as a key of Google Cloud Storage or of SSH is one; its machine is another."""
    url = f"s3://{BUCKET}/dvc"
    python = make_project(tmp_path / "project")
    store = {"DVC_REMOTE_URL": url, "DVC_REMOTE_CONFIG": s3.config}
    done = command(repository, "src", "storage", "connect", python=python, **store)
    assert done.returncode == 0, done.stderr
    assert "setup: installing the locked packages\n" in done.stdout
    assert f"data and models are kept in {url}\n" in done.stdout
    assert command(repository, "src", "storage", "push", python=python).returncode == 0
    next_run = fresh(repository, tmp_path)
    key = f"[default]\naws_access_key_id = ci\naws_secret_access_key = {s3.secret}\n"
    told = f"endpointurl = {s3.endpoint}\ncredentialpath = base64:{base64.b64encode(key.encode()).decode()}"
    again = command(next_run, "src", "storage", "connect", python=python, DVC_REMOTE_URL=url, DVC_REMOTE_CONFIG=told)
    assert again.returncode == 0, again.stderr
    assert "installing" not in again.stdout
    assert s3.secret not in done.stdout + done.stderr + again.stdout + again.stderr
    brought = command(next_run, "dvc", "repro", "--pull", python=python)
    assert "Running stage" not in brought.stdout
    assert (next_run / "model").read_text() == (repository / "model").read_text()
    written = next_run / ".dvc/tmp/ci-credentialpath"
    assert written.read_text() == key
    assert stat.S_IMODE(written.stat().st_mode) == 0o600
    status = subprocess.run(["git", "status", "--porcelain", "-uall"], cwd=next_run, capture_output=True, text=True)
    assert "tmp" not in status.stdout
    assert "config.local" not in status.stdout


@pytest.mark.parametrize(
    ("bucket", "change", "words"),
    [
        (BUCKET, ("= hunter2", "= wrong"), "(Forbidden)"),
        ("nobody", ("", ""), "(The specified bucket does not exist)"),
        (BUCKET, ("127.0.0.1", "127.0.0.2"), "(Could not connect to the endpoint URL"),
    ],
)
def test_an_s3_store_that_takes_nothing_is_one_sentence_before_training(
    repository: Path, command: Command, s3: S3, python: Path, bucket: str, change: tuple[str, str], words: str
) -> None:
    """A wrong key, no such bucket, a server that is down."""
    told = s3.config.replace(*change)
    url = f"s3://{bucket}/dvc"
    done = command(repository, "src", "storage", "connect", python=python, DVC_REMOTE_URL=url, DVC_REMOTE_CONFIG=told)
    assert done.returncode == 1
    assert done.stderr.startswith(f"storage: the DVC remote of this run takes no data {words}"), done.stderr
    assert done.stderr.count("\n") == 1
    assert s3.secret not in done.stdout + done.stderr


def test_a_plug_in_that_cannot_be_had_is_one_sentence(repository: Path, tmp_path: Path, command: Command) -> None:
    python = make_project(tmp_path / "project")
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}
    done = command(repository, "src", "storage", "connect", python=python, DVC_REMOTE_URL="s3://models/dvc", **offline)
    assert done.returncode == 1
    assert done.stderr.startswith("setup: the locked packages could not be installed ("), done.stderr
    assert done.stderr.count("\n") == 1


def test_the_installer_of_a_plug_in_is_told_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, str]] = []

    def install(command: list[str], **options: dict[str, str]) -> subprocess.CompletedProcess[str]:
        given.append(options["env"])
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(subprocess, "run", install)
    for name in ("DVC_REMOTE_URL", "DVC_REMOTE_CONFIG", "GITHUB_TOKEN"):
        monkeypatch.setenv(name, "told")
    with pytest.raises(SystemExit):
        storage.connect()
    assert [{"DVC_REMOTE_URL", "DVC_REMOTE_CONFIG", "GITHUB_TOKEN"} & set(each) for each in given] == [{"DVC_REMOTE_URL"}]


def test_a_damaged_artifact_is_a_lost_one(repository: Path, command: Command, github: GitHub) -> None:
    manifest = {"inputs": {"digest": "a" * 64}, "outputs": {}, "data": {}, "commit": "", "metrics": {}, "verdict": {}}
    (repository / "manifest.json").write_text(json.dumps(manifest))
    github.add_run(5)
    github.upload_artifact(5, artifact_name("a" * 64), b"half a zip")
    assert command(repository, "src", "storage", "connect").returncode == 0
    assert "it is damaged (File is not a zip file)\n" in (repository / "out/earlier/lost.txt").read_text()


def test_without_any_store_the_artifacts_of_runs_are_one(
    repository: Path, tmp_path: Path, command: Command, github: GitHub
) -> None:
    for action in ("connect", "push"):
        done = command(repository, "src", "storage", action)
        assert done.returncode == 0, done.stderr
    name = (repository / "github-env").read_text().strip().removeprefix("STORE_NAME=")
    digest = "a" * 64
    assert name.startswith("dvc-store-")
    manifest = {"inputs": {"digest": digest}, "outputs": {}, "data": {}, "commit": "", "metrics": {}, "verdict": {}}
    (repository / "manifest.json").write_text(json.dumps(manifest))
    github.add_run(5)
    github.upload_artifact(5, artifact_name(digest), repository / "out/store")
    next_run = fresh(repository, tmp_path)
    assert command(next_run, "src", "storage", "connect").returncode == 0
    done = command(next_run, "dvc", "repro", "--pull")
    assert "Running stage" not in done.stdout, done.stdout
    assert (next_run / "model").read_text() == (repository / "model").read_text()


def test_an_artifact_that_a_forks_run_left_is_not_taken(
    repository: Path, tmp_path: Path, command: Command, github: GitHub
) -> None:
    digest = "a" * 64
    manifest = {"inputs": {"digest": digest}, "outputs": {}, "data": {}, "commit": "", "metrics": {}, "verdict": {}}
    (repository / "manifest.json").write_text(json.dumps(manifest))
    github.fork("stranger/models")
    github.add_run(6, head_repository="stranger/models")
    github.upload_artifact(6, artifact_name(digest), repository)
    next_run = fresh(repository, tmp_path)
    assert command(next_run, "src", "storage", "connect").returncode == 0
    assert not (next_run / "out/earlier/0").exists()
    said = (next_run / "out/earlier/lost.txt").read_text()
    assert f"artifact {artifact_name(digest)}: no run has left it\n" in said


def test_a_forks_code_is_kept_away_from_the_store(repository: Path, tmp_path: Path, command: Command) -> None:
    told = {
        "DVC_REMOTE_URL": str(tmp_path / "remote"),
        "LOCAL_DVC_REMOTE": str(tmp_path / "local"),
        "PLAN": '{"fork": true}',
    }
    for action in ("connect", "push"):
        assert command(repository, "src", "storage", action, **told).returncode == 0
    assert not (tmp_path / "remote").exists()
    assert not (tmp_path / "local").exists()
    assert (repository / "out/store/files").is_dir()


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"DVC_REMOTE_URL": "/x", "DVC_REMOTE_CONFIG": "nonsense"}, "a line that is not `name = value`"),
        (
            {"DVC_REMOTE_URL": "/x", "DVC_REMOTE_CONFIG": "no_such_option = 1"},
            "could not be given the option no_such_option",
        ),
        ({"DVC_REMOTE_URL": "gopher://x"}, "could not be"),
        ({"DVC_REMOTE_URL": "/x", "DVC_REMOTE_CONFIG": "keyfile = base64:!"}, "keyfile = base64: is no base64"),
    ],
)
def test_a_wrong_setting_is_one_sentence(repository: Path, command: Command, variables: dict[str, str], words: str) -> None:
    done = command(repository, "src", "storage", "connect", **variables)
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stderr.count("storage: ") == 1


def test_a_remote_whose_plug_in_is_not_locked_says_which_to_add(repository: Path, command: Command) -> None:
    done = command(repository, "src", "storage", "connect", DVC_REMOTE_URL="webdavs://host/path")
    assert done.returncode == 1
    assert done.stderr.startswith("setup: a DVC remote begins with webdavs:// and needs the package dvc-webdav: write")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("url", ["file/remote", "https://me:secret@127.0.0.1:9/dvc"])
def test_a_store_that_cannot_be_reached_is_noticed_before_training(
    repository: Path, command: Command, tmp_path: Path, url: str
) -> None:
    (tmp_path / "file").write_text("no folder")
    done = command(repository, "src", "storage", "connect", DVC_REMOTE_URL=url if "//" in url else str(tmp_path / url))
    assert done.returncode == 1
    assert "the DVC remote of this run takes no data" in done.stderr
    assert "Not a directory" in done.stderr or "Cannot connect to host 127.0.0.1:9" in done.stderr
    assert "secret" not in done.stdout + done.stderr
    assert done.stderr.count("storage: ") == 1


def test_a_store_that_is_lost_meanwhile_fails_with_its_reason(repository: Path, command: Command, tmp_path: Path) -> None:
    assert command(repository, "src", "storage", "connect", DVC_REMOTE_URL=str(tmp_path / "remote")).returncode == 0
    shutil.rmtree(tmp_path / "remote")
    (tmp_path / "remote").write_text("no folder")
    done = command(repository, "src", "storage", "push")
    assert done.returncode == 1
    assert "could not be pushed" in done.stderr


def test_the_artifact_of_mains_inputs_is_fetched_beside_a_store_that_is_younger(
    repository: Path, tmp_path: Path, command: Command, github: GitHub
) -> None:
    """Main's manifest is of an earlier model, what its dvc.lock comes to is looked for as well; its anchor is nowhere."""
    for action in ("connect", "push"):
        assert command(repository, "src", "storage", action).returncode == 0
    name = (repository / "github-env").read_text().strip().removeprefix("STORE_NAME=")
    github.add_run(5)
    github.upload_artifact(5, name, repository / "out/store")
    manifest = {"inputs": {"digest": "a" * 64}, "outputs": {}, "data": {}, "commit": "", "metrics": {}, "verdict": {}}
    anchor = {"commit": "b" * 40, "model_sha256": "c" * 64}
    (repository / "manifest.json").write_text(json.dumps({**manifest, "anchor": anchor}))
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost"]
    files = ["dvc.yaml", "dvc.lock", "stage.py", "manifest.json"]
    for line in (["add", *files], ["commit", "-qm", "main"], ["branch", "base"]):
        subprocess.run([*git, *line], cwd=repository, check=True, capture_output=True)
    (repository / "dvc.lock").unlink()
    shutil.rmtree(repository / ".dvc/cache")
    told = {"BASE": "base", "DVC_REMOTE_URL": str(tmp_path / "young")}
    assert command(repository, "src", "storage", "connect", **told).returncode == 0
    (repository / "model").unlink()
    subprocess.run([*git, "checkout", "-q", "base", "--", "dvc.lock"], cwd=repository, check=True)
    done = command(repository, "dvc", "pull", "--remote", "earlier-0", "model")
    assert done.returncode == 0, done.stderr
