"""deploy.yml and rollback.yml, run with act against a stand-in for GitHub: make workflows

The commands of src/release are replaced by one that keeps their contract and does what `story.json` of the pushed commit
says: what is looked at here is how jobs, artifacts, records and the issue go together. Each story follows the one before.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from act import Result, run_workflow
from conftest import ROOT, copy_files
from standin import BOT, GitHub, clone, states_of

from src.core.files import write_json

pytestmark = [pytest.mark.journey, pytest.mark.act]

HOST = {"DEPLOY_RUNNER": '["self-hosted","deploy"]', "DEPLOY_PORT": "9090", "DEPLOY_URL": "https://models.example.com"}
MANIFEST = "ab" * 32
MOVED = ["moved", "main moved under @team: 2 inputs differ (`src/model.py`)", "`git switch -c retrain && make reproduce`"]
FAULT = ["fault", "version 5 was taken back after the switch: 3 of 40 answers were wrong", "version 4 serves as before"]
COMMAND = '''"""Stands for a command of the release in tests."""
import json
import os
import sys
from pathlib import Path

step, folder = Path(__file__).stem, Path("out/release")
story = json.loads(Path("story.json").read_text())
target = os.environ.get("DEPLOY_ENVIRONMENT", "production")
before = {"version": "4", "manifest": "%(manifest)s", "image_digest": "sha256:" + "4" * 64}
record = {
    "what": step, "environment": target, "version": story["version"], "manifest": "%(manifest)s",
    "image_digest": "sha256:" + "5" * 64, "model_sha256": "c" * 64, "commit": os.environ["GITHUB_SHA"], "pull_request": 12,
    "verdict": "pass", "override": None, "who": os.environ["GITHUB_ACTOR"], "when": "2026-11-24T10:00:00Z",
    "from": before if story["version"] != "4" else None, "strategy": "bluegreen", "seconds": 1.5,
    "result": {"deploy": "deployed", "rollback": "rolled back"}.get(step), "why": "as told",
}


def write(name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def end(ok, kind, sentence, then):
    tried = record if step in ("deploy", "rollback") else None
    if tried and not ok:
        tried["result"] = "returned"
    told = {"step": step, "ok": ok, "kind": kind, "sentence": sentence, "next": then, "record": tried}
    write("../release.outcome.json", told)
    sys.exit(None if ok else f"{step}: {sentence}: {then}")


asked = {name: value for name, value in os.environ.items() if name.startswith(("DEPLOY_", "REGISTRY_", "MLFLOW_"))}
print(step, json.dumps(sys.argv[1:]), json.dumps(asked, sort_keys=True), sorted(path.name for path in folder.glob("*")))
if f"{step} {target}" in story["refused"]:
    end(False, *story["refused"][f"{step} {target}"])
if step == "verify" and story.get("unchanged"):
    with open(os.environ["GITHUB_OUTPUT"], "a") as file:
        file.write("unchanged=true\\n")
elif step == "verify":
    write("release.json", {"manifest": "%(manifest)s"})
if step in ("register", "build", "deploy") and not (folder / "release.json").is_file():
    sys.exit("release.json is missing")
if step == "register":
    write("registered.json", {"version": story["version"]})
if step == "build":
    image = "127.0.0.1:5000/models/image-classifier@" + record["image_digest"]
    write("image.json", {"image": image, "digest": record["image_digest"]})
    write("sbom.json", {"bomFormat": "CycloneDX"})
    with open(os.environ["GITHUB_OUTPUT"], "a") as file:
        file.write(f"image={image}\\ndigest={record['image_digest']}\\n")
if step == "deploy" and not all((folder / name).is_file() for name in ("registered.json", "image.json")):
    sys.exit("registered.json or image.json is missing")
end(True, None, f"version {story['version']} is live", "")
'''
STEPS = ("verify", "register", "build", "deploy", "rollback")
GH = """#!/bin/sh
echo "$*" >>"{calls}"
grep -q '"auth"' "$DOCKER_CONFIG/config.json" && [ -n "$GH_ENTERPRISE_TOKEN" ] || {{ echo "no login" >&2; exit 4; }}
"""


@dataclass
class Seen:
    """What could be seen after a run."""

    result: Result
    sha: str
    issues: list[dict[str, Any]]  # of the bot, as they were then
    remarks: list[str]  # comments of the bot on issues
    deployed: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)  # by environment, newest first

    @property
    def summary(self) -> str:
        return self.result.summaries["record"]

    def said(self, job: str, step: str) -> str:
        """Return what a command of the release printed of itself."""
        found = [line for line in self.result.logs[job].splitlines() if line.startswith(f"{step} [")]
        assert len(found) == 1, self.result.log[-8000:]
        return found[0]


class World:
    """One repository whose main is pushed to."""

    def __init__(self, github: GitHub, folder: Path) -> None:
        self.github = github
        self.folder = folder
        self.calls = folder / "calls-of-gh"
        self._git = clone(github, folder / "clone")
        fill(folder / "clone")
        self._pushes = count()
        (folder / "bin").mkdir()
        (folder / "bin" / "gh").write_text(GH.format(calls=self.calls))
        (folder / "bin" / "gh").chmod(0o755)

    def push(
        self, version: str, refused: Mapping[str, list[str]] | None = None, unchanged: bool = False, **options: Any
    ) -> Seen:
        """Push to main and run deploy.yml for it."""
        before = self.github.repository.sha("main") or "0" * 40
        write_json(
            self.folder / "clone" / "story.json", {"version": version, "refused": refused or {}, "unchanged": unchanged}
        )
        self._git("add", "--all", "--force")
        self._git("commit", "--quiet", "--allow-empty", "--message", f"push {next(self._pushes)}")
        self._git("push", "--quiet", "origin", "HEAD:main")
        return self.run("deploy.yml", "push", self.github.payload("push", before=before), **options)

    def dispatch(self, workflow: str, inputs: Mapping[str, str], **options: Any) -> Seen:
        payload = self.github.payload("workflow_dispatch", inputs=inputs, branch="main")
        return self.run(workflow, "workflow_dispatch", payload, **options)

    def run(self, workflow: str, event: str, payload: dict[str, Any], **options: Any) -> Seen:
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        options = {"variables": HOST, "folder": self.folder, "environment": {"PATH": path}, **options}
        result = run_workflow(self.github, workflow, event, payload, **options)
        issues = [dict(one) for one in self.github.issues.values() if one["user"]["login"] == BOT]
        remarks = [one["body"] for issue in issues for one in self.github.comments(issue["number"])]
        deployed = {name: json.loads(json.dumps(self.github.deployed(name))) for name in ("staging", "production")}
        return Seen(result, self.github.repository.sha("main") or "", issues, remarks, deployed)


def fill(folder: Path) -> None:
    """Write this repository's files, with the commands of the release replaced."""
    copy_files(ROOT, folder, without=("tests/", "starter/files/"))
    for step in STEPS:
        (folder / "src" / "release" / f"{step}.py").write_text(COMMAND % {"manifest": MANIFEST})


