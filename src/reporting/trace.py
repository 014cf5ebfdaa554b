"""Say where a model came from: `make lineage MODEL=...`.

    python -m src lineage out/model/model.onnx

MODEL is a model file, a SHA-256 (its first 8 or more digits do), or a commit. manifest.json is looked up here first, then in
the history of every branch that this clone has.
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from src.core.command import UserError
from src.core.files import sha256
from src.judging import lineage
from src.system.git_command import git
from src.system.judged import Lineage

_MANIFEST = "manifest.json"


def trace(model: str) -> None:
    """Print the lineage of a model.

    Raises:
        UserError: no manifest.json that this clone knows names it.
    """
    path = Path(model)
    if path.is_file():
        wanted = sha256(path)
    elif path.suffix or ("/" in model and not _commit(model)):
        raise UserError(f"{model} is not there: run make reproduce or dvc pull, or give a SHA-256 or a commit")
    else:
        wanted = model.lower()
    found, where = _find(wanted)
    rows = [*lineage.lines(found), ("recorded in", where)]
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:{width}}  {text}" for name, text in rows))


def _find(wanted: str) -> tuple[Lineage, str]:
    for found, where, commit in _manifests():
        digest = found.outputs.model_sha256
        if re.fullmatch(r"[0-9a-f]{8,64}", wanted) and digest.startswith(wanted):
            return found, where
        if commit and commit == _commit(wanted):
            return found, where
        if len(wanted) >= 7 and (found.commit or "").startswith(wanted):
            return found, where
    raise UserError(
        f"no {_MANIFEST} of this clone names the model {wanted[:16]}: git fetch --all brings other branches; a model that "
        "no report has judged has no lineage (make report writes it)"
    )


def _commit(name: str) -> str:
    return git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")


def _manifests() -> Iterator[tuple[Lineage, str, str]]:
    """Yield manifests, the place and the commit they lie in: the working tree's first, then recorded ones, newest first."""
    here = lineage.read(Path(_MANIFEST))
    if here:
        yield here, f"{_MANIFEST} of this working tree", ""
    for commit in git("log", "--all", "--format=%H", "--", _MANIFEST).splitlines():
        text = git("show", f"{commit}:{_MANIFEST}")
        if text:
            yield Lineage.parse(text, f"{commit[:12]}:{_MANIFEST}"), f"{_MANIFEST} of commit {commit[:12]}", commit


def main() -> None:
    """Parse the command line and print."""
    parser = argparse.ArgumentParser(description="Say where a model came from.")
    parser.add_argument("model", help="a model file, a SHA-256, or a commit")
    trace(parser.parse_args().model)
