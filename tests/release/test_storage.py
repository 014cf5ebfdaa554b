"""Where CI keeps data and models: python -m pytest tests/release/test_storage.py"""

import base64
import io
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from ruamel.yaml import YAML
from s3 import BUCKET, S3, make_project
from standin import GitHub

from src.release import storage
from src.release.storage import artifact_name
from src.system.judged import DataFacts, Decision, Inputs, Lineage, ModelAt, Outputs
from src.system.objects import remove_changed

pytestmark = pytest.mark.journey
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
            "GITHUB_SERVER_URL": github.url,
            "GITHUB_ENV": str(folder / "github-env"),
            "GITHUB_REF_NAME": "main",
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


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[S3]:
    with S3(tmp_path / "server") as s3:
        yield s3


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


def train_and_store(folder: Path, command: Command, **variables: str) -> None:
    for line in ("src storage connect", "dvc repro --force", "src storage push"):
        done = command(folder, *line.split(), **variables)
        assert done.returncode == 0, done.stderr


def test_an_s3_store_gets_its_plug_in_serves_the_next_run_and_names_a_wrong_key(
    repository: Path, tmp_path: Path, command: Command, s3: S3
) -> None:
    """The second run has its key in a file, as a key of Google Cloud Storage or of SSH is one; its machine is another."""
    url = f"s3://{BUCKET}/dvc"
    python = make_project(tmp_path / "project")
    store = {"DVC_REMOTE_URL": url, "DVC_REMOTE_CONFIG": s3.config}
    done = command(repository, "src", "storage", "connect", python=python, **store)
    assert done.returncode == 0, done.stderr
    assert "setup: installing the locked packages" in done.stdout
    assert f"data and models are kept in {url}/branches/main\n" in done.stdout
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
    for written in (next_run / ".dvc/tmp").glob("ci-*-credentialpath"):
        assert written.read_text() == key
        assert stat.S_IMODE(written.stat().st_mode) == 0o600
    status = subprocess.run(["git", "status", "--porcelain", "-uall"], cwd=next_run, capture_output=True, text=True)
    assert "tmp" not in status.stdout
    assert "config.local" not in status.stdout
    wrong = {"DVC_REMOTE_URL": url, "DVC_REMOTE_CONFIG": s3.config.replace("= hunter2", "= wrong")}
    refused = command(next_run, "src", "storage", "connect", python=python, **wrong)  # before anything is trained
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert refused.stderr.startswith("storage: the DVC remote of this run takes no data (Forbidden)"), refused.stderr


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


def manifest_of(digest: str, **more: Any) -> str:
    made: dict[str, Any] = {"outputs": Outputs(model_sha256="b" * 64), "data": DataFacts(digest=None), "metrics": {}}
    verdict = Decision(verdict="pass", reasons=[])
    return json.dumps(Lineage(inputs=Inputs(digest=digest), commit="", verdict=verdict, **made, **more).to_json())


def test_without_any_store_the_artifacts_of_runs_are_one(
    repository: Path, tmp_path: Path, command: Command, github: GitHub
) -> None:
    for action in ("connect", "push"):
        done = command(repository, "src", "storage", action)
        assert done.returncode == 0, done.stderr
    name = (repository / "github-env").read_text().strip().removeprefix("STORE_NAME=")
    digest = "a" * 64
    assert name.startswith("dvc-store-")
    assert f"artifact {name}: no run has left it\n" in (repository / "out/earlier/lost.txt").read_text()
    (repository / "manifest.json").write_text(manifest_of(digest))
    github.add_run(5)
    github.upload_artifact(5, artifact_name(digest), repository / "out/store")
    next_run = fresh(repository, tmp_path)
    assert command(next_run, "src", "storage", "connect").returncode == 0
    done = command(next_run, "dvc", "repro", "--pull")
    assert "Running stage" not in done.stdout, done.stdout
    assert (next_run / "model").read_text() == (repository / "model").read_text()


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


