"""The HTTP protocol of a worker: uvicorn's, with the limits that it has not, and our application before BentoML's.

uvicorn reads headers without end, waits for them for ever, takes any number of connections, and answers what it cannot read
with plain text. Here each of these has a limit, and refusals are problem details like all others.
"""

import asyncio
import logging
from typing import Any, ClassVar

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from src.serving.engine import Engine
from src.serving.front import Front, about
from src.serving.problems import ProblemError, new_request_id

_MOST_HEADERS = 100
_LONGEST_HEAD = 32_768  # bytes of all headers together, and of trailers
_LONGEST_UNHEARD = 2 * _LONGEST_HEAD  # bytes that are no whole header and no body: the parser keeps those of headers
_LONGEST_URL = 8_192
_DEEPEST_PIPELINE = 32  # requests on one connection that wait for the one before
_CONTINUE = b"HTTP/1.1 100 "
_UNREADABLE = "this is no HTTP request that can be read: look at what the client sends"

log = logging.getLogger("bentoml.image_classifier")


class _Corked:
    """A transport that holds the head of an answer back until its body comes: one packet, and half the system calls."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head: bytes | None = None
        self.is_closing = transport.is_closing
        self.abort = transport.abort

    def write(self, data: bytes) -> None:
        if self._head is not None:
            self._transport.write(self._head + data)
            self._head = None
        elif data.startswith(_CONTINUE):
            self._transport.write(data)
        else:
            self._head = data

    def flush(self) -> None:
        if self._head is not None:
            self._transport.write(self._head)
            self._head = None

    def close(self) -> None:
        self.flush()
        self._transport.close()


class Protocol(HttpToolsProtocol):
    """One connection. Made by `protocol`, which gives the class its engine."""

    engine: ClassVar[Engine]

    def __init__(self, config: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(config, *arguments, **options)
        if not isinstance(config.loaded_app, Front):  # outside of all that uvicorn and BentoML wrap around
            config.loaded_app = Front(config.loaded_app, self.engine)
        self.app = config.loaded_app
        self.ws_protocol_class = None
        self.access_log = False  # ours says more
        self._timer: asyncio.TimerHandle | None = None
        self._refusal: ProblemError | None = None
        self._running: RequestResponseCycle | None = None  # the cycle that is answered; uvicorn's own is the newest
        self._ended = False  # nothing more is read
        self._in_head = True
        self._in_body = False
        self._head = 0
        self._hosts = 0
        self._unheard = 0  # bytes since the parser last told of anything that ends
        self._reader: asyncio.TimerHandle | None = None

    # -----------------------------------------------------------------------------------------------------------------
    # The connection
    # -----------------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a connection in, for which a request has to come in time."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self.since = self.loop.time()
        self.corked = _Corked(self.transport)
        self.transport = self.corked  # type: ignore[assignment]
        if _closed(transport):
            self.transport.close()
        elif len(self.connections) > self.engine.settings.connections and not self._make_room():
            self._refuse(ProblemError(503, "too many connections: try again in a second", {"Retry-After": "1"}))
        else:
            self._watch()

    def _make_room(self) -> bool:
        """Close the connection that has been idle for longest; return whether there was one."""
        idle = [other for other in self.connections if isinstance(other, Protocol) and other is not self and other.idle]
        if not idle:
            return False
        min(idle, key=lambda other: other.since).transport.close()
        return True

    @property
    def idle(self) -> bool:
        """Whether nothing has been asked that is not answered."""
        return not (self._answering or self._in_body or self._head or self.transport.is_closing())

    def data_received(self, data: bytes) -> None:
        """Read on; refuse what is no HTTP request, or too much of one."""
        if self._ended or self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(ProblemError(400, "another protocol is not spoken here: send the request without Upgrade"))
        except httptools.HttpParserError:
            self._refuse(self._refusal or ProblemError(400, _UNREADABLE))
        else:
            self._unheard += len(data)
            if self._unheard > _LONGEST_UNHEARD + len(data):
                self._refuse(ProblemError(431, f"more than {_LONGEST_HEAD} bytes of headers, trailers or chunk extensions"))
            else:
                self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._unwatch()
        self._forget_reader()
        self.pipeline.clear()
        if self._running is not None:
            self._running.disconnected = True
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Answer a client that has closed its half of the connection after a whole request."""
        if not self._answering or self._in_body or self._in_head:
            return False
        self._end()
        return True

    def pause_writing(self) -> None:
        """Wait for a client that does not read, but not for ever."""
        super().pause_writing()
        self._forget_reader()
        self._reader = self.loop.call_later(self.engine.settings.timeout, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on with a client that reads again."""
        super().resume_writing()
        self._forget_reader()

    def _forget_reader(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            self._reader = None

    def _watch(self) -> None:
        """While a request, or the rest of one, is awaited, limit for how long."""
        if self._answering and not self._in_head and not self._in_body:
            self._unwatch()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.engine.settings.timeout, self._late)

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if self._head or self._in_body:
            part = "body" if self._in_body else "headers"
            self._refuse(ProblemError(408, f"the {part} did not come in time: send the request again"))
        else:
            self.transport.close()

    def _refuse(self, problem: ProblemError) -> None:
        """End the connection; with the reason, unless an answer is on its way, which goes first."""
        request = new_request_id()
        self._unwatch()
        running = self._running if self._answering else None
        self._end()
        if running is not None and not (self._in_body and running is self.cycle):
            return  # its answer goes first, and then the connection ends
        if running is not None:  # it waits for a body that will not come
            running.disconnected = True
            running.message_event.set()
        if not self.transport.is_closing():
            if running is None or not running.response_started:
                self.transport.write(_whole(problem, request))
            self.transport.close()
        self.engine.refused(problem, request)

    def _end(self) -> None:
        """Take no more requests; the one that is answered is the last."""
        self._ended = True
        self.pipeline.clear()
        if self._running is not None:
            self._running.keep_alive = False

    @property
    def _answering(self) -> bool:
        return self._running is not None and not self._running.response_complete

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    # -----------------------------------------------------------------------------------------------------------------
    # What the parser finds; an exception here reaches `data_received` as a fault of the request
    # -----------------------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._in_head, self._head, self._hosts = True, 1, 0

    def on_url(self, url: bytes) -> None:
        """Read a piece of the address."""
        super().on_url(url)
        if len(self.url) > _LONGEST_URL:
            self._stop(414, f"the address is longer than {_LONGEST_URL} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Read a header, or a trailer."""
        super().on_header(name, value)
        self._head += len(name) + len(value) + 4
        if self._head > _LONGEST_HEAD or len(self.headers) > _MOST_HEADERS:
            self._stop(431, f"more than {_MOST_HEADERS} headers, or more than {_LONGEST_HEAD} bytes of them")
        self._hosts += len(name) == 4 and name.lower() == b"host"

    def on_headers_complete(self) -> None:
        """Begin to answer."""
        if self._hosts != 1 and self.parser.get_http_version() == "1.1":
            self._stop(400, "a request has exactly one header Host")
        if len(self.pipeline) >= _DEEPEST_PIPELINE:
            self._stop(429, "too many requests at once on one connection: wait for the answers")
        self._in_head, self._in_body, self._unheard = False, True, 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Read a piece of the body."""
        self._unheard = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Know the whole body."""
        self._in_body, self._unheard, self._head = False, 0, 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Send an answer without body, too; then go on with the next request."""
        self.corked.flush()
        self.since = self.loop.time()
        super().on_response_complete()

    def _stop(self, status: int, sentence: str) -> None:
        self._refusal = ProblemError(status, sentence)
        raise ValueError(sentence)


def protocol(engine: Engine) -> type[Protocol]:
    """Return the protocol of a service."""
    return type("EngineProtocol", (Protocol,), {"engine": engine})


def _closed(transport: asyncio.BaseTransport) -> bool:
    """Return whether the server that took a connection has stopped since.

    uvicorn told the connections that it then had, and waits for ever for one that came in the same turn of the loop. Only
    asyncio's transport knows its server.
    """
    server = getattr(transport, "_server", None)
    return isinstance(server, asyncio.Server) and not server.is_serving()


def _whole(problem: ProblemError, request: str) -> bytes:
    """Return an answer as it goes over the wire."""
    answer = problem.answer(request)
    lines = [b"HTTP/1.1 %d %s" % (answer.status, problem.title.encode()), b"connection: close"]
    lines += [name + b": " + value for name, value in (*about(answer, request), *answer.headers)]
    return b"\r\n".join([*lines, b"", answer.body])
