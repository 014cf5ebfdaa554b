"""Tell how a release ended: deployments on GitHub, one issue while something is stopped, the summary of the run.

    python3 -m src deployed outcomes

Reads `outcomes/outcome-JOB/release.outcome.json` and NEEDS (how each job ended); DEPLOY_RUNNER and DEPLOY_URL for what is
set up. Needs deployments: write and issues: write, and imports no package. What refuses one part leaves the others be.
"""

import argparse
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from src.core.command import UserError
from src.github import deployments, outcomes, stopped
from src.github.api import ApiError, GitHub
from src.github.outcomes import Outcome
from src.github.status import run_url, summarize
from src.system.escaping import code, prose

TITLES = {
    "verify": "Verify",
    "register": "Register",
    "build": "Build and push",
    "attest": "Attest",
    "staging": "Staging",
    "deploy": "Production",
    "rollback": "Roll back",
}


@dataclass(frozen=True)
class Ending:
    """How a run ended: `word` is one of those that `summary` has a headline for; `job` is the one that stopped it."""

    word: str
    sentence: str
    then: str = ""
    job: str = ""
    kind: str = ""


def ending(results: Mapping[str, str], found: Mapping[str, Outcome], image: str, can_deploy: bool) -> Ending:
    """Say how the run ended.

    Args:
        results: the result of each job: success, failure, cancelled or skipped.
        found: what the jobs left, by name; one that broke down left nothing.
        image: what was pushed, if anything.
        can_deploy: a deploy host is set up.
    """
    for job, result in results.items():
        if result in ("failure", "cancelled"):
            return _stopped(job, result, found.get(job))
    rollback = "rollback" in results
    if results.get("rollback" if rollback else "verify") == "skipped":
        return _nothing(rollback, can_deploy)
    last = found.get("rollback" if rollback else "deploy")
    if last and last.ok:
        return Ending("rolled back" if rollback else "deployed", last.sentence)
    if results.get("build") == "skipped":
        return Ending("unchanged", "neither the model nor the engine has changed since the deployed commit")
    if not can_deploy:
        return Ending("pushed", f"the image is {f'`{image}`' if image else 'built'}, and no deploy host is set up")
    return _stopped("rollback" if rollback else "deploy", "failure", None)


def _stopped(job: str, result: str, outcome: Outcome | None) -> Ending:
    if outcome and not outcome.ok:
        return Ending("stopped", outcome.sentence, outcome.then, job, outcome.kind or "")
    word = "was cancelled" if result == "cancelled" else "failed, and left no word why"
    number = os.environ.get("GITHUB_RUN_ID", "")
    again = f"read its log, mend what it names, then `gh run rerun {number} --failed`"
    return Ending("stopped", f"the job {TITLES.get(job, job)} {word}", again, job)


def _nothing(rollback: bool, can_deploy: bool) -> Ending:
    file = "rollback.yml" if rollback else "deploy.yml"
    if rollback and not can_deploy:
        return Ending("nothing", "there is no deploy host to roll back on", "set DEPLOY_RUNNER: docs/runner.md says how")
    said = f"this ran for {os.environ.get('GITHUB_REF', 'another branch')}, and only the default branch is deployed"
    return Ending("nothing", said, f"`gh workflow run {file}` without --ref takes the right one")


# ---------------------------------------------------------------------------------------------------------------------
# The summary
# ---------------------------------------------------------------------------------------------------------------------


def summary(end: Ending, record: Mapping[str, Any] | None, live: Mapping[str, Any] | None) -> str:
    """Return the summary of the run: how it ended in the first line, then what to do, then what serves now."""
    version = (record or {}).get("version", "?")
    heads = {
        "deployed": f"✅ version {version} is in production",
        "rolled back": f"↩️ version {version} is back in production",
        "pushed": "🟡 the image is pushed, and nothing was deployed",
        "unchanged": "✅ unchanged: nothing was built, nothing deployed",
        "nothing": "❌ nothing was done",
        "stopped": f"❌ stopped at {TITLES.get(end.job, end.job)}",
    }
    blocks = [f"## {heads[end.word]}", _sentence(end.sentence)]
    if end.then:
        blocks.append(f"**Next:** {prose(end.then)}")
    if end.word == "pushed":
        blocks += _what_next()
    return "\n\n".join([*blocks, *_serving(live)]) + "\n"


def _sentence(text: str) -> str:
    said = prose(text[:1].upper() + text[1:])
    return said if said.endswith((".", "!", "?")) else f"{said}."


