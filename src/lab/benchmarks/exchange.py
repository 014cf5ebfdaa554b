"""Send raw bytes to a service over a connection of their own, and read what comes back: for clients that break the rules.

An HTTP client library would refuse to send what `hostile` sends, or mend it on the way.
"""

import json
import re
import select
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import chain
from typing import NamedTuple

_PIECE = 262_144
_LEAK = re.compile(rb'Traceback|File "|/tmp/|/home/|site-packages|\.py\b')
_DEAF = 10.0  # seconds; longer than the service waits for a reader
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER of no time: closing sends RST


@dataclass
class Sent:
    """What a client sends, piece by piece; it may go on without end.

    Attributes:
        pieces: bytes, in order; between two of them the client waits `pause` seconds.
        end: what it does once all is sent: `wait` for answers, `half` close and then wait, `reset` at once, or be `deaf`
            and read nothing until some seconds later.
        answers: how many it waits for, unless the connection is closed before.
        bodyless: the answers have no body (HEAD).
    """

    pieces: Iterable[bytes]
    end: str = "wait"
    answers: int = 1
    pause: float = 0.0
    bodyless: bool = False


class Answer(NamedTuple):
    """One answer. `head` holds its status line and headers, in lower case."""

    status: int
    head: bytes
    body: bytes


@dataclass
class Outcome:
    """What came back until the client had all answers, the connection was closed, or time was over."""

    received: bytearray = field(default_factory=bytearray)
    closed: bool = False
    late: bool = False


def exchange(place: tuple[str, int], sent: Sent, seconds: float) -> Outcome:
    """Send all that there is to send, and listen.

    Args:
        place: host and port.
        sent: what to send.
        seconds: after which it is given up.
    """
    outcome = Outcome()
    deadline = time.monotonic() + seconds
    with socket.create_connection(place, timeout=seconds) as connection:
        connection.setblocking(False)
        try:
            _talk(connection, sent, outcome, deadline)
        except OSError:  # reset, or closed under what we were sending
            outcome.closed = True
            _rest(connection, outcome)
    return outcome


def _talk(connection: socket.socket, sent: Sent, outcome: Outcome, deadline: float) -> None:
    pieces, rest, since, sending = _cut(sent.pieces), b"", 0.0, True
    deaf_until = time.monotonic() + _DEAF if sent.end == "deaf" else 0.0
    events = select.poll()
    while (now := time.monotonic()) < deadline:
        if sending and not rest and now >= since:
            rest, since = next(pieces, b""), now + sent.pause
            sending = bool(rest)
            if not rest and _finish(connection, sent.end):
                return
        events.register(connection, (select.POLLIN if now > deaf_until else 0) | (select.POLLOUT if rest else 0))
        happened = dict(events.poll(20 if sending else 200)).get(connection.fileno(), 0)
        if happened & select.POLLOUT:
            rest = rest[connection.send(rest) :]
        if happened & ~select.POLLOUT and _hear(connection, sent, outcome):
            return
    outcome.late = True


def _hear(connection: socket.socket, sent: Sent, outcome: Outcome) -> bool:
    """Take what has come; say whether that is all."""
    piece = connection.recv(_PIECE)
    outcome.received += piece
    outcome.closed = not piece
    return outcome.closed or sum(1 for _ in answers(outcome.received, sent.bodyless)) >= sent.answers


def _cut(pieces: Iterable[bytes]) -> Iterator[bytes]:
    return chain.from_iterable((piece[i : i + _PIECE] for i in range(0, len(piece), _PIECE)) for piece in pieces)


def _finish(connection: socket.socket, end: str) -> bool:
    """End sending; say whether there is nothing to wait for."""
    if end == "half":
        connection.shutdown(socket.SHUT_WR)
    if end == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    return end == "reset"


def _rest(connection: socket.socket, outcome: Outcome) -> None:
    """Take what had come before the connection broke."""
    try:
        while piece := connection.recv(_PIECE):
            outcome.received += piece
    except OSError:
        return


def answers(received: bytes | bytearray, bodyless: bool = False) -> Iterator[Answer]:
    """Yield the whole answers in what came, without those of 1xx.

    Raises:
        ValueError: it is no HTTP.
    """
    rest = bytes(received)
    while rest:
        head, blank, rest = rest.partition(b"\r\n\r\n")
        if not head.startswith((b"HTTP/1.1 ", b"HTTP/1.0 ")[: 2 if blank else 1]) and blank:
            raise ValueError(f"bytes that are no HTTP answer: {head[:60]!r}")
        if not blank:
            return
        status, lower = int(head[9:12]), head.lower()
        found = re.search(rb"\r\ncontent-length: *([0-9]+)", lower)
        length = int(found[1]) if found and not bodyless and status >= 200 else 0
        if len(rest) < length:
            return
        if status >= 200:
            yield Answer(status, lower, rest[:length])
        rest = rest[length:]


def fault(outcome: Outcome, sent: Sent, may: frozenset[int], silent: bool) -> str | None:
    """Say what is wrong with what came back; None: nothing.

    Args:
        outcome: what came back.
        sent: to what.
        may: which statuses are right.
        silent: whether the service may close without a word, or the client leaves before the answer.
    """
    try:
        got = list(answers(outcome.received, sent.bodyless))
    except ValueError as error:
        return str(error)
    for answer in got:
        if answer.status not in may:
            return f"status {answer.status}: {answer.body[:200]!r}"
        wrong = _problem(answer) if answer.status >= 400 and not sent.bodyless else None
        if wrong:
            return f"status {answer.status}: {wrong}"
    if outcome.late:
        return f"neither answered nor closed in time ({len(got)} answers)"
    if not got and not silent:
        return "closed without a word"
    return None


def _problem(answer: Answer) -> str | None:
    """Say what is wrong with a refusal: it is problem details of RFC 9457, and tells nothing of what lies behind."""
    if b"content-type: application/problem+json" not in answer.head:
        return "its body is no problem details"
    try:
        told = json.loads(answer.body)
    except ValueError:
        return "its body is no JSON"
    if told.get("status") != answer.status or told.get("title") != HTTPStatus(answer.status).phrase:
        return "its body tells another status"
    if not told.get("request_id") or f"x-request-id: {told['request_id']}".lower().encode() not in answer.head:
        return "its request id is not that of the header"
    return "its body tells how the service is made" if _LEAK.search(answer.body) else None
