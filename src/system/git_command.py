"""Git, run as a program. Stands beside a token, too: standard library alone."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from src.core.command import UserError

_SECONDS = 300


class GitError(UserError):
    """Git refused; the text holds its reason."""


def run_git(
    *arguments: str, folder: Path | None = None, text: str | None = None, environment: Mapping[str, str] = {}
) -> str:
    """Run Git in a folder, the current one by default, and return what it prints, blanks at its begin and end included.

    Args:
        arguments: of Git.
        folder: to run in.
        text: for its standard input.
        environment: variables beside those of this process.

    Raises:
        GitError: it failed, or took over five minutes.
    """
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, input=text, env={**os.environ, **(environment or {})}, capture_output=True,
            text=True, errors="replace", timeout=_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise GitError(f"git {arguments[0]} took over {_SECONDS} s: check the network and run again") from None
    if done.returncode:
        reason = " ".join((done.stderr or done.stdout).split())[-400:]
        raise GitError(f"git {arguments[0]} failed: {reason or 'no reason given'}")
    return done.stdout


def git(*arguments: str) -> str:
    """Return what Git prints, stripped; empty when it fails."""
    try:
        return run_git(*arguments).strip()
    except GitError:
        return ""


def file_at(commit: str, path: str) -> str:
    """Return the text of a file of a commit as it is, blanks at its begin and end included; empty where it has none."""
    try:
        return run_git("show", f"{commit}:{path}")
    except GitError:
        return ""


def has(commit: str) -> bool:
    """Return whether this clone holds a commit."""
    return bool(git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{commit}^{{commit}}"))
