"""How a release ended reaches GitHub, whatever is in it: python -m pytest tests/github/test_deployed.py"""

import html
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE, ROOT
from standin import BOT, GitHub, clone, commit, states_of

from src.core.command import UserError
from src.github import attested, deployed, deployments
from src.github.api import GitHub as Api

TELLER = {"deployments": "write", "issues": "write", "contents": "read"}
STOPPED = {"step": "verify", "ok": False, "kind": "moved", "sentence": "main moved", "next": "open one", "record": None}
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def github(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GitHub]:
    with GitHub(tmp_path) as started:
        git = clone(started, tmp_path / "clone")
        commit(git, tmp_path / "clone", "main", a_md="one\n")
        for name, value in {
            "GITHUB_REPOSITORY": "team/models",
            "GITHUB_SERVER_URL": started.url,
            "GITHUB_RUN_ID": "77",
            "GITHUB_SHA": started.repository.sha("main") or "",
            "GITHUB_ACTOR": "author",
            "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
            "GITHUB_TOKEN": started.token(TELLER),
            "DEPLOY_RUNNER": "[]",
        }.items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(tmp_path / "clone")
        yield started


def make_record(github: GitHub, **changes: Any) -> dict[str, Any]:
    record = {
        "what": "deploy",
        "environment": "production",
        "version": "4",
        "manifest": "ab" * 32,
        "image_digest": "sha256:" + "5" * 64,
        "commit": github.repository.sha("main"),
        "pull_request": 12,
        "verdict": "pass",
        "who": "author",
        "when": "2026-11-24T10:00:00Z",
        "from": None,
        "result": "deployed",
    }
    return record | changes


def write(folder: Path, job: str, outcome: object) -> Path:
    path = folder / f"outcome-{job}" / deployed.FILE
    path.parent.mkdir(parents=True)
    path.write_text(outcome if isinstance(outcome, str) else json.dumps(outcome))
    return folder


def needs(**results: str) -> dict[str, Any]:
    return {job: {"result": result, "outputs": {}} for job, result in results.items()}


DONE = {"verify": "success", "build": "success", "deploy": "success"}


def deploy(github: GitHub, folder: Path, **changes: Any) -> None:
    """Tell of a deployment that went well."""
    outcome = {"step": "deploy", "ok": True, "kind": None, "sentence": "it is live", "next": ""}
    deployed.tell(write(folder, "deploy", outcome | {"record": make_record(github, **changes)}), needs(**DONE))


@pytest.mark.journey
def test_the_record_is_the_payload_and_only_the_newest_is_active(github: GitHub, tmp_path: Path) -> None:
    github.add_check(github.repository.sha("main") or "", "all-green", None)  # which does not hold up a deployment
    deploy(github, tmp_path / "first")
    deploy(github, tmp_path / "second", version="5", **{"from": {"version": "4"}})
    second, first = github.deployed("production")
    assert second["payload"] == make_record(github, version="5", **{"from": {"version": "4"}})
    assert (second["task"], second["creator"]["login"], second["production_environment"]) == ("deploy", BOT, True)
    assert (states_of(second), states_of(first)) == (["success"], ["inactive", "success"])
    summary = (tmp_path / "summary.md").read_text()
    assert "| version | `5`, before it `4` |" in summary
    live = deployments.live(Api.from_environment())
    assert live
    assert live["version"] == "5"


@pytest.mark.journey
def test_a_stranger_or_githubs_own_deployment_is_not_what_is_live(github: GitHub) -> None:
    record = make_record(github)
    for login, payload in (("stranger", record), (BOT, {}), (BOT, ""), (BOT, {**record, "commit": "x"})):
        api = Api("team/models", github.token({"deployments": "write"}, login), github.url)
        made = api.post("deployments", {"ref": "main", "payload": payload, "required_contexts": []})
        api.post(f"deployments/{made['id']}/statuses", {"state": "success"})
    assert deployments.live(Api.from_environment()) is None


@pytest.mark.journey
def test_what_stopped_without_a_word_is_told_with_the_job_and_the_way_on(github: GitHub, tmp_path: Path) -> None:
    deployed.tell(tmp_path / "none", needs(verify="success", build="failure", deploy="skipped"))
    [issue] = github.issues.values()
    assert "the job Build and push failed, and left no word why" in html.unescape(issue["title"])
    assert "`gh run rerun 77 --failed`" in issue["body"]
    deployed.tell(tmp_path / "none", needs(verify="success", build="cancelled", deploy="skipped"))
    assert len(github.issues) == 1
    assert [remark["body"].partition(":")[0] for remark in github.comments(issue["number"])] == ["Stopped again"]


