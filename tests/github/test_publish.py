"""A verdict reaches the branch, the pictures, the status and the comment: python -m pytest tests/github/test_publish.py"""

import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from ruamel.yaml import YAML
from standin import GitHub, clone, commit

from src.core.command import UserError
from src.github import publish
from src.github.api import GitHub as Client
from src.github.cancelled import tell
from src.github.status import set_status

REVIEWED = {"dvc.lock": "stages: {}\n", "metrics.json": '{"accuracy": 1}\n', "manifest.json": '{"model": 1}\n'}
PERMISSIONS = {"contents": "write", "statuses": "write", "actions": "write"}


@dataclass
class World:
    github: GitHub
    tmp: Path
    number: int
    sha: str
    run_id: int = 1

    def plan(self, **changes: Any) -> dict[str, Any]:
        base = {"lane": "train", "run_url": "https://x", "sha": self.sha, "base": "main", "branch": "wider"}
        base |= {"number": self.number, "fork": False, "changed": ["params.yaml"], "relevant": ["params.yaml"]}
        return {**base, "protected": [], "engine_reviewed": None, "refused": {}, **changes}

    def report(self, verdict: str = "pass", **changes: Any) -> Path:
        """Write what the training job leaves."""
        folder = self.tmp / "reviewed"
        (folder / "out/report/pictures").mkdir(parents=True, exist_ok=True)
        told = {"verdict": verdict, "reasons": ["it is better"], "gates": [{"name": "accuracy", "outcome": verdict}]}
        told |= {"override": None, "engine_reviewed": None, "accepted": verdict == "pass", "lacking": []}
        (folder / "out/report/verdict.json").write_text(json.dumps({**told, **changes}))
        (folder / "out/report/report.md").write_text("## pass\n\n![Curves: both](pictures/curves.png)\n\nthe end\n")
        (folder / "out/report/pictures/curves.png").write_bytes(b"\x89PNG" + bytes([self.run_id]))
        for name, text in REVIEWED.items():
            (folder / name).write_text(text)
        return folder

    def publish(self, plan: dict[str, Any], expect: int = 0, permissions: Any = None, **environment: str) -> str:
        """Run the command in a checkout of the reviewed commit, as the workflow does."""
        place = self.tmp / f"checkout-{self.run_id}"
        if not place.exists():
            clone(self.github, place)
        told = {
            "PLAN": json.dumps(plan),
            "TRAINED": "success",
            "GITHUB_TOKEN": self.github.token(permissions or PERMISSIONS),
            "GITHUB_SERVER_URL": self.github.server_url,
            "GITHUB_REPOSITORY": "team/models",
            "GITHUB_RUN_ID": str(self.run_id),
            "GITHUB_STEP_SUMMARY": str(self.tmp / "summary.md"),
            **environment,
        }
        self.comment.unlink(missing_ok=True)
        printed = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
            patch.chdir(place)
            for name, value in told.items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["publish", str(self.tmp / "reviewed"), str(self.comment)])
            try:
                publish.main()
            except UserError as error:
                assert expect == 1
                print(error)
            else:
                assert expect == 0
        self.run_id += 1
        return printed.getvalue()

    @property
    def comment(self) -> Path:
        return self.tmp / "comment.md"

    @property
    def text(self) -> str:
        """Return what the pull request is told."""
        return self.comment.read_text()

    def status(self, sha: str, context: str = "model-gate") -> str | None:
        found = self.github.statuses(sha, context)
        return found[0]["state"] if found else None

    def show(self, what: str) -> str:
        return self.github.repository.git("show", what)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with GitHub(tmp_path) as github:
        git = clone(github, tmp_path / "author")
        (tmp_path / "author/.github/workflows").mkdir(parents=True)
        (tmp_path / "author/.github/workflows/ci.yml").write_text("on: workflow_dispatch\n")
        commit(git, tmp_path / "author", "main", README_md="words")
        sha = commit(git, tmp_path / "author", "wider", params_yaml="x: 1")
        yield World(github, tmp_path, github.open_pull_request("wider"), sha)


