"""Git with the job's token, which is never written to disk, and trees made without a working copy."""

import base64
import os
from collections.abc import Mapping
from pathlib import Path

from src.system.git_command import run_git

BOT = "github-actions[bot]"  # whose name a workflow's token writes under
_MAIL = "41898282+github-actions[bot]@users.noreply.github.com"


class Remote:
    """The repository on GitHub, reached with a token."""

    def __init__(self, server: str, repository: str, token: str) -> None:
        self.url = f"{server.rstrip('/')}/{repository}"
        secret = base64.b64encode(f"x-access-token:{token}".encode()).decode()
        # by environment: an argument or a config file could be read by others
        self._environment = {
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"http.{server.rstrip('/')}/.extraheader",
            "GIT_CONFIG_VALUE_0": f"AUTHORIZATION: basic {secret}",
            "GIT_TERMINAL_PROMPT": "0",
        }

    @classmethod
    def from_environment(cls) -> "Remote":
        """Read what GitHub Actions sets: GITHUB_SERVER_URL, GITHUB_REPOSITORY, GITHUB_TOKEN."""
        server = os.environ.get("GITHUB_SERVER_URL", "https://github.com")
        return cls(server, os.environ.get("GITHUB_REPOSITORY", ""), os.environ.get("GITHUB_TOKEN", ""))

    def run(self, folder: Path, *arguments: str) -> str:
        """Run a Git command that talks to the remote."""
        return git(folder, *arguments, environment=self._environment)


def git(folder: Path, *arguments: str, text: str | None = None, environment: Mapping[str, str] | None = None) -> str:
    """Run Git in a folder in the name of a workflow's token and return what it prints, stripped.

    Raises:
        GitError: it failed, or took over five minutes.
    """
    identity = {
        "GIT_AUTHOR_NAME": BOT,
        "GIT_AUTHOR_EMAIL": _MAIL,
        "GIT_COMMITTER_NAME": BOT,
        "GIT_COMMITTER_EMAIL": _MAIL,
    }
    return run_git(*arguments, folder=folder, text=text, environment={**identity, **(environment or {})}).strip()


def with_files(folder: Path, base: str, files: Mapping[str, Path]) -> str:
    """Return the tree of commit `base` with some files put in, by path in the repository."""
    index = {"GIT_INDEX_FILE": str((folder / ".git-index-of-report").resolve())}
    try:
        git(folder, "read-tree", base, environment=index)
        for path, source in files.items():
            blob = git(folder, "hash-object", "-w", "--no-filters", str(source.resolve()))
            git(folder, "update-index", "--add", "--cacheinfo", f"100644,{blob},{path}", environment=index)
        return git(folder, "write-tree", environment=index)
    finally:
        Path(index["GIT_INDEX_FILE"]).unlink(missing_ok=True)
