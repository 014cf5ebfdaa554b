"""GitHub through the `gh` command of the person who runs it: their login, their permissions, one repository.

Reads GH_REPO, else the Git remote `origin`, for the repository, and GH_HOST for a server that is not github.com. Where
`gh` itself would prefer a remote called `upstream`, this does not: settings are for the repository that you push to.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from src.core.command import UserError
from src.system.git_command import git

PLAN = "your plan does not have it in a private repository: README has the table of plans"
_PATIENCE = 60  # seconds one request may take
_PAGE = 30  # the most that a page of variables may hold; every other list allows at least as many
_QUIET = {"GH_PROMPT_DISABLED": "1", "GH_NO_UPDATE_NOTIFIER": "1", "NO_COLOR": "1", "GH_PAGER": "cat", "GH_DEBUG": ""}


class RefusedError(UserError):
    """GitHub answered, and not with what was asked for: `status` is its HTTP status, `by_plan` whether the plan lacks it."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
        self.by_plan = status == 403 and "upgrade to github" in message.lower()


@dataclass(frozen=True)
class Gh:
    """One repository (`owner/name`) on one host. A path is taken below it; one that begins with "/" below the API."""

    host: str
    repository: str

    @classmethod
    def of_this_folder(cls) -> "Gh":
        """Find `gh` and the repository of the current folder.

        Raises:
            UserError: there is no `gh`, no Git repository, or no remote that is a repository of GitHub.
        """
        if not shutil.which("gh"):
            raise UserError("the command gh is not installed: get it from https://cli.github.com, then run `gh auth login`")
        given = os.environ.get("GH_REPO", "")
        host, repository = _split(given) if given else _parse(_origin())
        return cls(os.environ.get("GH_HOST") or host, repository)

    def get(self, path: str) -> Any:
        """Get one object; "" is the repository itself.

        Raises:
            RefusedError: GitHub answers with an error.
            UserError: it does not answer, does not know the person, or asks to wait.
        """
        return self._ask("GET", path, None)

    def pages(self, path: str, key: str = "") -> Iterator[Any]:
        """Yield the items of every page of a list, or of the list under `key`."""
        mark = "&" if "?" in path else "?"
        page = 1
        while True:
            answer = self.get(f"{path}{mark}per_page={_PAGE}&page={page}")
            items = answer[key] if key else answer
            yield from items
            if len(items) < _PAGE:
                return
            page += 1

    def send(self, method: str, path: str, body: object) -> Any:
        """Change something: `body` is sent as JSON. Raises as `get` does."""
        return self._ask(method, path, json.dumps(body))

    def address(self, path: str) -> str:
        """Return the path as `gh api` takes it."""
        return path[1:] if path.startswith("/") else f"repos/{self.repository}/{path}".rstrip("/")

    def command(self, *words: str) -> str:
        """Return a `gh` command to copy into a shell."""
        host = "" if self.host == "github.com" else f"GH_HOST={self.host} "
        return f"{host}gh {shlex.join(words)}"

    def _ask(self, method: str, path: str, body: str | None) -> Any:
        command = ["gh", "api", "--include", "--method", method, self.address(path)]
        port = ":" in self.host  # --hostname takes none, and GH_HOST keeps gh from saying that nobody is logged in
        environment = os.environ | _QUIET | ({"GH_HOST": self.host} if port else {})
        command += [] if port else ["--hostname", self.host]
        try:
            done = subprocess.run(
                [*command, *(["--input", "-"] if body is not None else [])],
                input=body or "",
                env=environment,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_PATIENCE,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise UserError(f"{self.host} gave no answer in {_PATIENCE} s: check your network and run again") from None
        answer = re.match(r"HTTP/\S+ (\d{3})[^\n]*\n(.*?)\r?\n\r?\n(.*)", done.stdout, re.DOTALL)
        if not answer:
            raise UserError(self._unreachable(done))
        status, headers, content = int(answer[1]), answer[2], answer[3]
        if status >= 400:
            raise self._refused(f"{method} {self.address(path)}", status, headers, content)
        return json.loads(content) if content.strip() else None

    def _unreachable(self, done: "subprocess.CompletedProcess[str]") -> str:
        login = f"gh auth login --hostname {self.host}"
        if done.returncode == 4:
            return f"gh is not logged in to {self.host}: run `{login}` and try again"
        said = " ".join(done.stderr.split())[:300] or f"it ended with {done.returncode} and said nothing"
        return f"gh does not reach {self.host} ({said}): check your network and `gh auth status`, then run again"

    def _refused(self, request: str, status: int, headers: str, content: str) -> UserError:
        said = _message(content) or "no reason given"
        if status == 401:
            return UserError(f"{self.host} does not accept your login ({said}): run `gh auth login --hostname {self.host}`")
        if status in {403, 429} and "rate limit" in said.lower():
            return UserError(f"{self.host} asks to wait ({said}): run again {_when(headers)}")
        return RefusedError(f"{request}: {status}, {said}", status)


def _origin() -> str:
    address = git("remote", "get-url", "origin")
    if not address:
        raise UserError(
            "this folder has no Git remote called origin: put the repository on GitHub "
            "(`gh repo create --source . --push`), or name one: GH_REPO=owner/name"
        )
    return address


def _parse(remote: str) -> tuple[str, str]:
    """Split a remote's address, as https://HOST/owner/name.git or git@HOST:owner/name.git, into host and owner/name."""
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


def _split(given: str) -> tuple[str, str]:
    match = re.fullmatch(r"(?:([^/\s]+)/)?([\w.-]+/[\w.-]+)", given)
    if not match:
        raise UserError(f"GH_REPO is {given!r}: set it to owner/name, or host/owner/name")
    return match[1] or "github.com", match[2]


def _message(content: str) -> str:
    try:
        answer = json.loads(content)
    except ValueError:
        return ""
    if not isinstance(answer, dict):
        return ""
    errors = answer.get("errors") or []
    details = [error.get("message") if isinstance(error, dict) else error for error in errors if error]
    return "; ".join(str(part) for part in (answer.get("message"), *details) if part)


def _when(headers: str) -> str:
    reset = re.search(r"^x-ratelimit-reset:\s*(\d+)", headers, re.IGNORECASE | re.MULTILINE)
    after = re.search(r"^retry-after:\s*(\d+)", headers, re.IGNORECASE | re.MULTILINE)
    if after:
        return f"in {after[1]} seconds"
    return f"after {time.strftime('%H:%M', time.localtime(int(reset[1])))}" if reset else "in some minutes"
