"""Decide whether a job may run on this machine: exit 0, or exit 1 with one sentence. Run by job-started.sh before each job.

Reads the event (GITHUB_EVENT_NAME, GITHUB_EVENT_PATH, GITHUB_REPOSITORY) and /etc/ml-runner/allowed.json, which is the
owner's: {"repositories": {"owner/name": id}, "events": [...], "refs": [...]}. Only what is listed is allowed, and whatever
goes wrong is a refusal. Standard library only.

    python3 -I job_started.py [allowed.json] [--owner UID]

The three variables come from GitHub by way of the runner, which gives a workflow's `env:` to steps and not to this hook
(ScriptHandler.cs). Little rests on them all the same: the name of the event has to fit the payload, and the repository has
to be the payload's, with the number that GitHub gave it, which survives a rename and cannot be taken over with a name.
"""

# ruff: noqa: INP001  a script beside others, copied to the runner's machine: no package

import argparse
import json
import os
import re
import stat
import sys
from pathlib import Path
from typing import Any

CONFIG = Path("/etc/ml-runner/allowed.json")
PAYLOAD_LIMIT = 25 * 2**20  # bytes; GitHub's own limit for a webhook's payload
CONFIG_LIMIT = 2**20

# What the payload of that event always has. An event that is not listed here is never allowed: pull_request_target,
# workflow_run and issue_comment run with the repository's token for whoever caused them.
MARKS = {
    "merge_group": "merge_group",
    "pull_request": "pull_request",
    "push": "after",
    "schedule": "schedule",
    "workflow_dispatch": "workflow",
}
FOREIGN_MARKS = ("pull_request", "merge_group", "workflow_run", "comment", "issue", "schedule", "release", "deployment")


class RefusedError(Exception):
    """The job is not to run; the text is the sentence for its author."""


def main() -> None:
    """Print what is allowed, or exit 1 with the reason; no other way out."""
    parser = argparse.ArgumentParser()
    parser.add_argument("config", nargs="?", type=Path, default=CONFIG)
    parser.add_argument("--owner", type=int, default=0, help="who has to own the configuration (the tests are not root)")
    arguments = parser.parse_args()
    try:
        said = check(read_config(arguments.config, arguments.owner))
    except RefusedError as refusal:
        sys.exit(f"refused: {refusal}")
    except Exception as error:  # a check that breaks must not let the job through
        sys.exit(f"refused: the check itself failed ({type(error).__name__}). Ask the owner of the runner to look at it")
    print(f"allowed: {said}")


def check(config: dict[str, Any]) -> str:
    """Return what is allowed, in words; raise RefusedError otherwise."""
    event, repository = variable("GITHUB_EVENT_NAME"), variable("GITHUB_REPOSITORY")
    allowed = {name.lower(): number for name, number in config["repositories"].items()}
    if repository.lower() not in allowed:
        raise RefusedError(
            f"this runner does not work for {shown(repository)}. Use a GitHub-hosted runner there, "
            "or the owner of the runner adds the repository to allowed.json"
        )
    if event not in MARKS or event not in config["events"]:
        raise RefusedError(
            f"jobs of the event {shown(event)} do not run on this machine. Give the job a GitHub-hosted runner"
        )
    payload = read_payload(Path(variable("GITHUB_EVENT_PATH")))
    require_event(payload, event)
    require_repository(payload.get("repository"), repository, allowed[repository.lower()])
    if event == "pull_request":
        require_own_branch(payload)
    require_ref(payload, event, config.get("refs"))
    return f"{event} of {repository}"


def variable(name: str) -> str:
    """Read a variable that GitHub always sets."""
    value = os.environ.get(name, "")
    if not value:
        raise RefusedError(
            f"{name} is not set, so there is no telling what the job is. GitHub sets it: start the job from there"
        )
    return value


def read_config(path: Path, owner: int) -> dict[str, Any]:
    """Read the owner's list, which nobody else may be able to change."""
    advice = "Ask the owner of the runner to run make runner-doctor"
    config = read_json(path, CONFIG_LIMIT, advice, owner)
    repositories, events, refs = (config.get(key) for key in ("repositories", "events", "refs"))
    lists = [events] if refs is None else [events, refs]
    if set(config) - {"repositories", "events", "refs"} or not isinstance(repositories, dict):
        raise RefusedError(f"{path} is not of the form that docs/runner.md shows. {advice}")
    if not all(isinstance(number, int) and number > 0 for number in repositories.values()):
        raise RefusedError(f"{path} lacks a repository's number (gh api repos/OWNER/NAME --jq .id). {advice}")
    if not all(isinstance(entries, list) and all(isinstance(entry, str) for entry in entries) for entries in lists):
        raise RefusedError(f"{path} is not of the form that docs/runner.md shows. {advice}")
    return config


