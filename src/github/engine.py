"""Which protected files a change touches: one answer for plan and for what posts a fork's report."""

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from src.core.command import UserError
from src.github.api import GitHub
from src.github.git import Remote, git
from src.system.git_command import GitError, run_git
from src.system.judged import DataFacts
from src.system.protection import PARAMS, protected, rules_changed

_DATA = "data.dvc"
_LINEAGES = ("manifest.json", "starter/project/manifest.json")  # main's, and the template's example's


def touched(github: GitHub, base: str, head: str, changed: Sequence[str]) -> list[str]:
    """Return the protected ones of the paths that commit `head` changes, with the protected sections of params.yaml.

    The first gates of one's own, beside the first data, are no change of the rules: those of main are the template's.
    """
    named = protected(changed)
    if PARAMS not in changed:
        return named
    try:
        return named + _sections(github, base, head, first=_DATA in changed)
    except (UserError, KeyError, TypeError, ValueError) as error:
        print(f"::warning::{PARAMS} could not be compared with that of {base} ({error}): run this again")
        return [*named, f"{PARAMS}, which could not be read"]


def _sections(github: GitHub, base: str, head: str, *, first: bool) -> list[str]:
    left = github.get(f"compare/{base}...{head}")["merge_base_commit"]["sha"]
    remote = Remote(os.environ.get("GITHUB_SERVER_URL", "https://github.com"), github.repository, github.token)
    with tempfile.TemporaryDirectory() as scratch:
        repository = Path(scratch)
        git(repository, "init", "--quiet", "--bare")
        remote.run(repository, "fetch", "--quiet", "--no-tags", "--depth", "1", remote.url, left, head)
        if first and _is_example(repository, left):
            return []
        return rules_changed(_text(repository, left, PARAMS), run_git("show", f"{head}:{PARAMS}", folder=repository))


def _is_example(repository: Path, commit: str) -> bool:
    """True where the model of a commit is made of the data that the template comes with."""
    try:
        mine, example = (
            DataFacts.from_json(json.loads(_text(repository, commit, name))["data"], name).digest for name in _LINEAGES
        )
    except (ValueError, KeyError, TypeError, UserError):
        return False
    return bool(example and mine == example)


def _text(repository: Path, commit: str, path: str) -> str:
    """Return a file of a commit; empty where it has none."""
    try:
        return run_git("show", f"{commit}:{path}", folder=repository)
    except GitError:
        return ""
