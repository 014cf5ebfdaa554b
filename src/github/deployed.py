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
from src.core.records import Record
from src.github import deployments, stopped
from src.github.api import ApiError, GitHub
from src.github.status import run_url, summarize
from src.system.escaping import code, prose

FILE = "release.outcome.json"
_LARGEST = 64 * 2**10  # bytes of it
TITLES = {
    "verify": "Verify",
    "register": "Register",
    "build": "Build and push",
    "attest": "Attest",
    "staging": "Staging",
    "deploy": "Production",
    "rollback": "Roll back",
}


@dataclass(frozen=True, kw_only=True)
class Outcome(Record):
    """How one job ended, as src/release/outcome.py writes it. A deploy host is a machine of one's own: this is data.

    `record` is what it put into an environment, or tried to; None where it came to nothing of that.
    """

    step: str  # verify, register, build, deploy or rollback
    ok: bool
    kind: str | None
    sentence: str
    next: str  # what to do
    record: dict[str, Any] | None


def read(folder: Path) -> tuple[dict[str, Outcome], list[str]]:
    """Read the folders `outcome-JOB` that lie in `folder`; return the outcomes by job, and a sentence for each bad one.

    download-artifact unpacks a single one without a folder of its own: then the step tells the job.
    """
    found, faults = {}, []
    for path in sorted([*folder.glob(FILE), *folder.glob(f"outcome-*/{FILE}")]):
        job = path.parent.name.removeprefix("outcome-") if path.parent != folder else ""
        try:
            if path.is_symlink() or not path.is_file() or path.stat().st_size > _LARGEST:
                raise ValueError(f"it is no plain file of at most {_LARGEST} bytes")
            outcome = Outcome.parse(path.read_text(encoding="utf-8", errors="replace"), FILE)
            if outcome.record is not None:
                deployments.checked(outcome.record)
        except (UserError, ValueError, KeyError, TypeError, RecursionError) as error:
            faults.append(f"the outcome of {job or 'a job'} cannot be read ({str(error)[:200]}): see the log of that job")
        else:
            found[job or outcome.step] = outcome
    return found, faults


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
        if rollback and not can_deploy:
            return Ending("nothing", "there is no deploy host to roll back on", "set DEPLOY_RUNNER: docs/runner.md says how")
        said = f"this ran for {os.environ.get('GITHUB_REF', 'another branch')}, and only the default branch is deployed"
        file = "rollback.yml" if rollback else "deploy.yml"
        return Ending("nothing", said, f"`gh workflow run {file}` without --ref takes the right one")
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
        return Ending("stopped", outcome.sentence, outcome.next, job, outcome.kind or "")
    word = "was cancelled" if result == "cancelled" else "failed, and left no word why"
    number = os.environ.get("GITHUB_RUN_ID", "")
    again = f"read its log, mend what it names, then `gh run rerun {number} --failed`"
    return Ending("stopped", f"the job {TITLES.get(job, job)} {word}", again, job)


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
        repository = os.environ.get("GITHUB_REPOSITORY", "OWNER/NAME")
        host = (
            "It needs nginx, and Docker or Podman; docs/runner.md has the steps. With a runner on it that has these labels:"
        )
        commands = (
            f'gh variable set DEPLOY_RUNNER --repo {repository} --body \'["self-hosted","deploy"]\'',
            f"gh workflow run deploy.yml --repo {repository}",
        )
        blocks += [f"**Next:** make a machine the deploy host. {host}", "\n".join(["```sh", *commands, "```"])]
    return "\n\n".join([*blocks, *_serving(live)]) + "\n"


def _sentence(text: str) -> str:
    said = prose(text[:1].upper() + text[1:])
    return said if said.endswith((".", "!", "?")) else f"{said}."


def _serving(live: Mapping[str, Any] | None) -> list[str]:
    if live is None:
        return ["Nothing of this repository is known to be in production."]
    before = f", before it {code(str(live['from']['version']))}" if live["from"] else ""
    rows = {
        "version": code(live["version"]) + before,
        "pull request": f"#{live['pull_request']}" if live["pull_request"] else "none",
        "commit": code(live["commit"]),
        "manifest": code(live["manifest"]),
        "image": code(str(live.get("image_digest", ""))[:80]),
        "verdict": code(str(live.get("verdict", ""))[:40]),
        "since": code(f"{str(live.get('when', ''))[:40]}, by {str(live.get('who', ''))[:60]} ({live['what']})"),
    }
    lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
    return ["### In production now", "\n".join(lines)]


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
    found, faults = read(folder)
    end = ending(results, found, image, bool(os.environ.get("DEPLOY_RUNNER")))
    github = GitHub.from_environment()
    for job in ("staging", "deploy", "rollback"):
        if job in found:
            done, url = found[job], os.environ.get("DEPLOY_URL", "")
            if done.record:
                add = partial(deployments.add, github, done.record, done.ok, done.sentence, url)
                _attempt(faults, f"the deployment of {job}", add)
    live = _attempt(faults, "what is in production", lambda: deployments.live(github))
    what = "rollback" if "rollback" in results else "deploy"
    if end.word == "stopped":
        _attempt(faults, "the issue", lambda: stopped.tell(github, what, end.sentence, _body(end, live)))
    elif end.word != "nothing":
        said = f"{_sentence(end.sentence)} [The run]({run_url()})"
        _attempt(faults, "the issue", lambda: stopped.close(github, what, said))
    last = found.get("rollback") or found.get("deploy")
    text = summary(end, last.record if last else None, live)
    print(text)
    summarize(text)
    if end.word == "nothing":
        faults.insert(0, f"{end.sentence}: {end.then}")
    if faults:
        raise UserError("; ".join(faults))


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