@pytest.mark.journey
def test_a_pass_is_one_commit_with_status_pictures_and_comment(world: World) -> None:
    world.report()
    said = world.publish(world.plan())
    config = (world.tmp / "checkout-1/.git/config").read_text()
    assert not [token for token in world.github.tokens if token in said + config]
    head = world.github.head(world.number)
    assert head != world.sha
    assert world.show(f"{head}^{{commit}}").count("diff --git") == 3
    assert [world.show(f"{head}:{name}") + "\n" for name in REVIEWED] == list(REVIEWED.values())
    assert world.github.repository.git("rev-list", "--count", f"{world.sha}..{head}") == "1"
    assert (world.status(head), world.status(world.sha)) == ("success", "success")
    body = world.text
    address = f"{world.github.server_url}/team/models/blob/reports/1-1-{world.number}/curves.png?raw=true"
    assert f"![Curves: both]({address})" in body
    assert "](pictures/" not in body  # an address of this machine is one that CML could upload from
    assert "run `make update` in it and push" in body
    assert world.github.repository.git("cat-file", "-t", f"reports:1-1-{world.number}/curves.png") == "blob"
    assert "the end" in (world.tmp / "summary.md").read_text()
    assert world.status(head, "all-green") is None  # ci.yml tells that
    assert [(entry["workflow"], entry["ref"]) for entry in world.github.dispatches] == [("ci.yml", "wider")]
    world.publish(world.plan(sha=head))  # the same result again is no further commit
    assert world.github.head(world.number) == head


ALICE, BOB = ({"by": by, "label": "any", "at": "2026-11-24T00:00:00Z", "head": "a" * 40} for by in ("alice", "bob"))


@pytest.mark.journey
@pytest.mark.parametrize(
    ("given", "names"), [({"override": ALICE}, "alice"), ({"override": ALICE, "engine_reviewed": BOB}, "alice and bob")]
)
def test_what_people_accept_is_a_success_that_names_them(world: World, given: Any, names: str) -> None:
    world.report("fail", accepted=True, **given)
    world.publish(world.plan(**given))
    status = world.github.statuses(world.github.head(world.number), "model-gate")[0]
    assert status["state"] == "success"
    assert status["description"].startswith(f"fail, accepted by {names}:")


@pytest.mark.journey
@pytest.mark.parametrize("claimed", [{}, {"override": ALICE}, {"override": ALICE, "engine_reviewed": BOB}])
def test_a_verdict_is_not_accepted_by_a_label_that_github_does_not_know(world: World, claimed: Any) -> None:
    world.report("fail", accepted=True, **claimed)
    world.publish(world.plan(engine_reviewed=BOB))
    assert world.status(world.github.head(world.number)) == "failure"


@pytest.mark.journey
@pytest.mark.parametrize(
    ("word", "given", "lacking", "named"),
    [
        ("investigate", {}, ["override"], ["model-gate: override"]),
        ("investigate", {"override": ALICE}, ["engine_reviewed"], ["engine: reviewed"]),
        ("fail", {"engine_reviewed": BOB}, ["override"], ["model-gate: override"]),
        ("investigate", {}, ["engine_reviewed", "override"], ["engine: reviewed", "model-gate: override"]),
        ("fail", {}, ["override"], []),
    ],
)
def test_a_label_of_the_other_kind_is_no_success_and_the_comment_names_the_right_one(
    world: World, word: str, given: Any, lacking: list[str], named: list[str]
) -> None:
    world.report(word, accepted=False, lacking=lacking, **given)
    world.publish(world.plan())
    assert world.status(world.github.head(world.number)) == {"investigate": "pending", "fail": "failure"}[word]
    body = world.text
    assert [label for label in ("engine: reviewed", "model-gate: override") if f"`{label}`" in body] == named
    assert world.github.repository.git("log", "-1", "--format=%s", "wider") == f"Reviewed model: {word}"


CRASH, PREVIEW = {"name": "pipeline", "outcome": "fail"}, {"name": "budget", "outcome": "investigate"}


@pytest.mark.journey
@pytest.mark.parametrize(
    ("name", "text", "gates", "trained", "words"),
    [
        ("verdict.json", None, None, "failure", "could not judge this change"),
        ("report.md", None, None, "failure", "could not judge this change"),
        *(
            ("verdict.json", text, None, "success", "")
            for text in ("", "{", '{"verdict": "splendid", "reasons": [], "gates": []}')
        ),
        *(("", "", gate, "success", "") for gate in (CRASH, PREVIEW)),
        ("", "", None, "failure", "data and model may not be stored"),
    ],
)
def test_without_a_whole_verdict_of_a_stored_model_the_gate_fails_and_nothing_is_committed(
    world: World, name: str, text: str | None, gates: Any, trained: str, words: str
) -> None:
    folder = world.report("fail", gates=[gates]) if gates else world.report()
    if name and text is None:
        (folder / "out/report" / name).unlink()
    elif name:
        (folder / "out/report" / name).write_text(text or "")
    world.publish(world.plan(), TRAINED=trained)
    assert world.github.head(world.number) == world.sha
    assert world.status(world.sha) == "failure"
    assert words in world.text


ENGINE = ["Makefile", "src/@team.py"]


