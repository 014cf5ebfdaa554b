"""Say where a job has waited for a runner of your own: `python3 -m src watchdog`. Run by watchdog.yml, on a hosted machine.

GitHub lets a job wait for 24 hours and says nothing. After 30 minutes a training's pull request is told, once, with the
command that trains it on a hosted machine; a deployment's wait opens the issue that deploy.yml closes when it goes on.
"""

import argparse
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import PurePath
from typing import Any

from src.github import stopped
from src.github.api import GitHub
from src.github.status import CONTEXT

PATIENCE = timedelta(minutes=30)
WAITS = "no runner has taken the training for 30 minutes: start one, or train on a hosted machine, as the comment says"
_RELEASES = {"deploy.yml": "deploy", "rollback.yml": "rollback"}
_HOSTED = re.compile(r"(ubuntu|windows|macos)-.+")


def look(github: GitHub, now: datetime) -> list[str]:
    """Tell of every job that waits; returns what was said.

    Raises:
        ApiError: GitHub refuses, or does not answer.
    """
    runs = {run["id"]: run for state in ("queued", "in_progress") for run in github.pages("actions/runs", status=state)}
    said = []
    for run in runs.values():
        file = PurePath(run["path"].partition("@")[0]).name
        if file != "report.yml" and file not in _RELEASES:
            continue
        for job in github.pages(f"actions/runs/{run['id']}/jobs"):
            own = any(not _HOSTED.fullmatch(label) for label in job["labels"])
            if not own or job["status"] != "queued" or now - datetime.fromisoformat(job["created_at"]) < PATIENCE:
                continue
            said.append(f"{job['name']} of {run['html_url']} waits for {_runner(job)}")
            if file == "report.yml":
                _tell_pull_request(github, run, job)
            else:
                text = (
                    f"[The run]({run['html_url']}) waits for {_runner(job)}, and later runs wait for it.\n\n**Next:** start "
                    "the runner (docs/runner.md), and the run goes on by itself; or give the run up with "
                    f"`gh run cancel {run['id']}`."
                )
                sentence = f"no runner has taken the job {job['name']} for 30 minutes"
                stopped.tell(github, _RELEASES[file], sentence, text)
    return said


def _runner(job: Mapping[str, Any]) -> str:
    return f"a runner with the labels {', '.join(f'`{label}`' for label in job['labels'])}"


def _tell_pull_request(github: GitHub, run: Mapping[str, Any], job: Mapping[str, Any]) -> None:
    """Comment, then set the status, which says that it was told; a run without a pull request has its waiting run alone."""
    sha, pulls = run["head_sha"], run["pull_requests"]
    newest = next((one for one in github.pages(f"commits/{sha}/statuses") if one["context"] == CONTEXT), None)
    if not pulls or (newest and newest["description"] == WAITS):
        return
    number = pulls[0]["number"]
    text = (
        f"No runner has taken [the training]({run['html_url']}) for 30 minutes: it waits for {_runner(job)}.\n\n"
        "- Start the runner (docs/runner.md): the training begins by itself. After 24 hours GitHub ends the run.\n"
        "- Or train this commit on a hosted machine, with its smaller budget, instead of the run that waits:\n\n"
        f"```bash\ngh workflow run report.yml -f pull_request={number} -f sha={sha} -f hosted=true\n```\n"
    )
    github.post(f"issues/{number}/comments", {"body": text})
    told = {"context": CONTEXT, "state": "pending", "description": WAITS, "target_url": run["html_url"]}
    github.post(f"statuses/{sha}", told)


def main() -> None:
    """Look at the repository of the run."""
    argparse.ArgumentParser(description="Tell of jobs that wait for a runner of your own.").parse_args()
    print("\n".join(look(GitHub.from_environment(), datetime.now(UTC))) or "no job waits for a runner")
