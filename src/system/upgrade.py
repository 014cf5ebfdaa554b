"""Bring a later version of the template into a fork, or into a copy that shares no history with it: `make upgrade`.

    python -m src upgrade [TAG | SOURCE | SOURCE@TAG] [--go-on]

Three states of each file are compared by their Git blobs: as the recorded version had it, as the fork has it, and as the new
version has it. What the fork left alone becomes the new version's; data, network, documents and other files of the fork
stay; params.yaml is merged key by key. Where the fork has changed the engine, the files are listed and nothing happens,
unless it is told to go on: then each is merged by lines, and where that cannot be done the template's text is taken. All is
built in a commit of its own, on a branch of its own, so that a killed run leaves nothing behind.
"""

import argparse
import io
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from src.core.command import UserError
from src.core.yaml_files import parse_yaml
from src.system import template_version
from src.system.addresses import without_secrets
from src.system.params_text import Place, put, same, taken_out
from src.system.protection import RESULTS
from src.system.template_version import RECORD, Template, is_engine

PARAMS = "params.yaml"
_TAG = re.compile(r"v\d+\.\d+\.\d+")
_REF = re.compile(r"[\w.-]+")
Entry = tuple[str, str]  # mode and blob ID of a file


@dataclass
class Upgrade:
    """What changes, and what a person is told of it.

    Attributes:
        files: the new mode and blob of a file, by its path; None removes it.
        kept: files of the fork that the template has changed too, and that stay as they are.
        merged: files of the engine that both have changed, merged by lines.
        replaced: files of the engine whose change by the fork is lost.
        params: a sentence for each key of params.yaml that was added, removed or has another default.
    """

    files: dict[str, Entry | None] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    merged: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    params: list[str] = field(default_factory=list)


def upgrade(target: str, *, go_on: bool) -> None:
    """Make a branch with the template's version that `target` names, and check it out; print what to do next.

    Args:
        target: a version's tag, a URL or path of the template's repository, or both as SOURCE@TAG; "" is the newest version
            of where the recorded one came from.
        go_on: go on although the fork has changed the engine.

    Raises:
        UserError: the upgrade cannot be made now, or the fork has changed the engine; nothing was changed.
    """
    _require_clean()
    recorded = template_version.read(Path())
    source, commit = _fetch(target, recorded)
    shown = without_secrets(source)
    new = Template.parse(_git("show", f"{commit}:{RECORD}"), f"{RECORD} of {shown}")
    if _numbers(new.version) <= _numbers(recorded.version):
        raise UserError(f"nothing to do: this is version {recorded.version} of the template, and {shown} has {new.version}")
    branch = f"upgrade/{new.version}"
    if _succeeds("rev-parse", "--verify", "--quiet", f"refs/heads/{branch}"):
        raise UserError(
            f"there is a branch {branch} already: go on with it (`git switch {branch}`), or delete it "
            f"(`git branch -D {branch}`) and run again"
        )
    blobs = template_version.blobs(Path(), commit)
    edited = [path for path in template_version.changed(Path()) if path in recorded.files or path in blobs]
    if edited and not go_on:
        listed = "\n  ".join(edited)
        again = f"make upgrade GO_ON=1{f' TO={without_secrets(target)}' if target else ''}"
        raise UserError(
            f"files of the engine were changed here, and nothing was done:\n  {listed}\n`{again}` goes on: what you alone "
            "have changed stays, what both have changed is merged by lines, and where that cannot be done the template's "
            "text is taken and named"
        )
    made = compare(recorded, template_version.blobs(Path()), blobs, commit)
    files = {path: blob for path, (_, blob) in blobs.items() if path != RECORD}
    origin = recorded.source if Path(source).exists() else shown  # a folder of this machine is nobody else's
    made.files[RECORD] = ("100644", _write(replace(new, source=origin, files=files).text().encode()))
    told = _told(made)
    _git("branch", branch, _commit(made, f"template: upgrade {recorded.version} to {new.version}\n\n{told}"))
    _git("switch", "--quiet", branch)
    print(
        f"{told}{branch} holds version {new.version}, committed; what it brings stands in CHANGELOG.md. Next:\n"
        "  make reproduce test    # the new packages, your model by the new engine, its tests\n"
        f"  git push --set-upstream origin {branch}    # and open a pull request: it changes the engine, so it waits for\n"
        f"{'':{47 + len(branch)}}# the label `engine: reviewed`"
    )


