"""Read which version of the template this is, and which files of the engine differ from it: `template.json`.

The record names a version, where it comes from, and the Git blob of each of its files, so that two copies without a common
history can be compared. It stands beside tokens that write: standard library alone.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from src.core.command import UserError
from src.core.records import Record
from src.system.git_command import run_git
from src.system.protection import protected

RECORD = "template.json"
# beside what is free: files of the engine's folders that README invites a fork to fill in
INVITED = (
    ".dvc/config",
    ".github/CODEOWNERS",
    ".github/settings/",
    "LICENSE",
    "requirements/yours.in",
    "requirements/yours.txt",
)
_TESTED = ("src/", "tests/")  # where a new file of the fork's can change what the engine's tests see


@dataclass(frozen=True)
class Template(Record):
    """A version of the template.

    Attributes:
        version: such as 1.0.0.
        source: the Git repository that it came from, as URL or path; "" where nobody has named one.
        files: the Git blob ID of each file, by its path.
    """

    version: str
    source: str
    files: dict[str, str]

    def text(self) -> str:
        """Return the record as it stands in the file."""
        return json.dumps(self.to_json(), indent=1, sort_keys=True) + "\n"


def read(root: Path) -> Template:
    """Read the record of a working tree.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        return Template.parse((root / RECORD).read_text(), RECORD)
    except FileNotFoundError:
        raise UserError(f"{RECORD} is missing: `git checkout {RECORD}` restores it") from None


def blobs(root: Path, commit: str = "HEAD") -> dict[str, tuple[str, str]]:
    """Return (mode, blob ID) of each file of a commit, by its path.

    Raises:
        UserError: Git cannot list it.
    """
    listed = run_git("ls-tree", "-r", "-z", "--full-tree", commit, folder=root)
    entries = [line.partition("\t") for line in listed.split("\0") if line]
    return {path: (fields.split()[0], fields.split()[2]) for fields, _, path in entries}


def is_engine(path: str) -> bool:
    """Return whether a file is the template's to change, not the fork's."""
    invited = path in INVITED or path.startswith(tuple(name for name in INVITED if name.endswith("/")))
    return bool(protected([path])) and not invited and path != RECORD


def changed(root: Path, commit: str = "HEAD") -> list[str]:
    """Return the engine's files that a commit has changed, removed, or added to src/ and tests/, against the record.

    Raises:
        UserError: the record is missing or damaged, or Git cannot list the commit's files.
    """
    recorded = read(root).files
    present = {path: blob for path, (_, blob) in blobs(root, commit).items()}
    paths = {*recorded, *(path for path in present if path.startswith(_TESTED))}
    return sorted(path for path in paths if is_engine(path) and present.get(path) != recorded.get(path))