@pytest.fixture(scope="module")
def fork(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """Push to a fork that has nothing set up, and no issues, as GitHub makes forks."""
    folder = tmp_path_factory.mktemp("fork")
    with GitHub(folder, "friend/models") as github:
        github.has_issues = False
        yield World(github, folder).push("unregistered", variables={})


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Seen]]:
    """A merge that stops, goes through, one that has a fault, and the way back."""
    folder = tmp_path_factory.mktemp("world")
    with GitHub(folder) as github:
        world = World(github, folder)
        seen = {"moved": world.push("4", {"verify production": MOVED})}
        github.private = False
        secrets = {"MLFLOW_TRACKING_TOKEN": "hunter2", "REGISTRY_TOKEN": "hunter3"}
        seen["deployed"] = world.push("4", secrets=secrets)
        seen["deployed"].result.logs["gh"] = world.calls.read_text()
        github.private = True
        seen["unchanged"] = world.push("4", unchanged=True)
        quick = {**HOST, "DEPLOY_STAGING": "off"}
        seen["fault"] = world.push("5", {"deploy production": FAULT}, variables=quick)
        inputs = {"version": "4", "reason": "--wrong; $(labels) `for` dark images"}
        seen["rolled back"] = world.dispatch("rollback.yml", inputs)
        seen["no host"] = world.dispatch("rollback.yml", {"version": "", "reason": "why not"}, variables={})
        yield seen


def test_a_fresh_fork_gets_its_image_and_is_told_what_to_set_next(fork: Seen) -> None:
    jobs = {"verify": "success", "build": "success", "record": "success"}
    skipped = dict.fromkeys(("register", "attest", "staging", "deploy"), "skipped")
    assert fork.result.jobs == jobs | skipped, fork.result.log[-8000:]
    assert "🟡 the image is pushed" in fork.summary
    assert "`127.0.0.1:5000/models/image-classifier@sha256:5555" in fork.summary
    told = 'gh variable set DEPLOY_RUNNER --repo friend/models --body \'["self-hosted","deploy"]\''
    assert told in fork.summary
    assert (fork.issues, fork.deployed["production"]) == ([], [])


def test_without_a_registry_the_image_is_built_all_the_same_and_by_the_jobs_own_token(fork: Seen) -> None:
    said = fork.result.logs["build"].partition("build [")[2]
    assert "'release.json'" in said
    assert "registered.json" not in said
    assert '"REGISTRY_USER": "author"' in said


def test_what_is_refused_opens_one_issue_that_names_the_next_command(stories: dict[str, Seen]) -> None:
    seen = stories["moved"]
    assert (seen.result.jobs["verify"], seen.result.jobs["record"]) == ("failure", "success"), seen.result.log[-8000:]
    assert {seen.result.jobs[job] for job in ("register", "build", "attest", "staging", "deploy")} == {"skipped"}
    [issue] = seen.issues
    assert issue["title"].startswith("Deployment stopped: main moved under")
    assert "@team" not in issue["title"] + issue["body"]
    assert "**Next:** `git switch -c retrain && make reproduce`" in issue["body"]
    assert "Stopped at Verify** (`moved`)" in issue["body"]
    assert "❌ stopped at Verify" in seen.summary
    assert seen.deployed["production"] == []


