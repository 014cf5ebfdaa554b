"""Another commit's files in a folder of their own, beside the working tree, with this repository's DVC cache and remotes."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from src.command import UserError
from src.versioning import dvc


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """Yield a temporary folder that holds a commit's files; it is gone afterwards, and so is what Git knows of it.

    Raises:
        UserError: Git cannot make it.
    """
    holder = Path(tempfile.mkdtemp(prefix="commit-"))
    tree = holder / "tree"
    try:
        made = subprocess.run(
            ["git", "worktree", "add", "--quiet", "--detach", str(tree), commit], capture_output=True, text=True, check=False
        )
        if made.returncode:
            raise UserError(
                f"git worktree add failed ({made.stderr.strip()[-200:]}): free the disk, or run git worktree prune"
            )
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


def cache() -> Path:
    """Return where DVC keeps the objects of this repository."""
    return Path(dvc("cache", "dir", capture=True).stdout.strip()).resolve()


def git(*arguments: str) -> str:
    """Return what git prints, stripped; empty when it fails."""
    asked = subprocess.run(["git", *arguments], capture_output=True, text=True, errors="replace", check=False)
    return asked.stdout.strip() if asked.returncode == 0 else ""