def _what_next() -> list[str]:
    repository = os.environ.get("GITHUB_REPOSITORY", "OWNER/NAME")
    told = (
        "**Next:** make a machine the deploy host. It needs nginx, and Docker or Podman; docs/runner.md has the "
        "steps. With a runner on it that has the labels below:"
    )
    labels = json.dumps(["self-hosted", "deploy"], separators=(",", ":"))
    commands = [
        f"gh variable set DEPLOY_RUNNER --repo {repository} --body '{labels}'",
        f"gh workflow run deploy.yml --repo {repository}",
    ]
    return [told, "\n".join(["```sh", *commands, "```"])]


def _serving(live: Mapping[str, Any] | None) -> list[str]:
    if live is None:
        return ["Nothing of this repository is known to be in production."]
    before = f", before it {code(str(live['from']['version']))}" if live["from"] else ""
    pull = f"#{live['pull_request']}" if live["pull_request"] else "none"
    rows = {
        "version": code(live["version"]) + before,
        "pull request": pull,
        "commit": code(live["commit"]),
        "manifest": code(live["manifest"]),
        "image": code(str(live.get("image_digest", ""))[:80]),
        "verdict": code(str(live.get("verdict", ""))[:40]),
        "since": code(f"{str(live.get('when', ''))[:40]}, by {str(live.get('who', ''))[:60]} ({live['what']})"),
    }
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return ["### In production now", "\n".join(["| | |", "|---|---|", *lines])]


# ---------------------------------------------------------------------------------------------------------------------
# Everything, one after the other
# ---------------------------------------------------------------------------------------------------------------------


def _attempt(faults: list[str], what: str, act: Callable[[], object]) -> Any:
    """Do one thing; return what comes of it, or None where GitHub refuses, which is kept for the end."""
    try:
        return act()
    except ApiError as error:
        faults.append(f"{what}: {error}")
        return None


def tell(folder: Path, needs: Mapping[str, Any]) -> None:
    """Tell GitHub how the run ended.

    Raises:
        UserError: nothing was done, or GitHub refused to take something of it; the rest was told.
    """
    results = {job: str(entry["result"]) for job, entry in needs.items()}
    image = str((needs.get("build", {}).get("outputs") or {}).get("image") or "")
    found, faults = outcomes.read(folder)
    end = ending(results, found, image, bool(os.environ.get("DEPLOY_RUNNER")))
    github = GitHub.from_environment()
    for job in ("staging", "deploy", "rollback"):
        if job in found:
            done, url = found[job], os.environ.get("DEPLOY_URL", "")
            if done.record:
                add = partial(deployments.add, github, done.record, done.ok, done.sentence, url)
                _attempt(faults, f"the deployment of {job}", add)
    live = _attempt(faults, "what is in production", lambda: deployments.live(github))
    _attempt(faults, "the issue", lambda: _issue(github, end, live, "rollback" in results))
    last = found.get("rollback") or found.get("deploy")
    text = summary(end, last.record if last else None, live)
    print(text)
    summarize(text)
    if end.word == "nothing":
        faults.insert(0, f"{end.sentence}: {end.then}")
    if faults:
        raise UserError("; ".join(faults))


def _issue(github: GitHub, end: Ending, live: Mapping[str, Any] | None, rollback: bool) -> None:
    what = "rollback" if rollback else "deploy"
    if end.word == "stopped":
        stopped.tell(github, what, end.sentence, _body(end, live))
    elif end.word != "nothing":
        stopped.close(github, what, f"{_sentence(end.sentence)} [The run]({run_url()})")


def _body(end: Ending, live: Mapping[str, Any] | None) -> str:
    kind = f" ({code(end.kind)})" if end.kind else ""
    sha, actor = os.environ.get("GITHUB_SHA", ""), os.environ.get("GITHUB_ACTOR", "")
    serves = f"Version {code(live['version'])} goes on serving." if live else ""
    blocks = [
        f"**Stopped at {TITLES.get(end.job, end.job)}**{kind}: {_sentence(end.sentence)}",
        f"**Next:** {prose(end.then)}" if end.then else "",
        f"At commit {code(sha)}, started by {code(actor)}; [the run]({run_url()}) has the log. {serves}".rstrip(),
        *_serving(live),
    ]
    return "\n\n".join(filter(None, blocks))


def main() -> None:
    """Parse the command line and tell."""
    parser = argparse.ArgumentParser(description="Tell GitHub how a release ended.")
    parser.add_argument("folder", type=Path, help="the artifacts outcome-JOB")
    folder = parser.parse_args().folder
    try:
        needs = json.loads(os.environ.get("NEEDS", ""))
        tell(folder, needs)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError("NEEDS is not what toJSON(needs) gives: give the step `NEEDS: ${{ toJSON(needs) }}`") from None
