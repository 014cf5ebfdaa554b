"""The folder that a bento is built from, and the bento: the service of one commit with the model that was reviewed.

Uncommitted changes do not get in: the files of the service come from the commit, the model from the folder that verify made.
Which files those are says `include` in bentofile.yaml.
"""

import io
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from pathspec import PathSpec

from src.core.command import UserError
from src.core.files import replacing, sha256, write_json
from src.core.yaml_files import parse_yaml
from src.github.git import git
from src.release import device
from src.release.containerize import EngineError, bentoml_environment, call
from src.system.dvc_lock import digest

BENTOFILE = "bentofile.yaml"
IDENTITY = "out/release/identity.json"
MODEL = "out/model"
MANIFEST = "manifest.json"
UV = "requirements/uv.txt"  # src/serving/service.py has the image install it
_KEPT = 5  # bentos of a host that runs them as processes


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
    files: dict[str, str] = field(default_factory=dict)  # path in the bento -> SHA-256, once it was assembled

    @property
    def name(self) -> str:
        """Return the model's name."""
        return str(self.identity["name"])

    @property
    def version(self) -> str:
        """Return the version in the registry."""
        return str(self.identity["version"])


def assemble(tree: Path, content: Content, folder: Path) -> None:
    """Fill `folder` with just the files that bentofile.yaml names, and note their digests in `content.files`.

    Args:
        tree: the repository.
        content: what is released.
        folder: an empty folder.

    Raises:
        UserError: bentofile.yaml is not readable, or a file that it names is nowhere.
    """
    text = device.bentofile(_text(tree, content.commit), device.read())
    named = _named(text)
    given = _given(content)
    known = sorted({*_listed(tree, content.commit), *given})
    excluded = PathSpec.from_lines("gitignore", named.exclude)
    paths: set[str] = set()
    for pattern in named.include:
        found = {path for path in PathSpec.from_lines("gitignore", [pattern]).match_files(known) if path}
        if not found and pattern != MANIFEST:  # which a model that nobody judged has not
            where = f"commit {content.commit[:12]}" if content.commit else "the working tree"
            raise UserError(
                f"{BENTOFILE} includes {pattern}, which {where} does not have: add the file, or correct the line"
            )
        paths |= {path for path in found if not excluded.match_file(path)}
    others = named.others
    _copy(tree, content.commit, [path for path in {*paths, *others} if path not in given], folder)
    (folder / BENTOFILE).write_text(text)
    for path in sorted(paths):
        if path in given:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(given[path], folder / path)
    if IDENTITY in paths:
        write_json(folder / IDENTITY, dict(content.identity))
    content.files.update({path: sha256(folder / path) for path in sorted(paths)})


def _text(tree: Path, commit: str | None) -> str:
    if commit:
        return git(tree, "show", f"{commit}:{BENTOFILE}")
    if not (tree / BENTOFILE).is_file():
        raise UserError(f"{tree / BENTOFILE} is missing: restore it with git checkout {BENTOFILE}")
    return (tree / BENTOFILE).read_text()


@dataclass(frozen=True)
class _Named:
    """What bentofile.yaml names: patterns, and the files that building needs and the bento does not hold under src/."""

    include: list[str]
    exclude: list[str]
    others: list[str]


def _named(text: str) -> _Named:
    content = parse_yaml(text, BENTOFILE)
    include = content.get("include") if isinstance(content, dict) else None
    if not isinstance(include, list) or not include:
        raise UserError(f"{BENTOFILE} has no list `include`: without one everything would get into the image")
    requirements = (content.get("python") or {}).get("requirements_txt")
    others = [BENTOFILE, UV, *([requirements.removeprefix("./")] if requirements else [])]
    return _Named([str(pattern).removeprefix("./") for pattern in include], content.get("exclude") or [], others)


