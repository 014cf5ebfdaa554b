"""The log of the service: one JSON object a line on standard output, readable lines where that is a terminal.

A QueueListener writes, in a thread of its own. A log that is full, closed, or read by nobody loses lines and counts them; it
keeps no request waiting. What repeats is told a few times, then how often it came. No payload and no file is named here.
"""

import atexit
import logging
import os
import random
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from logging.handlers import QueueHandler, QueueListener
from queue import Full, Queue
from typing import Any

from pythonjsonlogger.json import JsonFormatter

_LONGEST = 1_000  # characters of a message: lines under 4,096 bytes of several processes do not mix in a pipe (PIPE_BUF)
_LONGEST_TRACE = 2_000  # characters of a traceback's end, which says what happened
_DETAIL = 200  # characters of why a request was refused, and of a message by which repetitions are known
_MOST_WAITING = 2_000  # lines
_MOST_MESSAGES = 256  # whose repetitions are counted
_AT_ONCE, _EVERY = 5, 10.0  # lines of the same message in so many seconds
_ACCESS = 100  # likewise of refused requests
_FAULT = 500  # the status of a fault of ours; the others over 400 mean that a request was refused
_OTHERS = ("", "bentoml", "uvicorn", "uvicorn.error", "uvicorn.access", "circus")  # bring handlers of their own

_requests = logging.getLogger("bentoml.image_classifier.request")


def is_told(status: int, share: float) -> bool:
    """Say whether an answered request leaves a line: such a share of the good ones, and the others if few."""
    return status >= 400 or random.random() < share  # noqa: S311 - a sample, no secret


def access(fields: dict[str, Any]) -> None:
    """Tell the log of a request that was answered; without what is empty. No field is what the client wrote."""
    told = {name: text[:_DETAIL] if isinstance(text, str) else text for name, text in fields.items() if text != ""}
    _requests.log(logging.ERROR if fields["status"] == _FAULT else logging.INFO, "request", extra=told)


class Repeated(logging.Filter):
    """Lets a message through so many times in ten seconds; the first one after that says how many were left out."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self._clock = clock
        self._seen: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0, 0, 0])  # since, passed, left out

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether a record leaves a line."""
        status = getattr(record, "status", 0)
        if status == _FAULT or 0 < status < 400:
            return True
        if len(self._seen) > _MOST_MESSAGES:
            self._seen.clear()
        seen, now = self._seen[record.name, str(record.msg)[:_DETAIL]], self._clock()
        if now - seen[0] >= _EVERY:
            seen[:2] = now, 0
        if seen[1] >= (_ACCESS if status else _AT_ONCE):
            seen[2] += 1
            return False
        seen[1] += 1
        if seen[2]:
            record.left_out, seen[2] = int(seen[2]), 0
        return True


class Writer(logging.Handler):
    """Writes lines to a file descriptor, as far as it takes them."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor, self.dropped = descriptor, 0
        self.setFormatter(Readable() if os.isatty(descriptor) else Line())

    def createLock(self) -> None:  # noqa: N802 - the name is logging's
        """Have no lock: only the listener's thread writes, and it may wait for a reader when the process ends."""
        self.lock = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        try:
            if self.dropped:
                record.dropped = self.dropped
            os.write(self._descriptor, f"{self.format(record)}\n".encode(errors="backslashreplace"))
            self.dropped = 0
        except Exception:  # the disk is full, nobody reads, or a __str__ raises: the log goes on
            self.dropped += 1


class Waiting(QueueHandler):
    """Puts records as they are into a queue of limited length; the writer counts those that found no place."""

    def __init__(self, queue: "Queue[Any]", writer: Writer) -> None:
        super().__init__(queue)
        self._writer = writer

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Leave the record to the formatter, which runs in the thread of the listener."""
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        """Put a record into the queue."""
        try:
            self.queue.put_nowait(record)
        except Full:
            self._writer.dropped += 1


class Listener(QueueListener):
    """Writes what waits before it ends; whoever stops it limits for how long."""

    queue: "Queue[Any]"

    def enqueue_sentinel(self) -> None:
        """Put the end into the queue once there is room."""
        while self.queue.full():
            threading.Event().wait(0.01)
        super().enqueue_sentinel()


class Line(JsonFormatter):
    """One JSON object: time (UTC), level, logger, message, what the record brings, and the traceback of an error."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s %(name)s %(message)s", rename_fields={"levelname": "level", "name": "logger"})

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        """Cut what is too long."""
        trace = log_data.pop("exc_info", None)
        cut = {name: text[:_LONGEST] if isinstance(text, str) else text for name, text in log_data.items()}
        return cut | ({"traceback": trace[-_LONGEST_TRACE:]} if trace else {})

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        """Begin with the time; only an error has a traceback."""
        log_data["time"] = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03}Z"
        super().add_fields(log_data, record, message_dict)
        if record.exc_info and record.exc_info[1]:
            log_data["exception"] = type(record.exc_info[1]).__name__
        if record.levelno < logging.ERROR:
            log_data.pop("exc_info", None)


class Readable(logging.Formatter):
    """A line for a person; letters that could steer a terminal are written out."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, with what an access line brings behind it."""
        told = {name: getattr(record, name) for name in ("route", "status", "detail", "request_id") if hasattr(record, name)}
        text = " ".join([super().format(record), *(f"{name}={value}" for name, value in told.items())])
        return "\n".join(line if line.isprintable() else repr(line)[1:-1] for line in text.splitlines())


def listen(descriptor: int, clock: Callable[[], float] = time.monotonic) -> tuple[Waiting, Listener]:
    """Return a handler for loggers, and the listener that writes what they tell to a descriptor."""
    writer, queue = Writer(descriptor), Queue[Any](_MOST_WAITING)
    handler, listener = Waiting(queue, writer), Listener(queue, writer)
    handler.addFilter(Repeated(clock))
    listener.start()
    return handler, listener


def configure() -> None:
    """Let everything that this process tells its log go through here, also what BentoML, uvicorn and circus tell theirs."""
    for name in _OTHERS:
        logger = logging.getLogger(name)
        logger.propagate = name != "uvicorn.access"  # ours says more
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
            handler.close()
    # standard output may be closed from the start
    waiting, listener = listen(sys.stdout.fileno() if sys.stdout else os.open(os.devnull, os.O_WRONLY))
    logging.root.addHandler(waiting)
    logging.root.setLevel(logging.WARNING)
    logging.getLogger("bentoml").setLevel(logging.INFO)
    logging.captureWarnings(True)
    unexpected = "an exception that nobody expected"
    threading.excepthook = lambda given: (
        None if given.exc_type is SystemExit else logging.root.error(unexpected, exc_info=given.exc_value)
    )
    sys.excepthook = lambda _, error, __: logging.root.error(unexpected, exc_info=error)

    def finish() -> None:
        """Write what waits, for at most a second: nobody may read it."""
        stopping = threading.Thread(target=listener.stop, daemon=True)
        stopping.start()
        stopping.join(1)

    atexit.register(finish)
