"""GitHub's REST API for one repository and one token, with the standard library only.

Reads GITHUB_REPOSITORY, GITHUB_TOKEN (or GH_TOKEN) and GITHUB_API_URL. Every request has a time limit; what fails in passing
is tried again where that is safe. The token goes to the API's own host and nowhere else: not to another host that the API
redirects to (artifacts lie on a storage host), not into a message.
"""

import http.client
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import IO, Any

from src.core.command import UserError
from src.system.addresses import without_secrets

_CONNECT = 30.0  # seconds a connection may be silent
_WHOLE = 300.0  # seconds one answer may take in all
_ANSWER = 64 * 2**20  # bytes of JSON in one answer
_TRIES = 4
_PAUSE = 1.0  # seconds, doubled before each further try
_PATIENCE = 60.0  # seconds waited at most before one more try, whatever the server asks for
_IDEMPOTENT = {"GET", "DELETE"}


class ApiError(UserError):
    """GitHub refused, or did not answer: `status` is its HTTP status, or 0 without an answer."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class TooLargeError(ApiError):
    """An answer is larger than it may be; the rest of it was not read."""


class GitHub:
    """One repository and one token. A path is taken below `repos/{repository}/`; one that begins with "/" below the API."""

    def __init__(self, repository: str, token: str, url: str = "https://api.github.com") -> None:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+", repository):
            raise UserError(f"the repository is given as {repository!r}: set GITHUB_REPOSITORY to owner/name")
        if not re.fullmatch(r"[!-~]+", token):
            raise UserError("the token is empty or has spaces in it: set GITHUB_TOKEN to ${{ github.token }} or your own")
        if urllib.parse.urlsplit(url).scheme not in {"http", "https"}:
            raise UserError(
                f"GITHUB_API_URL is {without_secrets(repr(url))}, which is no http address: set it to https://api.github.com"
            )
        self.repository = repository
        self.token = token
        self.url = url.rstrip("/")
        self._opener = urllib.request.build_opener(_Redirects(self.url, token))

    @classmethod
    def from_environment(cls) -> "GitHub":
        """Read the repository, the token and the address from the variables that GitHub Actions sets.

        Raises:
            UserError: one is missing; the message names it.
        """
        repository = os.environ.get("GITHUB_REPOSITORY", "")
        token = (os.environ.get("GITHUB_TOKEN") or os.environ.get("GH_TOKEN") or "").strip()
        if not repository:
            raise UserError("GITHUB_REPOSITORY is not set: set it to owner/name (GitHub Actions sets it by itself)")
        if not token:
            raise UserError("GITHUB_TOKEN is not set: give the step `env: GITHUB_TOKEN: ${{ github.token }}`, or export one")
        return cls(repository, token, os.environ.get("GITHUB_API_URL") or "https://api.github.com")

    def get(self, path: str, **query: object) -> Any:
        """Get one object; "" is the repository itself."""
        return self._json("GET", self._address(path, query))

    def pages(self, path: str, **query: object) -> Iterator[Any]:
        """Yield the items of every page of a list, or of an object that holds one list beside its `total_count`."""
        address = self._address(path, {"per_page": 100, **query})
        while address:
            content, headers = self._send("GET", address)
            yield from _items(_parse(content, "GET", address))
            address = self._next(headers)

    def post(self, path: str, body: object = None) -> Any:
        """Create something. Sent once: a broken connection is not tried again, for it may have been done."""
        return self._json("POST", self._address(path, {}), body)

    def patch(self, path: str, body: object) -> Any:
        """Change something; sent once, as `post`."""
        return self._json("PATCH", self._address(path, {}), body)

    def delete(self, path: str) -> Any:
        """Remove something."""
        return self._json("DELETE", self._address(path, {}))

    def download(self, path: str, largest: int) -> bytes:
        """Get a file, through redirects, which do not get the token.

        Raises:
            TooLargeError: it is larger than `largest` bytes; no more than that is read.
            ApiError: GitHub refused.
        """
        return self._send("GET", self._address(path, {}), largest=largest)[0]

    def _address(self, path: str, query: dict[str, object]) -> str:
        below = path if path.startswith("/") else f"/repos/{self.repository}/{path}".rstrip("/")
        address = self.url + urllib.parse.quote(below, safe="/%:@!$&'()*+,;=?~")
        words = {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in query.items()}
        return address + (("&" if "?" in below else "?") + urllib.parse.urlencode(words) if words else "")

    def _next(self, headers: http.client.HTTPMessage) -> str:
        for link in headers.get("Link", "").split(","):
            found = re.fullmatch(r'\s*<([^>]+)>\s*;\s*rel="?next"?\s*', link)
            if found and _origin(found[1]) != _origin(self.url):
                where = without_secrets(_origin(found[1]))
                raise ApiError(f"the next page is on another host ({where}), which does not get the token", 0)
            if found:
                return found[1]
        return ""

    def _json(self, method: str, address: str, body: object = None) -> Any:
        return _parse(self._send(method, address, body)[0], method, address)

    def _send(
        self, method: str, address: str, body: object = None, largest: int = _ANSWER
    ) -> tuple[bytes, http.client.HTTPMessage]:
        """Send until it is answered, or until one more try is not safe or no longer worth it."""
        data = None if body is None else json.dumps(body, allow_nan=False).encode()
        for attempt in range(1, _TRIES + 1):
            try:
                return self._once(method, address, data, largest)
            except urllib.error.HTTPError as error:
                reason, wait = _refusal(method, address, error), _wait(method, error, attempt)
            except (OSError, http.client.HTTPException, ValueError) as error:
                why = getattr(error, "reason", None) or error
                reason = ApiError(f"{_name(method, address)}: no answer ({why}): check the network and run again", 0)
                wait = _PAUSE * 2**attempt if method in _IDEMPOTENT else None
            if wait is None or attempt == _TRIES:
                raise reason from None
            time.sleep(wait)
        raise AssertionError

    def _once(self, method: str, address: str, data: bytes | None, largest: int) -> tuple[bytes, http.client.HTTPMessage]:
        request = urllib.request.Request(address, data, method=method)  # noqa: S310 -- __init__ checks the scheme
        request.add_header("Accept", "application/vnd.github+json")
        request.add_header("X-GitHub-Api-Version", "2022-11-28")
        request.add_header("User-Agent", "model-report")
        if data is not None:
            request.add_header("Content-Type", "application/json")
        request.add_unredirected_header("Authorization", f"Bearer {self.token}")
        deadline = time.monotonic() + _WHOLE
        with self._opener.open(request, timeout=_CONNECT) as answer:
            return _read(answer, largest, deadline, _name(method, address)), answer.headers


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Send the token on to the API's own host only (a repository that was renamed), and never from https to http."""

    def __init__(self, url: str, token: str) -> None:
        self._home = _origin(url)
        self._token = token

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise urllib.error.URLError(
                f"it redirects from https to {without_secrets(_origin(newurl))}, which is not followed"
            )
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and _origin(newurl) == self._home:
            request.add_unredirected_header("Authorization", f"Bearer {self._token}")
        return request


