"""The log of the service: one JSON object a line on standard output, readable lines where that is a terminal.

Lines are written by a thread of their own. A log that is full, closed, or read by nobody loses lines and counts them; it
keeps no request waiting. What repeats is told a few times, then how often it came. No payload and no file is named here.
"""

import atexit
import json
import logging
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from queue import Empty, SimpleQueue
from typing import Any

from src.serving.settings import Settings

_LONGEST = 4_000  # bytes: lines up to 4,096 of several processes do not mix in a pipe (PIPE_BUF of Linux)
_DETAIL = 200  # characters of why a request was refused, and of a message by which repetitions are known
_MOST_WAITING = 2_000  # lines
_MOST_MESSAGES = 256  # whose repetitions are counted
_FAULT = 500  # the status of a fault of ours; the others over 400 mean that a request was refused
_ACCESS = 10.0  # refused requests a second
_REPEATED = 0.1  # lines a second with the same message, once there were so many at once:
_AT_ONCE = 5.0
_REST = 10.0  # seconds after which what was left out is told in any case
_OTHERS = ("bentoml", "uvicorn", "circus")  # who bring handlers of their own

_requests = logging.getLogger("bentoml.image_classifier.request")

Fields = dict[str, Any]


class _Bucket:
    """Lets through `rate` a second, or `most` at once, and counts what it does not."""

    def __init__(self, rate: float, most: float) -> None:
        self._rate, self._most, self._held, self._since = rate, most, most, time.monotonic()
        self.left_out = 0

    def take(self) -> bool:
        now = time.monotonic()
        self._held = min(self._most, self._held + (now - self._since) * self._rate)
        self._since = now
        if self._held < 1:
            self.left_out += 1
            return False
        self._held -= 1
        return True

    def told(self) -> Fields:
        """Return how many were left out since it was last asked."""
        count, self.left_out = self.left_out, 0
        return {"left_out": count} if count else {}


class _Access:
    """Which requests leave a line."""

    def __init__(self, share: float) -> None:
        self.share, self.refused = share, _Bucket(_ACCESS, _ACCESS)


_access = _Access(0.01)


def access(
    method: str,
    route: str,
    status: int,
    seconds: float,
    request_id: str,
    version: str,
    key: str,
    detail: str = "",
    size: int = 0,
) -> None:
    """Tell the log of a request that was answered: a share of the good ones, some of the refused, all faults of ours.

    Args:
        method: of HTTP.
        route: one of the known paths, or `other`; never what the client wrote.
        status: of the answer.
        seconds: from the request to its answer.
        request_id: of the request, which its answer names too.
        version: of the model.
        key: the name of the API key.
        detail: why it was refused, as its sender was told.
        size: bytes of its body.
    """
    if status < 400 and random.random() >= _access.share:  # noqa: S311 - a sample, no secret
        return
    refused = 400 <= status != _FAULT
    if refused and not _access.refused.take():
        return
    fields = {"request_id": request_id, "method": method[:16], "route": route, "status": status}
    fields |= {"seconds": round(seconds, 6), "bytes": size, "model_version": version}
    fields |= {name: text for name, text in (("key", key), ("detail", detail[:_DETAIL])) if text}
    more = _access.refused.told() if refused else {}
    level = logging.ERROR if status == _FAULT else logging.INFO
    _requests.log(level, "request", extra={"fields": {**fields, **more}})


def configure(settings: Settings) -> None:
    """Let everything that this process tells its log go through here, also what BentoML, uvicorn and circus tell theirs."""
    _access.share = settings.access_log
    for name in ["", *logging.root.manager.loggerDict]:
        if not name or name.split(".")[0] in _OTHERS:
            logger = logging.getLogger(name)
            logger.propagate = True
            for handler in list(logger.handlers):
                logger.removeHandler(handler)
                handler.close()
    descriptor = sys.stdout.fileno() if sys.stdout else os.open(os.devnull, os.O_WRONLY)  # it may be closed from the start
    logging.root.addHandler(_Handler(descriptor, _readable if os.isatty(descriptor) else _line))
    logging.root.setLevel(logging.WARNING)
    logging.getLogger("bentoml").setLevel(logging.INFO)
    logging.raiseExceptions = False
    logging.captureWarnings(True)
    unexpected = "an exception that nobody expected"
    threading.excepthook = lambda given: (
        None if given.exc_type is SystemExit else logging.root.error(unexpected, exc_info=given.exc_value)
    )
    sys.excepthook = lambda _, error, __: logging.root.error(unexpected, exc_info=error)


