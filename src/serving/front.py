"""What HTTP requests meet first: routes, limits and errors. An ASGI application around BentoML's.

Requests for predictions are answered here and go no further, because BentoML's own request path costs several times the
model, fetches texts in file fields as addresses, and answers some bad input with 500. Health and the files of the Swagger
page come from BentoML.
"""

import json
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import quote

from src.serving import demo, logs, multipart, openapi
from src.serving.engine import Engine, log
from src.serving.metrics import OTHER, ROUTES
from src.serving.problems import Answer, ProblemError
from src.serving.request import GoneError, Message, Receive, Request, Send

App = Callable[[Message, Receive, Send], Awaitable[None]]

_STATIC = "/static_content"
_METHODS = {
    "/": "GET", "/docs.json": "GET", "/demo": "GET", "/model": "GET", "/metrics": "GET",
    "/predict": "POST", "/predict_batch": "POST", "/explain": "POST",
    "/livez": "GET", "/readyz": "GET", "/healthz": "GET", _STATIC: "GET",
}  # fmt: skip
_DEMO = ("/demo", "/explain")
_BENTOML = ("/livez", "/readyz", "/healthz", _STATIC)  # answered by it
_OPEN = (*_BENTOML, "/metrics", "/demo")  # without a key; metrics are not reached from outside, the page asks for one itself
_FILE = re.compile(r"/static_content/[\w.-]+", re.ASCII)
_GOOD = (200, 206, 304)  # a whole file, a part of it, or none because the client has it
_REFUSED = {  # by BentoML
    400: "the range that is asked for cannot be read",
    404: "there is no such file",
    416: "there is no such range of this file",
    503: "the model is not loaded: the log of the service says why",
}
_DEFAULT_TOP = 5
_SAFE = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))
_PAGE = b"text/html; charset=utf-8"
_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_ARRAY = "application/octet-stream"


