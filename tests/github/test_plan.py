"""What an event asks for, and who may override: python -m pytest tests/github/test_plan.py"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from standin import GitHub as Standin
from standin import clone, commit, user

from src.core.command import UserError
from src.github import changes
from src.github.api import GitHub
from src.github.labels import ENGINE
from src.github.labels import OVERRIDE as LABEL
from src.github.plan import plan
from src.github.recheck import recheck
from src.github.status import set_status
from src.system.run_plan import RunPlan


@pytest.fixture
def github(tmp_path: Path) -> Iterator[Standin]:
    with Standin(tmp_path) as standin:
        commit(clone(standin, tmp_path / "first"), tmp_path / "first", "main", README_md="words")
        yield standin


@pytest.fixture
def push(github: Standin, tmp_path: Path) -> Callable[..., str]:
    """Push a branch with files, by path; returns its commit."""
    number = iter(range(100))

    def go(branch: str, fork: str | None = None, start: str = "main", **files: str) -> str:
        folder = tmp_path / f"clone-{next(number)}"
        git = clone(github, folder)
        git("checkout", "--quiet", "--detach", f"origin/{start}")
        if fork:
            git("remote", "set-url", "origin", str(github.fork(fork)))
        for name, text in files.items():
            path = folder / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return commit(git, folder, branch)

    return go


@pytest.fixture
def decide(github: Standin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunPlan]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GITHUB_SERVER_URL", github.server_url)
    monkeypatch.setenv("GITHUB_SHA", "f" * 40)
    monkeypatch.setenv("GITHUB_REF_NAME", "main")

    def go(event: str, **options: Any) -> RunPlan:
        token = github.token({"contents": "read", "pull-requests": "read", "statuses": "write", "actions": "read"})
        return plan(event, github.payload(event, **options), GitHub("team/models", token, github.url))

    return go


@pytest.mark.journey
@pytest.mark.parametrize(("name", "kind"), [("params.yaml", "train"), ("docs__a.md", "unchanged")])
@pytest.mark.parametrize("fork", [None, "stranger/models"])
def test_what_a_change_touches_decides_whether_its_head_is_trained(
    push: Any, decide: Any, github: Standin, name: str, kind: str, fork: str | None
) -> None:
    sha, path = push("change", fork=fork, **{name: "x: 1"}), name.replace("__", "/")
    made = decide("pull_request", number=github.open_pull_request("change", fork=fork))
    lane = {"train": "fork", "unchanged": "fork-unchanged"}[kind] if fork else kind
    assert (made.lane, made.sha, made.base, made.branch) == (lane, sha, "main", "" if fork else "change")
    assert (made.fork, made.environment, made.changed) == (bool(fork), "training", [path])
    assert made.relevant == ([path] if kind == "train" else [])


@pytest.mark.journey
def test_a_bump_trains_nothing_until_a_person_starts_it(push: Any, decide: Any, github: Standin, monkeypatch: Any) -> None:
    sha = push("bump", **{"requirements__run.txt": "numpy==2"})
    number = github.open_pull_request("bump", author="dependabot[bot]")
    assert decide("pull_request", number=number, sender="dependabot[bot]").lane == "bump"
    assert decide("pull_request", number=number, sender="author").lane == "train"
    monkeypatch.setenv("GITHUB_SHA", sha)
    monkeypatch.setenv("GITHUB_REF_NAME", "bump")
    made = decide("workflow_dispatch", branch="bump")
    assert (made.lane, made.number) == ("train", number)
    push("checks", **{"requirements__check.txt": "ruff==2"})
    number = github.open_pull_request("checks", author="dependabot[bot]")
    assert decide("pull_request", number=number, sender="dependabot[bot]").lane == "unchanged"


def test_the_lineage_says_what_the_model_depends_on_and_what_decides_the_verdict_always_counts(tmp_path: Path) -> None:
    always = [
        "dvc.lock",
        "dvc.yaml",
        "a/b.dvc",
        ".dvc/config",
        "params.yaml",
        "src/judging/gates.py",
        "requirements/run.txt",
    ]
    always += ["requirements/run.txt", ".github/workflows/report.yml"]
    paths = ["src/model.py", "src/serving/service.py", *always, "Makefile"]
    manifest = tmp_path / "manifest.json"
    assert changes.relevant(paths, manifest) == paths[:-1]
    manifest.write_text(json.dumps({"inputs": {"digest": "x", "stages": {"train": {"deps": {"src/model.py": "1"}}}}}))
    assert changes.relevant(paths, manifest) == ["src/model.py", *always]


@pytest.mark.journey
def test_a_list_of_files_that_github_cut_or_lacks_may_hide_anything(
    monkeypatch: pytest.MonkeyPatch, push: Any, decide: Any, github: Standin
) -> None:
    push("words", **{"a.md": "a", "b.md": "b"})
    number = github.open_pull_request("words")
    with monkeypatch.context() as cut:
        cut.setattr(changes, "MOST_OF_A_PULL_REQUEST", 2)
        assert decide("pull_request", number=number).lane == "train"
    github.answer(f"GET /repos/team/models/pulls/{number}/files", 404, {"message": "Not Found"})
    made = decide("pull_request", number=number)
    assert (made.lane, made.protected) == ("train", [changes.ANYTHING])


@pytest.mark.journey
def test_a_fork_is_a_fork_also_when_it_is_gone(push: Any, github: Standin) -> None:
    push("mine", fork="stranger/models", **{"params.yaml": "x: 1"})
    number = github.open_pull_request("mine", fork="stranger/models")
    payload = github.payload("pull_request", number=number)
    payload["pull_request"]["head"]["repo"] = None
    token = github.token({"pull-requests": "read"})
    assert plan("pull_request", payload, GitHub("team/models", token, github.url)).lane == "fork"


@pytest.mark.journey
def test_a_merge_group_is_judged_at_its_own_commit(push: Any, decide: Any, github: Standin) -> None:
    push("wider", **{"params.yaml": "x: 1"})
    number = github.open_pull_request("wider")
    made = decide("merge_group", number=number)
    assert (made.lane, made.number, made.branch, made.base) == ("train", number, "", "main")
    assert made.sha == github.merge_commit(number)


@pytest.mark.journey
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


# The engine


@pytest.mark.journey
def test_a_change_of_the_engine_is_named(push: Any, decide: Any, github: Standin) -> None:
    paths = [".github/workflows/deploy.yml", "Makefile", "runner/hooks/job-started.sh", "src/judging/gates.py", "torch.py"]
    push("engine", **dict.fromkeys([*paths, "README.md"], "x"))
    assert decide("pull_request", number=github.open_pull_request("engine")).protected == paths


@pytest.mark.journey
def test_both_names_of_a_moved_file_count_and_so_does_one_that_is_gone(
    push: Any, decide: Any, github: Standin, tmp_path: Path
) -> None:
    push("main", Makefile="long enough to be known again\n" * 9, LICENSE="MIT")
    git = clone(github, tmp_path / "moving")
    (tmp_path / "moving/docs").mkdir()
    git("mv", "Makefile", "docs/Makefile")
    git("rm", "--quiet", "LICENSE")
    commit(git, tmp_path / "moving", "moved")
    made = decide("pull_request", number=github.open_pull_request("moved"))
    assert made.changed == ["LICENSE", "Makefile", "docs/Makefile"]
    assert made.protected == ["LICENSE", "Makefile"]


GATES = "train: {}\ngates:\n  levels: {judging: enforce}\n"


@pytest.fixture
def engine(push: Any, decide: Any, github: Standin) -> Callable[..., list[str]]:
    """Let main have GATES, and return what of the engine a change of files touches."""
    push("main", **{"params.yaml": GATES})

    def go(base: str = "main", **files: str) -> list[str]:
        push("change", **files)
        return list(decide("pull_request", number=github.open_pull_request("change", base=base)).protected)

    return go


@pytest.mark.journey
def test_the_rules_in_params_are_protected_and_the_rest_of_it_is_free(engine: Callable[..., list[str]]) -> None:
    assert engine(**{"params.yaml": GATES.replace("train: {}", "train: {epochs: 9}")}) == []
    assert engine(**{"params.yaml": GATES.replace("enforce", "off")}) == ["params.yaml: gates"]


@pytest.mark.journey
def test_rules_that_main_changed_since_are_none_of_this_change(push: Any, engine: Callable[..., list[str]]) -> None:
    push("change", **{"README.md": "words"})
    push("main", **{"params.yaml": GATES.replace("enforce", "warn")})
    assert engine(start="change", **{"params.yaml": GATES.replace("train: {}", "train: {epochs: 9}")}) == []


@pytest.mark.journey
def test_params_that_become_a_link_are_rules_that_changed(
    push: Any, decide: Any, github: Standin, tmp_path: Path, engine: Callable[..., list[str]]
) -> None:
    git = clone(github, tmp_path / "linking")
    (tmp_path / "linking/params.yaml").unlink()
    (tmp_path / "linking/params.yaml").symlink_to("docs/params.yaml")
    commit(git, tmp_path / "linking", "linked", docs__params_yaml=GATES)
    assert "params.yaml: gates" in decide("pull_request", number=github.open_pull_request("linked")).protected


@pytest.mark.journey
def test_params_that_cannot_be_read_are_protected(github: Standin, engine: Callable[..., list[str]]) -> None:
    github.fail_next("GET .*/compare/.*", status=404)
    assert engine(**{"params.yaml": GATES + "x: 1\n"}) == ["params.yaml, which could not be read"]


@pytest.mark.journey
def test_the_first_rules_of_ones_own_beside_the_first_data_are_free(push: Any, engine: Callable[..., list[str]]) -> None:
    example, other = (json.dumps({"data": {"digest": digest}}) for digest in "ab")
    weaker = {"params.yaml": GATES.replace("enforce", "off")}
    push("main", **{"manifest.json": example, "starter__project__manifest.json": example})
    assert engine(**weaker, **{"data.dvc": "mine"}) == []
    assert engine(**weaker) == ["params.yaml: gates"]
    push("main", **{"manifest.json": other})
    assert engine(**weaker, **{"data.dvc": "mine"}) == ["params.yaml: gates"]


@pytest.mark.journey
def test_a_base_of_ones_own_making_hides_nothing(push: Any, decide: Any, github: Standin) -> None:
    push("mine", Makefile="x")
    push("change", start="mine", **{"README.md": "more words"})
    made = decide("pull_request", number=github.open_pull_request("change", base="mine"))
    assert (made.changed, made.protected) == (["README.md"], ["Makefile"])


@pytest.mark.journey
def test_a_run_started_by_hand_looks_at_the_engine_too(push: Any, decide: Any, github: Standin, monkeypatch: Any) -> None:
    sha = push("engine", Makefile="x")
    monkeypatch.setenv("GITHUB_REF_NAME", "engine")
    monkeypatch.setenv("GITHUB_SHA", sha)
    assert decide("workflow_dispatch", branch="engine").protected == ["Makefile"]
    sha = push("theirs", fork="stranger/models", **{"Makefile": "x", "params.yaml": "x: 1"})
    number = github.open_pull_request("theirs", fork="stranger/models")
    made = decide("workflow_dispatch", inputs={"pull_request": str(number), "sha": sha})
    assert (made.lane, made.protected) == ("train", ["Makefile"])
    assert (made.sha, made.branch, made.environment) == (sha, "", "fork-training")


@pytest.mark.journey
@pytest.mark.parametrize(("path", "state"), [("Makefile", "pending"), ("docs/a.md", "success")])
def test_a_green_of_its_own_making_is_taken_back(push: Any, decide: Any, github: Standin, path: str, state: str) -> None:
    sha = push("change", **{path: "x"})
    github.open_pull_request("change")
    token = github.token({"contents": "read", "pull-requests": "read", "actions": "read", "statuses": "write"})
    client = GitHub("team/models", token, github.url)
    assert recheck(client, "change", "main") == []  # nothing is green
    set_status(client, sha, "success", "all is well")
    assert len(recheck(client, "change", "main")) == (state == "pending")
    assert recheck(client, "change", "main") == []
    assert github.statuses(sha, "model-gate")[0]["state"] == state


# The labels


@dataclass
class Labelled:
    """A pull request and what happens to it; each event starts a run of report.yml, as on GitHub."""

    github: Standin
    push: Callable[..., str]
    decide: Callable[..., RunPlan]
    number: int

    def label(self, label: str = LABEL, by: str = "alice") -> RunPlan:
        self.github.add_label(self.number, label, by=by)
        return self.happens("labeled", by, label=label)

    def happens(self, action: str, sender: str = "author", **options: Any) -> RunPlan:
        run = {"head_sha": self.github.head(self.number), "head_branch": "wider", "actor": user(sender)}
        self.github.add_run(self.github.next_run(), **run)
        return self.decide("pull_request", number=self.number, action=action, sender=sender, **options)

    def report(self) -> str:
        """Put the report's own commit on top of the head, as publish does; returns it."""
        head, git = self.github.head(self.number), self.github.repository.git
        commit = git("commit-tree", f"{head}^{{tree}}", "-p", head, "-m", "Reviewed model: fail")
        git("update-ref", "refs/heads/wider", commit)
        run = self.github.next_run()
        for sha in (head, commit):
            self.status(sha, f"{self.github.url}/team/models/actions/runs/{run}")
        return commit

    def status(self, sha: str, url: str) -> None:
        token = self.github.token({"statuses": "write"})
        told = {"state": "pending", "context": "model-gate", "target_url": url}
        GitHub("team/models", token, self.github.url).post(f"statuses/{sha}", told)