@pytest.mark.journey
def test_a_change_of_the_engine_waits_for_its_label_where_nothing_was_trained(world: World) -> None:
    told = {"lane": "unchanged", "changed": [*ENGINE, "README.md"], "relevant": [], "protected": ENGINE}
    refused = {"engine_reviewed": "the label engine: reviewed was given to commit abc"}
    world.publish(world.plan(**told, refused=refused))
    status = world.github.statuses(world.sha, "model-gate")[0]
    assert status["state"] == "pending"
    assert status["description"].endswith("add the label engine: reviewed: Makefile, src/@team.py")
    assert "## 🔎 investigate" in world.text
    assert "**This change touches the engine: `Makefile`, `src/@team.py`.**" in world.text
    assert "was given to commit abc" in world.text
    world.publish(world.plan(**told, engine_reviewed=ALICE))
    assert world.status(world.sha) == "success"
    assert "the engine was read by alice" in world.text


@pytest.mark.journey
@pytest.mark.parametrize(
    ("word", "changes", "state"),
    [
        ("pass", {}, "pending"),
        ("fail", {}, "failure"),
        ("investigate", {"accepted": True, "engine_reviewed": BOB}, "pending"),
    ],
)
def test_no_verdict_of_its_own_passes_a_change_of_the_engine(world: World, word: str, changes: Any, state: str) -> None:
    world.report(word, **changes)
    world.publish(world.plan(protected=ENGINE))
    head = world.github.head(world.number)
    assert world.status(head) == world.status(world.sha) == state
    assert "This change touches the engine: `Makefile`" in world.text
    world.publish(world.plan(protected=ENGINE, sha=head, engine_reviewed=ALICE))
    assert world.status(head) == ("failure" if word == "fail" else "success")
    assert "touches the engine" not in world.text


@pytest.mark.journey
def test_a_branch_that_moved_on_is_left_alone(world: World) -> None:
    world.report()
    git = clone(world.github, world.tmp / "second")
    git("checkout", "-q", "wider")
    newer = commit(git, world.tmp / "second", "wider", params_yaml="x: 2")
    said = world.publish(world.plan())
    assert world.github.head(world.number) == newer
    assert world.status(newer) is None
    assert world.status(world.sha) == "success"
    assert "could not be pushed to `wider`" in world.text
    assert "::warning::" in said


# A run that was cancelled


@pytest.fixture
def cancelled(world: World, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, str]]:
    """Cancel run 7 of the reviewed commit, and return the status that it is left with."""

    def go(with_number: bool = True) -> tuple[str, str]:
        world.github.add_run(7, head_sha=world.sha, status="in_progress")
        github = Client("team/models", world.github.token({**PERMISSIONS, "pull-requests": "read"}), world.github.url)
        for variable, value in {"GITHUB_SERVER_URL": "https://github.com", "GITHUB_REPOSITORY": "team/models"}.items():
            monkeypatch.setenv(variable, value)
        set_status(github, world.sha, "pending", "being judged")
        tell(github, world.sha, str(world.number) if with_number else "", "7")
        status = world.github.statuses(world.sha, "model-gate")[0]
        return status["state"], status["description"]

    return go


@pytest.mark.journey
@pytest.mark.parametrize("with_number", [True, False])
def test_a_cancelled_run_says_so(world: World, cancelled: Any, with_number: bool) -> None:
    world.github.add_run(6, head_sha=world.sha)  # completed, as are those that a label of others started
    said = ("error", "the run was cancelled: push again or re-run it")
    assert cancelled(with_number) == said


@pytest.mark.journey
def test_a_newer_push_supersedes(world: World, cancelled: Any) -> None:
    git = clone(world.github, world.tmp / "second")
    git("checkout", "-q", "wider")
    newer = commit(git, world.tmp / "second", "wider", params_yaml="x: 2")
    assert cancelled() == ("error", f"superseded: a newer push is judged, {newer[:12]}")


def test_the_job_that_tells_it_runs_when_the_one_that_publishes_no_longer_does() -> None:
    jobs = YAML(typ="safe").load((ROOT / ".github/workflows/report.yml").read_text())["jobs"]
    assert jobs["publish"]["if"].startswith("!cancelled() && ")
    assert jobs["cancelled"]["if"].startswith("cancelled() && ")
    assert "needs.publish.result != 'success'" in jobs["cancelled"]["if"]  # what was told stays
    assert jobs["cancelled"]["needs"] == ["plan", "train", "publish"]
    assert jobs["cancelled"]["steps"][-1]["run"] == "python3 -m src cancelled"
    assert set(jobs["cancelled"]["steps"][-1]["env"]) == {"GITHUB_TOKEN", "SHA", "NUMBER"}