def compare(base: Template, mine: dict[str, Entry], new: dict[str, Entry], commit: str) -> Upgrade:
    """Decide on every file of the fork or of the new version.

    Args:
        base: the version that the fork was at.
        mine: the fork's files.
        new: the new version's files, of `commit`.
        commit: the new version, whose objects this repository holds.
    """
    made = Upgrade()
    for path in sorted({*mine, *new} - {RECORD}):
        own, theirs, before = mine.get(path), new.get(path), base.files.get(path)
        if own == theirs:
            continue
        if path == PARAMS and own and theirs:
            made.files[path] = (own[0], _write(_params(before, own, theirs, commit, made).encode()))
        elif (own[1] if own else None) == before:  # as the template had it
            made.files[path] = theirs
        elif (theirs[1] if theirs else None) == before:
            pass  # changed, removed or added by the fork alone
        elif not is_engine(path):
            made.kept += [path] if path not in RESULTS else []
        elif own and theirs and before and (text := _merge(before, own[1], theirs[1])) is not None:
            made.files[path] = (theirs[0], _write(text))
            made.merged.append(path)
        else:
            made.files[path] = theirs
            made.replaced.append(path)
    return made


def _params(before: str | None, own: Entry, theirs: Entry, commit: str, made: Upgrade) -> str:
    """Return the fork's params.yaml with the new version's dials, and without those that it does not know any more."""
    text, offered = _blob(own[1]).decode(), _blob(theirs[1]).decode()
    values, new = (_leaves(parse_yaml(one, PARAMS)) for one in (text, offered))
    had = _leaves(parse_yaml(_blob(before).decode(), PARAMS)) if before and _succeeds("cat-file", "-e", before) else {}
    known = _known(commit)
    for place in [place for place in values if known and not any(one[: len(place)] == place for one in known)]:
        made.params.append(f"{'.'.join(place)}: {values[place]!r} taken out: the new version has no such key")
        text = taken_out(text, place)
    for place, value in new.items():
        name = ".".join(place)
        if place not in values and place not in had:
            made.params.append(f"{name}: new, {value!r}")
            text = put(text, {place: value}, lambda place: _remark(offered, place))
        elif place in values and place in had and not same(had[place], value) and not same(values[place], value):
            made.params.append(f"{name}: stays {values[place]!r}; the template's own went from {had[place]!r} to {value!r}")
    if not known:
        made.params.append("`make params` tells which keys the new version does not know: they could not be asked for here")
    return text


def _leaves(values: Any, above: Place = ()) -> dict[Place, Any]:
    """Return the values of a file of params by their places; a search space and a list are one value."""
    found: dict[Place, Any] = {}
    for key, value in values.items() if isinstance(values, dict) else ():
        nested = isinstance(value, dict) and value and key != "space"
        found |= _leaves(value, (*above, key)) if nested else {(*above, key): value}
    return found


def _known(commit: str) -> set[Place]:
    """Return the places of all keys that the new version's own code lists; none where it cannot run in this environment."""
    archive = subprocess.run(["git", "archive", commit, "src", PARAMS], capture_output=True, check=True).stdout
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(folder, filter="data")
        command = [sys.executable, "-m", "src", "params"]
        listed = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return set() if listed.returncode else set(_leaves(parse_yaml(listed.stdout, "the new version's params")))


def _remark(text: str, place: Place) -> str:
    """Return the remark behind a key in a file of params; "" where there is none."""
    found = re.search(rf"^ *{re.escape(place[-1])}:[^#\n]*# (.+)$", text, re.MULTILINE)
    return found[1] if found else ""


def _merge(before: str, own: str, theirs: str) -> bytes | None:
    """Merge two changes of a text by lines; return None where both change the same ones, or a blob is missing or no text."""
    if not _succeeds("cat-file", "-e", before):
        return None
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("own", "before", "theirs")]
        for path, blob in zip(paths, (own, before, theirs), strict=True):
            path.write_bytes(_blob(blob))
        done = subprocess.run(["git", "merge-file", "-p", *map(str, paths)], capture_output=True, check=False)
    return None if done.returncode else done.stdout


