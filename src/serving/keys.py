"""API keys, by option: who may ask, from a file that is read anew when it changes, so that keys rotate without a restart.

Reads the file of SERVE_API_KEYS_FILE: one key a line, `name: key` or the key alone; # begins a comment. Two keys may be
valid while a client changes from one to the other. Memory holds digests only, and the log names only.
"""

import hashlib
import hmac
import logging
import os
import re
import stat
import time
from pathlib import Path
from typing import Self

from src.core.command import UserError

_KEY = re.compile(r"[A-Za-z0-9._~+/-]{16,256}={0,2}", re.ASCII)  # what a Bearer token may be: RFC 6750, section 2.1
_NAME = re.compile(r"[A-Za-z0-9._-]{1,32}", re.ASCII)
_MOST = 16  # keys: each costs every request a comparison
_LARGEST = 65_536  # bytes of the file
_EVERY = 1.0  # seconds between two looks at the file
_VARIABLE = "SERVE_API_KEYS_FILE"
_ADVICE = "write one key a line, which `openssl rand -hex 32` makes"

_Digests = dict[bytes, str]  # SHA-256 of a key to its name
_State = tuple[int, int, int, int]  # changes with the file, also where a link is moved to another one

log = logging.getLogger("bentoml.image_classifier")


class Keys:
    """The keys that are valid now; without any, whoever reaches the service may ask."""

    def __init__(self, path: Path | None, digests: _Digests, state: _State | None) -> None:
        self._path = path
        self._digests = digests
        self._state = state
        self._next_look = time.monotonic() + _EVERY

    @classmethod
    def read(cls, path: Path | None) -> Self:
        """Read the keys of a file; None: there are no keys.

        Raises:
            UserError: the file is missing, unreadable, open to others, or holds no key or something else.
        """
        if path is None:
            return cls(None, {}, None)
        state = _state(path)
        try:
            return cls(path, _read(path), state)
        except UserError as error:
            raise UserError(f"{_VARIABLE} ({path}) {error}") from None

    @property
    def required(self) -> bool:
        """Whether a request needs a key."""
        return self._path is not None

    def name_of(self, authorization: bytes, x_api_key: bytes) -> str | None:
        """Return the name of the key that a request brings, None where it is none of the valid ones.

        All keys are compared, each in constant time, so that the time tells nothing of any of them.

        Args:
            authorization: the header `Authorization`; it counts if it says `Bearer`.
            x_api_key: the header `X-API-Key`, which counts otherwise.
        """
        if self._path is not None and time.monotonic() >= self._next_look:
            self._look()
        is_bearer = authorization[:7].lower() == b"bearer "
        given = hashlib.sha256(authorization[7:].strip() if is_bearer else x_api_key).digest()
        found = None
        for digest, name in self._digests.items():
            if hmac.compare_digest(digest, given):
                found = name
        return found

    def _look(self) -> None:
        """Read the file anew if it has changed; one that is damaged or gone leaves the keys as they are."""
        assert self._path
        self._next_look = time.monotonic() + _EVERY
        state = _state(self._path)
        if state == self._state:
            return
        self._state = state
        try:
            self._digests = _read(self._path)
        except UserError as error:
            log.warning("%s %s. The keys that were valid stay valid", _VARIABLE, error)
        else:
            log.info("%s was read anew, valid are: %s", _VARIABLE, ", ".join(self._digests.values()))


def _state(path: Path) -> _State | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size, found.st_mode


def _read(path: Path) -> _Digests:
    """Return the digests of the keys in a file.

    Raises:
        UserError: as `Keys.read`, without the name of the file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe does not keep requests waiting
        try:
            _check(os.fstat(descriptor))
            content = os.read(descriptor, _LARGEST + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror}): make it, or let this user read it") from None
    return _parse(content)


def _check(found: os.stat_result) -> None:
    """Refuse a file that others may write, or one of our own that they may read.

    A secret that Docker or Kubernetes mounts may belong to root and be readable by all in the container, which has but one
    user: https://kubernetes.io/docs/concepts/configuration/secret/#secret-files-permissions
    """
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"is no file: {_ADVICE}")
    readable = found.st_mode & 0o044 and found.st_uid == os.geteuid()
    if found.st_mode & 0o022 or readable:
        told = f"has mode {found.st_mode & 0o777:o}, so that others can {'read' if readable else 'write'} it"
        raise UserError(f"{told}: chmod 600 (for a secret of Kubernetes defaultMode: 0400)")


def _parse(content: bytes) -> _Digests:
    if len(content) > _LARGEST:
        raise UserError(f"is larger than {_LARGEST} bytes: {_ADVICE}")
    digests: _Digests = {}
    for number, line in enumerate(content.decode("latin-1").splitlines(), 1):
        text = line.partition("#")[0].strip()
        if text:
            name, key = _split(text, number)
            digests[hashlib.sha256(key.encode()).digest()] = name
    if not 1 <= len(digests) <= _MOST:
        raise UserError(f"holds {len(digests)} keys, and 1 to {_MOST} can be: {_ADVICE}")
    return digests


def _split(text: str, number: int) -> tuple[str, str]:
    """Return name and key of a line; what is wrong with it is said without showing it."""
    name, colon, rest = text.rpartition(":")
    name, key = (name.strip() if colon else f"key-{number}"), rest.strip()
    if not _NAME.fullmatch(name):
        raise UserError(f"has a bad name in line {number}: use up to 32 letters, digits, . _ - before the colon")
    if not _KEY.fullmatch(key):
        fault = "a key of under 16 characters" if len(key) < 16 else "a key with other letters than A-Z a-z 0-9 . _ ~ + / -"
        raise UserError(f"has {fault} in line {number}: {_ADVICE}")
    return name, key
