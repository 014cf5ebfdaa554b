"""What people decided before a merge: in CI it must be found on GitHub, or it does not count.

That is a label, as manifest.json claims it, and a green `model-gate` of each pull request that touched the engine.
"""

import base64
import json
import os
from collections.abc import Iterator

from src.core.command import UserError
from src.core.files import digest
from src.github import labels
from src.github.api import ApiError, GitHub
from src.release.outcome import RefusedError
from src.system import protection
from src.system.git_command import file_at, git
from src.system.judged import Lineage


def confirm(manifest: Lineage, commit: str, key: str) -> None:
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
    claimed, label = getattr(manifest.verdict, key), labels.LABELS[key]
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
        doubts.append("GitHub answered with something else than a pull request: check GITHUB_SERVER_URL")
    why = "; ".join(doubts) or "no pull request brought this manifest.json"
    raise RefusedError(
        "gates",
        f"manifest.json says that {claimed.by} gave the label {label}, and GitHub does not confirm it ({why})",
        f"let a person who may write here put the label {label} on the pull request, so that its report names them",
    )


def require_read(deployed: str | None, commit: str) -> None:
    """Ask GitHub whether each change of the engine since the deployed commit came by a pull request with a green model-gate.

    Nobody is asked outside of CI, nor where a person starts the deployment by hand: that is a decision of its own.

    Raises:
        RefusedError: one did not, or GitHub does not answer.
    """
    if os.environ.get("GITHUB_ACTIONS") != "true" or not deployed:
        return
    if os.environ.get("GITHUB_EVENT_NAME") == "workflow_dispatch":
        return
    for merged in git("rev-list", "--first-parent", "--reverse", f"{deployed}..{commit}").split():
        paths = git("diff", "--name-only", "--no-renames", "-z", f"{merged}^1", merged).split("\0")[:-1]
        then, now = (file_at(at, protection.PARAMS) for at in (f"{merged}^1", merged))
        touched = protection.protected(paths) + protection.rules_changed(then, now)
        if touched and (doubt := _doubt_of_merge(merged)):
            subject = git("show", "--no-patch", "--format=%s", merged)[:60]
            raise RefusedError(
                "gates",
                f"commit {merged[:12]} ({subject}) touches the engine ({', '.join(touched[:5])}), and {doubt}",
                "read it, then start deploy.yml by hand (gh workflow run deploy.yml), or revert it",
            )


def _doubt_of_merge(commit: str) -> str:
    """Say why no pull request vouches for a commit of main; empty when one does."""
    try:
        github = GitHub.from_environment()
        pulls = list(github.pages(f"commits/{commit}/pulls"))
        if any(labels.has_passed(github, pull["head"]["sha"]) for pull in pulls):
            return ""
    except UserError as error:
        return f"GitHub could not be asked: {error}"
    numbers = ", ".join(f"#{pull['number']}" for pull in pulls)
    return f"model-gate was not green at the head of {numbers}" if pulls else "no pull request brought it"


def _pull_requests(github: GitHub, manifest: Lineage, commit: str) -> Iterator[int]:
    """Yield those that may have brought this manifest.json: the one it names, and those of the commit that changed it last.

    A model that is judged again, as after a revert, keeps the number of the pull request it was trained in.
    """
    named = manifest.pull_request
    if named is not None:
        yield named
    changed = git("log", "-1", "--first-parent", "--format=%H", commit, "--", "manifest.json")
    yield from (pull["number"] for pull in github.pages(f"commits/{changed}/pulls") if pull["number"] != named)


def _doubt(github: GitHub, number: int, key: str, manifest: Lineage) -> str | None:
    """Say why the label of a pull request does not count for this manifest; None when it does."""
    pull, claimed = github.get(f"pulls/{number}"), getattr(manifest.verdict, key)
    head = pull["head"]["sha"]
    counted, refused = labels.read(github, pull, head, {})
    if key not in counted:
        return refused.get(key) or f"#{number} has no label {labels.LABELS[key]}"
    given = counted[key]
    if given.by != claimed.by:
        return f"the label of #{number} was given by {given.by}"
    if claimed.head not in (None, given.head):
        return f"the label of #{number} was given to commit {str(given.head)[:12]}, not to {claimed.head[:12]}"
    if _manifest_of(github, head) != manifest.digest:
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
    return digest(json.loads(base64.b64decode(told["content"])))