@pytest.mark.journey
def test_a_rollback_that_failed_has_an_issue_of_its_own_which_a_deployment_closes(github: GitHub, tmp_path: Path) -> None:
    deployed.tell(write(tmp_path / "a", "verify", STOPPED), needs(verify="failure"))
    deployed.tell(write(tmp_path / "b", "rollback", {**STOPPED, "step": "rollback"}), needs(rollback="failure"))
    assert [one["title"].split(":")[0] for one in github.issues.values()] == ["Deployment stopped", "Rollback failed"]
    back = {**STOPPED, "step": "rollback", "ok": True, "record": make_record(github, what="rollback")}
    deployed.tell(write(tmp_path / "c", "rollback", back), needs(rollback="success"))
    assert [one["state"] for one in github.issues.values()] == ["open", "closed"]


BAD: dict[str, Any] = {
    "no JSON": "evil",
    "NaN": json.dumps(STOPPED).replace('"main moved"', "NaN"),
    "no sentence": {key: value for key, value in STOPPED.items() if key != "sentence"},
    "ok is a word": STOPPED | {"ok": "true"},
    "too large": json.dumps(STOPPED | {"sentence": "x" * 70_000}),
    "deep": '{"record": ' + "[" * 9_000 + "]" * 9_000 + "}",
}
RECORDS: dict[str, Change] = {
    "another environment": lambda record: record.update(environment="github-pages"),
    "a commit that is none": lambda record: record.update(commit="main"),
    "a pull request that is none": lambda record: record.update(pull_request="1 @team"),
    "no manifest": lambda record: record.pop("manifest"),
}


@pytest.mark.journey
@pytest.mark.parametrize("case", [*BAD, *RECORDS])
def test_an_outcome_of_another_form_is_refused_and_names_the_job(github: GitHub, tmp_path: Path, case: str) -> None:
    outcome = BAD.get(case)
    if outcome is None:
        record = make_record(github)
        RECORDS[case](record)
        outcome = STOPPED | {"record": record}
    found, [fault] = deployed.read(write(tmp_path / "x", "staging", outcome))
    assert found == {}
    assert "outcome of staging" in fault
    assert fault.endswith("see the log of that job")


def test_a_link_is_no_outcome(tmp_path: Path) -> None:
    write(tmp_path, "verify", STOPPED)
    path = tmp_path / "outcome-verify" / deployed.FILE
    path.rename(tmp_path / "elsewhere.json")
    path.symlink_to(tmp_path / "elsewhere.json")
    found, faults = deployed.read(tmp_path)
    assert (found, len(faults)) == ({}, 1)


IMAGE = "registry.example.com/models/classifier@sha256:" + "5" * 64


@pytest.mark.journey
def test_every_option_of_the_verification_is_known_to_the_real_gh() -> None:
    words = attested.command(IMAGE)
    told = subprocess.run([words[0], "attestation", "verify", "--help"], capture_output=True, text=True, check=True).stdout
    options = [word for word in words if word.startswith("--")]
    assert len(options) == 4
    assert all(re.search(rf"{option}\b", told) for option in options)


@pytest.mark.parametrize(("made", "image"), [("failure", IMAGE), ("", IMAGE), ("made", "classifier:latest")])
def test_an_image_that_cannot_be_verified_does_not_run(made: str, image: str) -> None:
    with pytest.raises(UserError, match="cannot be verified"):
        attested.verify({"image": image}, made)


@pytest.mark.journey
def test_an_attestation_that_does_not_hold_is_refused_and_leaves_its_outcome(tmp_path: Path) -> None:
    folder = tmp_path / "release"
    folder.mkdir()
    (folder / "image.json").write_text(json.dumps({"image": IMAGE}))
    variables = {"ATTESTED": "made", "GITHUB_REPOSITORY": "a/b", "GITHUB_REF": "refs/heads/main", "GITHUB_TOKEN": "t0ken"}
    variables |= {"HTTPS_PROXY": "http://127.0.0.1:9", "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    words = [sys.executable, "-m", "src", "attested", str(folder)]
    done = subprocess.run(words, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1
    assert "has no attestation that holds" in done.stderr
    assert "t0ken" not in done.stdout + done.stderr
    outcome = deployed.Outcome.read(tmp_path / "release.outcome.json", "deploy")
    assert (outcome.ok, outcome.kind) == (False, "tampered")
