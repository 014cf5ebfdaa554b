"""Pictures of reports on a branch of the same repository, so that no third party ever sees them.

The branch has one commit without history, and a folder for each of the last reports: old pictures cost no space for ever.
"""

import re
import tempfile
import time
from pathlib import Path

from src.github.git import Remote, git
from src.system.git_command import GitError

BRANCH = "reports"
_TRIES = 4
_ABOUT = "Pictures of the last pull-request reports, pushed by report.yml. Each push replaces the branch's one commit.\n"


def push(remote: Remote, folder: Path, name: str, keep: int) -> str:
    """Push the PNG files of a folder as folder `name` (a number and more, such as 812-1); keep the last `keep` folders.

    Returns:
        The address that a picture's file name is put behind.

    Raises:
        GitError: the branch refuses it.
    """
    with tempfile.TemporaryDirectory() as scratch:
        repository = Path(scratch)
        git(repository, "init", "--quiet", "--bare")
        for attempt in range(1, _TRIES + 1):
            before = _fetch(remote, repository)
            commit = _commit(repository, before, folder, name, keep)
            try:
                # the lease: another report that pushed in between is not lost
                lease = f"--force-with-lease=refs/heads/{BRANCH}:{before}"
                remote.run(repository, "push", "--quiet", lease, remote.url, f"{commit}:refs/heads/{BRANCH}")
                break
            except GitError:
                if attempt == _TRIES or _fetch(remote, repository) == before:
                    raise
                time.sleep(attempt)
    return f"{remote.url}/blob/{BRANCH}/{name}/"


def _fetch(remote: Remote, repository: Path) -> str:
    """Return the commit that the branch has now; empty when there is no such branch."""
    listed = remote.run(repository, "ls-remote", remote.url, f"refs/heads/{BRANCH}")
    if listed:
        remote.run(repository, "fetch", "--quiet", "--depth", "1", remote.url, f"refs/heads/{BRANCH}")
    return listed.split()[0] if listed else ""


def _commit(repository: Path, before: str, folder: Path, name: str, keep: int) -> str:
    entries = git(repository, "ls-tree", before).splitlines() if before else []
    others = [line for line in entries if line.split()[1] == "tree" and line.partition("\t")[2] != name]
    number = re.compile(r"\d+(?=-|$)")
    ages = {line: number.match(line.partition("\t")[2]) for line in others}
    others.sort(key=lambda line: (int(age[0]) if (age := ages[line]) else 0, line.partition("\t")[2]))
    kept = others[len(others) - min(len(others), keep - 1) :]
    pictures = [
        f"100644 blob {git(repository, 'hash-object', '-w', str(path.resolve()))}\t{path.name}"
        for path in sorted(folder.glob("*.png"))
    ]
    mine = f"040000 tree {_tree(repository, pictures)}\t{name}"
    about = f"100644 blob {git(repository, 'hash-object', '-w', '--stdin', text=_ABOUT)}\tREADME.md"
    return git(repository, "commit-tree", _tree(repository, [*kept, mine, about]), "-m", f"Pictures of report {name}")


def _tree(repository: Path, entries: list[str]) -> str:
    return git(repository, "mktree", text="".join(f"{entry}\n" for entry in entries))
