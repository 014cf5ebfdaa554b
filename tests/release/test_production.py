"""Which commit is deployed is an answer that must be obtained: python -m pytest tests/release/test_production.py"""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from standin import GitHub, clone, commit

from src.github import deployments
from src.github.api import GitHub as Api
from src.release import production
from src.release.journal import Origin, Running, State
from src.release.production import Deployed
from src.release.reviewed import ImageFile
from src.system.registry import Registry

READER = {"actions": "read", "contents": "read", "deployments": "read"}
WRITER = {"contents": "write", "deployments": "write"}


@pytest.fixture
def github(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GitHub]:
    with GitHub(tmp_path) as started:
        git = clone(started, tmp_path / "clone")
        commit(git, tmp_path / "clone", "main", a_md="one\n")
        monkeypatch.setattr("src.github.api._PAUSE", 0.01)
        for name, value in {
            "GITHUB_ACTIONS": "true",
            "GITHUB_REPOSITORY": "team/models",
            "GITHUB_SERVER_URL": started.url,
            "GITHUB_TOKEN": started.token(READER),
            "DEPLOY_RUNNER": "[]",
        }.items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(tmp_path / "clone")
        yield started


def deploy(github: GitHub, sha: str | None = None, *, ok: bool = True) -> str:
    """Record a deployment as deploy.yml does; return its commit."""
    sha = sha or github.repository.sha("main") or ""
    record = {
        "what": "deploy", "environment": "production", "version": "4", "manifest": "ab" * 32, "commit": sha,
        "pull_request": 12, "from": None, "result": "deployed" if ok else "returned",
    }  # fmt: skip
    api = Api("team/models", github.token(WRITER), github.url)
    deployments.add(api, record, ok, "said")
    return sha


def built(github: GitHub, number: int, **fields: Any) -> None:
    jobs = [{"name": "Build and push", "conclusion": fields.pop("build", "success")}]
    github.add_run(number, path=".github/workflows/deploy.yml", jobs=jobs, **{"event": "push", **fields})


@pytest.mark.journey
def test_on_github_it_is_the_live_deployment_and_one_made_inactive_is_not_never_deployed(github: GitHub) -> None:
    assert production.find() == Deployed(None)
    sha = deploy(github)
    deploy(github, ok=False)
    built(github, 1, head_sha="d" * 40)  # an image alone serves nobody
    assert production.find() == Deployed(sha)
    built(github, 2)
    number = next(iter(github.deployments))
    Api("team/models", github.token(WRITER), github.url).post(f"deployments/{number}/statuses", {"state": "inactive"})
    assert production.find() == Deployed(github.repository.sha("main"))


@pytest.mark.journey
def test_without_a_host_it_is_the_last_run_that_built_the_default_branch(
    github: GitHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DEPLOY_RUNNER")
    github.add_run(1, event="push")  # of another workflow
    built(github, 2, conclusion="failure")
    built(github, 3, build="skipped")
    built(github, 4, head_branch="other")
    built(github, 5, event="pull_request", head_sha="f" * 40)  # a trigger that a fork wrote
    assert production.find() == Deployed(None)
    built(github, 6, event="workflow_dispatch")
    built(github, 7, build="skipped", head_sha="e" * 40)
    assert production.find() == Deployed(github.repository.sha("main"))
    built(github, 8, head_sha="c" * 40)
    assert "the deployed commit cccccccccccc is not in this clone: run git fetch --unshallow" in production.find().why


@pytest.mark.journey
@pytest.mark.parametrize("path", ["deployments", "actions/workflows/deploy.yml/runs"])
def test_a_fault_of_github_is_no_answer(github: GitHub, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setenv("DEPLOY_RUNNER", "[]" if path == "deployments" else "")
    github.fail_next(f"GET /repos/team/models/{path}", 500, 9)
    found = production.find()
    assert found.commit is None
    assert "500" in found.why


@pytest.mark.journey
def test_what_changes_neither_model_nor_engine_is_unchanged(host: str, tmp_path: Path) -> None:
    free = ("docs/deploy.md", "README.md", "tests/test_x.py")
    others = ("manifest.json", "data.dvc", "src/serving/http.py", "src/judging/request.py", "requirements/serving.txt")
    before = host
    for path in (*free, *others, "params.yaml", ".github/workflows/deploy.yml"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("x")
        sha = commit_all()
        assert production.is_unchanged(Deployed(before), sha) is (path in free), path
        before = sha
    assert production.is_unchanged(Deployed(host), host)
    assert not production.is_unchanged(Deployed(None), host)
    assert not production.is_unchanged(Deployed(None, "nobody answers"), host)


def commit_all() -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
    subprocess.run(["git", "add", "--all"], check=True)
    subprocess.run(["git", *identity, "commit", "--quiet", "--allow-empty", "--message", "one"], check=True)
    return subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A repository of one commit, with a host and a registry of its own; return the commit."""
    for name in ("GITHUB_ACTIONS", "DEPLOY_ENVIRONMENT", "MODEL_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DEPLOY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "--quiet"], check=True)
    return commit_all()


def keep(tmp_path: Path, text: str) -> None:
    (tmp_path / "home/production").mkdir(parents=True)
    (tmp_path / "home/production/state.json").write_text(text)


@pytest.mark.journey
def test_elsewhere_it_is_what_this_host_has_live(host: str, tmp_path: Path) -> None:
    image = ImageFile("m", "1", "image", "sha256:1", None)
    live = Running("n", image, 1, "1", "m", "f", "s", {}, Origin("ann", host))
    keep(tmp_path, json.dumps(State(live).to_json()))
    assert production.find() == Deployed(host)


@pytest.mark.journey
def test_a_host_that_has_nothing_asks_the_registry(host: str) -> None:
    assert production.find() == Deployed(None)
    registry = Registry.connect()
    registry.client.create_registered_model(registry.name)
    registry.client.create_model_version(registry.name, source="/nowhere")
    registry.move("champion", "1", why="by hand")
    assert "has no tag commit" in production.find().why
    registry.tag("1", commit=host)
    assert production.find() == Deployed(host)


@pytest.mark.journey
def test_a_damaged_state_and_a_dead_registry_are_no_answers(
    host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9" in production.find().why
    keep(tmp_path, "{")
    found = production.find()
    assert found.commit is None
    assert "state.json is damaged" in found.why
