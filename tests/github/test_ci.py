"""Which jobs of ci.yml run, and that one check stands for them: python -m pytest tests/github/test_ci.py"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from ruamel.yaml import YAML

from src.core.command import UserError
from src.github import ci
from src.github.ci import JOBS, choose, ci_result, decide, faults
from src.github.git import BOT

HEAD, RESULTS, MODEL = "c" * 40, "b" * 40, "a" * 40
EVENTS: Mapping[str, Mapping[str, Any]] = {
    "pull_request": {"pull_request": {"base": {"sha": "base"}}},
    "merge_group": {"merge_group": {"base_sha": "base"}},
    "push": {"before": "base"},
    "workflow_dispatch": {"repository": {"default_branch": "main"}, "sender": {"login": "alice"}},
}
BY_REPORT = {**EVENTS["workflow_dispatch"], "sender": {"login": BOT}}


class Runs:
    """GitHub, as far as it tells of runs of ci.yml: what one look after the other sees of a commit."""

    def __init__(self, *looks: Sequence[str], sha: str = MODEL) -> None:
        self.looks = list(looks)
        self.sha = sha

    def pages(self, path: str, head_sha: str) -> list[dict[str, Any]]:
        assert path == "actions/workflows/ci.yml/runs"
        seen = (self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]) if head_sha == self.sha else []
        return [
            {"status": "completed", "conclusion": word}
            if word != "running"
            else {"status": "in_progress", "conclusion": None}
            for word in seen
        ]


@pytest.fixture
def history(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[list[str], list[str]]]:
    """Commits as {commit: (parents, changed files)}; what differs between other commits stands under their range."""
    commits = {
        "HEAD": ([RESULTS], ["metrics.json"]),
        RESULTS: ([MODEL], ["dvc.lock", "manifest.json", "metrics.json"]),
        MODEL: ([HEAD], ["params.yaml"]),
        "base...HEAD": ([], ["params.yaml", "src/model.py"]),
        "origin/main...HEAD": ([], ["params.yaml", "metrics.json"]),
    }

    def git(_: Path, command: str, *arguments: str) -> str:
        if command == "rev-list":
            return " ".join([arguments[-1], *commits[arguments[-1]][0]])
        if "..." in arguments[-1]:
            return "\0".join(commits[arguments[-1]][1])
        before, after = arguments[-2:]
        assert commits[after][0] == [before]
        return "\n".join(commits[after][1])

    monkeypatch.setattr(ci, "git", git)
    monkeypatch.setattr(ci.template_version, "changed", lambda root: [])
    return commits


@pytest.mark.parametrize(
    ("files", "edited", "tests", "why"),
    [
        (["docs/a.md", "README.md"], ["Makefile"], "none", "documents alone"),
        (["docs/a.md", "params.yaml"], [], "yours", "the engine is the recorded version"),
        (["docs/a.md", "params.yaml"], ["src/x.py"], "engine", "not the recorded version of the template: src/x.py"),
        (["src/model.py", "src/judging/gates.py"], [], "engine", "this changes src/judging/gates.py"),
        (["template.json"], [], "engine", "this changes template.json"),
        (["README.md.py"], [], "engine", "this changes README.md.py"),
        ([], [], "engine", "no changed file is known"),
    ],
)
def test_the_changed_files_and_the_recorded_version_choose_the_jobs(
    files: list[str], edited: list[str], tests: str, why: str
) -> None:
    chosen, said = choose(files, lambda: edited)
    assert chosen == tests
    assert why in said


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.usefixtures("history")
def test_every_event_is_judged_by_the_files_that_it_changes(event: str) -> None:
    assert decide(event, EVENTS[event], Runs(["success"]))[0] == "yours"  # type: ignore[arg-type]


@pytest.mark.parametrize("event", ["pull_request", "schedule"])
def test_what_cannot_be_found_out_runs_the_engines_tests(
    event: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], history: Any
) -> None:
    def unreadable(root: Path) -> list[str]:
        raise UserError("template.json is missing")

    monkeypatch.setattr(ci.template_version, "changed", unreadable)
    (tmp_path / "event").write_text(json.dumps(EVENTS["pull_request"]))
    monkeypatch.setenv("GITHUB_EVENT_PATH", str(tmp_path / "event"))
    monkeypatch.setenv("GITHUB_EVENT_NAME", event)
    monkeypatch.setenv("GITHUB_REPOSITORY", "team/models")
    monkeypatch.setenv("GITHUB_TOKEN", "token")
    monkeypatch.setenv("GITHUB_OUTPUT", str(tmp_path / "output"))
    monkeypatch.setattr("sys.argv", ["ci", "plan"])
    ci.main()
    assert (tmp_path / "output").read_text() == "tests=engine\n"
    assert "::warning::what changed, or the template's version, is not known" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("runs", "tests"),
    [(["success"], "none"), (["success", "failure"], "none"), (["failure"], ""), (["cancelled"], "yours"), ([], "yours")],
)
@pytest.mark.usefixtures("history")
def test_a_commit_of_the_report_takes_over_the_result_below_it(runs: list[str], tests: str) -> None:
    assert decide("workflow_dispatch", BY_REPORT, Runs(runs))[0] == tests  # type: ignore[arg-type]


@pytest.mark.parametrize("case", ["a person starts it", "another file", "a merge"])
def test_what_is_no_commit_of_the_report_is_not_green_without_ci(history: dict[str, Any], case: str) -> None:
    event = EVENTS["workflow_dispatch"] if case == "a person starts it" else BY_REPORT
    if case == "another file":
        history["HEAD"] = ([RESULTS], ["metrics.json", "params.yaml"])
    if case == "a merge":
        history["HEAD"] = ([RESULTS, MODEL], ["metrics.json"])
    assert decide("workflow_dispatch", event, Runs(["success"]))[0] == "yours"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("looks", "result", "waited"),
    [
        ([["running"], ["running"], ["success"]], "success", 60),
        ([["running"], ["failure"]], "failure", 30),
        ([["running", "failure"], ["cancelled", "failure"]], "", 30),
        ([["running"]], "", 3600),
    ],
)
def test_a_run_that_is_not_over_is_waited_for_but_not_for_ever(looks: list[list[str]], result: str, waited: int) -> None:
    pauses: list[float] = []
    runs: Any = Runs(*looks)
    assert ci_result(runs, MODEL, now=lambda: sum(pauses), sleep=pauses.append) == result
    assert sum(pauses) == waited


def needs(tests: str | None = "engine", **jobs: str) -> dict[str, Any]:
    wanted = {"plan", *JOBS.get(tests or "", ())}
    results = {job: "success" if job in wanted else "skipped" for job in ("plan", *JOBS["yours"], *JOBS["engine"])} | jobs
    return {job: {"result": result, "outputs": {"tests": tests} if job == "plan" else {}} for job, result in results.items()}


@pytest.mark.parametrize("tests", JOBS)
def test_it_is_green_when_the_chosen_jobs_succeeded(
    tests: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NEEDS", json.dumps(needs(tests)))
    monkeypatch.setattr("sys.argv", ["ci", "all-green"])
    ci.main()
    assert capsys.readouterr().out == f"all green: {', '.join(['plan', *JOBS[tests]])}\n"


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (needs(test="failure"), ["test failed"]),
        (needs(test="cancelled", workflows="skipped"), ["test was cancelled", "workflows was skipped and must not be"]),
        (needs(pipeline="neutral"), ["pipeline has no known result"]),
        (needs("none", yours="failure"), ["yours failed"]),
        (needs("yours", yours="skipped"), ["yours was skipped and must not be"]),
        (needs(None, plan="failure", test="skipped"), ["plan failed"]),
        (needs(None), ["plan chose 'None', which is none of none, yours, engine"]),
        ({name: entry for name, entry in needs().items() if name != "test"}, ["test is no job of `needs`"]),
    ],
)
def test_it_names_each_job_that_is_not_green(state: dict[str, Any], words: list[str]) -> None:
    assert faults(state) == words


def test_each_job_of_the_workflow_runs_for_what_lists_it() -> None:
    jobs = YAML(typ="safe").load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    conditions = {name: job.get("if") for name, job in jobs.items() if name not in ("plan", "all-green")}
    listed = {job: f"needs.plan.outputs.tests == '{tests}'" for tests, names in JOBS.items() for job in names}
    assert conditions == listed
    assert jobs["all-green"]["name"] == "all-green"
