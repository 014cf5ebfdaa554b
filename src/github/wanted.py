"""What must be (the files of .github/settings), what was found, and the one request that leads from this to that.

Each file is the body of one request of GitHub's REST API, so that `gh api --input FILE` takes it as it is; variables.json
alone is our own.
"""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.core.command import UserError
from src.github.api import GitHub


@dataclass(frozen=True)
class Change:
    """One request that mends a finding."""

    method: str
    path: str
    body: Any
    file: Path


@dataclass(frozen=True)
class Finding:
    """One line of the doctor. `word` is ok, missing, differs, unknown or warning; `mend` is the command to type."""

    word: str
    required: bool
    sentence: str
    mend: str = ""
    change: Change | None = None


@dataclass(frozen=True)
class Repository:
    """A repository and the folder of its files. `owner` is the login and the number of a person who can be asked."""

    gh: GitHub
    folder: Path
    public: bool
    admin: bool
    branch: str
    organisation: bool
    owner: tuple[str, int]

    @property
    def name(self) -> str:
        """Return owner/name."""
        return self.gh.repository

    def read(self, file: str) -> Any:
        """Read one file of the settings.

        Raises:
            UserError: it is missing or is no JSON.
        """
        path = self.folder / file
        try:
            return json.loads(path.read_text())
        except FileNotFoundError:
            raise UserError(f"{path} is missing: run this from the repository's root, or `git restore {path}`") from None
        except ValueError as error:
            raise UserError(f"{path} is not valid JSON ({error}): correct it, or `git restore {path}`") from None

    def change(self, method: str, path: str, body: Any, file: str) -> tuple[str, Change]:
        """Return the command that mends, and the same request for `make settings`."""
        request = ("api", "--method", method, self.gh.address(path))
        if body == self.read(file):
            command = self.gh.command(*request, "--input", str(self.folder / file))
        else:
            command = f"printf %s {shlex.quote(json.dumps(body))} | {self.gh.command(*request, '--input', '-')}"
        return command, Change(method, path, body, self.folder / file)


def raised(want: Any, have: Any, key: str = "") -> Any:
    """Return `have`, made as strict as `want`: nothing that is there is taken away or loosened.

    Objects are raised key by key, lists are united (rules by type, checks by context), of two numbers the larger counts,
    of two switches the one that is on. So `have` is strict enough when it comes back as it was.
    """
    if have is None:
        return want
    if isinstance(want, dict):
        return have | {name: raised(value, have.get(name), name) for name, value in want.items()}
    if isinstance(want, list):
        if "~ALL" in have:  # GitHub takes no other pattern beside it
            return have
        wanted = {_identity(item): item for item in want}
        there = [raised(wanted.pop(_identity(item), item), item) for item in have]
        return [*there, *wanted.values()]
    if isinstance(want, bool):
        return want or have
    if isinstance(want, int):
        return have if key.endswith("_id") else max(want, have)
    return want


def _identity(item: Any) -> str:
    return str(item.get("type") or item.get("context") or item) if isinstance(item, dict) else str(item)
