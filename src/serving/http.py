"""The HTTP application of the service, on Starlette: routes, keys, limits, and errors as problem details.

`service.py` puts it into BentoML as a middleware: BentoML's own request path costs several times the model, fetches texts in
file fields as addresses, and answers some bad input with 500. The files of the Swagger page come from BentoML.
"""

import asyncio
import base64
import hashlib
import json
import logging
import math
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from src.serving import forms, logs
from src.serving.engine import Engine
from src.serving.problems import RETRY, ProblemError

if TYPE_CHECKING:
    from src.serving.batching import Probabilities

_EXCHANGE = "exchange"  # of an ASGI scope
OTHER = "other"  # the route of every unknown address: all that is counted and logged of it
_STATIC = "/static_content"
_FILES = (
    "favicon-light-32x32.png", "swagger-initializer.js", "swagger-ui-bundle.js", "swagger-ui-standalone-preset.js",
    "swagger-ui.css",
)  # fmt: skip
_POSTS = ("/predict", "/predict_batch", "/explain")
_ARRAY = "application/octet-stream"
_DEFAULT_TOP = 5
_MOST_HEADERS, _LONGEST_HEAD, _LONGEST_URL = 100, 32_768, 8_192  # the latter two in bytes
_SMALL_BODY = 65_536  # bytes of a body that always find a place: few large ones that come slowly do not keep them out
_DRAIN, _DRAIN_BYTES = 2.0, 80_000_000  # seconds and bytes, for a client that sends on after its refusal
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_SAFE = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]
_FAULT = "a fault of the service: its log has more under this request id"
_SWAGGER_POLICY = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; frame-ancestors 'none'"
_DOCUMENT = Path(__file__).with_name("openapi.json")
_DEMO = Path(__file__).with_name("demo.html")
_SWAGGER = Path(__file__).with_name("swagger.html")

log = logging.getLogger("bentoml.image_classifier")

Endpoint = Callable[[Request], Awaitable[Response]]


class Exchange:
    """What is known of a request while it is answered, for its endpoint, the log and the metrics."""

    __slots__ = ("counted", "deadline", "detail", "headers", "id", "key", "route", "size", "unread")

    def __init__(self, headers: dict[bytes, bytes], route: str, deadline: float) -> None:
        self.headers, self.route, self.deadline = headers, route, deadline
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        self.id = given if given and _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        self.key = self.detail = ""
        self.size = self.counted = 0  # bytes of its body, and of these such as the engine counts
        self.unread = False  # whether the client may be sending its body still


class Application:
    """Gives each request an id, its limits and safe headers, counts it, and tells the log; `app` is BentoML's."""

    def __init__(self, app: ASGIApp, engine: Engine) -> None:
        """Take the ASGI application that is behind, and the state of this worker."""
        self._app, self._engine, self._routes = app, engine, routes(app, engine)
        known = {route.path for route in self._routes.routes if isinstance(route, Route)}
        self._known = {path: _STATIC if path.startswith(_STATIC) else path for path in known}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, as the ASGI standard has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, engine, status = time.monotonic(), self._engine, 0
        route, deadline = self._known.get(scope["path"], OTHER), began + engine.settings.timeout
        exchange = scope[_EXCHANGE] = Exchange(dict(scope["headers"]), route, deadline)
        more = [(b"x-request-id", exchange.id.encode()), *_SAFE, *(engine.headers if route in _POSTS else ())]

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *more]
            await send(message)

        try:
            _check_head(scope)
            await self._routes(scope, receive, answer)
        except ProblemError as error:  # of the head
            await problem(Request(scope), error)(scope, receive, answer)
        except ClientDisconnect:
            return
        except Exception:
            log.exception("%s %s: 500, request %s", scope["method"], route, exchange.id)
        seconds = time.monotonic() - began
        if engine.model:
            engine.model.metrics.answered(route, status, seconds)
        if logs.is_told(status, engine.settings.access_log):
            version = engine.identity.version if engine.identity else ""
            fields = {"request_id": exchange.id, "method": scope["method"][:16], "route": route, "status": status}
            fields |= {"seconds": round(seconds, 6), "bytes": exchange.size, "model_version": version, "key": exchange.key}
            logs.access({**fields, "detail": exchange.detail})


