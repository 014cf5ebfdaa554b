"""A client that asks one version of the service, or the proxy, over HTTP. It never raises for what the other side does.

Every request has a connection of its own: no answer comes over one that was opened before a switch.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import requests

KEYS = "SERVE_API_KEYS_FILE"  # where the service asks for keys


@dataclass(frozen=True)
class Answer:
    """What came back. `reason` is why nothing came (`status` is 0 then), or what an error says of itself."""

    status: int
    milliseconds: float
    text: str = ""
    body: dict[str, Any] = field(default_factory=dict)  # empty where the text is no JSON object
    version: str | None = None  # header X-Model-Version
    manifest: str | None = None  # header X-Manifest
    reason: str = ""

    def __str__(self) -> str:
        """Return it for a sentence: `status 500 (out of memory)`."""
        told = f" ({self.reason})" if self.reason else ""
        return f"status {self.status}{told}" if self.status else f"no answer{told}"


class Client:
    """Asks the service at `url`; `timeout` is the longest silence in seconds, `keys` the file of keys that it asks for."""

    def __init__(self, url: str, timeout: float = 5.0, keys: str | None = None) -> None:
        self._headers = {"Connection": "close"} | ({"Authorization": f"Bearer {_first(keys)}"} if keys else {})
        self._url, self._timeout = url, timeout

    def ready(self, timeout: float | None = None) -> bool:
        """Return whether it takes requests."""
        return self.send("GET", "/readyz", timeout=timeout).status == 200

    def model(self) -> dict[str, Any]:
        """Return what it says of its model; empty when it says nothing."""
        return self.send("GET", "/model").body

    def predict(self, content: bytes, top: int | None = None) -> Answer:
        """Ask for the prediction of one image file, sent as it is."""
        return self.send("POST", f"/predict{_query(top)}", content, {"Content-Type": _media_type(content)})

    def upload(self, path: str, name: str, contents: Sequence[bytes], top: int | None = None) -> Answer:
        """Ask for predictions of image files in the field `name` of a form."""
        files = [(name, (str(number), content, _media_type(content))) for number, content in enumerate(contents)]
        return self.send("POST", f"{path}{_query(top)}", files=files)

    def send(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        files: Any = None,
    ) -> Answer:
        """Send a request and read its answer."""
        wait = timeout or self._timeout
        told = {**self._headers, **(headers or {})}
        started = perf_counter()
        try:
            with requests.Session() as session:
                session.trust_env = False  # no proxy, and no login of ~/.netrc in place of the key
                response = session.request(
                    method, f"{self._url}{path}", data=body, headers=told, timeout=wait, files=files, allow_redirects=False
                )
        except requests.RequestException as error:
            return Answer(0, (perf_counter() - started) * 1000, reason=_why(error, wait))
        took, text = (perf_counter() - started) * 1000, response.content.decode(errors="replace")
        try:
            parsed = json.loads(text)
        except ValueError:
            parsed = None
        content = parsed if isinstance(parsed, dict) else {}
        reason = str(content.get("detail") or content.get("title") or "")[:200] if response.status_code >= 400 else ""
        version, manifest = response.headers.get("X-Model-Version"), response.headers.get("X-Manifest")
        return Answer(response.status_code, took, text, content, version, manifest, reason)


def _first(path: str) -> str:
    """Return the first key of a file as src/serving/keys.py reads it; nothing of one that cannot be read."""
    try:
        lines = [line.partition("#")[0].strip() for line in Path(path).read_text("latin-1").splitlines()]
    except OSError:
        return ""
    return next((line.rpartition(":")[2].strip() for line in lines if line), "")


def _media_type(content: bytes) -> str:
    """Return the media type to send an image as; the service itself goes by the content."""
    return "image/png" if content.startswith(b"\x89PNG") else "image/jpeg"


def _why(error: Exception, timeout: float) -> str:
    """Return in words why no answer came."""
    if isinstance(error, requests.Timeout):
        return f"nothing within {timeout:g} s"
    if isinstance(error, requests.ConnectionError):
        return "connection refused" if "refused" in str(error) else "the connection was closed before an answer came"
    return str(error) or type(error).__name__


def _query(top: int | None) -> str:
    return f"?top={top}" if top is not None else ""
