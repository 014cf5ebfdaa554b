"""Deployments on GitHub: what is where since when, by whose hand, with the whole record as payload.

GitHub makes a deployment of its own for each job that names an environment; ours are those with a record.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from src.github.api import GitHub
from src.github.git import BOT
from src.github.status import run_url, shortened

_BUILD = "Build and push"  # the job of deploy.yml
_SHAPES = {
    "what": r"deploy|rollback",
    "environment": r"production|staging",
    "version": r"[A-Za-z0-9._-]{1,40}",
    "manifest": r"[0-9a-f]{8,64}",
    "commit": r"[0-9a-f]{40}",
    "result": r"deployed|unchanged|returned|rolled back",
    "pull_request": r"[1-9]\d*|None",
}


def checked(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record whose parts have the form that they must have.

    Raises:
        ValueError, KeyError, TypeError: a part is missing or has another form.
    """
    for name, shape in _SHAPES.items():
        if not re.fullmatch(shape, str(record[name])):
            raise ValueError(f"{name} is {str(record[name])[:60]!r}")
    before = record["from"]
    if before is not None and not re.fullmatch(_SHAPES["version"], str(before["version"])):
        raise ValueError("from is no version")
    json.dumps(record, allow_nan=False)
    return dict(record)


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
    for deployment in github.pages("deployments", environment=environment):
        if (deployment.get("creator") or {}).get("login") != BOT:
            continue
        try:
            payload = deployment["payload"]
            record = checked(json.loads(payload) if isinstance(payload, str) else payload)
        except (ValueError, KeyError, TypeError):
            continue  # one that GitHub made itself, or somebody else's
        newest = next(github.pages(f"deployments/{deployment['id']}/statuses"), None)
        if newest and newest["state"] == "success":
            return deployment["id"], record
    return None
