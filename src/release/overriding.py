"""A person's label, as manifest.json claims it: in CI it must be found on GitHub, or it does not count."""

import base64
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from src.core.command import UserError
from src.github import labels
from src.github.api import ApiError, GitHub
from src.release.outcome import RefusedError
from src.system import dvc_lock
from src.system.worktree import git


def confirm(manifest: Mapping[str, Any], commit: str, key: str) -> None:
    """Ask GitHub whether the person whom manifest.json names has given a label; outside of CI nobody is asked.

    What counts is the label on a pull request whose last commit holds this very manifest.json, given by that person at that
    commit, as a report takes it (src/github/labels.py).

    Args:
        manifest: what was reviewed.
        commit: the one that is released.
        key: `override` or `engine_reviewed`.

    Raises:
        RefusedError: it is not so, or GitHub does not answer.
    """
    if os.environ.get("GITHUB_ACTIONS") != "true":
        return
    claimed, label = manifest["verdict"][key], labels.LABELS[key]
    doubts = []
    try:
        github = GitHub.from_environment()
        for number in _pull_requests(github, manifest, commit):
            doubt = _doubt(github, number, key, manifest)
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
        f"manifest.json says that {claimed['by']} gave the label {label}, and GitHub does not confirm it ({why})",
        f"let a person who may write here put the label {label} on the pull request, so that its report names them",
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


def _doubt(github: GitHub, number: int, key: str, manifest: Mapping[str, Any]) -> str | None:
    """Say why the label of a pull request does not count for this manifest; None when it does."""
    pull, claimed = github.get(f"pulls/{number}"), manifest["verdict"][key]
    head = pull["head"]["sha"]
    counted, refused = labels.read(github, pull, head, {})
    if key not in counted:
        return refused.get(key) or f"#{number} has no label {labels.LABELS[key]}"
    given = counted[key]
    if given["by"] != claimed["by"]:
        return f"the label of #{number} was given by {given['by']}"
    if claimed.get("head", given["head"]) != given["head"]:  # manifests did not always hold it
        return f"the label of #{number} was given to commit {given['head'][:12]}, not to {claimed['head'][:12]}"
    if _manifest_of(github, head) != dvc_lock.digest(manifest):
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
    return dvc_lock.digest(json.loads(base64.b64decode(told["content"])))
