"""GitHub's REST API through the command `gh`, for one repository: by a job's token, or by the login of a person.

A job's client reads GITHUB_REPOSITORY, GITHUB_TOKEN (or GH_TOKEN) and GITHUB_SERVER_URL, and tries again what fails in
passing, where that is safe. A person's reads GH_REPO, else the Git remote `origin` (where `gh` itself would prefer
`upstream`), and GH_HOST. `gh` speaks HTTPS, and gives the token to no other host that the API redirects to.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from threading import Timer
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from src.core.command import UserError
from src.system.addresses import without_secrets

PLAN = "your plan does not have it in a private repository: README has the table of plans"
_WHOLE = 300.0  # seconds one answer may take in all
_ANSWER = 64 * 2**20  # bytes of one answer
_PAGE = 100  # the most items of a page, of most lists
_TRIES = 4
_PAUSE = 1.0  # seconds, doubled before each further try
_PATIENCE = 60.0  # seconds waited at most before one more try, whatever the server asks for
_QUIET = {"GH_PROMPT_DISABLED": "1", "GH_NO_UPDATE_NOTIFIER": "1", "NO_COLOR": "1", "GH_PAGER": "cat", "GH_DEBUG": ""}


class ApiError(UserError):
    """GitHub refused, or did not answer: `status` is its HTTP status, 429 for every rate limit, or 0 without an answer."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
        self.by_plan = status == 403 and "upgrade to github" in message.lower()

    @property
    def is_final(self) -> bool:
        """True where no other request would fare better: no answer, no login, too many requests."""
        return self.status in (0, 401, 429)


class TooLargeError(ApiError):
    """An answer is larger than it may be; the rest of it was not read."""