def test_a_deployment_goes_through_staging_into_production_and_closes_the_issue(stories: dict[str, Seen]) -> None:
    seen = stories["deployed"]
    assert set(seen.result.jobs.values()) == {"success"}, seen.result.log[-8000:]
    for name, port in (("staging", "staging"), ("production", "production")):
        [made] = seen.deployed[name]
        assert states_of(made) == ["success"]
        assert made["sha"] == seen.sha
        assert made["payload"]["environment"] == port
        assert made["payload"]["who"] == "author"
        assert made["statuses"][0]["environment_url"] == HOST["DEPLOY_URL"]
        assert made["statuses"][0]["log_url"].endswith(f"/actions/runs/{seen.result.run_id}")
    assert [issue["state"] for issue in seen.issues] == ["closed"]
    assert "is live" in seen.remarks[-1]
    assert "✅ version 4 is in production" in seen.summary
    assert "| pull request | #12 |" in seen.summary


def test_settings_and_secrets_reach_the_jobs_that_need_them_and_no_log(stories: dict[str, Seen]) -> None:
    seen = stories["deployed"]
    for job, step in (("staging", "deploy"), ("deploy", "deploy")):
        said = seen.said(job, step)
        assert '"DEPLOY_PORT": "9090"' in said
        assert "['image.json', 'registered.json', 'release.json', 'sbom.json']" in said
    assert '"DEPLOY_ENVIRONMENT": "staging"' in seen.said("staging", "deploy")
    assert "MLFLOW_TRACKING_TOKEN" in seen.said("register", "register")
    assert "MLFLOW_TRACKING_TOKEN" not in seen.result.logs["build"] + seen.said("verify", "verify")
    built = [line for line in seen.result.logs["build"].splitlines() if line.startswith("build [")]
    assert [('"--push"' in line, "REGISTRY_TOKEN" in line) for line in built] == [(False, False), (True, True)]
    assert "REGISTRY_TOKEN" not in seen.said("register", "register")


def test_the_image_is_attested_with_its_parts_and_verified_before_each_run(stories: dict[str, Seen]) -> None:
    calls = [call for call in stories["deployed"].result.logs["gh"].splitlines() if "attestation" in call]  # act asks it too
    assert len(calls) == 2
    for call in calls:
        assert call.startswith("attestation verify oci://127.0.0.1:5000/models/image-classifier@sha256:5555")
        assert "--signer-workflow team/models/.github/workflows/deploy.yml --source-ref refs/heads/main" in call
        assert call.endswith("--deny-self-hosted-runners")
    for job in ("staging", "deploy"):
        assert "was built by .github/workflows/deploy.yml" in stories["deployed"].result.logs[job]
    assert "no attestation was made" in stories["fault"].result.logs["deploy"]


def test_a_push_that_changes_neither_model_nor_engine_builds_and_deploys_nothing(stories: dict[str, Seen]) -> None:
    seen = stories["unchanged"]
    skipped = dict.fromkeys(("register", "build", "attest", "staging", "deploy"), "skipped")
    assert seen.result.jobs == {"verify": "success", "record": "success"} | skipped, seen.result.log[-8000:]
    assert "✅ unchanged: nothing was built, nothing deployed" in seen.summary
    assert '"DEPLOY_RUNNER"' in seen.said("verify", "verify")
    assert len(seen.deployed["production"]) == 1


def test_a_fault_is_recorded_as_a_failure_and_names_what_goes_on_serving(stories: dict[str, Seen]) -> None:
    seen = stories["fault"]
    assert (seen.result.jobs["deploy"], seen.result.jobs["staging"]) == ("failure", "skipped"), seen.result.log[-8000:]
    assert seen.result.jobs["record"] == "success"
    failed, earlier = seen.deployed["production"]
    assert (states_of(failed), states_of(earlier)) == (["failure"], ["success"])
    assert failed["payload"]["result"] == "returned"
    assert "3 of 40 answers" in failed["statuses"][0]["description"]
    [issue] = [one for one in seen.issues if one["state"] == "open"]
    assert "Version `4` goes on serving" in issue["body"]
    assert "Stopped at Production** (`fault`)" in issue["body"]


def test_a_rollback_takes_version_and_reason_as_they_are_and_is_recorded(stories: dict[str, Seen]) -> None:
    seen = stories["rolled back"]
    assert seen.result.jobs == {"rollback": "success", "record": "success"}, seen.result.log[-8000:]
    given = json.dumps(["--version=4", "--reason=--wrong; $(labels) `for` dark images"])
    assert given in seen.said("rollback", "rollback")
    newest, _, earlier = seen.deployed["production"]
    assert (newest["task"], states_of(newest)) == ("rollback", ["success"])
    assert states_of(earlier) == ["inactive", "success"]
    assert "↩️ version 5 is back in production" in seen.summary
    assert [one["state"] for one in seen.issues if "Deployment" in one["title"]] == ["closed", "open"]
