"""The first and the last job of ci.yml: which jobs a commit needs, and the one check that a branch rule requires.

    python3 -m src ci plan
    NEEDS='${{ toJSON(needs) }}' python3 -m src ci all-green

`plan`, on a whole clone, reads the event and GITHUB_TOKEN (actions: read), sets the output `tests`, a key of JOBS, and says
why. What cannot be found out is no good evidence: then the engine's tests run. A commit that the report pushed holds results
alone, so it takes over the result of CI on the commit below it: CI of a pull request runs once. `all-green` is green only
when every job that the plan chose is: GitHub takes a job that was skipped, because another failed, for a success.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from src.core.command import UserError
from src.github.api import GitHub
from src.github.git import BOT, git
from src.github.status import set_outputs, summarize
from src.system import template_version
from src.system.protection import RESULTS, protected

JOBS: Mapping[str, tuple[str, ...]] = {
    "none": (),
    "yours": ("yours",),  # lint, and the contract of data, params and network
    "engine": ("test", "workflows", "pipeline"),
}
_SHOWN = 10
_PATIENCE = 3600.0  # seconds that CI of the commit below may still take
_PAUSE = 30.0
_DEEPEST = 20  # commits of results on top of each other


def choose(files: Sequence[str], edited: Callable[[], Sequence[str]]) -> tuple[str, str]:
    """Return a key of JOBS for a change of `files`, and why; `edited` lists the engine's files that are not the template's.

    Raises:
        UserError: `edited` cannot tell.
    """
    if not files:
        return "engine", "no changed file is known"
    if all(path == "README.md" or path.startswith("docs/") for path in files):
        return "none", "documents alone changed"
    if engine := protected(files):
        return "engine", f"this changes {_list(engine)}"
    if own := edited():
        return "engine", f"the engine is not the recorded version of the template: {_list(own)}"
    return "yours", "data, params, network or documents changed, and the engine is the recorded version of the template"


def _list(paths: Sequence[str]) -> str:
    rest = len(paths) - _SHOWN
    return ", ".join(paths[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def decide(event_name: str, event: Mapping[str, Any], github: GitHub) -> tuple[str, str]:
    """Return a key of JOBS and why; in place of the key "" where CI has failed on the commit below results.

    Raises:
        UserError: Git or GitHub cannot tell what is to be known.
        KeyError, TypeError: the event is none of those that ci.yml knows.
    """
    below = _below_results() if event_name == "workflow_dispatch" and event["sender"]["login"] == BOT else ""
    if below:
        result = ci_result(github, below)
        if result == "success":
            return "none", f"{below[:12]} is green, and the report has added {', '.join(RESULTS)} alone"
        if result == "failure":
            return "", f"CI has failed on {below[:12]}, to which the report has added results alone: mend that, and push"
        print(f"::warning::CI of {below[:12]} has no result: it runs here")
    bases: Mapping[str, Callable[[], str]] = {
        "pull_request": lambda: event["pull_request"]["base"]["sha"],
        "merge_group": lambda: event["merge_group"]["base_sha"],
        "push": lambda: event["before"],
        "workflow_dispatch": lambda: f"origin/{event['repository']['default_branch']}",
    }
    listed = git(Path(), "diff", "--name-only", "--no-renames", "-z", f"{bases[event_name]()}...HEAD")
    return choose([path for path in listed.split("\0") if path], lambda: template_version.changed(Path()))


def _below_results() -> str:
    """Return the commit below those at the head that change the results of a run alone; "" where the head is none."""
    below, commit = "", "HEAD"
    for _ in range(_DEEPEST):
        _, *parents = git(Path(), "rev-list", "--parents", "--max-count=1", commit).split()
        if len(parents) != 1:
            break
        files = git(Path(), "diff", "--name-only", "--no-renames", parents[0], commit).splitlines()
        if not files or not set(files) <= set(RESULTS):
            break
        below = commit = parents[0]
    return below


def ci_result(
    github: GitHub, sha: str, now: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
) -> str:
    """Return how ci.yml ended on a commit: success, failure, or "" where it did not run to its end; waits while it runs.

    Raises:
        ApiError: GitHub does not answer.
    """
    end = now() + _PATIENCE
    while True:
        runs = list(github.pages("actions/workflows/ci.yml/runs", head_sha=sha))
        conclusions = [run["conclusion"] for run in runs]  # the newest first
        if "success" in conclusions:
            return "success"
        if all(run["status"] == "completed" for run in runs):
            return "failure" if conclusions[:1] == ["failure"] else ""
        if now() >= end:
            return ""
        sleep(_PAUSE)


def faults(needs: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each job that is not as it must be; `needs` is what `toJSON(needs)` gives.

    Raises:
        UserError: it names no job, or a job in it has no result.
    """
    try:
        results = {str(job): str(entry["result"]) for job, entry in needs.items()}
        chosen = str(needs["plan"]["outputs"].get("tests"))
    except (AttributeError, KeyError, TypeError):
        raise UserError(
            "NEEDS is not what toJSON(needs) gives: its step needs `env: NEEDS: ${{ toJSON(needs) }}`, its job needs plan"
        ) from None
    wanted = {"plan", *JOBS.get(chosen, ())}
    words = {"failure": "failed", "cancelled": "was cancelled", "skipped": "was skipped and must not be"}
    found = [f"{job} is no job of `needs`" for job in sorted(wanted - results.keys())]
    found += [
        f"{job} {words.get(result, 'has no known result')}"
        for job, result in results.items()
        if result != "success" and not (result == "skipped" and job not in wanted)
    ]
    if not found and chosen not in JOBS:
        found.append(f"plan chose {chosen!r}, which is none of {', '.join(JOBS)}")
    return found


def _plan() -> None:
    event = json.loads(Path(os.environ["GITHUB_EVENT_PATH"]).read_text())
    try:
        tests, why = decide(os.environ["GITHUB_EVENT_NAME"], event, GitHub.from_environment())
    except (UserError, KeyError, TypeError, ValueError) as error:
        tests, why = "engine", f"what changed, or the template's version, is not known ({error})"
        print(f"::warning::{why}: the engine's tests run")
    if not tests:
        raise UserError(why)
    set_outputs(tests=tests)
    said = f"{', '.join(JOBS[tests]) or 'no job'}: {why}"
    print(said)
    summarize(said)


def _all_green() -> None:
    try:
        needs = json.loads(os.environ.get("NEEDS", ""))
    except (ValueError, RecursionError):
        needs = None
    if found := faults(needs):
        raise UserError(f"not all green: {'; '.join(found)}. Open the job's log, mend it, and run it again")
    print(f"all green: {', '.join(job for job, entry in needs.items() if entry['result'] == 'success')}")


def main() -> None:
    """Decide which jobs are needed, or fail unless every one of them succeeded."""
    parser = argparse.ArgumentParser(description="The first and the last job of ci.yml.")
    parser.add_argument("job", choices=("plan", "all-green"))
    if parser.parse_args().job == "plan":
        _plan()
    else:
        _all_green()
