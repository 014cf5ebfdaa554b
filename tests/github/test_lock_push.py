"""What lock.yml commits is locks and nothing else: python -m pytest tests/github/test_lock_push.py"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from standin import GitHub as Standin
from standin import clone, commit

from src.core.command import UserError
from src.github import lock_push
from src.github.api import GitHub
from src.github.git import Remote

SOURCE = "numpy==2.0\n"
LOCK = f"numpy==2.0 ; python_version >= '3.11' \\\n    --hash=sha256:{'1' * 64}\n    # via -r requirements/run.in\n"
Publish = Callable[..., None]


@pytest.fixture
def github(tmp_path: Path) -> Iterator[Standin]:
    with Standin(tmp_path) as standin:
        folder = tmp_path / "author"
        git = clone(standin, folder)
        for name in ("requirements", ".github/workflows"):
            (folder / name).mkdir(parents=True)
        for name in ("ci", "report"):
            (folder / f".github/workflows/{name}.yml").write_text("on: workflow_dispatch\n")
        (folder / "requirements/run.txt").write_text("old==1\n")
        (folder / "requirements/run.in").write_text("old==1\n")
        commit(git, folder, "main")
        (folder / "requirements/run.in").write_text(SOURCE)
        commit(git, folder, "bump")
        yield standin


@pytest.fixture
def publish(github: Standin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Publish a folder of requirements as the last job of lock.yml does, in a clone of the default branch."""
    clone(github, tmp_path / "checkout")("checkout", "--quiet", "main")
    monkeypatch.chdir(tmp_path / "checkout")

    def go(branch: str = "bump", **files: str) -> None:
        folder = tmp_path / "locks"
        folder.mkdir(exist_ok=True)
        for name, text in {"run_in": SOURCE, "run_txt": LOCK, **files}.items():
            (folder / name.replace("_", ".")).write_text(text)
        token = github.token({"contents": "write", "actions": "write"})
        lock_push.publish(folder, branch, GitHub("team/models", token, github.url), Remote(github.url, "team/models", token))

    return go


def changed(github: Standin) -> list[str]:
    return github.repository.git("diff", "--name-only", "main", "bump").split()


@pytest.mark.journey
def test_the_locks_are_one_commit_and_their_checks_are_started(github: Standin, publish: Publish) -> None:
    publish(evil_py="import os", setup_txt="x==1\n")
    assert github.repository.git("show", "bump:requirements/run.txt") + "\n" == LOCK
    assert changed(github) == ["requirements/run.in", "requirements/run.txt"]
    assert [(one["workflow"], one["ref"]) for one in github.dispatches] == [("ci.yml", "bump"), ("report.yml", "bump")]
    before = github.repository.sha("bump")
    publish()
    assert github.repository.sha("bump") == before


@pytest.mark.journey
@pytest.mark.parametrize(
    "line", ["--index-url http://x", "-r other.txt", "numpy @ http://x/y.whl", "numpy", "numpy==1 --hash=md5:1", "-e ."]
)
def test_what_is_no_lock_is_refused(github: Standin, publish: Publish, line: str) -> None:
    with pytest.raises(UserError, match=r"line 4 of run\.txt is none that `make lock` writes"):
        publish(run_txt=LOCK + line + "\n")
    assert changed(github) == ["requirements/run.in"]


@pytest.mark.journey
def test_the_default_branch_and_one_that_moved_on_are_refused(github: Standin, publish: Publish) -> None:
    with pytest.raises(UserError, match="main is the default branch"):
        publish("main")
    with pytest.raises(UserError, match=r"bump has another requirements/run\.in by now: start lock\.yml again"):
        publish(run_in="numpy==1.9\n")


def test_a_link_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / "run.txt").symlink_to("/etc/passwd")
    with pytest.raises(UserError, match="is no file"):
        lock_push.check(tmp_path / "run.txt")


def test_a_bump_is_proposed_once_a_month_and_in_one_pull_request_of_each_kind() -> None:
    from ruamel.yaml import YAML

    updates: list[dict[str, Any]] = YAML(typ="safe").load((ROOT / ".github/dependabot.yml").read_text())["updates"]
    assert {one["package-ecosystem"] for one in updates} == {"github-actions", "pip"}
    for one in updates:
        assert one["schedule"]["interval"] == "monthly"
        assert [group["patterns"] for group in one["groups"].values()] == [["*"]]
