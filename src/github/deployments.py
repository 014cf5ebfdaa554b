"""Deployments on GitHub: what is where since when, by whose hand, with the whole record as payload.

GitHub makes a deployment of its own for each job that names an environment; ours are those with a record.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from src.github.api import GitHub
from src.github.git import BOT
from src.github.outcomes import checked
from src.github.status import run_url, shortened

_BUILD = "Build and push"  # the job of deploy.yml


def add(github: GitHub, record: Mapping[str, Any], ok: bool, sentence: str, url: str = "") -> None:
    """Make a deployment of a record, and say how it ended; success makes the one before it inactive.

    Raises:
        ApiError: GitHub refuses, or does not answer.
    """
    environment = record["environment"]
    before = _live(github, environment) if ok else None
    made = github.post(
        "deployments",
        {
            "ref": record["commit"],
            "task": record["what"],
            "environment": environment,
            "payload": dict(record),
            "description": shortened(f"version {record['version']}"),
            "auto_merge": False,
            "required_contexts": [],  # the release verified the commit itself
            "production_environment": environment == "production",
            "transient_environment": False,
        },
    )
    status = {"state": "success" if ok else "failure", "description": shortened(sentence), "log_url": run_url()}
    if url.startswith(("http://", "https://")):
        status["environment_url"] = url
    github.post(f"deployments/{made['id']}/statuses", status)
    if before:  # GitHub does that by itself for all environments but production ones
        github.post(f"deployments/{before[0]}/statuses", {"state": "inactive", "log_url": run_url()})


def live(github: GitHub, environment: str = "production") -> dict[str, Any] | None:
    """Return the record of what an environment runs; None where no deployment of ours is active.

    Raises:
        ApiError: GitHub refuses, or does not answer.
    """
    found = _live(github, environment)
    return found[1] if found else None


def last_built(github: GitHub) -> str | None:
    """Return the commit of the newest successful run of deploy.yml that built an image of the default branch.

    Raises:
        ApiError: GitHub refuses, or does not answer.
    """
    query = {"branch": github.get("")["default_branch"], "status": "success"}
    for run in github.pages("actions/workflows/deploy.yml/runs", **query):
        # a fork's pull request may write itself another trigger, and name its branch as it likes
        if run["event"] not in ("push", "workflow_dispatch"):
            continue
        jobs = github.pages(f"actions/runs/{run['id']}/jobs")
        if any(job["name"] == _BUILD and job["conclusion"] == "success" for job in jobs):
            return str(run["head_sha"])
    return None


def _live(github: GitHub, environment: str) -> tuple[int, dict[str, Any]] | None:
    for number, record in _ours(github, environment):
        newest = next(github.pages(f"deployments/{number}/statuses"), None)
        if newest and newest["state"] == "success":
            return number, record
    return None


def _ours(github: GitHub, environment: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for deployment in github.pages("deployments", environment=environment):
        if (deployment.get("creator") or {}).get("login") != BOT:
            continue
        try:
            payload = deployment["payload"]
            yield deployment["id"], checked(json.loads(payload) if isinstance(payload, str) else payload)
        except (ValueError, KeyError, TypeError):
            continue  # one that GitHub made itself, or somebody else's