def test_the_artifact_of_mains_inputs_is_fetched_beside_a_store_that_is_younger(
    repository: Path, tmp_path: Path, command: Command, github: GitHub
) -> None:
    """Main's manifest is of an earlier model, what its dvc.lock comes to is looked for as well; its anchor is nowhere."""
    for action in ("connect", "push"):
        assert command(repository, "src", "storage", action).returncode == 0
    name = (repository / "github-env").read_text().strip().removeprefix("STORE_NAME=")
    github.add_run(5)
    github.upload_artifact(5, name, repository / "out/store")
    anchor = ModelAt(commit="b" * 40, model_sha256="c" * 64)
    (repository / "manifest.json").write_text(manifest_of("a" * 64, anchor=anchor))
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
    listed = command(repository, "dvc", "config", "--local", "--list").stdout
    (remote,) = re.findall(r"^remote\.(ci-[0-9a-f]+-earlier-0)\.url=", listed, re.MULTILINE)
    done = command(repository, "dvc", "pull", "--remote", remote, "model")
    assert done.returncode == 0, done.stderr


# What a pull request cannot do to others


def test_a_pull_request_writes_to_a_place_of_its_own_and_the_merge_fills_mains(
    repository: Path, tmp_path: Path, command: Command
) -> None:
    """Its next run trains nothing again. Main's place never has a run cache, nor what another pull request left."""
    store = tmp_path / "remote"
    told = {"LOCAL_DVC_REMOTE": str(store), "PLAN": '{"number": 7, "branch": "better"}', "GITHUB_TOKEN": ""}
    train_and_store(repository, command, **told)
    assert {path.name for path in store.iterdir()} == {"pull-requests"}
    assert {path.name for path in (store / "pull-requests/7").iterdir()} == {"files", "runs"}
    (repository / "manifest.json").write_text(manifest_of("a" * 64, pull_request=7))
    merged = fresh(repository, tmp_path)
    shutil.copytree(merged, tmp_path / "next")
    assert command(tmp_path / "next", "src", "storage", "connect", **told).returncode == 0
    assert "Running stage" not in command(tmp_path / "next", "dvc", "repro", "--pull").stdout
    assert (tmp_path / "next/model").read_text() == (repository / "model").read_text()
    main = {"LOCAL_DVC_REMOTE": str(store), "GITHUB_TOKEN": ""}
    for action in ("connect", "push"):
        done = command(merged, "src", "storage", action, "--main", **main)
        assert done.returncode == 0, done.stderr
    assert {path.name for path in store.iterdir()} == {"files", "pull-requests"}
    assert not (merged / ".dvc/cache/runs").exists()


def test_main_does_not_store_what_is_not_as_dvc_lock_says(
    repository: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    told = {"LOCAL_DVC_REMOTE": str(tmp_path / "remote"), "GITHUB_TOKEN": ""}
    assert command(repository, "src", "storage", "connect", "--main", **told).returncode == 0
    assert remove_changed("", repository / ".dvc/cache") == []
    path = spoil(repository)
    done = command(repository, "src", "storage", "push", "--main", **told)
    assert (done.returncode, path.exists()) == (1, False)
    assert "1 objects of the cache are not what dvc.lock names" in done.stderr
    assert [
        path for path in (tmp_path / "remote").rglob("*") if path.is_file() and path.name != storage._EMPTY_MD5[2:]
    ] == []


def spoil(repository: Path) -> Path:
    """Change an object of the cache, which stays read-only, so that DVC trusts it."""
    (path,) = (path for path in (repository / ".dvc/cache/files/md5").rglob("*") if path.is_file())
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[::-1])
    path.chmod(0o444)
    return path


POISON = """
[core]
    remote = ci
    checksum_jobs = 1
[cache]
    dir = /elsewhere
['remote "ci"']
    url = s3://attacker/dvc
    endpointurl = http://attacker
    ssl_verify = false
['remote "starter"']
    url = /nowhere
    verify = false
"""