@pytest.fixture
def labelled(push: Any, decide: Any, github: Standin, monkeypatch: pytest.MonkeyPatch) -> Labelled:
    seconds = count()
    monkeypatch.setattr("standin.now", lambda: f"2026-11-24T00:{next(seconds) // 60:02}:{next(seconds) % 60:02}Z")
    monkeypatch.setattr("src.github.api._PAUSE", 0.01)
    github.collaborators |= {"alice": "write", "bob": "admin", "eve": "read", "robot[bot]": "write"}
    push("wider", **{"params.yaml": "x: 1"})
    return Labelled(github, push, decide, github.open_pull_request("wider"))


def given(made: RunPlan) -> list[tuple[str, str] | None]:
    """Return who gave each of the two labels that count, and at which commit."""
    return [(label.by, label.head) if label else None for label in (made.override, made.engine_reviewed)]


@pytest.mark.journey
def test_a_later_push_ends_it_and_giving_it_again_brings_it_back(labelled: Labelled) -> None:
    old = labelled.github.head(labelled.number)
    labelled.label()
    head = labelled.push("wider", **{"params.yaml": "x: 1", "README.md": "more words"})
    for made in (labelled.happens("synchronize"), labelled.happens("synchronize", "alice"), labelled.happens("reopened")):
        assert given(made) == [None, None]
        assert f"was given to commit {old[:12]}: remove it and add it again to accept this one" in made.refused["override"]
    labelled.github.remove_label(labelled.number, LABEL)
    assert given(labelled.label()) == [("alice", head), None]


