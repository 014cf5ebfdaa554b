"""One HTTP request while it is read: its headers, its address, and its body within the limits of the settings."""

import asyncio
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs

from src.serving.engine import Engine
from src.serving.problems import Answer, ProblemError, new_request_id

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SMALL_BODY = 65_536  # bytes of a body that always find a place: few large ones that come slowly do not keep them out
_DRAIN = 2.0  # seconds, for a client that sends on after its refusal
_DRAIN_BYTES = 80_000_000  # likewise


class GoneError(Exception):
    """The client has closed the connection."""


def _too_large(limit: int) -> ProblemError:
    return ProblemError(413, f"the body is over the limit of {limit / 1e6:g} MB: send fewer or smaller images")


class Request:
    """One request while it is read. `route` is one of the known paths, or `other`."""

    def __init__(self, scope: Message, receive: Receive, deadline: float, route: str) -> None:
        self.scope = scope
        self.receive = receive
        self._headers: dict[bytes, bytes] = dict(scope["headers"])
        self._unread = False
        self.held = 0  # bytes of its body
        self.counted = 0  # of them, those that the engine counts
        self.deadline = deadline
        self.method: str = scope["method"]
        self.route = route
        given = self.header(b"x-request-id")
        self.id = given if given and _REQUEST_ID.fullmatch(given) else new_request_id()
        self.key = ""  # the name of the key that it brings
        self.problem: ProblemError | None = None
        self.status = 200  # that BentoML has answered with

    def raw(self, name: bytes) -> bytes:
        """Return a header as it came, or nothing."""
        return self._headers.get(name, b"")

    def header(self, name: bytes) -> str:
        """Return a header, or nothing."""
        return self._headers.get(name, b"").decode("latin-1")

    def media(self) -> str:
        """Return the media type of the body, without parameters.

        Raises:
            ProblemError: the body is compressed.
        """
        encoding = self.header(b"content-encoding").strip().lower()
        if encoding not in ("", "identity"):
            raise ProblemError(415, f"Content-Encoding {encoding[:20]!r} is not taken: images are compressed already")
        return self.header(b"content-type").split(";")[0].strip().lower()

    def query(self, name: str) -> str | None:
        """Return a parameter of the address.

        Raises:
            ProblemError: it is given twice.
        """
        if not self.scope["query_string"]:
            return None
        text = self.scope["query_string"].decode("latin-1")
        try:
            values = parse_qs(text, keep_blank_values=True, max_num_fields=20).get(name, [])
        except ValueError:
            raise ProblemError(400, "too many parameters in the address") from None
        if len(values) > 1:
            raise ProblemError(400, f"{name} is given {len(values)} times: give it once")
        return values[0] if values else None

    async def body(self, engine: Engine) -> bytes:
        """Read the whole body, at most as much of it as the settings say. How long it may take is the protocol's to limit.

        Raises:
            ProblemError: it is larger (413), or bodies fill the memory that they may (429).
        """
        limit = engine.settings.max_body
        declared = self.header(b"content-length")
        if declared.isdecimal() and int(declared) > limit:
            self._unread = True
            raise _too_large(limit)
        pieces = []
        while True:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise GoneError
            piece = message.get("body", b"")
            self._unread = message.get("more_body", False)
            if self.held + len(piece) > engine.settings.max_body:
                raise _too_large(engine.settings.max_body)
            self.held += len(piece)
            more = max(0, self.held - _SMALL_BODY) - self.counted
            if more:
                engine.hold(more)
                self.counted += more
            pieces.append(piece)
            if not self._unread:
                return b"".join(pieces)

    async def send(self, answer: Answer, headers: list[tuple[bytes, bytes]], send: Send) -> None:
        """Send the answer; where the body was not read to its end, close the connection, but let the client read first."""
        if self._unread:
            headers = [*headers, (b"connection", b"close")]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body, "more_body": self._unread})
        if self._unread:
            await self._drain()
            await send({"type": "http.response.body", "body": b""})

    async def _drain(self) -> None:
        """Read on for a while: to close on a client that is still sending would reset the connection under the answer."""
        size = 0
        try:
            async with asyncio.timeout(_DRAIN):
                while size < _DRAIN_BYTES:
                    message = await self.receive()
                    size += len(message.get("body", b""))
                    if message["type"] == "http.disconnect" or not message.get("more_body", False):
                        return
        except TimeoutError:
            return
