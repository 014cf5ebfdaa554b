"""DVC's objects in the cache, read anew: DVC itself takes one that is read-only for what its name says, without a hash."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from src.system.dvc_lock import md5
from src.system.git_command import git

_MD5 = re.compile(r"\bmd5: ['\"]?([0-9a-f]{32}(?:\.dir)?)\b")


def remove_changed(commit: str, cache: Path) -> list[str]:
    """Hash what dvc.lock and the .dvc files of a commit name; remove from the cache what is not what its name says.

    Args:
        commit: "" is the working tree.
        cache: DVC's.

    Returns:
        The names of what was removed.
    """
    removed = []
    for digest in sorted(_named(commit), reverse=True):
        for each in [digest, *_members(cache, digest)]:
            path = _object(cache, each)
            if path.is_file() and md5(path) != each.removesuffix(".dir"):
                path.unlink()
                removed.append(each)
    return removed


def _named(commit: str) -> set[str]:
    if commit:
        names = git("ls-tree", "-r", "--name-only", commit).splitlines()
    else:
        names = git("ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    texts = []
    for name in names:
        if name == "dvc.lock" or name.endswith(".dvc"):
            with suppress(OSError):
                texts.append(git("show", f"{commit}:{name}") if commit else Path(name).read_text(errors="replace"))
    return {digest for text in texts for digest in _MD5.findall(text)}


def _members(cache: Path, digest: str) -> Iterator[str]:
    """Yield the digests of the files of a folder, where its own object is whole."""
    path = _object(cache, digest)
    if digest.endswith(".dir") and path.is_file() and md5(path) == digest.removesuffix(".dir"):
        with suppress(ValueError, KeyError, TypeError):
            yield from (str(entry["md5"]) for entry in json.loads(path.read_bytes()))


def _object(cache: Path, digest: str) -> Path:
    return cache / "files/md5" / digest[:2] / digest[2:]