@pytest.mark.journey
def test_the_reports_own_commits_on_top_leave_it(labelled: Labelled) -> None:
    head = labelled.github.head(labelled.number)
    labelled.label()
    first = labelled.report()
    assert given(labelled.label(ENGINE, "bob")) == [("alice", head), ("bob", first)]
    labelled.report()
    assert given(labelled.happens("reopened")) == [("alice", head), ("bob", first)]


@pytest.mark.journey
def test_a_manifest_of_the_authors_own_making_makes_no_label_count(labelled: Labelled) -> None:
    """It claims what the report would write, lies on the head where the label was given, and was judged by a run since."""
    head = labelled.github.head(labelled.number)
    labelled.label()
    labelled.status(head, "https://github.com/team/models/actions/runs/1")
    claim = {"verdict": {"override": {"by": "alice", "at": "now", "label": LABEL, "head": head}}}
    forged = labelled.push("wider", start="wider", **{"manifest.json": json.dumps(claim)})
    assert labelled.github.repository.sha(f"{forged}^") == head
    labelled.status(forged, "https://github.com/team/models/actions/runs/2")
    assert given(labelled.happens("synchronize")) == [None, None]


@pytest.mark.journey
@pytest.mark.parametrize(
    ("label", "by", "why"),
    [
        (LABEL, "eve", "given by eve, who may not write to this repository"),
        (LABEL, "nobody", "given by nobody, who may not write to this repository"),
        (LABEL, "robot[bot]", "robot[bot], who is no person"),
        ("bug", "alice", ""),
    ],
)
def test_who_may_not_write_and_another_label_decide_nothing(labelled: Labelled, label: str, by: str, why: str) -> None:
    made = labelled.label(label, by)
    assert given(made) == [None, None]
    assert why in made.refused.get("override", "")


