"""Commit the locks that lock.yml resolved onto their branch: `python3 -m src lock-push DIR`, the last job of lock.yml.

DIR is the folder requirements/ as the other job left it, which holds no token that writes. Nothing is taken from it but
locks, and those only of the requirements that the branch has now. The commit of a workflow starts no workflow, so CI and the
report are started on it. Reads BRANCH.
"""

import argparse
import os
import re
from pathlib import Path

from src.core.command import UserError
from src.github.api import GitHub, start
from src.github.git import Remote, git, with_files

_LARGEST = 2 * 2**20  # bytes of a lock
_LINE = re.compile(r"|\s*#.*|[\w.-]+(\[[\w,-]+\])?==[\w.+!-]+( ; [^\\]+)?( \\)?|    --hash=sha256:[0-9a-f]{64}( \\)?")


def publish(folder: Path, branch: str, github: GitHub, remote: Remote) -> None:
    """Commit and push the locks that differ, and start the workflows that look at them.

    Raises:
        UserError: the branch is the default one or moved on, or a file is no lock.
        ApiError: GitHub does not answer.
    """
    if branch == github.get("")["default_branch"]:
        raise UserError(f"{branch} is the default branch: name the branch of a pull request")
    here = Path()
    remote.run(here, "fetch", "--quiet", "--no-tags", "--depth", "1", remote.url, f"refs/heads/{branch}")
    sha = git(here, "rev-parse", "FETCH_HEAD")
    names = git(here, "ls-tree", "--name-only", sha, "requirements/").splitlines()
    for name in names:
        if name.endswith(".in") and git(here, "show", f"{sha}:{name}") != (folder / Path(name).name).read_text().strip():
            raise UserError(f"{branch} has another {name} by now: start lock.yml again")
    sources = [name for name in names if name.endswith(".in")]
    locks = {f"{name.removesuffix('.in')}.txt": folder / f"{Path(name).stem}.txt" for name in sources}
    for path in locks.values():
        check(path)
    tree = with_files(here, sha, locks)
    if tree == git(here, "rev-parse", f"{sha}^{{tree}}"):
        print(f"the locks of {branch} are as they have to be: nothing was pushed")
    else:
        commit = git(here, "commit-tree", tree, "-p", sha, text="requirements: resolve the locks\n")
        remote.run(here, "push", "--quiet", remote.url, f"{commit}:refs/heads/{branch}")
        print(f"pushed {commit[:12]} to {branch}")
    for workflow in ("ci.yml", "report.yml"):
        start(github, workflow, branch)


def check(path: Path) -> None:
    """Refuse what is no lock: every line pins a version, gives a hash, or is a remark.

    Raises:
        UserError: it is none.
    """
    if path.is_symlink() or not path.is_file() or path.stat().st_size > _LARGEST:
        raise UserError(f"{path.name} is no file of at most {_LARGEST >> 20} MiB: refused")
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not _LINE.fullmatch(line):
            raise UserError(f"line {number} of {path.name} is none that `make lock` writes: refused")


def main() -> None:
    """Parse the command line and publish."""
    parser = argparse.ArgumentParser(description="Commit resolved locks onto their branch.")
    parser.add_argument("folder", type=Path, help="the artifact of the job that resolved")
    folder = parser.parse_args().folder
    publish(folder, os.environ["BRANCH"], GitHub.from_environment(), Remote.from_environment())