def test_a_commits_configuration_says_nothing_about_the_remote_with_the_credentials(
    repository: Path, tmp_path: Path, command: Command
) -> None:
    (repository / ".dvc/config").write_text(POISON)
    (repository / ".dvc/config.local").write_text(POISON)  # a commit can hold this too
    told = {"DVC_REMOTE_URL": str(tmp_path / "remote"), "DVC_REMOTE_CONFIG": "slow_link_warning = false"}
    done = command(repository, "src", "storage", "connect", "--main", GITHUB_TOKEN="", **told)
    assert done.returncode == 0, done.stderr
    lines = command(repository, "dvc", "config", "--list").stdout.splitlines()
    config = dict(line.split("=", 1) for line in lines)
    remote = config["core.remote"]
    assert re.fullmatch(r"ci-[0-9a-f]{16}", remote)
    ours = {key.rpartition(".")[2]: value for key, value in config.items() if key.startswith(f"remote.{remote}.")}
    assert ours == {"url": str(tmp_path / "remote"), "verify": "true", "slow_link_warning": "false"}
    assert config["cache.dir"] == str(repository / ".dvc/cache")
    assert config["remote.starter.verify"] == "true"


@pytest.fixture
def in_job(github: GitHub, monkeypatch: pytest.MonkeyPatch) -> GitHub:
    """This process is a job of the branch `mine`."""
    told = {"GITHUB_SERVER_URL": github.url, "GITHUB_REPOSITORY": "team/models", "GITHUB_TOKEN": github.token(READ)}
    for name, value in {**told, "PLAN": '{"number": 7, "branch": "mine"}'}.items():
        monkeypatch.setenv(name, value)
    return github


@pytest.mark.journey
def test_artifacts_of_mains_own_runs_come_first_and_those_of_another_branch_never(in_job: GitHub, tmp_path: Path) -> None:
    """Each run's artifact has one object, named after the run; the newest is the last."""
    runs = {
        "mains": {"head_branch": "main", "path": ".github/workflows/deploy.yml"},
        "a fork's that a maintainer trained": {"head_branch": "main", "event": "workflow_dispatch"},
        "the pull request's own": {"head_branch": "mine"},
        "a reviewed commit's": {"head_branch": "merged", "head_sha": "c" * 40},
        "another branch's": {"head_branch": "other"},
        "a fork's own": {"head_repository": "stranger/models", "head_branch": "main"},
        "another branch's, of a copied workflow": {"head_branch": "other", "path": ".github/workflows/keep.yml"},
    }
    in_job.fork("stranger/models")
    numbers = dict(enumerate(runs, start=20))
    for number, name in numbers.items():
        in_job.add_run(number, **runs[name])
        in_job.upload_artifact(number, "store", zipped(f"files/md5/{number}/{'0' * 30}"))
    taken = []
    for _ in numbers:
        why = storage._download("store", {"c" * 40}, tmp_path / "store")
        if why:
            break
        (folder,) = (tmp_path / "store/files/md5").iterdir()
        taken.append(numbers[int(folder.name)])
        in_job.expire_artifacts(int(folder.name))
    assert taken == [
        "mains", "a reviewed commit's", "the pull request's own", "a fork's that a maintainer trained"
    ]  # fmt: skip
    assert "it has expired" in why


def zipped(*names: str, size: int = 1) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, b"0" * size)
    return content.getvalue()


def test_an_artifact_is_unpacked_within_its_bounds_and_only_into_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"files/md5/aa/{'0' * 30}"
    link = zipfile.ZipInfo(f"files/md5/bb/{'0' * 30}")
    link.external_attr = 0o120777 << 16
    blob = io.BytesIO(zipped(name, "../outside", "/outside", "runs/aa/bb/cc", "config"))
    with zipfile.ZipFile(blob, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    assert storage._unpack(blob.getvalue(), tmp_path / "store") == ""
    written = [path for path in tmp_path.rglob("*") if not path.is_dir()]
    assert {str(path.relative_to(tmp_path / "store")) for path in written} == {name, link.filename}
    assert not any(path.is_symlink() for path in written)
    assert storage._unpack(b"half a zip", tmp_path / "half") == "it is damaged (File is not a zip file)"
    monkeypatch.setattr(storage, "_UNPACKED", 2**20)
    bomb = zipped(name, size=2**21)
    assert len(bomb) < 2**14
    assert "allowed are" in storage._unpack(bomb, tmp_path / "bomb")
    assert not (tmp_path / "bomb").exists()
