"""Errors as HTTP has them: one JSON shape, RFC 9457 "Problem Details", and no word of how the service is made."""

import time
from typing import Any

from starlette.exceptions import HTTPException

RETRY = {"Retry-After": "1"}


class ProblemError(HTTPException):
    """A request that cannot be answered; `detail` says to its sender why, and how to mend it."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None, **members: Any) -> None:
        """Take what is sent; `members` are fields of its own in the JSON object, as RFC 9457 allows."""
        super().__init__(status, detail, headers)
        self.members = members


def late() -> ProblemError:
    """Return what to raise for work for which nobody waits any more."""
    return ProblemError(504, "not computed in time: the service is busy, or the images are many or large", RETRY)


def check_time(deadline: float) -> None:
    """Stop work for which nobody waits any more.

    Args:
        deadline: by `time.monotonic()`.

    Raises:
        ProblemError: it has passed.
    """
    if time.monotonic() > deadline:
        raise late()