@pytest.mark.journey
@pytest.mark.parametrize(
    ("path", "status", "why"),
    [
        ("collaborators/alice/permission", 500, "the permission of alice could not be read"),
        ("collaborators/alice/permission", 404, "the permission of alice could not be read"),
        ("pulls/1", 500, ""),
        ("issues/1/events", 500, ""),
        ("actions/workflows/report.yml/runs", 500, ""),
    ],
)
def test_a_label_counts_only_where_github_answers(labelled: Labelled, path: str, status: int, why: str) -> None:
    labelled.label()
    labelled.github.answer(f"GET /repos/team/models/{path}", status, {"message": "No"})
    made = labelled.happens("reopened")
    assert given(made) == [None, None]
    assert f"{status} No" in made.refused["override"]
    assert why in made.refused["override"]


@pytest.mark.journey
def test_the_label_of_the_engine_counts_at_its_head_in_every_lane_and_in_the_merge_queue(
    labelled: Labelled, github: Standin
) -> None:
    head = labelled.push("wider", Makefile="x")
    assert (labelled.happens("synchronize").lane, labelled.happens("synchronize").protected) == ("unchanged", ["Makefile"])
    assert given(labelled.label(ENGINE, "bob")) == [None, ("bob", head)]
    assert given(labelled.label(LABEL)) == [("alice", head), ("bob", head)]
    assert given(labelled.decide("merge_group", number=labelled.number)) == [None, ("bob", head)]
    labelled.push("wider", start="wider", Makefile="y")
    made = labelled.happens("synchronize")
    assert given(made) == [None, None]
    assert f"was given to commit {head[:12]}" in made.refused["engine_reviewed"]


@pytest.mark.journey
def test_a_forks_label_counts_where_a_maintainer_starts_its_commit(push: Any, decide: Any, github: Standin) -> None:
    github.collaborators["alice"] = "write"
    sha = push("mine", fork="stranger/models", **{"params.yaml": "x: 1"})
    number = github.open_pull_request("mine", fork="stranger/models")
    github.add_label(number, LABEL, by="alice")
    run = {"head_sha": sha, "head_branch": "mine", "head_repository": "stranger/models", "actor": user("alice")}
    github.add_run(github.next_run(), **run)
    assert given(decide("pull_request", number=number, action="labeled", label=LABEL, sender="alice")) == [None, None]
    made = decide("workflow_dispatch", inputs={"pull_request": str(number), "sha": sha})
    assert given(made) == [("alice", sha), None]
