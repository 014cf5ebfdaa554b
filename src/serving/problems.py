"""Errors as HTTP tells them: one JSON shape, RFC 9457 "Problem Details", and no word of how the service is made."""

import json
import secrets
import time
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
        self.title = HTTPStatus(status).phrase

    def answer(self, request_id: str) -> Answer:
        """Return it as HTTP tells it; `more` are members of its own, as RFC 9457 allows."""
        content = {"type": "about:blank", "title": self.title, "status": self.status, "detail": self.detail}
        body = json.dumps({**content, "request_id": request_id, **self.more}, ensure_ascii=False).encode()
        headers = tuple((name.lower().encode(), value.encode()) for name, value in self.headers.items())
        return Answer(self.status, body, _PROBLEM, headers)


def new_request_id() -> str:
    """Return an id for a request that brings none."""
    return secrets.token_hex(8)


def late() -> ProblemError:
    """Return what to raise for work for which nobody waits any more."""
    sentence = "not computed in time: the service is busy, or the images are many or large"
    return ProblemError(504, sentence, {"Retry-After": "1"})


def check_time(deadline: float) -> None:
    """Stop work for which nobody waits any more.

    Args:
        deadline: by `time.monotonic()`.

    Raises:
        ProblemError: it has passed.
    """
    if time.monotonic() > deadline:
        raise late()