def _origin(address: str) -> str:
    parts = urllib.parse.urlsplit(address)
    return f"{parts.scheme}://{parts.netloc}".lower()


def _name(method: str, address: str) -> str:
    """Name a request in a message; the query of a storage address can hold a signature, so no query is shown."""
    return without_secrets(f"{method} {address.partition('?')[0]}")


def _read(answer: http.client.HTTPResponse, largest: int, deadline: float, name: str) -> bytes:
    parts, size = [], 0
    while part := answer.read1(65536):
        size += len(part)
        if size > largest:
            raise TooLargeError(f"{name}: the answer is larger than {largest} bytes, and the rest was not read", 0)
        if time.monotonic() > deadline:
            raise TimeoutError(f"not complete after {_WHOLE:.0f} s")
        parts.append(part)
    missing = answer.length or 0
    if missing:  # read1, unlike read, is silent when the connection ends too early
        raise ConnectionError(f"the connection ended {missing} bytes too early")
    return b"".join(parts)


def _parse(content: bytes, method: str, address: str) -> Any:
    if not content:
        return None
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise ApiError(f"{_name(method, address)}: the answer is not JSON: check GITHUB_API_URL", 0) from None


def _items(page: Any) -> list[Any]:
    if isinstance(page, list):
        return page
    lists = [value for value in page.values() if isinstance(value, list)] if isinstance(page, dict) else []
    if len(lists) != 1:
        raise ApiError("GitHub answered with something that is not a list: is GITHUB_API_URL the API's address?", 0)
    return list(lists[0])


