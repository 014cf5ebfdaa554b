"""What does this event ask for? Run first by report.yml: `python3 -m src.github.plan`.

Reads the event, and from GitHub the files that changed; sets the outputs lane, sha, code, base, environment and plan (all of
it as JSON), and the status `model-gate` to pending. Lanes:

    train           reproduce, judge, report; on the runner that TRAIN_RUNNER names
    unchanged       nothing that the model depends on changed: nothing is trained
    fork            a fork's commit: hosted machine, no secret, numbers only
    fork-unchanged  a fork's commit that leaves the model alone
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from src.command import UserError, run
from src.github import changes
from src.github.api import ApiError, GitHub
from src.github.labels import OVERRIDE as LABEL
from src.github.labels import NotCountedError, require_writer
from src.github.status import run_url, set_status

_SHOWN = 30


@dataclass
class Plan:
    """What is to be done, and to which commit the result belongs."""

    lane: str
    sha: str
    code: str
    base: str
    run_url: str
    branch: str = ""
    number: int | None = None
    fork: bool = False
    environment: str = "training"
    override: dict[str, Any] | None = None
    refused: str = ""
    changed: list[str] = field(default_factory=list)
    relevant: list[str] = field(default_factory=list)


def plan(event_name: str, event: Mapping[str, Any], github: GitHub) -> Plan:
    """Decide; `event` is the payload that GitHub gave the run.

    Raises:
        UserError: the event is none of those that report.yml knows, or a dispatch names a commit that is not the head.
    """
    makers = {"pull_request": _pull_request, "merge_group": _merge_group, "workflow_dispatch": _dispatch}
    if event_name not in makers:
        raise UserError(f"report.yml does not know the event {event_name}: it takes {', '.join(makers)}")
    made = makers[event_name](event, github)
    made.relevant = changes.relevant(made.changed)
    if not made.relevant and made.changed:
        made.lane = "fork-unchanged" if made.lane == "fork" else "unchanged"
    return made


def _pull_request(event: Mapping[str, Any], github: GitHub) -> Plan:
    request = event["pull_request"]
    made = _of(request, "fork" if _is_fork(request) else "train")
    made.changed = changes.of_pull_request(github, request["number"], os.environ.get("GITHUB_SHA", ""))
    if not made.fork:
        try:
            made.override = _override(event, github)
        except NotCountedError as error:
            made.refused = str(error)
            print(f"::warning::{error}")
    return made


def _of(request: Mapping[str, Any], lane: str) -> Plan:
    fork = _is_fork(request)
    sha = request["head"]["sha"]
    branch = "" if fork else request["head"]["ref"]
    return Plan(lane, sha, sha, request["base"]["ref"], run_url(), branch, request["number"], fork)


def _is_fork(request: Mapping[str, Any]) -> bool:
    """True too where the fork is gone: then nobody can say whose code it is."""
    head, base = request["head"].get("repo"), request["base"]["repo"]
    return head is None or any(head.get(key) != base.get(key) for key in ("id", "full_name"))


def _merge_group(event: Mapping[str, Any], github: GitHub) -> Plan:
    group = event["merge_group"]
    base = group["base_ref"].removeprefix("refs/heads/")
    number = re.search(r"/pr-(\d+)-", group["head_ref"])
    made = Plan("train", group["head_sha"], group["head_sha"], base, run_url(), number=int(number[1]) if number else None)
    made.changed = changes.between(github, group["base_sha"], group["head_sha"])
    return made


def _dispatch(event: Mapping[str, Any], github: GitHub) -> Plan:
    inputs = event.get("inputs") or {}
    if inputs.get("pull_request") or inputs.get("sha"):
        return _trusted(str(inputs.get("pull_request") or ""), str(inputs.get("sha") or ""), github)
    branch, sha = os.environ["GITHUB_REF_NAME"], os.environ["GITHUB_SHA"]
    default = event["repository"]["default_branch"]
    owner = github.repository.split("/")[0]
    found = [] if branch == default else list(github.pages("pulls", state="open", head=f"{owner}:{branch}"))
    if len(found) == 1 and found[0]["head"]["sha"] == sha and not _is_fork(found[0]):
        made = _of(found[0], "train")
        made.changed = changes.of_pull_request(github, found[0]["number"])
        return made
    return Plan("train", sha, sha, default, run_url(), "" if branch == default else branch)


def _trusted(number: str, sha: str, github: GitHub) -> Plan:
    """A maintainer has read a fork's commit and wants it trained: that commit, and only while it is the head."""
    if not re.fullmatch(r"[1-9]\d{0,9}", number) or not re.fullmatch(r"[0-9a-f]{40}", sha):
        raise UserError("give both pull_request (a number) and sha (all 40 digits of the commit that you have read)")
    request = github.get(f"pulls/{number}")
    if request["state"] != "open":
        raise UserError(f"pull request #{number} is {request['state']}: reopen it, or name another")
    if request["head"]["sha"] != sha:
        raise UserError(
            f"the head of #{number} is {request['head']['sha']}, not {sha}: read the new commit, then start this with it"
        )
    made = _of(request, "train")
    made.code = os.environ["GITHUB_SHA"]  # who holds the write token runs this branch's code, never the fork's
    made.environment = "fork-training" if made.fork else "training"
    return made


