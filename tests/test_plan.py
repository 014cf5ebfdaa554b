"""What an event asks for, and who may override: python -m pytest tests/test_plan.py"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from standin import GitHub as Standin
from standin import clone, commit

from src.command import UserError
from src.github import changes
from src.github.api import GitHub
from src.github.fork_words import PROTECTED
from src.github.labels import OVERRIDE as LABEL
from src.github.plan import Plan, plan
from src.lineage import JUDGING


@pytest.fixture
def github(tmp_path: Path) -> Iterator[Standin]:
    with Standin(tmp_path) as standin:
        commit(clone(standin, tmp_path / "first"), tmp_path / "first", "main", README_md="words")
        yield standin


@pytest.fixture
def push(github: Standin, tmp_path: Path) -> Callable[..., str]:
    """Push a branch with files, by path; returns its commit."""
    number = iter(range(100))

    def go(branch: str, fork: str | None = None, **files: str) -> str:
        folder = tmp_path / f"clone-{next(number)}"
        git = clone(github, folder)
        if fork:
            git("remote", "set-url", "origin", str(github.fork(fork)))
        for name, text in files.items():
            path = folder / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return commit(git, folder, branch)

    return go


@pytest.fixture
def decide(github: Standin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GITHUB_SHA", "f" * 40)
    monkeypatch.setenv("GITHUB_REF_NAME", "main")

    def go(event: str, **options: Any) -> Plan:
        token = github.token({"contents": "read", "pull-requests": "read", "statuses": "write", "metadata": "read"})
        return plan(event, github.payload(event, **options), GitHub("team/models", token, github.url))

    return go


def test_a_change_of_the_model_is_trained_at_its_head(push: Any, decide: Any, github: Standin) -> None:
    sha = push("wider", **{"params.yaml": "train: {width: 64}"})
    made = decide("pull_request", number=github.open_pull_request("wider"))
    assert (made.lane, made.sha, made.code, made.base, made.branch, made.fork) == ("train", sha, sha, "main", "wider", False)
    assert made.environment == "training"
    assert made.relevant == ["params.yaml"]


def test_documents_alone_train_nothing(push: Any, decide: Any, github: Standin) -> None:
    push("words", **{"README.md": "more words", "docs__a.md": "a"})
    made = decide("pull_request", number=github.open_pull_request("words"))
    assert (made.lane, made.changed, made.relevant) == ("unchanged", ["README.md", "docs/a.md"], [])


def test_the_lineage_says_what_the_model_depends_on(tmp_path: Path) -> None:
    paths = ["src/model.py", "src/serving/service.py", "data.dvc", "Makefile"]
    manifest = tmp_path / "manifest.json"
    assert changes.relevant(paths, manifest) == ["src/model.py", "src/serving/service.py", "data.dvc"]
    manifest.write_text(json.dumps({"inputs": {"stages": {"train": {"deps": {"src/model.py": "1"}}}}}))
    assert changes.relevant(paths, manifest) == ["src/model.py", "data.dvc"]


@pytest.mark.parametrize("path", ["dvc.lock", "dvc.yaml", "a/b.dvc", ".dvc/config", "params.yaml", "src/gates.py",
                                  "requirements/lock.txt", "manifest.json", ".github/workflows/report.yml"])  # fmt: skip
def test_what_decides_the_verdict_always_counts(path: str, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({"inputs": {"stages": {"train": {"deps": {"src/model.py": "1"}}}}}))
    assert changes.relevant([path], manifest) == [path]


@pytest.mark.parametrize("path", JUDGING)
def test_what_judges_is_named_to_reviewers_of_a_fork_and_starts_a_report(path: str) -> None:
    assert (ROOT / path).is_file()
    assert PROTECTED.match(path)
    assert changes.relevant([path], ROOT / "manifest.json") == [path]


def test_a_list_that_github_cut_may_hide_anything(
    monkeypatch: pytest.MonkeyPatch, push: Any, decide: Any, github: Standin
) -> None:
    monkeypatch.setattr(changes, "MOST_OF_A_PULL_REQUEST", 2)
    push("words", **{"a.md": "a", "b.md": "b"})
    assert decide("pull_request", number=github.open_pull_request("words")).lane == "train"


def test_where_github_lists_no_files_the_merge_commit_tells(
    push: Any, decide: Any, github: Standin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push("words", **{"docs__a.md": "a"})
    number = github.open_pull_request("words")
    github.answer(f"GET /repos/team/models/pulls/{number}/files", 404, {"message": "Not Found"})
    assert decide("pull_request", number=number).lane == "train"  # nobody can tell
    place = tmp_path / "checkout"
    clone(github, place)("fetch", "--quiet", "origin", f"refs/pull/{number}/merge")
    monkeypatch.setattr(changes, "Path", lambda: place)
    monkeypatch.setenv("GITHUB_SHA", str(github.merge_commit(number)))
    made = decide("pull_request", number=number)
    assert (made.lane, made.changed) == ("unchanged", ["docs/a.md"])


def test_a_fork_is_a_fork_also_when_it_is_gone(push: Any, decide: Any, github: Standin, tmp_path: Path) -> None:
    push("mine", fork="stranger/models", **{"params.yaml": "x: 1"})
    number = github.open_pull_request("mine", fork="stranger/models")
    made = decide("pull_request", number=number)
    assert (made.lane, made.branch, made.fork) == ("fork", "", True)
    payload = github.payload("pull_request", number=number)
    payload["pull_request"]["head"]["repo"] = None
    token = github.token({"pull-requests": "read"})
    assert plan("pull_request", payload, GitHub("team/models", token, github.url)).lane == "fork"


def test_documents_of_a_fork_train_nothing(push: Any, decide: Any, github: Standin) -> None:
    push("words", fork="stranger/models", **{"README.md": "other words"})
    assert decide("pull_request", number=github.open_pull_request("words", fork="stranger/models")).lane == "fork-unchanged"


def test_a_merge_group_is_judged_at_its_own_commit(push: Any, decide: Any, github: Standin) -> None:
    push("wider", **{"params.yaml": "x: 1"})
    number = github.open_pull_request("wider")
    made = decide("merge_group", number=number)
    assert (made.lane, made.number, made.branch, made.base) == ("train", number, "", "main")
    assert made.sha == github.merge_commit(number)


def test_a_maintainer_starts_a_forks_exact_commit(push: Any, decide: Any, github: Standin) -> None:
    sha = push("mine", fork="stranger/models", **{"params.yaml": "x: 1"})
    number = github.open_pull_request("mine", fork="stranger/models")
    made = decide("workflow_dispatch", inputs={"pull_request": str(number), "sha": sha})
    assert (made.lane, made.sha, made.code, made.branch) == ("train", sha, "f" * 40, "")
    assert made.environment == "fork-training"


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"pull_request": "1", "sha": "0" * 40}, r"the head of #1 is [0-9a-f]{40}, not 0{40}: read the new commit"),
        ({"pull_request": "1", "sha": "abc"}, "all 40 digits"),
        ({"pull_request": "", "sha": "0" * 40}, "give both"),
        ({"pull_request": "1; rm -rf /", "sha": "0" * 40}, "give both"),
    ],
)
def test_a_dispatch_for_another_commit_is_refused(push: Any, decide: Any, github: Standin, inputs: Any, words: str) -> None:
    push("mine", fork="stranger/models", **{"params.yaml": "x: 1"})
    github.open_pull_request("mine", fork="stranger/models")
    with pytest.raises(UserError, match=words):
        decide("workflow_dispatch", inputs=inputs)


def test_a_dispatch_on_a_branch_finds_its_pull_request(push: Any, decide: Any, github: Standin, monkeypatch: Any) -> None:
    sha = push("wider", **{"params.yaml": "x: 1"})
    number = github.open_pull_request("wider")
    monkeypatch.setenv("GITHUB_REF_NAME", "wider")
    monkeypatch.setenv("GITHUB_SHA", sha)
    made = decide("workflow_dispatch", branch="wider")
    assert (made.number, made.branch, made.sha) == (number, "wider", sha)
    monkeypatch.setenv("GITHUB_REF_NAME", "main")
    assert decide("workflow_dispatch").branch == ""


def test_an_unknown_event_is_refused(github: Standin) -> None:
    with pytest.raises(UserError, match="does not know the event issue_comment"):
        plan("issue_comment", {}, GitHub("team/models", github.token({}), github.url))


# ---------------------------------------------------------------------------------------------------------------------
# The override
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def labelled(push: Any, github: Standin) -> Callable[..., int]:
    def go(by: str) -> int:
        push("wider", **{"params.yaml": "x: 1"})
        number = github.open_pull_request("wider")
        github.add_label(number, LABEL, by=by)
        return number

    return go


def test_a_label_just_given_is_an_override_by_its_giver(labelled: Any, decide: Any, github: Standin) -> None:
    github.collaborators["alice"] = "write"
    made = decide("pull_request", number=labelled("alice"), action="labeled", label=LABEL, sender="alice")
    assert made.override is not None
    assert (made.override["by"], made.override["fresh"], made.override["label"]) == ("alice", True, LABEL)


def test_a_label_given_before_is_known_by_githubs_own_events(labelled: Any, decide: Any, github: Standin) -> None:
    github.collaborators["alice"] = "admin"
    made = decide("pull_request", number=labelled("alice"), action="synchronize", sender="mallory")
    assert made.override is not None
    assert (made.override["by"], made.override["fresh"]) == ("alice", False)


@pytest.mark.parametrize("permission", ["read", None])
def test_who_may_not_write_may_not_override(labelled: Any, decide: Any, github: Standin, permission: str | None) -> None:
    if permission:
        github.collaborators["eve"] = permission
    made = decide("pull_request", number=labelled("eve"), action="labeled", label=LABEL, sender="eve")
    assert made.override is None
    assert "eve may not write to this repository" in made.refused


def test_another_label_overrides_nothing(push: Any, decide: Any, github: Standin) -> None:
    push("wider", **{"params.yaml": "x: 1"})
    number = github.open_pull_request("wider", labels=["bug"])
    assert decide("pull_request", number=number, action="labeled", label="bug").override is None


@pytest.mark.parametrize("status", [500, 403, 404])
def test_a_label_counts_only_where_the_permission_was_read(
    labelled: Any, decide: Any, github: Standin, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("src.github.api._PAUSE", 0.01)
    github.collaborators["alice"] = "write"
    github.answer("GET /repos/team/models/collaborators/alice/permission", status, {"message": "No"})
    made = decide("pull_request", number=labelled("alice"), action="labeled", label=LABEL, sender="alice")
    assert made.override is None
    assert "the permission of alice could not be read" in made.refused
    assert f"{status} No" in made.refused
    assert made.refused.endswith("remove the label and add it again")