def _wait(method: str, error: urllib.error.HTTPError, attempt: int) -> float | None:
    """Seconds to wait before one more try, or None. A rate limit refuses before anything is done; a fault (5xx) may not."""
    asked = error.headers.get("Retry-After", "")
    limited = error.code == 429 or (error.code == 403 and asked)
    if not limited and not (error.code >= 500 and method in _IDEMPOTENT):
        return None
    seconds = float(asked) if asked.isdecimal() else _PAUSE * 2**attempt
    return seconds if seconds <= _PATIENCE else None


def _refusal(method: str, address: str, error: urllib.error.HTTPError) -> ApiError:
    try:
        with error:
            said = json.loads(error.read(65536))["message"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError, http.client.HTTPException):
        said = error.reason
    sentence = f"{_name(method, address)}: {error.code} {str(said)[:300]}: {_advice(method, address, error)}"
    return ApiError(sentence, error.code)


def _advice(method: str, address: str, error: urllib.error.HTTPError) -> str:
    if error.code == 403 and error.headers.get("X-RateLimit-Remaining") == "0":
        return "the token's requests of this hour are used up: run again later"
    if error.code == 403:
        needed = _accepted(error.headers.get("X-Accepted-GitHub-Permissions", "")) or _needed(method, address)
        return f"give the job {needed} under `permissions:` (a fork's token is read-only whatever is written there)"
    advice = {
        401: "the token is wrong or has expired: give the step `GITHUB_TOKEN: ${{ github.token }}`, or a new token",
        404: "it does not exist or the token may not see it: check GITHUB_REPOSITORY, the number and `permissions:`",
        409: "something changed it at the same time: run again",
        422: "GitHub does not take these values: the message says which",
        429: "too many requests: run again in a few minutes",
    }
    return advice.get(error.code, "GitHub has a fault: run again later" if error.code >= 500 else "see the message")


def _accepted(header: str) -> str:
    """Word what GitHub itself says would do, such as "issues=write; pull_requests=write": ";" is or, "," is and."""
    choices = [re.findall(r"([a-z_]+)=([a-z]+)", choice) for choice in header.split(";")]
    worded = [" and ".join(f"`{name.replace('_', '-')}: {level}`" for name, level in choice) for choice in choices if choice]
    return " or ".join(worded)


def _needed(method: str, address: str) -> str:
    """Word the permission that a request below repos/OWNER/NAME needs, where GitHub does not say."""
    path = address.partition("?")[0].partition("/repos/")[2].split("/")[2:]
    last = path[-1] if path else ""
    names = {"issues": "pull-requests", "pulls": "pull-requests", "statuses": "statuses", "actions": "actions"}
    inside = {"status": "statuses", "statuses": "statuses", "pulls": "pull-requests"}
    name = inside.get(last) or names.get(path[0] if path else "", "contents")
    return f"`{name}: {'read' if method == 'GET' else 'write'}`"


def start(github: GitHub, workflow: str, branch: str) -> None:
    """Start a workflow on a branch; where GitHub refuses, say that a person has to."""
    try:
        github.post(f"actions/workflows/{workflow}/dispatches", {"ref": branch})
    except ApiError as error:
        print(f"::warning::{workflow} was not started on {branch} ({error}): start it there, under the tab Actions")