class _Handler(logging.Handler):
    """Brings records to a file descriptor, by a thread that may have to wait for it."""

    def __init__(self, descriptor: int, write: Callable[[Fields], str]) -> None:
        super().__init__()
        self._descriptor, self._write = descriptor, write
        self._queue: SimpleQueue[str | None] = SimpleQueue()
        self._buckets: dict[tuple[str, str], _Bucket] = {}
        self._dropped = 0  # lines that found no place
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def emit(self, record: logging.LogRecord) -> None:
        """Put a record in the queue, unless the same was there too often; whatever is wrong with it, the caller goes on."""
        try:
            if (more := self._repeated(record)) is not None:
                self._put({**_fields(record), **more})
        except Exception:  # of a __str__ that raises, for instance
            self._dropped += 1

    def _repeated(self, record: logging.LogRecord) -> Fields | None:
        """Return how many like it were left out since the last one; None: leave this one out too."""
        if hasattr(record, "fields"):  # `access` has chosen it
            return {}
        if len(self._buckets) > _MOST_MESSAGES:
            self._tell_rest()
            self._buckets.clear()
        bucket = self._buckets.setdefault((record.name, str(record.msg)[:_DETAIL]), _Bucket(_REPEATED, _AT_ONCE))
        return bucket.told() if bucket.take() else None

    def _put(self, fields: Fields) -> None:
        if self._queue.qsize() >= _MOST_WAITING:
            self._dropped += 1
            return
        if self._dropped:
            fields["dropped"], self._dropped = self._dropped, 0
        self._queue.put(self._write(fields))

    def _tell_rest(self) -> None:
        """Tell what was left out of what has not come again."""
        self.acquire()
        for (logger, message), bucket in [*self._buckets.items(), ((_requests.name, "request"), _access.refused)]:
            if bucket.left_out:
                about = {"time": _time(time.time()), "level": "INFO", "logger": logger, "message": message}
                self._put({**about, **bucket.told()})
        self.release()

    def _run(self) -> None:
        due = time.monotonic() + _REST
        while True:
            try:
                line = self._queue.get(timeout=max(0.0, due - time.monotonic()))
            except Empty:
                line = ""
            if line is None:
                return
            if time.monotonic() >= due:
                due = time.monotonic() + _REST
                self._tell_rest()
            self._send(line.encode())

    def _send(self, content: bytes) -> None:
        try:
            while content:
                content = content[os.write(self._descriptor, content) :]
        except OSError:  # full, closed, or nobody reads it any more
            self._dropped += 1

    def close(self) -> None:
        """Write what waits, for at most a second."""
        atexit.unregister(self.close)
        self._tell_rest()
        self._queue.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join(1)
        super().close()


# ---------------------------------------------------------------------------------------------------------------------
# Lines
# ---------------------------------------------------------------------------------------------------------------------


def _fields(record: logging.LogRecord) -> Fields:
    """Return what a record tells; a traceback only where something of ours has failed."""
    told: Fields = {"time": _time(record.created), "level": record.levelname, "logger": record.name}
    told["message"] = record.getMessage()
    told |= getattr(record, "fields", {})
    if record.exc_info and record.exc_info[1]:
        told["exception"] = type(record.exc_info[1]).__name__
        if record.levelno >= logging.ERROR:
            told["traceback"] = logging.Formatter().formatException(record.exc_info)
    return told


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _line(fields: Fields) -> str:
    """Return a line of JSON; what is too long is cut, a traceback at its beginning, for its end says what happened."""
    line = json.dumps(fields, default=str)
    while len(line) >= _LONGEST:
        name = max(fields, key=lambda name: len(str(fields[name])))
        text, quarter = str(fields[name]), len(str(fields[name])) // 4
        fields = {**fields, name: text[quarter:] if name == "traceback" else text[:-quarter]}
        line = json.dumps(fields, default=str)
    return line + "\n"


def _readable(fields: Fields) -> str:
    """Return a line for a person; letters that could steer a terminal are written out."""
    told = dict(fields)
    head = f"{told.pop('time')[11:19]} {told.pop('level').lower():7} {told.pop('message')}"
    trace = str(told.pop("traceback", ""))
    told.pop("logger")
    lines = [" ".join([head, *(f"{name}={value}" for name, value in told.items())]), *trace.splitlines()]
    return "".join(f"{line if line.isprintable() else repr(line)[1:-1]}\n" for line in lines)
