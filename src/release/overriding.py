"""A person's override of the gates, as manifest.json claims it: in CI it must be found on GitHub, or it does not count."""

import base64
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from src import lineage
from src.command import UserError
from src.github.api import ApiError, GitHub
from src.github.labels import OVERRIDE, NotCountedError, require_writer
from src.release.outcome import RefusedError
from src.worktree import git

LABEL = OVERRIDE
LABELS = {"override": LABEL, "engine_reviewed": "engine: reviewed"}  # by the key of the manifest's verdict


def confirm(manifest: Mapping[str, Any], commit: str, key: str = "override") -> None:
    """Ask GitHub whether the person whom manifest.json names has overridden the gates; outside of CI nobody is asked.

    What counts is the label on a pull request whose last commit holds this very manifest.json, given by that person, who is
    no bot and may write to the repository.

    Raises:
        RefusedError: it is not so, or GitHub does not answer.
    """
    if os.environ.get("GITHUB_ACTIONS") != "true":
        return
    by = manifest["verdict"][key]["by"]
    doubts = []
    try:
        github = GitHub.from_environment()
        for number in _pull_requests(github, manifest, commit):
            doubt = _doubt(github, number, by, manifest, LABELS[key])
            if doubt is None:
                return
            doubts.append(doubt)
    except UserError as error:
        doubts.append(f"GitHub could not be asked: {error}")
    except (KeyError, TypeError, ValueError):
        doubts.append("GitHub answered with something else than a pull request: check GITHUB_API_URL")
    why = "; ".join(doubts) or "no pull request brought this manifest.json"
    raise RefusedError(
        "gates",
        f"manifest.json says that {by} overrode the gates, and GitHub does not confirm it ({why})",
        f"let a person who may write here put the label {LABELS[key]} on the pull request, so that its report names them",
    )


def _pull_requests(github: GitHub, manifest: Mapping[str, Any], commit: str) -> Iterator[int]:
    """Yield those that may have brought this manifest.json: the one it names, and those of the commit that changed it last.

    A model that is judged again, as after a revert, keeps the number of the pull request it was trained in.
    """
    named = manifest.get("pull_request")
    if isinstance(named, int):
        yield named
    changed = git("log", "-1", "--first-parent", "--format=%H", commit, "--", "manifest.json")
    yield from (pull["number"] for pull in github.pages(f"commits/{changed}/pulls") if pull["number"] != named)


def _doubt(github: GitHub, number: int, by: str, manifest: Mapping[str, Any], wanted: str) -> str | None:
    """Say why the label of a pull request does not count for this manifest; None when it does."""
    pull = github.get(f"pulls/{number}")
    if wanted not in {label["name"] for label in pull["labels"]}:
        return f"#{number} has no label {wanted}"
    events = [event for event in github.pages(f"issues/{number}/events") if event["event"] == "labeled"]
    giver = next((event["actor"] for event in reversed(events) if event["label"]["name"] == wanted), None)
    if giver is None or giver["login"] != by:
        return f"the label of #{number} was given by {giver['login'] if giver else 'nobody'}"
    if giver["type"] != "User" or by.endswith("[bot]"):
        return f"{by} is no person"
    try:
        require_writer(github, by, LABEL)
    except NotCountedError as error:
        return str(error)
    if _manifest_of(github, pull["head"]["sha"]) != lineage.digest(manifest):
        return f"#{number} reviewed another model, or with another verdict"
    return None


def _manifest_of(github: GitHub, sha: str) -> str:
    """Return the digest of the manifest.json that a commit holds; empty where it has none."""
    try:
        told = github.get("contents/manifest.json", ref=sha)
    except ApiError as error:
        if error.status != 404:
            raise
        return ""
    return lineage.digest(json.loads(base64.b64decode(told["content"])))