def _fetch(target: str, recorded: Template) -> tuple[str, str]:
    """Fetch a version of the template; return where it came from, and its commit."""
    source, tag = _parsed(target)
    source = source or recorded.source
    if not source:
        raise UserError(
            "nobody has said where the template lies: name its repository, as in `make upgrade TO=https://github.com/OWNER/TEMPLATE`"
        )
    shown = without_secrets(source)
    if not tag:
        listed = _git("ls-remote", "--tags", "--refs", source, "v*", fault=f"{shown} cannot be asked for its versions")
        tags = [line.rpartition("/")[2] for line in listed.splitlines()]
        versions = sorted((one for one in tags if _TAG.fullmatch(one)), key=_numbers)
        if not versions:
            raise UserError(
                f"{shown} has no version (a tag such as v1.1.0): name one of its branches or tags, as in TO={shown}@main"
            )
        tag = versions[-1]
    _git(
        "fetch",
        "--quiet",
        "--no-tags",
        "--no-write-fetch-head",
        source,
        f"+{tag}:refs/template/{tag}",
        fault=f"{tag} cannot be fetched from {shown}",
    )
    commit = _git("rev-parse", f"refs/template/{tag}^{{commit}}")
    if not _succeeds("cat-file", "-e", f"{commit}:{RECORD}"):
        raise UserError(
            f"{tag} of {shown} holds no {RECORD}, so it is no version of this template: name another repository or tag"
        )
    return source, commit


def _parsed(target: str) -> tuple[str, str]:
    """Split TAG, SOURCE or SOURCE@TAG into source and tag."""
    if _TAG.fullmatch(target):
        return "", target
    source, at, tag = target.rpartition("@")
    return (source, tag) if at and _REF.fullmatch(tag) else (target, "")


def _commit(made: Upgrade, message: str) -> str:
    """Write the fork's last commit with the changes into a new commit on top of it; return its ID."""
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        _git("read-tree", "HEAD", environment=index)
        removed = "".join(f"0 {'0' * 40}\t{path}\0" for path, entry in made.files.items() if entry is None)
        written = "".join(f"{entry[0]} {entry[1]}\t{path}\0" for path, entry in made.files.items() if entry)
        _git("update-index", "-z", "--index-info", text=removed + written, environment=index)
        tree = _git("write-tree", environment=index)
    return _git("commit-tree", tree, "-p", "HEAD", text=message)


def _told(made: Upgrade) -> str:
    """Say what the upgrade did beyond replacing what the fork had left alone."""
    parts = (
        ("params.yaml:", made.params),
        (
            "Changed by you and by the template, and yours stays (`git diff HEAD^ refs/template/TAG -- FILE` shows both):",
            made.kept,
        ),
        ("Engine, changed by both and merged by lines (read them):", made.merged),
        ("Engine, changed by both, and the template's text is taken (`git show HEAD^:FILE` is yours):", made.replaced),
    )
    return "".join("\n  ".join([title, *lines]) + "\n\n" for title, lines in parts if lines)


def _require_clean() -> None:
    """Raise UserError where Git has no commit here, or a tracked file is changed and not committed."""
    if not _succeeds("rev-parse", "--verify", "--quiet", "HEAD"):
        raise UserError("this folder is no Git repository with a commit: run it in your clone")
    if lines := _git("status", "--porcelain", "--untracked-files=no"):
        names = ", ".join(line.split(maxsplit=1)[1] for line in lines.splitlines()[:5])
        raise UserError(f"{names}: changed and not committed: commit, or `git stash`, and run again")


def _numbers(version: str) -> tuple[int, ...]:
    """Return a version's numbers, to compare it by."""
    return tuple(int(number) for number in re.findall(r"\d+", version))


def _blob(name: str) -> bytes:
    return subprocess.run(["git", "cat-file", "blob", name], capture_output=True, check=True).stdout


def _write(content: bytes) -> str:
    """Write a blob and return its ID."""
    done = subprocess.run(["git", "hash-object", "-w", "--stdin"], input=content, capture_output=True, check=True)
    return done.stdout.decode().strip()


def _succeeds(*arguments: str) -> bool:
    return not subprocess.run(["git", *arguments], capture_output=True, check=False).returncode


def _git(*arguments: str, text: str = "", environment: dict[str, str] | None = None, fault: str = "") -> str:
    """Run Git and return what it prints, stripped; `fault` says in a message what could not be done."""
    done = subprocess.run(
        ["git", *arguments],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "GIT_TERMINAL_PROMPT": "0", **(environment or {})},
    )
    if done.returncode:
        reason = without_secrets(" ".join(done.stderr.split())[-300:])
        raise UserError(f"{fault or f'git {arguments[0]} failed'}: {reason}; mend that and run again")
    return done.stdout.strip()


def main() -> None:
    """Read the command line and upgrade."""
    parser = argparse.ArgumentParser(description="Bring a later version of the template into this repository, as a branch.")
    parser.add_argument(
        "target",
        nargs="?",
        default="",
        help="a tag (v1.1.0), a URL or path, or SOURCE@TAG; nothing: the newest version of the recorded source",
    )
    parser.add_argument("--go-on", action="store_true", help="go on although files of the engine were changed here")
    options = parser.parse_args()
    upgrade(options.target, go_on=options.go_on)
