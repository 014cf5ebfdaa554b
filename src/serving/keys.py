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

from src.core.command import UserError

_KEY = re.compile(r"[A-Za-z0-9._~+/-]{16,256}={0,2}", re.ASCII)  # what a Bearer token may be: RFC 6750, section 2.1
_NAME = re.compile(r"[A-Za-z0-9._-]{1,32}", re.ASCII)
_MOST = 16  # keys: each costs every request a comparison
_LARGEST = 65_536  # bytes of the file
_EVERY = 1.0  # seconds between two looks at the file
_ADVICE = "write one key a line, which `openssl rand -hex 32` makes"

log = logging.getLogger("bentoml.image_classifier")


class Keys:
    """The keys that are valid now; without any, whoever reaches the service may ask."""

    def __init__(self, path: Path | None) -> None:
        """Read the keys of a file; None: there are no keys.

        Raises:
            UserError: the file is missing, unreadable, open to others, or holds no key or something else.
        """
        self._path = path
        self._digests: dict[bytes, str] = {}  # SHA-256 of a key to its name
        self._next_look, self._told = time.monotonic() + _EVERY, ""
        if path:
            try:
                self._digests = _read(path)
            except UserError as error:
                raise UserError(f"SERVE_API_KEYS_FILE ({path}) {error}") from None

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
        if self._path and time.monotonic() >= self._next_look:
            self._look(self._path)
        is_bearer = authorization[:7].lower() == b"bearer "
        given = hashlib.sha256(authorization[7:].strip() if is_bearer else x_api_key).digest()
        found = [name for digest, name in self._digests.items() if hmac.compare_digest(digest, given)]
        return found[0] if found else None

    def _look(self, path: Path) -> None:
        """Read the file anew; one that is damaged or gone leaves the keys as they are, and is told once."""
        self._next_look = time.monotonic() + _EVERY
        before, told, self._told = self._digests, self._told, ""
        try:
            self._digests = _read(path)
        except UserError as error:
            self._told = str(error)
            if told != self._told:
                log.warning("SERVE_API_KEYS_FILE %s. The keys that were valid stay valid", error)
        if self._digests != before:
            log.info("SERVE_API_KEYS_FILE was read anew, valid are: %s", ", ".join(self._digests.values()))


def _read(path: Path) -> dict[bytes, str]:
    """Return the digests of the keys in a file with their names.

    A file that others may write is refused, and one of our own that they may read. A secret that Docker or Kubernetes mounts
    may belong to root and be readable by all in the container, which has but one user:
    https://kubernetes.io/docs/concepts/configuration/secret/#secret-files-permissions

    Raises:
        UserError: what is wrong with the file, without its name and what is in it.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise UserError(f"is no file: {_ADVICE}")
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror}): make it, or let this user read it") from None
    readable = found.st_mode & 0o044 and found.st_uid == os.geteuid()
    if found.st_mode & 0o022 or readable:
        fault = f"has mode {found.st_mode & 0o777:o}, so that others can {'read' if readable else 'write'} it"
        raise UserError(f"{fault}: chmod 600 (for a secret of Kubernetes defaultMode: 0400)")
    if len(content) > _LARGEST:
        raise UserError(f"is larger than {_LARGEST} bytes: {_ADVICE}")
    digests = {}
    for number, text in enumerate(content.decode("latin-1").splitlines(), 1):
        line = text.partition("#")[0].strip()
        name, colon, rest = line.rpartition(":")
        name, key = (name.strip() if colon else f"key-{number}"), rest.strip()
        if not line:
            continue
        if not _NAME.fullmatch(name):
            raise UserError(f"has a bad name in line {number}: use up to 32 letters, digits, . _ - before the colon")
        if not _KEY.fullmatch(key):
            fault = "of under 16 characters" if len(key) < 16 else "with other letters than A-Z a-z 0-9 . _ ~ + / -"
            raise UserError(f"has a key {fault} in line {number}: {_ADVICE}")
        digests[hashlib.sha256(key.encode()).digest()] = name
    if not 1 <= len(digests) <= _MOST:
        raise UserError(f"holds {len(digests)} keys, and 1 to {_MOST} can be: {_ADVICE}")
    return digests
