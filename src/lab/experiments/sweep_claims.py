"""Who works on which trial: a lock for each, which the system lets go when a worker ends, however it ends.

So nobody has to guess from a process number, or from the age of a sign of life, whether a worker is gone. Beside a SQLite
file the locks are bytes of a file (fcntl(2), "advisory record locking"); PostgreSQL has its own (pg_advisory_lock), which go
with the connection. One more is the study's own: who holds it alone looks at the trials and changes which there are.
"""

import fcntl
import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Engine, text

_STUDY = 0  # the lock of the study; trial n has n + 1
_SILENCE = "60"  # seconds until PostgreSQL asks a silent worker whether it is there; three times without an answer: gone


class Claims(ABC):
    """Locks on the trials of one study: a process holds what it has taken until it lets go or ends."""

    @abstractmethod
    def _lock(self, place: int) -> None: ...

    @abstractmethod
    def _unlock(self, place: int) -> None: ...

    @abstractmethod
    def _is_locked(self, place: int) -> bool: ...

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other worker looks at the trials, and keep them out."""
        self._lock(_STUDY)
        try:
            yield
        finally:
            self._unlock(_STUDY)

    def take(self, number: int) -> None:
        """Claim a trial that nobody has claimed."""
        self._lock(number + 1)

    def release(self, number: int) -> None:
        """Let a trial go."""
        self._unlock(number + 1)

    def is_taken(self, number: int) -> bool:
        """Tell whether a worker that lives, this one included, has claimed the trial."""
        return self._is_locked(number + 1)


class FileClaims(Claims):
    """Locks between the processes of one machine: bytes of a file, far apart for each study.

    The file stays open until the process ends: closing it anywhere in a process would free all that the process holds.
    """

    def __init__(self, path: Path, study: str) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._first = zlib.crc32(study.encode()) << 24
        self._mine: set[int] = set()

    def _lock(self, place: int) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_EX, 1, self._first + place)
        self._mine.add(place)

    def _unlock(self, place: int) -> None:
        self._mine.discard(place)
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, self._first + place)

    def _is_locked(self, place: int) -> bool:
        if place in self._mine:  # a process can always lock again what it has locked
            return True
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self._first + place)
        except OSError:
            return True
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, self._first + place)
        return False


class PostgresClaims(Claims):
    """Locks between machines: those of a connection to PostgreSQL, under two numbers, of the study and of the trial.

    A pooler that hands one connection to several clients in turn (PgBouncer in transaction mode) cannot keep them.
    """

    def __init__(self, engine: Engine, study: str) -> None:
        self._connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        self._study = zlib.crc32(study.encode()) - 2**31  # PostgreSQL takes signed numbers
        for name, value in (("idle", _SILENCE), ("interval", _SILENCE), ("count", "3")):
            self._connection.execute(text(f"SET tcp_keepalives_{name} = {value}"))

    def _lock(self, place: int) -> None:
        self._ask("SELECT pg_advisory_lock(:study, :place)", place)

    def _unlock(self, place: int) -> None:
        self._ask("SELECT pg_advisory_unlock(:study, :place)", place)

    def _is_locked(self, place: int) -> bool:
        listed = (
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 2 AND objid = :place "
            "AND classid::bigint = :unsigned AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        return bool(self._ask(listed, place))

    def _ask(self, question: str, place: int) -> object:
        values = {"study": self._study, "place": place, "unsigned": self._study % 2**32}
        asked = {name: value for name, value in values.items() if f":{name}" in question}
        return self._connection.execute(text(question), asked).scalar()
