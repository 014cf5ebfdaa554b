"""Another commit's files in a folder of their own, beside the working tree, with this repository's DVC cache and remotes."""

import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from src.core.command import UserError
from src.system.addresses import without_secrets
from src.system.git_command import GitError, git, run_git
from src.system.versioning import dvc

LOST_ARTIFACTS = Path("out/earlier/lost.txt")  # which artifacts of workflow runs could not be had, and why; a line each


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """Yield a temporary folder that holds a commit's files; it is gone afterwards, and so is what Git knows of it.

    Raises:
        UserError: Git cannot make it.
    """
    holder = Path(tempfile.mkdtemp(prefix="commit-"))
    tree = holder / "tree"
    try:
        try:
            run_git("worktree", "add", "--quiet", "--detach", str(tree), commit)
        except GitError as error:
            raise UserError(f"{error}: free the disk, or run git worktree prune") from None
        yield tree
    finally:
        shutil.rmtree(holder, ignore_errors=True)
        git("worktree", "prune")


def share_dvc(tree: Path) -> None:
    """Let DVC in a checked-out commit use this repository's cache, its own remotes and credentials."""
    own = Path(".dvc/config.local")
    if (tree / ".dvc").is_dir():
        if own.is_file():
            shutil.copy(own, tree / ".dvc" / "config.local")
        dvc("cache", "dir", "--local", "--quiet", str(cache()), folder=tree, capture=True)


def bring(tree: Path, outputs: Sequence[str]) -> str:
    """Check out what dvc.lock or a .dvc file of `tree` names, from the cache or any DVC remote that is configured there.

    Returns:
        Why it cannot be had, with the words of each remote; empty when all of it is there.
    """
    if not dvc("checkout", "--quiet", *outputs, folder=tree, capture=True).returncode:
        return ""
    reasons = []
    for name in remotes(tree):
        pulled = dvc("pull", "--remote", name, *outputs, folder=tree, capture=True)
        if not pulled.returncode:
            return ""
        reasons.append(f"{name}: {reason(pulled.stderr)}")
    reasons += LOST_ARTIFACTS.read_text().splitlines() if LOST_ARTIFACTS.is_file() else []
    return "; ".join(reasons).replace(f"{tree}/", "") or "no DVC remote is configured"


def remotes(tree: Path) -> list[str]:
    """Return the names of the DVC remotes that are configured in a folder."""
    listed = dvc("config", "--list", folder=tree, capture=True).stdout  # `dvc remote list` breaks its lines at 80 columns
    return list(dict.fromkeys(re.findall(r"^remote\.(.+)\.url=", listed, re.MULTILINE)))


def reason(errors: str) -> str:
    """Return why DVC failed, in one line and without credentials: its own last lines are advice and an advertisement."""
    if "missing-files" in errors:
        return "it does not hold all of it"
    lines = [line for line in errors.splitlines() if line.strip()] or ["no reason given"]
    told = [line for line in lines if line.startswith("ERROR: ")] or lines[-1:]
    text = told[-1].removeprefix("ERROR: ").removeprefix("unexpected error - ")
    return without_secrets(text)[:300]


def cache() -> Path:
    """Return where DVC keeps the objects of this repository."""
    return Path(dvc("cache", "dir", capture=True).stdout.strip()).resolve()
