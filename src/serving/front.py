"""What HTTP requests meet first: routes, limits and errors. An ASGI middleware of the BentoML service.

Requests for predictions are answered here and go no further, because BentoML's own request path costs several times the
model, fetches texts in file fields as addresses, and answers some bad input with 500. Health and the files of the Swagger
page come from BentoML.
"""

import asyncio
import json
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs, quote

from src.serving import multipart, openapi
from src.serving.engine import Engine, log
from src.serving.problems import Answer, ProblemError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

_ROUTES = {"/": "GET", "/docs.json": "GET", "/model": "GET", "/metrics": "GET", "/predict": "POST", "/predict_batch": "POST"}
_BENTOML = re.compile(r"/(?:livez|readyz|healthz|static_content/[\w.-]+)", re.ASCII)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DEFAULT_TOP = 5
_DRAIN = 2.0  # seconds, and this many times the body limit, for a client that sends on after its refusal
_DRAIN_TIMES = 8
_SAFE = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))
_PAGE = b"text/html; charset=utf-8"


class _GoneError(Exception):
    """The client has closed the connection."""


class Front:
    """Answers the routes of the service; `app` is the rest of BentoML's."""

    def __init__(self, app: App, engine: Engine) -> None:
        self._app = app
        self._engine = engine

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request, as the ASGI standard has it."""
        if scope["type"] != "http" or (scope["method"] in ("GET", "HEAD") and _BENTOML.fullmatch(scope["path"])):
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        request = _Request(scope, receive, began + self._engine.settings.timeout)
        try:
            answer = await self._answer(request)
        except _GoneError:
            return
        except ProblemError as problem:
            answer = problem.answer(request.id)
            log.info("%s %s: %d (%s) request %s", request.method, request.route, problem.status, problem.detail, request.id)
        except Exception:
            log.exception("%s %s: 500, request %s", request.method, request.route, request.id)
            answer = ProblemError(500, "a fault of the service: its log has more under this request id").answer(request.id)
        await request.send(answer, self._headers(request, answer), send)
        if self._engine.metrics:
            self._engine.metrics.answered(request.route, answer.status, time.monotonic() - began)

    def _headers(self, request: "_Request", answer: Answer) -> list[tuple[bytes, bytes]]:
        length = str(len(answer.body)).encode()
        headers = [
            (b"content-type", answer.media),
            (b"content-length", length),
            (b"x-request-id", request.id.encode()),
            *_SAFE,
        ]
        identity = self._engine.identity
        if identity and request.route.startswith("/predict"):
            headers.append((b"x-model-version", identity.version.encode()))
            headers += [(b"x-manifest", identity.manifest.encode())] if identity.manifest else []
        return [*headers, *answer.headers]

    async def _answer(self, request: "_Request") -> Answer:
        if request.route == "other":
            raise ProblemError(404, "there is no such address: GET / shows all that there are")
        allowed = _ROUTES[request.route]
        if request.method != allowed and (request.method, allowed) != ("HEAD", "GET"):
            raise ProblemError(405, f"{request.route} takes {allowed}", {"Allow": allowed})
        if allowed == "POST":
            return await self._predict(request)
        return self._tell(request.route)

    def _tell(self, route: str) -> Answer:
        engine = self._engine
        if route == "/":
            return Answer(200, openapi.PAGE.encode(), _PAGE, openapi.PAGE_HEADERS)
        if route == "/docs.json":
            return Answer(200, json.dumps(openapi.document(engine.settings, engine.identity)).encode())
        if route == "/metrics" and engine.metrics:
            return Answer(200, engine.metrics.text(), engine.metrics.media)
        if engine.identity is None:
            raise ProblemError(503, "the model is being loaded: try again in a second", {"Retry-After": "1"})
        return Answer(200, json.dumps(engine.identity.to_dict(), ensure_ascii=False).encode())

    async def _predict(self, request: "_Request") -> Answer:
        self._engine.admit()
        try:
            single = request.route == "/predict"
            top = self._top(request)
            contents = [await self._image(request)] if single else await self._images(request)
            predictions = await self._engine.predict(contents, top, request.deadline)
        finally:
            self._engine.hold(-request.held)
            self._engine.release()
        identity = self._engine.identity
        assert identity
        told = [{"label": ranked[0][0], "probabilities": [_pair(*pair) for pair in ranked]} for ranked in predictions]
        content: dict[str, Any] = told[0] if single else {"predictions": told}
        content = {**content, "model_version": identity.version, "manifest": identity.manifest}
        label = quote(predictions[0][0][0], safe="").encode()
        body = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
        return Answer(200, body, headers=((b"x-prediction", label),) if single else ())

    def _top(self, request: "_Request") -> int:
        assert self._engine.identity
        classes = len(self._engine.identity.card["classes"])
        given = request.query("top")
        if given is None:
            return min(_DEFAULT_TOP, classes)
        if not re.fullmatch(r"[0-9]{1,6}", given, re.ASCII) or not 1 <= int(given) <= classes:
            raise ProblemError(400, f"top is {given[:20]!r}: use a whole number from 1 to {classes}")
        return int(given)

    async def _image(self, request: "_Request") -> bytes:
        """Return the bytes of the one image of a request: its body, or the file of a form."""
        kind = request.media()
        if kind.startswith("image/"):
            body = await request.body(self._engine)
            if not body:
                raise ProblemError(400, "the body is empty: send the bytes of one image file")
            return body
        return (await self._files(request, kind, "image", 1))[0]

    async def _images(self, request: "_Request") -> list[bytes]:
        return await self._files(request, request.media(), "images", self._engine.settings.max_batch)

    async def _files(self, request: "_Request", kind: str, field: str, most: int) -> list[bytes]:
        """Return the files of a form, all in fields of one name."""
        if kind != "multipart/form-data":
            also = "an image as the body with Content-Type image/*, or " if field == "image" else ""
            sentence = f"Content-Type {kind[:60]!r} is not taken: send {also}multipart/form-data with files in {field!r}"
            raise ProblemError(415, sentence)
        separator = multipart.boundary(request.header(b"content-type"))
        parts = multipart.parse(await request.body(self._engine), separator, most)
        for part in parts:
            if part.name != field:
                raise ProblemError(400, f"there is a field {part.name[:40]!r}: send files in {field!r} and nothing else")
            if not part.is_file:
                raise ProblemError(422, f"{field!r} is a text, not a file: send the file itself; addresses are not fetched")
        if not parts:
            raise ProblemError(400, f"the form is empty: send {'one file' if most == 1 else 'files'} in {field!r}")
        return [part.content for part in parts]


def _pair(label: str, probability: float) -> dict[str, str | float]:
    return {"label": label, "probability": probability}


def _too_large(limit: int) -> ProblemError:
    return ProblemError(413, f"the body is over the limit of {limit / 1e6:g} MB: send fewer or smaller images")


class _Request:
    """One request while it is read. `route` is one of the known paths, or `other`."""

    def __init__(self, scope: Message, receive: Receive, deadline: float) -> None:
        self._scope = scope
        self._receive = receive
        self._headers: dict[bytes, bytes] = dict(scope["headers"])
        self._unread = False
        self.held = 0  # bytes of its body
        self.deadline = deadline
        self.method: str = scope["method"]
        self.route: str = scope["path"] if scope["path"] in _ROUTES else "other"
        given = self.header(b"x-request-id")
        self.id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)

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
        text = self._scope["query_string"].decode("latin-1")
        try:
            values = parse_qs(text, keep_blank_values=True, max_num_fields=20).get(name, [])
        except ValueError:
            raise ProblemError(400, "too many parameters in the address") from None
        if len(values) > 1:
            raise ProblemError(400, f"{name} is given {len(values)} times: give it once")
        return values[0] if values else None

    async def body(self, engine: Engine) -> bytes:
        """Read the whole body, at most as much of it as the settings say.

        Raises:
            ProblemError: it is larger (413), does not come in time (408), or bodies fill the memory that they may (429).
        """
        limit = engine.settings.max_body
        declared = self.header(b"content-length")
        if declared.isdecimal() and int(declared) > limit:
            self._unread = True
            raise _too_large(limit)
        try:
            async with asyncio.timeout(self.deadline - time.monotonic()):
                return await self._read(engine)
        except TimeoutError:
            self._unread = True
            raise ProblemError(408, "the body did not come in time") from None

    async def _read(self, engine: Engine) -> bytes:
        pieces = []
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise _GoneError
            piece = message.get("body", b"")
            self._unread = message.get("more_body", False)
            if self.held + len(piece) > engine.settings.max_body:
                raise _too_large(engine.settings.max_body)
            engine.hold(len(piece))
            self.held += len(piece)
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
        size, most = 0, _DRAIN_TIMES * 10_000_000
        try:
            async with asyncio.timeout(_DRAIN):
                while size < most:
                    message = await self._receive()
                    size += len(message.get("body", b""))
                    if message["type"] == "http.disconnect" or not message.get("more_body", False):
                        return
        except TimeoutError:
            return
