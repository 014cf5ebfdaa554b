"""The folder that a bento is built from, and the bento: the service of one commit with the model that was reviewed.

Uncommitted changes do not get in: the files of the service come from the commit, the model from the folder that verify made.
Which files those are says `include` in bentofile.yaml.
"""

import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pathspec import PathSpec

from src.core.command import UserError
from src.core.files import sha256, write_json
from src.core.yaml_files import parse_yaml
from src.github.git import git
from src.release import device
from src.release.containerize import EngineError, call
from src.system.dvc_lock import digest

BENTOFILE = "bentofile.yaml"
IDENTITY = "out/release/identity.json"
MODEL = "out/model"
MANIFEST = "manifest.json"
UV = "requirements/uv.txt"  # src/serving/service.py has the image install it


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
    """Fill `folder` with just the files that bentofile.yaml names; return the SHA-256 of each file of the service.

    Args:
        tree: a checked-out commit, or the working tree: also its new files count, but none that Git ignores.
        content: what is released.
        folder: an empty folder.

    Raises:
        UserError: bentofile.yaml is not readable, or a file that it names is nowhere.
    """
    if not (tree / BENTOFILE).is_file():
        raise UserError(f"{BENTOFILE} is missing: restore it with git checkout {BENTOFILE}")
    text = device.bentofile((tree / BENTOFILE).read_text(), device.read())
    include, exclude, lock = _named(text)
    listed = git(tree, "ls-files", "--cached", "--others", "--exclude-standard", "-z").split("\0")
    places = {path: tree / path for path in listed if path and (tree / path).is_file()}
    places |= {f"{MODEL}/{path.name}": path for path in content.model.iterdir() if path.is_file()}
    places |= {MANIFEST: content.manifest} if content.manifest else {}
    places[IDENTITY] = Path(os.devnull)  # written below
    others = [UV, lock]  # which building needs, and the service does not
    excluded, paths = PathSpec.from_lines("gitignore", exclude), set()
    for pattern in [*include, *others]:
        found = set(PathSpec.from_lines("gitignore", [pattern]).match_files(places))
        if not found and pattern != MANIFEST:  # which a model that nobody judged has not
            where = f"commit {content.commit[:12]}" if content.commit else "the working tree"
            raise UserError(f"{BENTOFILE} needs {pattern}, which {where} does not have: add the file, or correct the line")
        if pattern not in others:
            paths |= {path for path in found if not excluded.match_file(path)}
    for path in {*paths, *others}:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(places[path], folder / path)
    (folder / BENTOFILE).write_text(text)
    if IDENTITY in paths:
        write_json(folder / IDENTITY, dict(content.identity))
    return {path: sha256(folder / path) for path in sorted(paths)}


def _named(text: str) -> tuple[list[str], list[str], str]:
    """Return the patterns `include` and `exclude` of bentofile.yaml, and the lock of the packages."""
    content = parse_yaml(text, BENTOFILE)
    include = content.get("include") if isinstance(content, dict) else None
    if not isinstance(include, list) or not include:
        raise UserError(f"{BENTOFILE} has no list `include`: without one everything would get into the image")
    lock = (content.get("python") or {}).get("requirements_txt")
    if not isinstance(lock, str):
        raise UserError(f"{BENTOFILE} names no lock: set python.requirements_txt to requirements/serving.txt")
    return [str(pattern).removeprefix("./") for pattern in include], content.get("exclude") or [], lock.removeprefix("./")


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


def build(folder: Path, home: Path, version: str, base: str) -> Path:
    """Run `bentoml build` in a build folder, with the store `home`; return the folder of the bento.

    Args:
        folder: what was assembled.
        home: BentoML's store.
        version: of the bento.
        base: the image to build from.

    Raises:
        UserError: BentoML refused.
    """
    command = [sys.executable, "-P", "-m", "bentoml", "build", "--output", "tag", "--version", version]
    # only what was assembled is importable, so that a file that `include` forgot is missed now and not in production
    variables = {"BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True", "PYTHONPATH": "", "BASE_IMAGE": base}
    try:
        said = call(command, 600, environment=variables, folder=folder)
    except EngineError as error:
        raise UserError(f"bentoml build failed: {error}") from None
    found = re.findall(r"^__tag__:([^:\s]+):(\S+)$", said, re.MULTILINE)
    if not found:
        raise UserError(f"bentoml build names no bento: {said[-500:]}")
    name, tag = found[-1]
    return home / "bentos" / str(name) / str(tag)
