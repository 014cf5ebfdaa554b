"""Errors as HTTP tells them: one JSON shape, RFC 9457 "Problem Details", and no word of how the service is made."""

import json
from http import HTTPStatus
from typing import Any, NamedTuple

JSON = b"application/json"
_PROBLEM = b"application/problem+json"


class Answer(NamedTuple):
    """A whole HTTP answer."""

    status: int
    body: bytes
    media: bytes = JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()


class ProblemError(Exception):
    """A request that cannot be answered; the text says to its sender why, and how to mend it."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None, **more: Any) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers, self.more = status, detail, headers or {}, more

    def answer(self, request_id: str) -> Answer:
        """Return it as HTTP tells it; `more` are members of its own, as RFC 9457 allows."""
        title = HTTPStatus(self.status).phrase
        content = {"type": "about:blank", "title": title, "status": self.status, "detail": self.detail}
        body = json.dumps({**content, "request_id": request_id, **self.more}, ensure_ascii=False).encode()
        headers = tuple((name.lower().encode(), value.encode()) for name, value in self.headers.items())
        return Answer(self.status, body, _PROBLEM, headers)
