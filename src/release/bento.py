"""The folder that a bento is built from, and the bento: the service of one commit with the model that was reviewed.

Uncommitted changes do not get in: the files of the service come from the commit, the model from the folder that verify made.
Which files those are says `include` in bentofile.yaml.
"""

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pathspec import PathSpec

from src.core.command import UserError
from src.core.files import digest, sha256, write_json
from src.core.yaml_files import parse_yaml
from src.github.git import git
from src.release import device
from src.release.containerize import EngineError, call

BENTOFILE = "bentofile.yaml"
DOCKERFILE = "src/release/Dockerfile"
IDENTITY = "out/release/identity.json"
MANIFEST = "manifest.json"
_PACKAGES = "requirements.txt"  # the lock, by the name that the Dockerfile copies it by


@dataclass(frozen=True)
class Content:
    """What goes into a bento, and what names it.

    `identity` is what the service tells of itself: name, version, manifest, model_sha256, commit, pull_request, data,
    verdict, metrics. `commit` is None where the working tree is taken as it is.
    """

    commit: str | None
    identity: Mapping[str, Any]
    model: Path
    manifest: Path | None


def assemble(tree: Path, content: Content, folder: Path) -> dict[str, str]:
    """Fill an empty folder with what bentofile.yaml names and building needs; return the SHA-256 of the service's files.

    Args:
        tree: a checked-out commit, or the working tree: also its new files count, but none that Git ignores.
        content: what is released.
        folder: where the files go.

    Raises:
        UserError: bentofile.yaml is not readable, or a file that it names is nowhere.
    """
    if not (tree / BENTOFILE).is_file():
        raise UserError(f"{BENTOFILE} is missing: restore it with git checkout {BENTOFILE}")
    text = (tree / BENTOFILE).read_text()
    told = parse_yaml(text, BENTOFILE)
    include = told.get("include") if isinstance(told, dict) else None
    if not isinstance(include, list) or not include:
        raise UserError(f"{BENTOFILE} has no list `include`: without one everything would get into the image")
    listed = git(tree, "ls-files", "--cached", "--others", "--exclude-standard", "-z").split("\0")
    places = {path: tree / path for path in listed if path and (tree / path).is_file()}
    places |= {f"out/model/{path.name}": path for path in content.model.iterdir() if path.is_file()}
    places |= {MANIFEST: content.manifest} if content.manifest else {}
    places[IDENTITY] = Path(os.devnull)  # written below
    lock = device.LOCKS[device.read()]
    others = {DOCKERFILE, lock, device.LOCKS["cpu"]}  # which building needs, and the service does not
    excluded, paths = PathSpec.from_lines("gitignore", told.get("exclude") or []), set()
    for pattern in [*map(str, include), *others]:
        found = set(PathSpec.from_lines("gitignore", [pattern.removeprefix("./")]).match_files(places))
        if not found and pattern != MANIFEST:  # which a model that nobody judged has not
            where = f"commit {content.commit[:12]}" if content.commit else "the working tree"
            raise UserError(f"{BENTOFILE} needs {pattern}, which {where} does not have: add the file, or correct the line")
        if pattern not in others:
            paths |= {path for path in found if not excluded.match_file(path)}
    for path in {*paths, *others}:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(places[path], folder / path)
    shutil.copyfile(folder / lock, folder / _PACKAGES)
    (folder / BENTOFILE).write_text(text)
    if IDENTITY in paths:
        write_json(folder / IDENTITY, dict(content.identity))
    return {path: sha256(folder / path) for path in sorted(paths)}


def key(content: Content, folder: Path, base: str) -> str:
    """Return the SHA-256 that names everything an image is made of; the same key is the same image.

    The commit and its time are left out: one that changes nothing of the service does not make another image.

    Args:
        content: what was assembled in `folder`.
        folder: the build folder.
        base: digest or id of the base image.
    """
    files = {path.relative_to(folder).as_posix(): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    identity = {name: value for name, value in content.identity.items() if name not in ("commit", "committed")}
    made_of = {**files, IDENTITY: digest(identity)}
    return digest({"base": base, "bentoml": metadata.version("bentoml"), "files": made_of})


def build(folder: Path, home: Path, version: str) -> Path:
    """Run `bentoml build` in a build folder, with the store `home`; return the bento's folder, with what its packages are.

    Raises:
        UserError: BentoML refused.
    """
    command = [sys.executable, "-P", "-m", "bentoml", "build", "--version", version]
    # only what was assembled is importable, so that a file that `include` forgot is missed now and not in production
    variables = {"BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True", "PYTHONPATH": ""}
    try:
        call(command, 600, environment=variables, folder=folder)
    except EngineError as error:
        raise UserError(f"bentoml build failed: {error}") from None
    (bento,) = home.glob(f"bentos/*/{version}")
    shutil.copyfile(folder / _PACKAGES, bento / _PACKAGES)
    return bento
