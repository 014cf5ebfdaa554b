"""The labels by which a person decides, and when one counts: one rule for reports and for deployments.

    model-gate: override   a model that a gate does not let pass is accepted
    engine: reviewed       protected files were changed, and a person has read them

A label counts at the head commit where it was given, and at the report's own commits on top of that; a later push ends it.
Which commit that was is taken from GitHub's list of runs (the label itself starts report.yml), never from a file.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from src.core.command import UserError
from src.github.api import ApiError, GitHub
from src.github.git import BOT
from src.github.status import CONTEXT
from src.system.judged import Label

OVERRIDE = "model-gate: override"
ENGINE = "engine: reviewed"
LABELS = {"override": OVERRIDE, "engine_reviewed": ENGINE}
_MAY_WRITE = ("admin", "maintain", "write")  # triage may set labels too, but not decide what ships
_AGAIN = "remove it and add it again"


class NotCountedError(UserError):
    """A label does not count; the text says why and what to do."""


def read(
    github: GitHub, pull: Mapping[str, Any], sha: str, event: Mapping[str, Any]
) -> tuple[dict[str, Label], dict[str, str]]:
    """Return the labels that count at commit `sha` of a pull request, as {by, at, label, head}, and why others do not.

    `pull` is as GitHub shows it now: the payload of a run that is repeated may name a label that is gone. `event` is that
    payload, or empty.

    Raises:
        ApiError: GitHub does not tell who gave a label.
    """
    there = {label["name"] for label in pull["labels"]}
    wanted = {key: label for key, label in LABELS.items() if label in there}
    events = list(github.pages(f"issues/{pull['number']}/events")) if wanted else []
    counted, refused = {}, {}
    for key, label in wanted.items():
        try:
            counted[key] = _given(
                github,
                pull,
                label,
                [one for one in events if one["event"] in ("labeled", "unlabeled") and one["label"]["name"] == label],
                event,
            )
            _require_still_judged(github, counted[key], sha)
        except (NotCountedError, ApiError) as error:
            counted.pop(key, None)
            refused[key] = (
                str(error)
                if isinstance(error, NotCountedError)
                else f"the label {label} does not count, because it could not be looked into ({error}): {_AGAIN}"
            )
            print(f"::warning::{refused[key]}")
    return counted, refused


def wanted(protected: Sequence[str]) -> str:
    """Say in a status that a change of the engine waits for its label."""
    return f"investigate: once you have read them, add the label {ENGINE}: {', '.join(protected)}"


def has_passed(github: GitHub, sha: str) -> bool:
    """True where the newest `model-gate` of a commit is green, by the word of a workflow.

    Raises:
        ApiError: GitHub does not answer.
    """
    told = [one for one in github.pages(f"commits/{sha}/statuses") if one["context"] == CONTEXT]
    return bool(told) and told[0]["state"] == "success" and told[0]["creator"]["login"] == BOT


def _given(
    github: GitHub, pull: Mapping[str, Any], label: str, events: Sequence[Mapping[str, Any]], event: Mapping[str, Any]
) -> Label:
    """Find out who gave a label, when, and at which head."""
    if not events or events[-1]["event"] != "labeled" or not events[-1]["actor"]:
        raise NotCountedError(f"the label {label} does not count, because GitHub does not say who gave it: {_AGAIN}")
    person, at = events[-1]["actor"], events[-1]["created_at"]
    by = person["login"]
    if person["type"] != "User" or by.endswith("[bot]"):
        raise NotCountedError(f"the label {label} does not count: it was given by {by}, who is no person")
    _require_writer(github, by, label)
    here = event.get("action") == "labeled" and event["label"]["name"] == label and event["sender"]["login"] == by
    head = event["pull_request"]["head"]["sha"] if here else _head_at(github, pull, label, by, at)
    return Label(by=by, at=at, label=label, head=head)


def _require_writer(github: GitHub, login: str, label: str) -> None:
    try:
        permission = github.get(f"collaborators/{login}/permission")["permission"]
    except ApiError as error:
        why = f"the permission of {login} could not be read ({error})"
        raise NotCountedError(f"the label {label} does not count, because {why}: {_AGAIN}") from None
    if permission not in _MAY_WRITE:
        raise NotCountedError(
            f"the label {label} does not count: it was given by {login}, who may not write to this repository"
        )


def _head_at(github: GitHub, pull: Mapping[str, Any], label: str, by: str, at: str) -> str:
    """Return the head at which a label was given: that of the first run that its giver started since."""
    asked = {"event": "pull_request", "branch": pull["head"]["ref"], "actor": by, "created": f">={at}"}
    runs = [
        (run["created_at"], run["id"], run["head_sha"])
        for run in github.pages("actions/workflows/report.yml/runs", **asked)
        if run["created_at"] >= at and run["actor"]["login"] == by
    ]
    if not runs:
        raise NotCountedError(
            f"the label {label} does not count, because no run says at which commit {by} gave it: {_AGAIN}"
        )
    return str(min(runs)[2])


def _require_still_judged(github: GitHub, given: Label, sha: str) -> None:
    """Go back from a commit through the report's own to the one where the label was given."""
    while sha != given.head:
        parents = github.get(f"commits/{sha}")["parents"]
        if len(parents) != 1 or not _runs_about(github, sha) & _runs_about(github, parents[0]["sha"]):
            raise NotCountedError(
                f"the label {given.label} was given to commit {str(given.head)[:12]}: {_AGAIN} to accept this one"
            )
        sha = parents[0]["sha"]


def _runs_about(github: GitHub, sha: str) -> set[str]:
    """Return the runs that set `model-gate` on a commit. One that set it on two made the second of them itself."""
    statuses = github.pages(f"commits/{sha}/statuses")
    return {one["target_url"] for one in statuses if one["context"] == CONTEXT and one["creator"]["login"] == BOT}