class Endpoints:
    """What each route answers, around the state of a worker."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._explaining = asyncio.Semaphore(1)  # for it costs as much as many images
        self._quoted: dict[str, str] = {}  # labels, percent-encoded

    def guarded(self, endpoint: Endpoint) -> Endpoint:
        """Let an endpoint answer only who brings a key, where keys are asked for."""
        keys = self._engine.keys

        async def checked(request: Request) -> Response:
            exchange: Exchange = request.scope[_EXCHANGE]
            headers = exchange.headers
            exchange.key = keys.name_of(headers.get(b"authorization", b""), headers.get(b"x-api-key", b"")) or ""
            if not exchange.key:
                sentence = "this service asks for a key: send Authorization: Bearer KEY with one that its operator gave you"
                raise ProblemError(401, sentence, {"WWW-Authenticate": "Bearer"})
            return await endpoint(request)

        return checked if keys.required else endpoint

    async def predict(self, request: Request) -> Response:
        """Answer what one image shows."""
        engine, exchange = self._engine, request.scope[_EXCHANGE]
        model = engine.admit()
        try:
            top = read_top(request, len(model.classes))
            content = await read_image(request, exchange, engine)
            row = (await model.predict([content], exchange.deadline))[0]
        finally:
            engine.release(exchange.counted)
        label, told = self._written(row, top)
        if label not in self._quoted:
            self._quoted[label] = quote(label, safe="")
        return self._signed("{" + told, {"x-prediction": self._quoted[label]})

    async def predict_batch(self, request: Request) -> Response:
        """Answer what several images show."""
        engine, exchange = self._engine, request.scope[_EXCHANGE]
        model = engine.admit()
        try:
            top = read_top(request, len(model.classes))
            if media_type(exchange) == _ARRAY:
                contents: list[bytes] | bytes = await read_body(request, exchange, engine)
            else:
                contents = await read_files(request, exchange, engine, "images", engine.settings.max_batch)
            rows = await model.predict(contents, exchange.deadline)
        finally:
            engine.release(exchange.counted)
        return self._signed('{"predictions":[' + ",".join(f"{{{self._written(row, top)[1]}}}" for row in rows) + "]")

    async def explain(self, request: Request) -> Response:
        """Answer where the model looked."""
        engine, exchange = self._engine, request.scope[_EXCHANGE]
        model = engine.admit()
        try:
            if self._explaining.locked():
                raise ProblemError(429, "another picture is being explained: try again in a second", RETRY)
            async with self._explaining:
                label = parameter(request, "label")
                found = await model.explain(await read_image(request, exchange, engine), label, exchange.deadline)
        finally:
            engine.release(exchange.counted)
        rows, columns = found.heat.shape
        heat = [[round(value, 4) for value in row] for row in found.heat.tolist()]
        told = {"label": found.label, "probability": found.probability, "rows": rows, "columns": columns, "heat": heat}
        return self._signed(json.dumps(told, ensure_ascii=False, separators=(",", ":"))[:-1])

    def _written(self, row: "Probabilities", top: int) -> tuple[str, str]:
        """Return the most probable label, and a prediction in JSON without braces, put together by hand for speed."""
        assert self._engine.model
        model, labels = self._engine.model, self._engine.labels
        values, order = row.tolist(), (-row).argsort(kind="stable")[:top].tolist()
        if not math.isfinite(sum(values)):
            raise ValueError("the model gave a probability that is no number")
        best = order[0]
        model.metrics.predictions[best].inc()
        model.metrics.confidence.observe(values[best])
        pairs = ",".join([f'{{"label":{labels[i]},"probability":{round(values[i], 6)!r}}}' for i in order])
        return model.classes[best], f'"label":{labels[best]},"probabilities":[{pairs}]'

    def _signed(self, content: str, headers: dict[str, str] | None = None) -> Response:
        """Return an answer that says which model gave it; `content` is an object in JSON without its last brace."""
        return Response(content + self._engine.signature, 200, headers, "application/json")

    async def model(self, _: Request) -> Response:
        """Answer which model this is."""
        engine = self._engine
        if not engine.identity or not engine.model:
            raise ProblemError(503, "the model is being loaded: try again in a second", RETRY)
        served = {"precision": engine.model.precision, "served_sha256": engine.model.sha256}
        return JSONResponse({**engine.identity.to_dict(), **served})

    async def metrics(self, _: Request) -> Response:
        """Answer what Prometheus asks."""
        if not self._engine.model:
            raise ProblemError(503, "the model is being loaded: try again in a second", RETRY)
        metrics = self._engine.model.metrics
        return Response(metrics.text(), headers={"content-type": metrics.media})

    async def document(self, _: Request) -> Response:
        """Answer the OpenAPI document."""
        return JSONResponse(openapi(self._engine))

    async def live(self, _: Request) -> Response:
        """Answer that the process lives."""
        return PlainTextResponse("\n")

    async def ready(self, _: Request) -> Response:
        """Answer whether predictions are answered."""
        if not self._engine.ready:
            raise ProblemError(503, "the model is not loaded: the log of the service says why", RETRY)
        return PlainTextResponse("\n")


def routes(rest: ASGIApp, engine: Engine) -> Starlette:
    """Return the routes of the service; `rest` answers the files of the Swagger page."""
    ends = Endpoints(engine)
    swagger = page(_SWAGGER, _SWAGGER_POLICY)
    table = [
        Route("/predict", ends.guarded(ends.predict), methods=["POST"]),
        Route("/predict_batch", ends.guarded(ends.predict_batch), methods=["POST"]),
        Route("/model", ends.guarded(ends.model)),
        Route("/metrics", ends.metrics),
        *(Route(path, ends.live) for path in ("/livez", "/healthz")),
        Route("/readyz", ends.ready),
        Route("/docs.json", ends.guarded(ends.document)),
        Route("/", ends.guarded(swagger)),
        *(Route(f"{_STATIC}/{name}", rest, methods=["GET"]) for name in _FILES),
    ]
    if engine.settings.demo:
        table += [Route("/explain", ends.guarded(ends.explain), methods=["POST"])]
        table += [Route("/demo", page(_DEMO, policy(_DEMO.read_text(encoding="utf-8"))))]
    app = Starlette(routes=table, exception_handlers={HTTPException: on_refusal, Exception: on_fault})
    app.router.redirect_slashes = False
    return app


# ---------------------------------------------------------------------------------------------------------------------
# What a request holds
# ---------------------------------------------------------------------------------------------------------------------


def _check_head(scope: Scope) -> None:
    """Refuse a head that is too large, or that names no host or several: who reads it otherwise might be tricked."""
    if len(scope["raw_path"]) + len(scope["query_string"]) > _LONGEST_URL:
        raise ProblemError(414, f"the address is longer than {_LONGEST_URL} bytes")
    headers = scope["headers"]
    if len(headers) > _MOST_HEADERS or sum([len(name) + len(value) + 4 for name, value in headers]) > _LONGEST_HEAD:
        raise ProblemError(431, f"more than {_MOST_HEADERS} headers, or more than {_LONGEST_HEAD} bytes of them")
    if [name for name, _ in headers].count(b"host") != 1 and scope["http_version"] == "1.1":
        raise ProblemError(400, "a request has exactly one header Host")


def parameter(request: Request, name: str) -> str | None:
    """Return a parameter of the address.

    Raises:
        ProblemError: it is given twice, or there are very many.
    """
    if not request.scope["query_string"]:
        return None
    if request.scope["query_string"].count(b"&") > 20:
        raise ProblemError(400, "too many parameters in the address")
    values = request.query_params.getlist(name)
    if len(values) > 1:
        raise ProblemError(400, f"{name} is given {len(values)} times: give it once")
    return values[0] if values else None


def read_top(request: Request, classes: int) -> int:
    """Return how many labels are asked for.

    Raises:
        ProblemError: it is no whole number from 1 to the number of classes.
    """
    given = parameter(request, "top")
    if given is None:
        return min(_DEFAULT_TOP, classes)
    if not re.fullmatch(r"[0-9]{1,6}", given, re.ASCII) or not 1 <= int(given) <= classes:
        raise ProblemError(400, f"top is {given[:20]!r}: use a whole number from 1 to {classes}")
    return int(given)


def media_type(exchange: Exchange) -> str:
    """Return the media type of the body, without parameters.

    Raises:
        ProblemError: the body is compressed.
    """
    encoding = exchange.headers.get(b"content-encoding", b"").strip().lower()
    if encoding not in (b"", b"identity"):
        raise ProblemError(
            415, f"Content-Encoding {encoding[:20].decode('latin-1')!r} is not taken: images are compressed already"
        )
    return exchange.headers.get(b"content-type", b"").partition(b";")[0].strip().lower().decode("latin-1")


async def read_image(request: Request, exchange: Exchange, engine: Engine) -> bytes:
    """Return the bytes of the one image of a request: its body, or the file of a form."""
    if not media_type(exchange).startswith("image/"):
        return (await read_files(request, exchange, engine, "image", 1))[0]
    body = await read_body(request, exchange, engine)
    if not body:
        raise ProblemError(400, "the body is empty: send the bytes of one image file")
    return body


async def read_files(request: Request, exchange: Exchange, engine: Engine, field: str, most: int) -> list[bytes]:
    """Return the files of a form, all in fields of one name."""
    kind = media_type(exchange)
    if kind != "multipart/form-data":
        also = "an image as the body with Content-Type image/*" if field == "image" else f"pixels as {_ARRAY}"
        sentence = f"Content-Type {kind[:60]!r} is not taken: send {also}, or multipart/form-data with files in {field!r}"
        raise ProblemError(415, sentence)
    body = await read_body(request, exchange, engine)
    return forms.files(body, exchange.headers[b"content-type"], field, most)


async def read_body(request: Request, exchange: Exchange, engine: Engine) -> bytes:
    """Read the whole body, at most as much of it as the settings say, until the deadline.

    Raises:
        ProblemError: it is larger (413), comes too slowly (408), or bodies fill the memory that they may (429).
        ClientDisconnect: nobody waits for the answer.
    """
    declared, exchange.unread = exchange.headers.get(b"content-length", b""), True
    if declared.isdigit() and int(declared) > engine.settings.max_body:
        raise too_large(engine)
    body, whole = await piece(request, exchange, engine)
    if whole:
        return body
    pieces = [body]
    try:
        async with asyncio.timeout(exchange.deadline - time.monotonic()):
            while not whole:
                body, whole = await piece(request, exchange, engine)
                pieces.append(body)
    except TimeoutError:
        exchange.unread = False  # it is not waited for any longer
        raise ProblemError(408, "the body did not come in time: send the request again", {"Connection": "close"}) from None
    return b"".join(pieces)


async def piece(request: Request, exchange: Exchange, engine: Engine) -> tuple[bytes, bool]:
    """Return what has come of a body, and whether that is its end."""
    message = await request.receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    body = message.get("body", b"")
    exchange.size += len(body)
    if exchange.size > engine.settings.max_body:
        raise too_large(engine)
    if (more := exchange.size - _SMALL_BODY - exchange.counted) > 0:
        engine.hold(more)
        exchange.counted += more
    exchange.unread = message.get("more_body", False)
    return body, not exchange.unread


def too_large(engine: Engine) -> ProblemError:
    """Return what to raise for a body over the limit."""
    limit = engine.settings.max_body
    return ProblemError(413, f"the body is over the limit of {limit / 1e6:g} MB: send fewer or smaller images")


# ---------------------------------------------------------------------------------------------------------------------
# What is answered besides predictions
# ---------------------------------------------------------------------------------------------------------------------


def problem(request: Request, error: HTTPException) -> Response:
    """Return an error as RFC 9457 has it: the one shape of all."""
    exchange: Exchange = request.scope[_EXCHANGE]
    exchange.detail, status = error.detail, error.status_code
    content = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": error.detail}
    members = error.members if isinstance(error, ProblemError) else {}
    content |= {"request_id": exchange.id, **members}
    kind = Refusal if exchange.unread else JSONResponse
    return kind(content, status, error.headers, "application/problem+json")


class Refusal(JSONResponse):
    """An answer before the body was read: it goes first, then the client may send on for a while, then the connection ends.

    To close on a client that is still sending would reset the connection under the answer.
    """

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        headers = [*self.raw_headers, (b"connection", b"close")]
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        size, more = 0, True
        try:
            async with asyncio.timeout(_DRAIN):
                while more and size < _DRAIN_BYTES:
                    message = await receive()
                    size += len(message.get("body", b""))
                    more = message.get("more_body", False)
        except TimeoutError:
            pass
        await send({"type": "http.response.body", "body": b""})


async def on_refusal(request: Request, error: Exception) -> Response:
    """Answer what a route, or Starlette, has refused."""
    assert isinstance(error, HTTPException)
    if not isinstance(error, ProblemError):
        allow = ", ".join(sorted((error.headers or {}).get("Allow", "").split(", ")))
        if error.status_code == 405:
            error = ProblemError(405, f"{request.scope['path']} takes {allow}", {"Allow": allow})
        else:
            error = ProblemError(404, "there is no such address: GET / shows all that there are")
    error.__context__ = error.__traceback__ = None  # else it keeps the request and its body for long
    return problem(request, error)


async def on_fault(request: Request, _: Exception) -> Response:
    """Answer after a fault of ours, of which only the log tells more."""
    return problem(request, ProblemError(500, _FAULT))


def page(file: Path, security: str) -> Endpoint:
    """Return an endpoint for a page of HTML under a Content-Security-Policy."""
    headers = {
        "content-security-policy": security,
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
    }
    text = file.read_text(encoding="utf-8")

    async def answer(_: Request) -> Response:
        return HTMLResponse(text, headers=headers)

    return answer


def policy(text: str) -> str:
    """Return the Content-Security-Policy under which a page's own script and style work by their SHA-256, and nothing else.

    Images are `data:` for the icon alone: pictures are drawn on a canvas. See https://www.w3.org/TR/CSP3/#external-hash and
    https://www.w3.org/TR/trusted-types/.
    """

    def sources(element: str) -> str:
        contents = re.findall(rf"<{element}>(.*?)</{element}>", text, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() for content in contents)
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {sources('script')}; style-src {sources('style')}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
        "trusted-types 'none'"
    )


def openapi(engine: Engine) -> dict[str, Any]:
    """Return the OpenAPI document, openapi.json, with what this model and these settings bound."""
    told: dict[str, Any] = json.loads(_DOCUMENT.read_text(encoding="utf-8"))
    posts = {path: told["paths"][path]["post"] for path in _POSTS}
    form = posts["/predict_batch"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    form["properties"]["images"]["maxItems"] = engine.settings.max_batch
    if engine.identity:
        classes = engine.identity.card.classes
        told["info"]["version"] = engine.identity.version
        for path in ("/predict", "/predict_batch"):
            posts[path]["parameters"][0]["schema"] |= {"maximum": len(classes), "default": min(_DEFAULT_TOP, len(classes))}
        posts["/explain"]["parameters"][0]["schema"]["enum"] = classes
    if not engine.settings.demo:
        del told["paths"]["/explain"], told["paths"]["/demo"]
    return told
