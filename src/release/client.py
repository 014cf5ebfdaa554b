"""A client that asks one version of the service, or the proxy, over HTTP. It never raises for what the other side does.

Every request has a connection of its own: no answer comes over one that was opened before a switch. Standard library only,
because a rollback has five seconds in all and loads this first.
"""

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

_LARGEST = 16 * 2**20  # bytes of an answer that are read; more is none of ours


@dataclass(frozen=True)
class Request:
    """One HTTP request."""

    method: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What came back. `reason` is why nothing came (`status` is 0 then), or what an error says of itself."""

    status: int
    milliseconds: float
    body: dict[str, Any] = field(default_factory=dict)  # empty where it is no JSON object
    version: str | None = None  # header X-Model-Version
    manifest: str | None = None  # header X-Manifest
    reason: str = ""

    def __str__(self) -> str:
        """Return it for a sentence: `status 500 (out of memory)`."""
        told = f" ({self.reason})" if self.reason else ""
        return f"status {self.status}{told}" if self.status else f"no answer{told}"


KEYS = "SERVE_API_KEYS_FILE"  # where the service asks for keys


class Client:
    """Asks the service at `url`; `timeout` is the longest silence in seconds, `keys` the file of keys that it asks for."""

    def __init__(self, url: str, timeout: float = 5.0, keys: str | None = None) -> None:
        self._headers = {"Authorization": f"Bearer {_first(keys)}"} if keys else {}
        place = urlsplit(url)
        self._host, self._port = place.hostname or "127.0.0.1", place.port or 80
        self._timeout = timeout

    def ready(self, timeout: float | None = None) -> bool:
        """Return whether it takes requests."""
        return self.send(Request("GET", "/readyz"), timeout).status == 200

    def alive(self, timeout: float | None = None) -> bool:
        """Return whether the process answers at all."""
        return self.send(Request("GET", "/livez"), timeout).status == 200

    def model(self) -> dict[str, Any]:
        """Return what it says of its model; empty when it says nothing."""
        return self.send(Request("GET", "/model")).body

    def predict(self, content: bytes, top: int | None = None) -> Answer:
        """Ask for the prediction of one image file, sent as it is."""
        return self.send(Request("POST", f"/predict{_query(top)}", content, {"Content-Type": media_type(content)}))

    def predict_form(self, content: bytes, top: int | None = None) -> Answer:
        """Ask for the prediction of one image file, uploaded as by a form."""
        return self.send(form(f"/predict{_query(top)}", "image", [content]))

    def predict_batch(self, contents: Sequence[bytes], top: int | None = None) -> Answer:
        """Ask for the predictions of several image files."""
        return self.send(form(f"/predict_batch{_query(top)}", "images", contents))

    def send(self, request: Request, timeout: float | None = None) -> Answer:
        """Send a request and read its answer."""
        wait = timeout or self._timeout
        connection = HTTPConnection(self._host, self._port, timeout=wait)
        started = perf_counter()
        try:
            connection.request(request.method, request.path, request.body, {**self._headers, **request.headers})
            response = connection.getresponse()
            content = response.read(_LARGEST)
        except (OSError, HTTPException) as error:
            return Answer(0, _since(started), reason=why(error, wait))
        finally:
            connection.close()
        body = _object(content)
        reason = str(body.get("detail") or body.get("title") or "")[:200] if response.status >= 400 else ""
        headers = response.headers
        return Answer(response.status, _since(started), body, headers["X-Model-Version"], headers["X-Manifest"], reason)


def _first(path: str) -> str:
    """Return the first key of a file as src/serving/keys.py reads it; nothing of one that cannot be read."""
    try:
        lines = [line.partition("#")[0].strip() for line in Path(path).read_text("latin-1").splitlines()]
    except OSError:
        return ""
    return next((line.rpartition(":")[2].strip() for line in lines if line), "")


def form(path: str, field: str, contents: Iterable[bytes]) -> Request:
    """Return an upload (RFC 7578) of image files in a field."""
    boundary = uuid.uuid4().hex
    parts = []
    for number, content in enumerate(contents):
        disposition = f'Content-Disposition: form-data; name="{field}"; filename="{number}"'
        parts.append(f"--{boundary}\r\n{disposition}\r\nContent-Type: {media_type(content)}\r\n\r\n".encode())
        parts += [content, b"\r\n"]
    body = b"".join([*parts, f"--{boundary}--\r\n".encode()])
    return Request("POST", path, body, {"Content-Type": f"multipart/form-data; boundary={boundary}"})


def media_type(content: bytes) -> str:
    """Return the media type to send an image as; the service itself goes by the content."""
    return "image/png" if content.startswith(b"\x89PNG") else "image/jpeg"


def why(error: Exception, timeout: float) -> str:
    """Return in words why no answer came."""
    if isinstance(error, TimeoutError):
        return f"nothing within {timeout:g} s"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, ConnectionError):  # RemoteDisconnected is one
        return "the connection was closed before an answer came"
    return str(error) or type(error).__name__


def _query(top: int | None) -> str:
    return f"?top={top}" if top is not None else ""


def _object(content: bytes) -> dict[str, Any]:
    try:
        body = json.loads(content)
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _since(started: float) -> float:
    return (perf_counter() - started) * 1000
