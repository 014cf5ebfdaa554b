"""What does this event ask for? Run first by report.yml: `python3 -m src plan`.

Reads the event, and from GitHub the files that changed; sets the outputs lane, sha, code, base, environment and plan (all of
it as JSON), and the status `model-gate` to pending. It and publish run the default branch's code, so that no pull request
decides about itself. Lanes:

    train           reproduce, judge, report; on the runner that TRAIN_RUNNER names
    unchanged       nothing that the model depends on changed: nothing is trained
    fork            a fork's commit: hosted machine, no secret, numbers only
    fork-unchanged  a fork's commit that leaves the model alone
    bump            Dependabot's own run of a change that the model depends on: it holds no secret, so nothing is trained
"""

import argparse
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from src.core.command import UserError
from src.github import changes, engine, labels
from src.github.api import ApiError, GitHub
from src.github.git import git
from src.github.status import run_url, set_outputs, set_status, summarize
from src.system.run_plan import RunPlan

_SHOWN = 30
_DEPENDABOT = "dependabot[bot]"


def plan(event_name: str, event: Mapping[str, Any], github: GitHub) -> RunPlan:
    """Decide; `event` is the payload that GitHub gave the run.

    Raises:
        UserError: the event is none of those that report.yml knows, or a dispatch names a commit that is not the head.
    """
    makers = {"pull_request": _pull_request, "merge_group": _merge_group, "workflow_dispatch": _dispatch}
    if event_name not in makers:
        raise UserError(f"report.yml does not know the event {event_name}: it takes {', '.join(makers)}")
    made = makers[event_name](event, github)
    made = replace(made, relevant=changes.relevant(made.changed))
    if not made.relevant and made.changed:
        made = replace(made, lane="fork-unchanged" if made.lane == "fork" else "unchanged")
    elif made.lane == "train" and event_name == "pull_request" and event.get("sender", {}).get("login") == _DEPENDABOT:
        made = replace(made, lane="bump")
    if made.is_published:
        # against the default branch whatever the base is: a status belongs to a commit, and a base can be changed later
        default = event["repository"]["default_branch"]
        known = made.changed if made.base == default else []
        everything = known or changes.between(github, default, made.sha)
        made = replace(made, protected=engine.touched(github, default, made.sha, everything))
        if made.number and (made.lane == "train" or made.protected):
            made = _with_labels(made, event, github)
    return made


def _with_labels(made: RunPlan, event: Mapping[str, Any], github: GitHub) -> RunPlan:
    """Enter the labels of the people who decide; where GitHub does not answer, none counts.

    In a merge queue that the engine was read at the pull request's head counts; another model than there was not accepted.
    """
    queued = "merge_group" in event
    try:
        pull = github.get(f"pulls/{made.number}")
        given, refused = labels.read(github, pull, pull["head"]["sha"] if queued else made.sha, event)
    except ApiError as error:
        said = f"the labels of #{made.number} could not be read ({error})"
        print(f"::warning::{said}: none counts")
        return replace(made, refused=dict.fromkeys(labels.LABELS, f"{said}: run it again"))
    override = None if queued else given.get("override")
    return replace(made, refused=refused, override=override, engine_reviewed=given.get("engine_reviewed"))


def _pull_request(event: Mapping[str, Any], github: GitHub) -> RunPlan:
    request = event["pull_request"]
    return _of(request, "fork" if _is_fork(request) else "train", changes.of_pull_request(github, request["number"]))


def _of(request: Mapping[str, Any], lane: str, changed: list[str]) -> RunPlan:
    fork, head = _is_fork(request), request["head"]
    return RunPlan(
        lane=lane, sha=head["sha"], base=request["base"]["ref"], run_url=run_url(), branch="" if fork else head["ref"],
        number=request["number"], fork=fork, changed=changed,
    )  # fmt: skip


def _is_fork(request: Mapping[str, Any]) -> bool:
    """True too where the fork is gone: then nobody can say whose code it is."""
    head, base = request["head"].get("repo"), request["base"]["repo"]
    return head is None or any(head.get(key) != base.get(key) for key in ("id", "full_name"))


def _merge_group(event: Mapping[str, Any], github: GitHub) -> RunPlan:
    group = event["merge_group"]
    base = group["base_ref"].removeprefix("refs/heads/")
    number = re.search(r"/pr-(\d+)-", group["head_ref"])
    changed = changes.between(github, group["base_sha"], group["head_sha"])
    queued = int(number[1]) if number else None
    return RunPlan(lane="train", sha=group["head_sha"], base=base, run_url=run_url(), number=queued, changed=changed)


def _dispatch(event: Mapping[str, Any], github: GitHub) -> RunPlan:
    inputs = event.get("inputs") or {}
    if inputs.get("pull_request") or inputs.get("sha"):
        return _trusted(str(inputs.get("pull_request") or ""), str(inputs.get("sha") or ""), github)
    branch, sha = os.environ["GITHUB_REF_NAME"], os.environ["GITHUB_SHA"]
    default = event["repository"]["default_branch"]
    owner = github.repository.split("/")[0]
    found = [] if branch == default else list(github.pages("pulls", state="open", head=f"{owner}:{branch}"))
    if len(found) == 1 and found[0]["head"]["sha"] == sha and not _is_fork(found[0]):
        return _of(found[0], "train", changes.of_pull_request(github, found[0]["number"]))
    return RunPlan(lane="train", sha=sha, base=default, run_url=run_url(), branch="" if branch == default else branch)


def _trusted(number: str, sha: str, github: GitHub) -> RunPlan:
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
    made = _of(request, "train", [])
    return replace(made, environment="fork-training") if made.fork else made


def main() -> None:
    """Read the event, decide, tell."""
    argparse.ArgumentParser(description="Decide what an event of GitHub asks for.").parse_args()
    github = GitHub.from_environment()
    event = json.loads(Path(os.environ["GITHUB_EVENT_PATH"]).read_text())
    made = plan(os.environ["GITHUB_EVENT_NAME"], event, github)
    if made.is_published:
        set_status(github, made.sha, "pending", "being judged")
    whole = {**asdict(made), **{name: getattr(made, name)[:_SHOWN] for name in ("changed", "protected", "relevant")}}
    outputs = {name: whole[name] for name in ("lane", "sha", "base", "environment")}
    outputs |= {"code": git(Path(), "rev-parse", "HEAD"), "number": made.number or "", "plan": json.dumps(whole)}
    set_outputs(**outputs)
    if made.lane == "fork-unchanged":
        summarize("Nothing that the model depends on changed: nothing was trained.")
    print(f"{made.lane}: {made.sha} against {made.base}" + (f", pull request #{made.number}" if made.number else ""))
    print("\n".join(f"  {path}" for path in made.relevant[:_SHOWN]))
    if made.protected:
        print(f"it touches the engine: {', '.join(made.protected[:_SHOWN])}")
