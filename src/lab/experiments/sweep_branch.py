"""A ready branch with the params that a sweep found: one commit onto HEAD, made without touching the working tree."""

import os
import subprocess
import tempfile
from pathlib import Path

from src.core.command import UserError
from src.lab.experiments.sweep_results import Results
from src.lab.experiments.sweep_space import Values
from src.system.params_text import put


def changed(text: str, values: Values) -> str:
    """Return the text of a params file with values put into its section `train`; all else stays as it is written."""
    return put(text, {("train", *key.split(".")): value for key, value in values.items()})


def make(name: str, params: Path, results: Results) -> str:
    """Commit the best params onto HEAD as the branch `name`; return what was done and what to type next.

    Where Git cannot do it, nothing is done and that is said: the params are in sweep.md all the same.
    """
    try:
        return _make(name, params, results)
    except UserError as error:
        values = ", ".join(f"{key}: {value}" for key, value in results.best.values.items())
        return f"no branch was made ({error}); put the best params into {params} yourself, section train: {values}"


def _make(name: str, params: Path, results: Results) -> str:
    top = Path(_git("rev-parse", "--show-toplevel"))
    place = params.resolve().relative_to(top).as_posix() if params.resolve().is_relative_to(top) else ""
    if not place:
        raise UserError(f"{params} lies outside of this repository")
    _git("check-ref-format", "--branch", name)
    head = _git("rev-parse", "--verify", "HEAD^{commit}")
    tree = _tree(head, place, changed(params.read_text(), results.best.values))
    there = _git("for-each-ref", "--format=%(objectname)", f"refs/heads/{name}")
    if there:
        same = _git("rev-parse", f"{there}^{{tree}}") == tree
        return f"the branch {name} is there already" + ("" if same else f", with other content: git diff HEAD {name}")
    commit = _git("commit-tree", tree, "-p", head, text=message(results), identity=True)
    _git("update-ref", f"refs/heads/{name}", commit, "0" * 40)
    remark = _unlike_head(place)
    return f"branch {name}: git diff HEAD {name}, then git push origin {name}, and open a pull request{remark}"


def message(results: Results) -> str:
    """Return the commit's message: what was tried, and the numbers."""
    best, present = results.best, results.present
    values = "\n".join(f"  {key}: {value} (was {present.values[key]})" for key, value in best.values.items())
    told = f"accuracy {best.accuracy:.2%}, log loss {best.log_loss:.4f}"
    return (
        f"Params of {results.study}, trial {best.question} of {len(results.tried)}\n\n{values}\n\n"
        f"On {results.images} validation images: {told}; {results.gain}.\n"
        "Chosen for that number, so it flatters; the test images of the pull request are the judge.\n"
    )


def _tree(head: str, place: str, text: str) -> str:
    """Return the tree of a commit with one file put in, by an index of its own."""
    with tempfile.TemporaryDirectory(prefix="sweep-") as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        _git("read-tree", head, environment=index)
        blob = _git("hash-object", "-w", "--stdin", text=text)
        _git("update-index", "--add", "--cacheinfo", f"100644,{blob},{place}", environment=index)
        return _git("write-tree", environment=index)


def _unlike_head(place: str) -> str:
    """Say what the sweep was run with and the branch does not have."""
    others = [
        line for line in _git("status", "--porcelain", "--untracked-files=no").splitlines() if not line.endswith(place)
    ]
    return f". Note that {len(others)} files have changes that are not committed and not on the branch" if others else ""


def _git(*arguments: str, text: str | None = None, environment: dict[str, str] | None = None, identity: bool = False) -> str:
    """Return what Git prints, stripped.

    Raises:
        UserError: there is no Git or no repository, or Git refuses; the text is its reason.
    """
    variables = {**os.environ, **(environment or {})}
    if identity and not (_config("user.name") and _config("user.email")):
        for who in ("AUTHOR", "COMMITTER"):
            variables |= {f"GIT_{who}_NAME": "sweep", f"GIT_{who}_EMAIL": "sweep@localhost"}
    try:
        done = subprocess.run(
            ["git", *arguments], input=text, env=variables, capture_output=True, text=True, errors="replace", check=False
        )
    except FileNotFoundError:
        raise UserError("Git is not installed") from None
    if done.returncode:
        raise UserError(f"git {arguments[0]} says: {' '.join(done.stderr.split())[-200:] or 'nothing'}")
    return done.stdout.strip()


def _config(key: str) -> str:
    asked = subprocess.run(["git", "config", key], capture_output=True, text=True, check=False)
    return asked.stdout.strip()