def _listed(tree: Path, commit: str | None) -> list[str]:
    """List what Git knows of the commit; of a working tree also new files, but none that Git ignores."""
    if commit:
        return git(tree, "ls-tree", "-r", "--name-only", "--full-tree", "-z", commit).split("\0")
    listed = git(tree, "ls-files", "--cached", "--others", "--exclude-standard", "-z").split("\0")
    return [path for path in listed if path and (tree / path).is_file()]


def _given(content: Content) -> dict[str, Path]:
    """Return the files that no commit holds, by their place in the bento."""
    given = {f"{MODEL}/{path.name}": path for path in content.model.iterdir() if path.is_file()}
    if content.manifest:
        given[MANIFEST] = content.manifest
    return given | {IDENTITY: Path("/dev/null")}  # written at its place


def _copy(tree: Path, commit: str | None, paths: Iterable[str], folder: Path) -> None:
    if commit is None:
        for path in paths:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(tree / path, folder / path)
        return
    command = ["git", "archive", "--format=tar", commit, "--", *sorted(paths)]
    done = subprocess.run(command, cwd=tree, capture_output=True, check=False)
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip()
        raise UserError(f"the files of {BENTOFILE} could not be read from commit {commit[:12]}: {reason}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")


def key(content: Content, folder: Path, base: str | None) -> str:
    """Return the SHA-256 that names everything an image is made of; the same key is the same image.

    The commit is left out: one that changes nothing of the service does not make another image.

    Args:
        content: what was assembled in `folder`.
        folder: the build folder.
        base: digest or id of the base image; None without an engine.
    """
    files = {path.relative_to(folder).as_posix(): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    identity = {name: value for name, value in content.identity.items() if name != "commit"}
    made_of = {**files, IDENTITY: digest(identity)}
    return digest({"base": base, "bentoml": metadata.version("bentoml"), "files": made_of})


def build(folder: Path, home: Path, version: str, base: str | None) -> Path:
    """Run `bentoml build` in a build folder, with the store `home`; return the folder of the bento.

    Args:
        folder: what was assembled.
        home: BentoML's store.
        version: of the bento.
        base: the image to build from; None where no image is built.

    Raises:
        UserError: BentoML refused.
    """
    command = [sys.executable, "-P", "-m", "bentoml", "build", "--output", "tag", "--version", version]
    try:
        # only what was assembled is importable, so that a file that `include` forgot is missed now and not in production
        variables = {**bentoml_environment(home), "PYTHONPATH": "", **({"BASE_IMAGE": base} if base else {})}
        said = call(command, 600, environment=variables, folder=folder)
    except EngineError as error:
        raise UserError(f"bentoml build failed: {error}") from None
    found = re.findall(r"^__tag__:([^:\s]+):(\S+)$", said, re.MULTILINE)
    if not found:
        raise UserError(f"bentoml build names no bento: {said[-500:]}")
    name, tag = found[-1]
    return home / "bentos" / str(name) / str(tag)


def keep(bento: Path, lasting: Path) -> None:
    """Copy a bento to the place where a host runs it from: whole or not at all."""
    with replacing(lasting) as fresh:
        shutil.copytree(bento, fresh)


def files_of(bento: Path) -> dict[str, str]:
    """Return the SHA-256 of the files of the service in a bento."""
    found = sorted(path for path in (bento / "src").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(bento / "src").as_posix(): sha256(path) for path in found}


def prune(bentos: Path, keep: Iterable[str], newest: int = _KEPT) -> list[str]:
    """Remove kept bentos: all but the newest and those to keep (keys). Returns what was removed."""
    kept = set(keep)
    with suppress(FileNotFoundError):
        found = sorted(bentos.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        gone = [path for path in found[newest:] if path.name not in kept]
        for path in gone:
            shutil.rmtree(path, ignore_errors=True)
        return [path.name for path in gone]
    return []


def temporary() -> tempfile.TemporaryDirectory[str]:
    """Return a folder for one build; two builds at once have two."""
    return tempfile.TemporaryDirectory(prefix="image-")