@dataclass(frozen=True)
class GitHub:
    """One repository (`owner/name`) on one server. A path is taken below it; one that begins with "/" below the API.

    `token` is that of a job, or empty: then it is a person's login, and a job's advice and patience are not given.
    """

    repository: str
    token: str = field(default="", repr=False)
    server: str = "https://github.com"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", self.repository):
            raise UserError(f"the repository is given as {self.repository!r}: set GITHUB_REPOSITORY to owner/name")
        if not re.fullmatch(r"[!-~]*", self.token):
            raise UserError("the token has spaces in it: set GITHUB_TOKEN to ${{ github.token }} or your own")
        if not re.fullmatch(r"https?://[\w.-]+(:\d+)?/?", self.server):
            shown = without_secrets(repr(self.server))
            raise UserError(f"GITHUB_SERVER_URL is {shown}, which is no server's address: set it to https://github.com")

    @classmethod
    def from_environment(cls) -> "GitHub":
        """Read the repository, the token and the server from the variables that GitHub Actions sets.

        Raises:
            UserError: one is missing; the message names it.
        """
        repository = os.environ.get("GITHUB_REPOSITORY", "")
        token = (os.environ.get("GITHUB_TOKEN") or os.environ.get("GH_TOKEN") or "").strip()
        if not repository:
            raise UserError("GITHUB_REPOSITORY is not set: set it to owner/name (GitHub Actions sets it by itself)")
        if not token:
            raise UserError("GITHUB_TOKEN is not set: give the step `env: GITHUB_TOKEN: ${{ github.token }}`, or export one")
        return cls(repository, token, os.environ.get("GITHUB_SERVER_URL") or "https://github.com")

    @classmethod
    def of_this_folder(cls) -> "GitHub":
        """Find `gh` and the repository of the current folder, for the person who is logged in.

        Raises:
            UserError: there is no `gh`, no Git repository, or no remote that is a repository of GitHub.
        """
        program()
        if given := os.environ.get("GH_REPO", ""):
            match = re.fullmatch(r"(?:([^/\s]+)/)?([\w.-]+/[\w.-]+)", given)
            if not match:
                raise UserError(f"GH_REPO is {given!r}: set it to owner/name, or host/owner/name")
            host, repository = match[1] or "github.com", match[2]
        else:
            command = ["git", "remote", "get-url", "origin"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise UserError(
                    "this folder has no Git remote called origin: put the repository on GitHub "
                    "(`gh repo create --source . --push`), or name one: GH_REPO=owner/name"
                )
            host, repository = parse_remote(done.stdout.strip())
        return cls(repository, server=f"https://{os.environ.get('GH_HOST') or host}")

    @property
    def host(self) -> str:
        """Return the server's host, with its port if it names one."""
        return urlsplit(self.server).netloc

    def get(self, path: str, **query: object) -> Any:
        """Get one object; "" is the repository itself."""
        return self._json("GET", path + (f"?{urlencode(query)}" if query else ""))

    def pages(self, path: str, per_page: int = _PAGE, **query: object) -> Iterator[Any]:
        """Yield the items of every page of a list, or of an object that holds one list beside its `total_count`."""
        page = 1
        while True:
            answer = self.get(path, per_page=per_page, page=page, **query)
            lists = [value for value in answer.values() if isinstance(value, list)] if isinstance(answer, dict) else [answer]
            if len(lists) != 1 or not isinstance(lists[0], list):
                raise ApiError("GitHub answered with something that is not a list: check GITHUB_SERVER_URL", 0)
            yield from lists[0]
            if len(lists[0]) < per_page:
                return
            page += 1

    def post(self, path: str, body: object = None) -> Any:
        """Create something. Sent once: a broken connection is not tried again, for it may have been done."""
        return self._json("POST", path, body)

    def patch(self, path: str, body: object) -> Any:
        """Change something; sent once, as `post`."""
        return self._json("PATCH", path, body)

    def put(self, path: str, body: object) -> Any:
        """Set something; sent once, as `post`."""
        return self._json("PUT", path, body)

    def download(self, path: str, largest: int) -> bytes:
        """Get a file, through redirects, which do not get the token.

        Raises:
            TooLargeError: it is larger than `largest` bytes; no more than that is read.
            ApiError: GitHub refused.
        """
        return self._send("GET", path, largest=largest)

    def address(self, path: str) -> str:
        """Return the path as `gh api` takes it, in which nothing is a placeholder of its own."""
        below = path[1:] if path.startswith("/") else f"repos/{self.repository}/{path}".rstrip("/")
        return quote(below, safe="/%@!$&'()*+,;=?~")

    def command(self, *words: str) -> str:
        """Return a `gh` command to copy into a shell."""
        host = "" if self.host == "github.com" else f"GH_HOST={self.host} "
        return f"{host}gh {shlex.join(words)}"

    def _json(self, method: str, path: str, body: object = None) -> Any:
        content = self._send(method, path, body)
        try:
            return json.loads(content) if content.strip() else None
        except (ValueError, RecursionError):
            raise ApiError(f"{self._name(method, path)}: the answer is not JSON: check GITHUB_SERVER_URL", 0) from None

    def _name(self, method: str, path: str) -> str:
        return without_secrets(f"{method} {self.address(path).partition('?')[0]}")

    def _send(self, method: str, path: str, body: object = None, largest: int = _ANSWER) -> bytes:
        """Send until it is answered, or until one more try is not safe or no longer worth it."""
        for attempt in range(1, (_TRIES if self.token else 1) + 1):
            status, headers, content = self._once(method, path, body, largest)
            if 0 < status < 400:
                return content
            error = self._refusal(self._name(method, path), status, headers, content)
            if attempt == _TRIES or not self.token or (wait := _wait(method, error.status, headers, attempt)) is None:
                raise error
            time.sleep(wait)
        raise AssertionError

    def _once(self, method: str, path: str, body: object, largest: int) -> tuple[int, str, bytes]:
        """Run `gh api` once; return status, headers and content, or 0 and in the content why there is no whole answer."""
        command = [program(), "api", "--include", "--method", method, self.address(path)]
        with TemporaryFile() as given, TemporaryFile() as said:
            if body is not None:
                command += ["--input", "-"]
                given.write(json.dumps(body, allow_nan=False).encode())
                given.seek(0)
            with subprocess.Popen(
                command, stdin=given, stdout=subprocess.PIPE, stderr=said, env=login(self.server, self.token)
            ) as process:
                timer = Timer(_WHOLE, process.kill)
                timer.start()
                head, content = "", b""
                for line in process.stdout or ():
                    if line == b"\r\n":
                        content = process.stdout.read(largest + 1) if process.stdout else b""
                        break
                    head += line.decode(errors="replace")
                timer.cancel()
            if len(content) > largest:
                name = self._name(method, path)
                raise TooLargeError(f"{name}: the answer is larger than {largest} bytes, and the rest was not read", 0)
            found = re.match(r"HTTP/\S+ (\d{3})", head)
            if found and (int(found[1]) >= 400 or not process.returncode):
                return int(found[1]), head, content
            said.seek(0)
            return (401, "", b"gh is not logged in") if process.returncode == 4 else (0, "", said.read(300))

    def _refusal(self, name: str, status: int, headers: str, content: bytes) -> ApiError:
        """Say what GitHub said, and what to do: to a job about its permissions, to a person about the login."""
        said = " ".join(_message(content).split())[:300] or "no reason given"
        log_in = f"run `gh auth login --hostname {self.host}` and try again"
        advice = {
            0: "check the network and run again",
            401: "give the step `GITHUB_TOKEN: ${{ github.token }}`, or a new token" if self.token else log_in,
            404: "it does not exist or the token may not see it: check GITHUB_REPOSITORY, the number and `permissions:`",
            409: "something changed it at the same time: run again",
            422: "GitHub does not take these values: the message says which",
        }.get(status, "GitHub has a fault: run again later" if status >= 500 else "see the message")
        if status == 429 or (status == 403 and (_header("Retry-After", headers) or "rate limit" in said.lower())):
            after, reset = (_header(one, headers) for one in ("Retry-After", "X-RateLimit-Reset"))
            at = f"after {time.strftime('%H:%M', time.localtime(int(reset)))}" if reset.isdecimal() else "in some minutes"
            when = f"in {after} seconds" if after else at
            return ApiError(f"{name}: {status} {said}: run again {when}", 429)
        if status == 403 and self.token:
            needed = _accepted(_header("X-Accepted-GitHub-Permissions", headers)) or "what this needs"
            advice = f"give the job {needed} under `permissions:` (a fork's token is read-only whatever is written there)"
        if status == 0:
            return ApiError(f"{name}: gh does not reach {self.host} ({said}): {advice}", 0)
        if self.token or status == 401:
            return ApiError(f"{name}: {status} {said}: {advice}", status)
        return ApiError(f"{name}: {status} {said}", status)


def program() -> str:
    """Return the path of `gh`, which the environment has beside its Python.

    Raises:
        UserError: it is not installed.
    """
    beside = Path(sys.executable).with_name("gh")
    found = str(beside) if beside.is_file() else shutil.which("gh")
    if not found:
        raise UserError("the command gh is not installed: run make setup, which brings it, or see https://cli.github.com")
    return found


def login(server: str, token: str) -> dict[str, str]:
    """Return the environment of a `gh` that asks nothing, for a server and with a token, or else with its own login."""
    held = {"GH_TOKEN": token, "GH_ENTERPRISE_TOKEN": token} if token else {}
    return {**os.environ, **_QUIET, "GH_HOST": urlsplit(server).netloc, **held}


def parse_remote(remote: str) -> tuple[str, str]:
    """Split a remote's address, as https://HOST/owner/name.git or git@HOST:owner/name.git, into host and owner/name.

    Raises:
        UserError: it is no repository on GitHub.
    """
    if "://" in remote:
        parts = urlsplit(remote)
        web = parts.scheme in {"http", "https"}
        host, path = (parts.netloc.rpartition("@")[2] if web else parts.hostname or ""), parts.path
    else:
        host, _, path = remote.rpartition("@")[2].partition(":")
    name = path.strip("/").removesuffix(".git")
    if not host or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError("the Git remote origin is no repository on GitHub: name yours as GH_REPO=owner/name and run again")
    return host.removeprefix("ssh."), name


def _header(name: str, headers: str) -> str:
    found = re.search(rf"^{name}:\s*(.*?)\s*$", headers, re.IGNORECASE | re.MULTILINE)
    return found[1] if found else ""


def _message(content: bytes) -> str:
    """Return GitHub's reason, with its details; of what is no answer of GitHub's, the text."""
    try:
        answer = json.loads(content)
        details = [error.get("message") if isinstance(error, dict) else error for error in answer.get("errors") or []]
        return "; ".join(str(part) for part in (answer.get("message"), *details) if part)
    except (ValueError, AttributeError, TypeError, RecursionError):
        return content[:300].decode(errors="replace")


def _wait(method: str, status: int, headers: str, attempt: int) -> float | None:
    """Seconds to wait before one more try, or None. A rate limit refuses before anything is done; a fault (5xx) may not."""
    if status != 429 and not (status in (0, *range(500, 600)) and method == "GET"):
        return None
    asked = _header("Retry-After", headers)
    seconds = float(asked) if asked.isdecimal() else _PAUSE * 2**attempt
    return seconds if seconds <= _PATIENCE else None


def _accepted(header: str) -> str:
    """Word what GitHub itself says would do, such as "issues=write; pull_requests=write": ";" is or, "," is and."""
    choices = [re.findall(r"([a-z_]+)=([a-z]+)", choice) for choice in header.split(";")]
    worded = [" and ".join(f"`{name.replace('_', '-')}: {level}`" for name, level in choice) for choice in choices if choice]
    return " or ".join(worded)


def start(github: GitHub, workflow: str, branch: str) -> None:
    """Start a workflow on a branch; where GitHub refuses, say that a person has to."""
    try:
        github.post(f"actions/workflows/{workflow}/dispatches", {"ref": branch})
    except ApiError as error:
        print(f"::warning::{workflow} was not started on {branch} ({error}): start it there, under the tab Actions")