def read_payload(path: Path) -> dict[str, Any]:
    """Read the event as GitHub sent it."""
    return read_json(path, PAYLOAD_LIMIT, "Start the job again; GitHub writes the file anew")


def read_json(path: Path, limit: int, advice: str, owner: int | None = None) -> dict[str, Any]:
    """Read an object from a plain file of bounded size; with `owner`, only if that user alone can change it."""
    try:
        # non-blocking: a named pipe would hold the check up, and no link is followed
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            state = os.fstat(file.fileno())
            if not stat.S_ISREG(state.st_mode):
                raise RefusedError(f"{path} is not a plain file. {advice}")
            if owner is not None and (state.st_uid != owner or state.st_mode & 0o022):
                raise RefusedError(f"{path} does not belong to root alone, so a job could have changed it. {advice}")
            content = file.read(limit + 1)
    except OSError as error:
        raise RefusedError(f"{path} cannot be read ({error.strerror}). {advice}") from None
    if len(content) > limit:
        raise RefusedError(f"{path} is larger than {limit // 2**20} MiB. {advice}")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        raise RefusedError(f"{path} is not valid JSON. {advice}") from None
    if not isinstance(value, dict):
        raise RefusedError(f"{path} is not a JSON object. {advice}")
    return value


def require_event(payload: dict[str, Any], event: str) -> None:
    """Refuse a payload that is not that event's: a name alone would be believed otherwise."""
    foreign = [mark for mark in FOREIGN_MARKS if mark != MARKS[event] and payload.get(mark) is not None]
    if MARKS[event] not in payload or foreign:
        raise RefusedError(f"the event is called {event}, but its payload is another's. Start the job again from GitHub")


def require_repository(found: object, name: str, number: int) -> None:
    """Refuse an event of another repository than the variables say, or of a new one under an old name."""
    if not isinstance(found, dict) or str(found.get("full_name")).lower() != name.lower() or found.get("id") != number:
        raise RefusedError(
            f"the event's repository is not the {name} that the owner of this runner allowed (number {number}). "
            "If it was made anew under the old name, the owner corrects allowed.json"
        )


def require_own_branch(payload: dict[str, Any]) -> None:
    """Refuse a pull request whose code comes from anywhere but the repository itself."""
    request = payload["pull_request"] if isinstance(payload["pull_request"], dict) else {}
    head, base = (side if isinstance(side, dict) else {} for side in (request.get("head"), request.get("base")))
    ours = payload["repository"]
    if not isinstance(head.get("repo"), dict):
        raise RefusedError(
            "the repository that this pull request comes from is gone, so its code is a stranger's. "
            "A maintainer reviews it and pushes it to a branch of this repository"
        )
    for side in (head["repo"], base.get("repo")):
        same = isinstance(side, dict) and (side.get("id"), side.get("full_name")) == (ours["id"], ours["full_name"])
        if not same:
            raise RefusedError(
                f"the pull request comes from {shown(head['repo'].get('full_name'))}, and forks do not run on this machine. "
                "Its report comes from a GitHub-hosted runner; a maintainer can have the reviewed commit trained here"
            )


def require_ref(payload: dict[str, Any], event: str, refs: list[str] | None) -> None:
    """Refuse another branch than the listed ones; a schedule runs on the default branch and has no ref in its payload."""
    if refs is None or event == "schedule":
        return
    if event not in ("push", "workflow_dispatch") or payload.get("ref") not in refs:
        raise RefusedError(
            f"this runner works for {', '.join(refs)} only, and the job is of {shown(payload.get('ref'))}. "
            "Use the runner for pull requests (labels in TRAIN_RUNNER)"
        )


def shown(value: object) -> str:
    """Make a stranger's word fit for the log: a line break there would start a workflow command."""
    return re.sub(r"[^A-Za-z0-9_./-]", "?", str(value))[:120]


if __name__ == "__main__":
    main()