# ---------------------------------------------------------------------------------------------------------------------
# The override: a label, given by a person who may write here
# ---------------------------------------------------------------------------------------------------------------------


def _override(event: Mapping[str, Any], github: GitHub) -> dict[str, Any] | None:
    """Return who gave the label, and whether just now; None without the label, or from somebody who may not."""
    request = event["pull_request"]
    if LABEL not in {label["name"] for label in request.get("labels", [])}:
        return None
    fresh = event.get("action") == "labeled" and event.get("label", {}).get("name") == LABEL
    given = (
        {"by": event["sender"]["login"], "at": request.get("updated_at", "")} if fresh else _giver(github, request["number"])
    )
    if given is None:
        return None
    require_writer(github, given["by"], LABEL)
    return {**given, "fresh": fresh, "label": LABEL}


def _giver(github: GitHub, number: int) -> dict[str, str] | None:
    try:
        events = [entry for entry in github.pages(f"issues/{number}/events") if entry["event"] == "labeled"]
    except ApiError as error:
        print(f"who gave the label {LABEL} could not be read ({error}): it does not count")
        return None
    mine = [entry for entry in events if entry["label"]["name"] == LABEL]
    return {"by": mine[-1]["actor"]["login"], "at": mine[-1]["created_at"]} if mine else None


# ---------------------------------------------------------------------------------------------------------------------
# Telling
# ---------------------------------------------------------------------------------------------------------------------


def _write_outputs(made: Plan) -> None:
    whole = {**asdict(made), "changed": made.changed[:_SHOWN], "relevant": made.relevant[:_SHOWN]}
    outputs = {name: whole[name] for name in ("lane", "sha", "code", "base", "environment")}
    outputs["plan"] = json.dumps(whole)
    with Path(os.environ["GITHUB_OUTPUT"]).open("a") as file:
        file.writelines(f"{name}={value}\n" for name, value in outputs.items())


def _summarize(made: Plan) -> None:
    if made.lane != "fork-unchanged" or not os.environ.get("GITHUB_STEP_SUMMARY"):
        return
    with Path(os.environ["GITHUB_STEP_SUMMARY"]).open("a") as file:
        file.write("Nothing that the model depends on changed: nothing was trained.\n")


def main() -> None:
    """Read the event, decide, tell."""
    github = GitHub.from_environment()
    event = json.loads(Path(os.environ["GITHUB_EVENT_PATH"]).read_text())
    made = plan(os.environ["GITHUB_EVENT_NAME"], event, github)
    if not made.fork or made.environment == "fork-training":
        set_status(github, made.sha, "pending", "being judged")
    _write_outputs(made)
    _summarize(made)
    print(f"{made.lane}: {made.sha} against {made.base}" + (f", pull request #{made.number}" if made.number else ""))
    print("\n".join(f"  {path}" for path in made.relevant[:_SHOWN]))


if __name__ == "__main__":
    run("plan", main)