class Front:
    """Answers the routes of the service; `app` is BentoML's."""

    def __init__(self, app: App, engine: Engine) -> None:
        self._app = app
        self._engine = engine

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request, as the ASGI standard has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        request = Request(scope, receive, began + self._engine.settings.timeout, _route(scope["path"]))
        answer: Answer | None = None
        try:
            if request.route in _BENTOML:
                await self._pass(request, send)
            else:
                answer = await self._answer(request)
        except GoneError:
            return
        except ProblemError as problem:
            problem.__context__ = problem.__traceback__ = None  # else it keeps the request and its body for long
            request.problem = problem
            answer = problem.answer(request.id)
        except Exception:
            log.exception("%s %s: 500, request %s", request.method, request.route, request.id)
            answer = ProblemError(500, "a fault of the service: its log has more under this request id").answer(request.id)
        finally:
            self._engine.hold(-request.counted)
        if answer is not None:
            signed = self._engine.headers if _METHODS.get(request.route) == "POST" else ()
            await request.send(answer, [*about(answer, request.id), *signed, *answer.headers], send)
        self._tell_log(request, answer.status if answer else request.status, time.monotonic() - began)

    async def _pass(self, request: Request, send: Send) -> None:
        """Let BentoML answer, where that is good news.

        Raises:
            ProblemError: it is not; what it says is not passed on, for it has another shape.
        """
        self._check_method(request)

        async def good(message: Message) -> None:
            request.status = message.get("status", request.status)
            if request.status in _GOOD:
                await send(message)

        await self._app(request.scope, request.receive, good)
        if request.status not in _GOOD:
            known = request.status if request.status in _REFUSED else 404
            raise ProblemError(known, _REFUSED[known])

    def _tell_log(self, request: Request, status: int, seconds: float) -> None:
        if self._engine.metrics:
            self._engine.metrics.answered(request.route if request.route in ROUTES else OTHER, status, seconds)
        identity = self._engine.identity
        version = identity.version if identity else ""
        detail = request.problem.detail if request.problem else ""
        logs.access(request.method, request.route, status, seconds, request.id, version, request.key, detail, request.held)

    async def _answer(self, request: Request) -> Answer:
        if request.route not in _METHODS or (request.route in _DEMO and not self._engine.settings.demo):
            raise ProblemError(404, "there is no such address: GET / shows all that there are")
        self._identify(request)
        self._check_method(request)
        if _METHODS[request.route] == "GET":
            return self._tell(request.route)
        self._engine.admit()
        try:
            return await (self._explain(request) if request.route == "/explain" else self._predict(request))
        finally:
            self._engine.release()

    def _check_method(self, request: Request) -> None:
        allowed = _METHODS[request.route]
        if request.method != allowed and (request.method, allowed) != ("HEAD", "GET"):
            allow = "GET, HEAD" if allowed == "GET" else allowed
            raise ProblemError(405, f"{request.route} takes {allowed}", {"Allow": allow})

    def _identify(self, request: Request) -> None:
        """Find out whose key it is.

        Raises:
            ProblemError: keys are asked for, and this is none of them (401).
        """
        if not self._engine.keys.required or request.route in _OPEN:
            return
        request.key = self._engine.keys.name_of(request.raw(b"authorization"), request.raw(b"x-api-key")) or ""
        if not request.key:
            sentence = "this service asks for a key: send Authorization: Bearer KEY with one that its operator gave you"
            raise ProblemError(401, sentence, {"WWW-Authenticate": "Bearer"})

    def _tell(self, route: str) -> Answer:
        engine = self._engine
        if route == "/":
            return Answer(200, openapi.PAGE.encode(), _PAGE, openapi.PAGE_HEADERS)
        if route == "/demo":
            return Answer(200, demo.PAGE, _PAGE, demo.PAGE_HEADERS)
        if route == "/docs.json":
            return Answer(200, json.dumps(openapi.document(engine.settings, engine.identity)).encode())
        if route == "/metrics" and engine.metrics:
            return Answer(200, engine.metrics.text(), engine.metrics.media)
        if engine.identity is None:
            raise ProblemError(503, "the model is being loaded: try again in a second", {"Retry-After": "1"})
        return Answer(200, _JSON({**engine.identity.to_dict(), **engine.served}).encode())

    async def _predict(self, request: Request) -> Answer:
        single = request.route == "/predict"
        top = self._top(request)
        contents = [await self._image(request)] if single else await self._images(request)
        assert self._engine.predictor
        predictions = await self._engine.predictor.predict(contents, top, request.deadline)
        told = [self._written(ranked) for ranked in predictions]
        if not single:
            return self._signed('{"predictions":[' + ",".join(f"{{{one}}}" for one in told) + "]")
        return self._signed("{" + told[0], ((b"x-prediction", quote(predictions[0][0][0], safe="").encode()),))

    def _written(self, ranked: Sequence[tuple[str, float]]) -> str:
        """Return one prediction as JSON has it, without braces; put together by hand in a third of an encoder's time."""
        label = self._engine.written
        pairs = ",".join(f'{{"label":{label[name]},"probability":{probability!r}}}' for name, probability in ranked)
        return f'"label":{label[ranked[0][0]]},"probabilities":[{pairs}]'

    async def _explain(self, request: Request) -> Answer:
        label = request.query("label")
        found = await self._engine.explain(await self._image(request), label, request.deadline)
        rows, columns = found.heat.shape
        heat = [[round(value, 4) for value in row] for row in found.heat.tolist()]
        content = {"label": found.label, "probability": found.probability, "rows": rows, "columns": columns, "heat": heat}
        return self._signed(_JSON(content)[:-1])

    def _signed(self, content: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> Answer:
        """Return an answer that says which model gave it; `content` is an object in JSON without its last brace."""
        return Answer(200, content.encode() + self._engine.signature, headers=headers)

    def _top(self, request: Request) -> int:
        assert self._engine.identity
        classes = len(self._engine.identity.card.classes)
        given = request.query("top")
        if given is None:
            return min(_DEFAULT_TOP, classes)
        if not re.fullmatch(r"[0-9]{1,6}", given, re.ASCII) or not 1 <= int(given) <= classes:
            raise ProblemError(400, f"top is {given[:20]!r}: use a whole number from 1 to {classes}")
        return int(given)

    async def _image(self, request: Request) -> bytes:
        """Return the bytes of the one image of a request: its body, or the file of a form."""
        kind = request.media()
        if kind.startswith("image/"):
            body = await request.body(self._engine)
            if not body:
                raise ProblemError(400, "the body is empty: send the bytes of one image file")
            return body
        return (await self._files(request, kind, "image", 1))[0]

    async def _images(self, request: Request) -> Sequence[bytes] | bytes:
        """Return the files of a form, or the bytes of an array of pixels."""
        kind = request.media()
        if kind == _ARRAY:
            return await request.body(self._engine)
        return await self._files(request, kind, "images", self._engine.settings.max_batch)

    async def _files(self, request: Request, kind: str, field: str, most: int) -> list[bytes]:
        """Return the files of a form, all in fields of one name."""
        if kind != "multipart/form-data":
            also = "an image as the body with Content-Type image/*" if field == "image" else f"pixels as {_ARRAY}"
            sentence = (
                f"Content-Type {kind[:60]!r} is not taken: send {also}, or multipart/form-data with files in {field!r}"
            )
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


def about(answer: Answer, request: str) -> list[tuple[bytes, bytes]]:
    """Return the headers that every answer has."""
    length = b"%d" % len(answer.body)
    named = ((b"content-type", answer.media), (b"content-length", length), (b"x-request-id", request.encode()))
    return [*named, *_SAFE]


def _route(path: str) -> str:
    """Return one of the known routes, which is all that is counted and logged of a path."""
    if path in _METHODS and path != _STATIC:
        return path
    return _STATIC if _FILE.fullmatch(path) else OTHER
