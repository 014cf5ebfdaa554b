"""A stand-in for GitHub on loopback: the parts of its API and Git service that this project uses, permissions included.

with GitHub(tmp_path) as github:     # repository team/models with an empty `main`
    token = github.token({"contents": "read", "pull-requests": "write"})

It is stricter than a public GitHub: every read needs its permission too, as in a private repository.
"""

import atexit
import base64
import gzip
import io
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

BOT = "github-actions[bot]"
LONGEST_BODY = 65_536
LONGEST_DESCRIPTION = 140
LONGEST_TITLE = 256
NOBODY = "0" * 40
IDENTITY = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"} | {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "GitHub"), ("EMAIL", "noreply@localhost"))
}


class RefusedError(Exception):
    """An answer that is an error: GitHub's status and body."""

    def __init__(self, status: int, message: str, **more: Any) -> None:
        self.status = status
        self.body = {"message": message, **more, "status": str(status)}
        self.accepted = ""  # the permissions of which one would do, in GitHub's words


@dataclass
class Call:
    """One request as a handler of the API sees it."""

    method: str
    path: str
    query: dict[str, str]
    body: Any
    login: str


@dataclass
class Repository:
    """A bare repository and what GitHub knows of it."""

    id: int
    full_name: str
    path: Path
    url: str
    parent: "Repository | None" = None

    @property
    def owner(self) -> str:
        return self.full_name.split("/")[0]

    def git(self, *arguments: str, **environment: str) -> str:
        command = ["git", "--git-dir", str(self.path), *arguments]
        outcome = subprocess.run(command, env={**os.environ, **IDENTITY, **environment}, capture_output=True, text=True)
        if outcome.returncode:
            raise RefusedError(422, outcome.stderr.strip() or "git failed")
        return outcome.stdout.strip()

    def sha(self, ref: str) -> str | None:
        """Return the commit of a branch, a full ref or a hash; None where there is none."""
        for name in (f"refs/heads/{ref}", ref):
            try:
                return self.git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
            except RefusedError:
                continue
        return None

    def branches(self) -> dict[str, str]:
        """Return the commit of each branch."""
        listed = self.git("for-each-ref", "--format=%(refname:lstrip=2) %(objectname)", "refs/heads")
        return dict(line.rsplit(" ", 1) for line in listed.splitlines())

    def shown(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.full_name.split("/")[1],
            "full_name": self.full_name,
            "owner": user(self.owner),
            "private": True,
            "visibility": "private",
            "fork": self.parent is not None,
            "default_branch": "main",
            "html_url": f"{self.url}/{self.full_name}",
            "clone_url": f"{self.url}/{self.full_name}.git",
            "url": f"{self.url}/repos/{self.full_name}",
        }


@dataclass
class Pull:
    """A pull request: its head is what its branch holds at the time of asking."""

    number: int
    base: str
    branch: str
    head: Repository
    author: str = "author"
    title: str = "A change"
    body: str = ""
    state: str = "open"
    merged_at: tuple[str | None, ...] = ()  # base and head that its merge ref was made of
    labels: list[str] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)


class GitHub:
    """The service: start it with `with`; every method may be called while it answers."""

    def __init__(self, folder: Path, full_name: str = "team/models") -> None:
        self.folder = folder / "github"
        self.lock = threading.RLock()
        self.requests: list[dict[str, Any]] = []
        self.tokens: dict[str, dict[str, str]] = {}
        self.logins: dict[str, str] = {}
        self.repositories: dict[str, Repository] = {}
        self.pulls: dict[int, Pull] = {}
        self.collaborators = {"author": "write"}
        self.dispatches: list[dict[str, Any]] = []
        self.answers: dict[tuple[str, str], tuple[int, Any]] = {}
        self.runs: dict[int, dict[str, Any]] = {}
        self._comments: dict[int, list[dict[str, Any]]] = {}
        self._statuses: list[dict[str, Any]] = []
        self._checks: list[dict[str, Any]] = []
        self.issues: dict[int, dict[str, Any]] = {}
        self.pulls_by_workflows = True
        self.deployments: dict[int, dict[str, Any]] = {}
        self.attestations: list[dict[str, Any]] = []
        self.private = True
        self._artifacts: dict[int, tuple[dict[str, Any], bytes]] = {}
        self._faults: list[tuple[str, int]] = []
        self._ids = iter(range(1_000, 10**9))
        self._runs = iter(range(7_000, 10**9))
        self._server = Server(("127.0.0.1", 0), type("Bound", (Handler,), {"github": self}))
        self.url = self.server_url = f"http://127.0.0.1:{self._server.server_port}"
        self.elsewhere = f"http://localhost:{self._server.server_port}"
        self.runtime_token = "runtime"
        self.repository = self._create(full_name)
        self.git = self.repository.path

    def __enter__(self) -> Self:
        tls()
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    # -- What a test arranges -----------------------------------------------------------------------------------------

    def token(self, permissions: Mapping[str, str], login: str = BOT) -> str:
        """Make a token with exactly these permissions, such as {"contents": "read", "pull-requests": "write"}."""
        token = f"ghs_{next(self._ids)}{os.urandom(12).hex()}"
        self.tokens[token] = dict(permissions)
        self.logins[token] = login
        return token

    def fork(self, full_name: str) -> Path:
        """Make a fork of the repository, or find it; returns its bare repository, to which a test pushes by path."""
        if full_name not in self.repositories:
            self._create(full_name, self.repository)
        return self.repositories[full_name].path

    def open_pull_request(
        self,
        branch: str,
        base: str = "main",
        fork: str | None = None,
        author: str = "author",
        **more: Any,
    ) -> int:
        """Open a pull request of a branch that has been pushed; makes refs/pull/N/head and refs/pull/N/merge."""
        if fork:
            self.fork(fork)
        home = self.repositories[fork or self.repository.full_name]
        assert home.sha(branch), f"{home.full_name} has no branch {branch}: push it first"
        with self.lock:
            pull = Pull(self.next_number(), base, branch, home, author=author, **more)
            self.pulls[pull.number] = pull
        self.refresh()
        return pull.number

    def next_number(self) -> int:
        """Return the next number: pull requests and issues share one row of them."""
        return max([*self.pulls, *self.issues], default=0) + 1

    def open_issue(self, title: str, body: str = "", login: str = "someone") -> int:
        """Open an issue; returns its number."""
        with self.lock:
            number = self.next_number()
            address = f"{self.repository.full_name}/issues/{number}"
            issue = {"number": number, "title": title, "body": body, "user": user(login), "state": "open", "labels": []}
            issue |= {"url": f"{self.url}/repos/{address}", "html_url": f"{self.server_url}/{address}", "created_at": now()}
            self.issues[number] = issue | {"state_reason": None}
        return number

    def deployed(self, environment: str) -> list[dict[str, Any]]:
        """Return the deployments of an environment, newest first, each with its statuses, newest first."""
        return [one for one in reversed(self.deployments.values()) if one["environment"] == environment]

    def add_label(self, number: int, label: str, by: str = "maintainer") -> None:
        self._label(number, label, by, "labeled")

    def remove_label(self, number: int, label: str, by: str = "maintainer") -> None:
        self._label(number, label, by, "unlabeled")

    def add_comment(self, number: int, body: str, login: str = "someone") -> int:
        """Add a comment; returns its id."""
        comment = {
            "id": next(self._ids),
            "body": body,
            "user": user(login),
            "created_at": now(),
            "updated_at": now(),
            "issue_url": f"{self.url}/repos/{self.repository.full_name}/issues/{number}",
        }
        comment["url"] = f"{self.url}/repos/{self.repository.full_name}/issues/comments/{comment['id']}"
        comment["html_url"] = f"{self.url}/{self.repository.full_name}/pull/{number}#issuecomment-{comment['id']}"
        self._comments.setdefault(number, []).append(comment)
        return comment["id"]

    def comments(self, number: int) -> list[dict[str, Any]]:
        return self._comments.get(number, [])

    def statuses(self, sha: str, context: str | None = None) -> list[dict[str, Any]]:
        """Return the statuses of a commit, newest first."""
        found = [status for status in self._statuses if status["sha"] == sha]
        return [status for status in reversed(found) if context in (None, status["context"])]

    def checks(self, sha: str) -> list[dict[str, Any]]:
        return [check for check in self._checks if check["head_sha"] == sha]

    def add_check(self, sha: str, name: str, conclusion: str | None) -> None:
        """Record a check run of a commit, as GitHub does for each job; no conclusion is one that still runs."""
        status = "completed" if conclusion else "in_progress"
        check = {"id": next(self._ids), "name": name, "head_sha": sha, "status": status, "conclusion": conclusion}
        self._checks.append({**check, "app": {"slug": "github-actions"}})

    def head(self, number: int) -> str:
        """Return the commit a pull request is at."""
        pull = self.pulls[number]
        sha = pull.head.sha(pull.branch)
        assert sha
        return sha

    def merge_commit(self, number: int) -> str | None:
        """Return the commit of refs/pull/N/merge; None when the branches conflict."""
        self.refresh()
        return self.repository.sha(f"refs/pull/{number}/merge")

    def next_run(self) -> int:
        """Return the number of the next workflow run."""
        return next(self._runs)

    def add_run(self, run_id: int, **fields: Any) -> dict[str, Any]:
        """Record a workflow run: head_sha, head_branch, event, conclusion, name, path, head_repository (a full name)."""
        head = self.repositories[fields.pop("head_repository", self.repository.full_name)]
        run = {
            "id": run_id,
            "name": "report",
            "path": ".github/workflows/report.yml",
            "event": "pull_request",
            "status": "completed",
            "conclusion": "success",
            "run_attempt": 1,
            "head_branch": "main",
            "head_sha": self.repository.sha("main"),
            "pull_requests": [],
            "html_url": f"{self.server_url}/{self.repository.full_name}/actions/runs/{run_id}",
            "repository": self.repository.shown(),
            "head_repository": head.shown(),
            "actor": user("author"),
            "created_at": now(),
            **fields,
        }
        self.runs[run_id] = run
        return run

    def upload_artifact(self, run_id: int, name: str, content: Path | bytes, **run: Any) -> int:
        """Store an artifact of a run: a folder or file to zip, or the bytes of a zip; returns its id."""
        blob = content if isinstance(content, bytes) else zipped(content)
        number = next(self._ids)
        known = self.runs.get(run_id)
        source = {
            "id": run_id,
            "repository_id": self.repository.id,
            "head_repository_id": known["head_repository"]["id"] if known else self.repository.id,
            "head_branch": known["head_branch"] if known else "main",
            "head_sha": known["head_sha"] if known else self.repository.sha("main"),
            **run,
        }
        shown = {
            "id": number,
            "name": name,
            "size_in_bytes": len(blob),
            "expired": False,
            "created_at": now(),
            "archive_download_url": f"{self.url}/repos/{self.repository.full_name}/actions/artifacts/{number}/zip",
            "workflow_run": source,
        }
        self._artifacts[number] = (shown, blob)
        return number

    def expire_artifacts(self, *run_ids: int) -> None:
        """Let the artifacts of these runs reach the end of their retention."""
        for shown, _ in self._artifacts.values():
            shown["expired"] |= shown["workflow_run"]["id"] in run_ids

    def artifacts(self, run_id: int | None = None) -> dict[str, bytes]:
        """Return the artifacts of a run (or of all), by name, as the bytes of their zips."""
        found = self._artifacts.values()
        return {one["name"]: blob for one, blob in found if run_id in (None, one["workflow_run"]["id"])}

    def fail_next(self, request: str, status: int = 502, times: int = 1) -> None:
        """Answer the next requests whose "METHOD /path" matches a regular expression with an error of the server."""
        self._faults += [(request, status)] * times

    def answer(self, request: str, status: int, body: Any) -> None:
        """Answer a request such as "GET /repos/team/models/rulesets", which is not known here, in a fixed way."""
        method, path = request.split(" ")
        self.answers[method, path] = (status, body)

    def wrote(self) -> list[str]:
        """Return the requests that were not reads, as "METHOD /path status", in order."""
        reads = ("GET", "HEAD")
        return [f"{r['method']} {r['path']} {r['status']}" for r in self.requests if r["method"] not in reads]

    # -- What GitHub sends to a workflow ------------------------------------------------------------------------------

    def payload(self, event: str, **options: Any) -> dict[str, Any]:
        """Return the payload of an event.

        pull_request: number, action="synchronize", sender; push: branch, before; workflow_dispatch: branch, inputs;
        merge_group: number; workflow_run: run_id, action="completed".
        """
        sender = user(options.get("sender", "author"))
        shown = self.repository.shown() | {"private": self.private, "visibility": "private" if self.private else "public"}
        common = {"repository": shown, "sender": sender}
        return {**getattr(self, f"_{event}_payload")(**options), **common}

    def _pull_request_payload(
        self, number: int, action: str = "synchronize", label: str | None = None, **_: Any
    ) -> dict[str, Any]:
        self.refresh()
        pull = self.show_pull(self.pulls[number])
        labelled = {"label": {"name": label}} if label else {}
        return {"action": action, "number": number, "pull_request": pull, **labelled}

    def _push_payload(self, branch: str = "main", before: str = NOBODY, **_: Any) -> dict[str, Any]:
        sha = self.repository.sha(branch)
        return {"ref": f"refs/heads/{branch}", "before": before, "after": sha}

    def _workflow_dispatch_payload(
        self, branch: str = "main", inputs: Mapping[str, str] | None = None, **_: Any
    ) -> dict[str, Any]:
        return {"ref": f"refs/heads/{branch}", "inputs": dict(inputs or {})}

    def _merge_group_payload(self, number: int, **_: Any) -> dict[str, Any]:
        base = self.pulls[number].base
        sha = self.merge_commit(number)
        assert sha, f"pull request {number} conflicts with {base}"
        ref = f"refs/heads/gh-readonly-queue/{base}/pr-{number}-{sha}"
        self.repository.git("update-ref", ref, sha)
        base_sha = self.repository.sha(base)
        group = {"head_sha": sha, "head_ref": ref, "base_sha": base_sha, "base_ref": f"refs/heads/{base}"}
        return {"action": "checks_requested", "merge_group": group}

    def _workflow_run_payload(self, run_id: int, action: str = "completed", **_: Any) -> dict[str, Any]:
        run = self.runs[run_id]
        return {"action": action, "workflow_run": run, "workflow": {"name": run["name"], "path": run["path"]}}

    # -- What it does of itself ---------------------------------------------------------------------------------------

    def _create(self, full_name: str, parent: Repository | None = None) -> Repository:
        path = self.folder / f"{full_name}.git"
        path.parent.mkdir(parents=True, exist_ok=True)
        source = ["clone", "--quiet", "--bare", str(parent.path)] if parent else ["init", "--quiet", "--bare", "-b", "main"]
        subprocess.run(["git", *source, str(path)], env={**os.environ, **IDENTITY}, check=True)
        repository = Repository(next(self._ids), full_name, path, f"http://127.0.0.1:{self._server.server_port}", parent)
        for key, value in {
            "http.receivepack": "true",
            "uploadpack.allowAnySHA1InWant": "true",
            "uploadpack.allowFilter": "true",
            "receive.hideRefs": "refs/pull",
            "core.logAllRefUpdates": "false",
            "gc.auto": "0",
        }.items():
            repository.git("config", key, value)
        self.repositories[full_name] = repository
        return repository

    def refresh(self) -> None:
        """Bring refs/pull/N/head and refs/pull/N/merge up to date, as GitHub does after a push."""
        with self.lock:
            refs = {repository.full_name: repository.branches() for repository in self.repositories.values()}
            for pull in self.pulls.values():
                now_at = refs[self.repository.full_name].get(pull.base), refs[pull.head.full_name].get(pull.branch)
                if pull.state == "open" and all(now_at) and pull.merged_at != now_at:
                    self._refresh(pull, *now_at)
                    pull.merged_at = now_at

    def _refresh(self, pull: Pull, base: str, head: str) -> None:
        repository, ref = self.repository, f"refs/pull/{pull.number}"
        repository.git("fetch", "--quiet", "--no-tags", str(pull.head.path), f"+refs/heads/{pull.branch}:{ref}/head")
        try:
            tree = repository.git("merge-tree", "--write-tree", base, head).split("\n")[0]
        except RefusedError:  # they conflict: GitHub keeps no merge ref that fits
            repository.git("update-ref", "-d", f"{ref}/merge")
            return
        merged = repository.git("commit-tree", tree, "-p", base, "-p", head, "-m", f"Merge {head} into {base}")
        repository.git("update-ref", f"{ref}/merge", merged)

    def _label(self, number: int, label: str, by: str, event: str) -> None:
        pull = self.pulls[number]
        pull.labels = [one for one in pull.labels if one != label] + ([label] if event == "labeled" else [])
        said = {"id": next(self._ids), "event": event, "actor": user(by), "label": {"name": label}, "created_at": now()}
        pull.events.append(said)

    def pull(self, number: int) -> Pull:
        if number not in self.pulls:
            raise RefusedError(404, "Not Found")
        return self.pulls[number]

    def require_thread(self, number: int) -> None:
        """Refuse the number of what is neither a pull request nor an issue."""
        if number not in self.issues:
            self.pull(number)

    def show_pull(self, pull: Pull) -> dict[str, Any]:
        repository, head, base = self.repository, pull.head.sha(pull.branch), self.repository.sha(pull.base)
        side = {"label": f"{pull.head.owner}:{pull.branch}", "ref": pull.branch, "sha": head, "user": user(pull.head.owner)}
        return {
            "number": pull.number,
            "state": pull.state,
            "title": pull.title,
            "body": pull.body,
            "user": user(pull.author),
            "labels": [{"name": label} for label in pull.labels],
            "head": {**side, "repo": pull.head.shown()},
            "base": {"ref": pull.base, "sha": base, "repo": repository.shown(), "user": user(repository.owner)},
            "updated_at": now(),
            "url": f"{self.url}/repos/{repository.full_name}/pulls/{pull.number}",
            "html_url": f"{self.server_url}/{repository.full_name}/pull/{pull.number}",
        }

    def fault(self, request: str) -> int | None:
        """Return the status a request was arranged to fail with, once."""
        with self.lock:
            for entry in self._faults:
                if re.search(entry[0], request):
                    self._faults.remove(entry)
                    return entry[1]
        return None


def user(login: str) -> dict[str, Any]:
    kind = "Bot" if login.endswith("[bot]") else "User"
    return {"login": login, "id": int.from_bytes(login.encode()[-6:], "big"), "type": kind}


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def zipped(content: Path) -> bytes:
    """Zip a folder (or one file) the way upload-artifact does: links are followed."""
    target = io.BytesIO()
    root, files = (content, sorted(content.rglob("*"))) if content.is_dir() else (content.parent, [content])
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            if path.is_file():
                archive.write(path, path.relative_to(root).as_posix())
    return target.getvalue()


# The API: each route says which of its permissions a token needs one of

Answer = tuple[int, Any]
ROUTES: list[tuple[str, re.Pattern[str], tuple[str, ...], Callable[..., Answer]]] = []
TALK = ("issues", "pull-requests")


def route(method: str, path: str, *needs: str) -> Callable[[Callable[..., Answer]], Callable[..., Answer]]:
    """Register a function for a request below /repos/OWNER/NAME; it needs one of `needs`, such as "issues:write"."""
    level = "read" if method == "GET" else "write"
    pattern = re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path.replace("{rest}", "(?P<rest>.+)")) + "/?")

    def register(function: Callable[..., Answer]) -> Callable[..., Answer]:
        ROUTES.append((method, pattern, tuple(f"{need}:{level}" for need in needs), function))
        return function

    return register


@route("GET", "")
def show_repository(github: GitHub, call: Call) -> Answer:
    return 200, github.repository.shown()


@route("GET", "/issues/{number}/comments", *TALK)
def list_comments(github: GitHub, call: Call, number: str) -> Answer:
    github.require_thread(int(number))
    return 200, github.comments(int(number))


@route("POST", "/issues/{number}/comments", *TALK)
def create_comment(github: GitHub, call: Call, number: str) -> Answer:
    github.require_thread(int(number))
    made = github.add_comment(int(number), checked_body(call), call.login)
    return 201, find_comment(github, str(made))[1]


@route("GET", "/issues/comments/{comment}", *TALK)
def show_comment(github: GitHub, call: Call, comment: str) -> Answer:
    return 200, find_comment(github, comment)[1]


@route("PATCH", "/issues/comments/{comment}", *TALK)
def update_comment(github: GitHub, call: Call, comment: str) -> Answer:
    found = find_comment(github, comment)[1]
    found |= {"body": checked_body(call), "updated_at": now()}
    return 200, found


def find_comment(github: GitHub, comment: str) -> tuple[int, dict[str, Any]]:
    for number in [*github.pulls, *github.issues]:
        for one in github.comments(number):
            if str(one["id"]) == comment:
                return number, one
    raise RefusedError(404, "Not Found")


def checked_body(call: Call) -> str:
    body = call.body.get("body") if isinstance(call.body, dict) else None
    if not isinstance(body, str) or not body.strip():
        raise invalid("IssueComment", "body", "body can't be blank")
    check_length("IssueComment", "body", body, LONGEST_BODY)
    return body


def check_length(resource: str, name: str, text: str | None, most: int) -> None:
    if len(text or "") > most:
        raise invalid(resource, name, f"{name} is too long (maximum is {most} characters)")


def invalid(resource: str, name: str, message: str) -> RefusedError:
    return RefusedError(
        422, "Validation Failed", errors=[{"resource": resource, "code": "custom", "field": name, "message": message}]
    )


@route("GET", "/issues", "issues")
def list_issues(github: GitHub, call: Call) -> Answer:
    state, creator = call.query.get("state", "open"), call.query.get("creator")
    requests = [{**github.show_pull(pull), "pull_request": {}} for pull in github.pulls.values()]
    known = sorted([*github.issues.values(), *requests], key=lambda one: one["number"])
    kept = [one for one in known if state in ("all", one["state"]) and creator in (None, one["user"]["login"])]
    return 200, kept if call.query.get("direction") == "asc" else kept[::-1]


@route("POST", "/issues", "issues")
def create_issue(github: GitHub, call: Call) -> Answer:
    number = github.open_issue(checked_title(call), call.body.get("body") or "", call.login)
    return 201, github.issues[number]


@route("PATCH", "/issues/{number}", "issues")
def update_issue(github: GitHub, call: Call, number: str) -> Answer:
    issue = find(github.issues, number)
    if call.body.get("state", "open") not in ("open", "closed"):
        raise invalid("Issue", "state", "state is not included in the list")
    if "title" in call.body:
        checked_title(call)
    issue |= call.body
    return 200, issue


def checked_title(call: Call) -> str:
    title = call.body.get("title")
    if not isinstance(title, str) or not title.strip():
        raise invalid("Issue", "title", "title is missing")
    check_length("Issue", "title", title, LONGEST_TITLE)
    check_length("Issue", "body", call.body.get("body"), LONGEST_BODY)
    return title


@route("GET", "/issues/{number}/events", *TALK)
def list_events(github: GitHub, call: Call, number: str) -> Answer:
    return 200, github.pull(int(number)).events


@route("GET", "/pulls", "pull-requests")
def list_pulls(github: GitHub, call: Call) -> Answer:
    state, head, base = (call.query.get(key, usual) for key, usual in (("state", "open"), ("head", ""), ("base", "")))
    shown = [github.show_pull(pull) for pull in reversed(github.pulls.values())]
    kept = [pull for pull in shown if state in ("all", pull["state"]) and base in ("", pull["base"]["ref"])]
    return 200, [pull for pull in kept if ":" not in head or head == pull["head"]["label"]]  # GitHub ignores a bare name


@route("POST", "/pulls", "pull-requests")
def create_pull(github: GitHub, call: Call) -> Answer:
    if not github.pulls_by_workflows:
        raise RefusedError(403, "GitHub Actions is not permitted to create or approve pull requests.")
    branch, base = call.body["head"], call.body["base"]
    if not github.repository.sha(branch) or not github.repository.sha(base):
        raise invalid("PullRequest", "head", "is not a branch")
    number = github.open_pull_request(branch, base, author=BOT, title=call.body["title"], body=call.body["body"])
    return 201, github.show_pull(github.pull(number))


@route("GET", "/pulls/{number}", "pull-requests")
def show_pull(github: GitHub, call: Call, number: str) -> Answer:
    return 200, github.show_pull(github.pull(int(number)))


@route("GET", "/pulls/{number}/files", "pull-requests")
def list_files(github: GitHub, call: Call, number: str) -> Answer:
    pull = github.pull(int(number))
    return 200, changed_files(github.repository, f"{pull.base}...refs/pull/{pull.number}/head")


@route("GET", "/compare/{rest}", "contents")
def compare(github: GitHub, call: Call, rest: str) -> Answer:
    repository, (base, head) = github.repository, rest.split("...")
    if not repository.sha(base) or not repository.sha(head):
        raise RefusedError(404, "Not Found")
    origin = show_commit_object(repository, repository.git("merge-base", base, head))
    return 200, {"merge_base_commit": origin, "files": changed_files(repository, rest)}


def changed_files(repository: Repository, span: str) -> list[dict[str, Any]]:
    words = {"A": "added", "D": "removed", "M": "modified", "T": "changed", "R": "renamed"}
    named = [line.split("\t") for line in repository.git("diff", "--name-status", "-M", span).splitlines()]
    return [
        {"filename": paths[-1], "status": words[status[0]]} | ({"previous_filename": paths[0]} if len(paths) > 1 else {})
        for status, *paths in named
    ]


def show_commit_object(repository: Repository, sha: str) -> dict[str, Any]:
    tree, parents, name, email, date, message = repository.git(
        "log", "-1", "--format=%T%x00%P%x00%an%x00%ae%x00%aI%x00%B", sha
    ).split("\0")
    author = {"name": name, "email": email, "date": date}
    commit = {"message": message.strip(), "tree": {"sha": tree}, "author": author, "committer": author}
    return {"sha": sha, "commit": commit, "parents": [{"sha": parent} for parent in parents.split()]}


def commit_of(github: GitHub, ref: str) -> str:
    sha = github.repository.sha(unquote(ref))
    if sha is None:
        raise RefusedError(422, f"No commit found for SHA: {ref}")
    return sha


@route("GET", "/commits/{ref}", "contents")
def show_commit(github: GitHub, call: Call, ref: str) -> Answer:
    return 200, show_commit_object(github.repository, commit_of(github, ref))


@route("GET", "/commits/{ref}/pulls", "pull-requests")
def pulls_of_commit(github: GitHub, call: Call, ref: str) -> Answer:
    sha = commit_of(github, ref)
    shown = [github.show_pull(pull) for pull in github.pulls.values()]
    return 200, [pull for pull in shown if pull["head"]["sha"] == sha]


@route("POST", "/statuses/{ref}", "statuses")
def create_status(github: GitHub, call: Call, ref: str) -> Answer:
    sha, given = github.repository.sha(ref), call.body
    if sha is None or len(ref) != len(NOBODY):
        raise RefusedError(422, f"No commit found for SHA: {ref}")
    if given.get("state") not in ("error", "failure", "pending", "success"):
        raise invalid("Status", "state", "state is not included in the list")
    check_length("Status", "description", given.get("description"), LONGEST_DESCRIPTION)
    keys = {"context": "default", "description": None, "target_url": None}
    status = {"id": next(github._ids), "sha": sha, "state": given["state"], "created_at": now(), "creator": user(call.login)}
    status |= {key: given.get(key) or usual for key, usual in keys.items()}
    github._statuses.append(status)
    return 201, {key: value for key, value in status.items() if key != "sha"}


@route("GET", "/commits/{ref}/statuses", "statuses")
def list_statuses(github: GitHub, call: Call, ref: str) -> Answer:
    return 200, github.statuses(commit_of(github, ref))


@route("GET", "/deployments", "deployments")
def list_deployments(github: GitHub, call: Call) -> Answer:
    asked = {key: call.query[key] for key in ("environment", "sha", "ref", "task") if key in call.query}
    found = [one for one in reversed(github.deployments.values()) if all(one[key] == value for key, value in asked.items())]
    return 200, [{key: value for key, value in one.items() if key != "statuses"} for one in found]


@route("POST", "/deployments", "deployments")
def create_deployment(github: GitHub, call: Call) -> Answer:
    given = call.body
    sha = github.repository.sha(given["ref"])
    if sha is None:
        raise RefusedError(422, f"No ref found for: {given['ref']}")
    checks = {check["name"]: check["conclusion"] for check in github.checks(sha)}
    required = given.get("required_contexts", list(checks))  # without a list, all that is known of the commit
    if any(checks.get(name) != "success" for name in required):
        raise RefusedError(409, "Conflict: Commit status checks failed for " + given["ref"])
    check_length("Deployment", "description", given.get("description"), LONGEST_DESCRIPTION)
    usual = {"task": "deploy", "environment": "production", "payload": {}, "description": None}
    made = {key: given.get(key, value) for key, value in usual.items()}
    made["production_environment"] = given.get("production_environment", made["environment"] == "production")
    made |= {"id": next(github._ids), "sha": sha, "ref": given["ref"], "creator": user(call.login), "created_at": now()}
    github.deployments[made["id"]] = {**made, "statuses": []}
    return 201, made


@route("GET", "/deployments/{number}/statuses", "deployments")
def list_deployment_statuses(github: GitHub, call: Call, number: str) -> Answer:
    return 200, find(github.deployments, number)["statuses"]


@route("POST", "/deployments/{number}/statuses", "deployments")
def create_deployment_status(github: GitHub, call: Call, number: str) -> Answer:
    given, deployment = call.body, find(github.deployments, number)
    if given.get("state") not in ("error", "failure", "inactive", "in_progress", "queued", "pending", "success"):
        raise invalid("DeploymentStatus", "state", "state is not included in the list")
    check_length("DeploymentStatus", "description", given.get("description"), LONGEST_DESCRIPTION)
    status = {"id": next(github._ids), "creator": user(call.login), "created_at": now(), **given}
    deployment["statuses"].insert(0, status)
    if given["state"] == "success" and given.get("auto_inactive", True):
        for other in github.deployed(deployment["environment"]):  # GitHub spares those of production environments
            if other is not deployment and not other["production_environment"] and states_of(other)[:1] == ["success"]:
                other["statuses"].insert(0, {**status, "id": next(github._ids), "state": "inactive"})
    return 201, status


def find(known: Mapping[int, Any], number: str) -> Any:
    if not number.isdecimal() or int(number) not in known:
        raise RefusedError(404, "Not Found")
    return known[int(number)]


def states_of(deployment: Mapping[str, Any]) -> list[str]:
    return [status["state"] for status in deployment["statuses"]]


@route("POST", "/attestations", "attestations")
def create_attestation(github: GitHub, call: Call) -> Answer:
    github.attestations.append(call.body["bundle"])
    return 201, {"id": next(github._ids)}


@route("GET", "/collaborators/{login}/permission")
def show_permission(github: GitHub, call: Call, login: str) -> Answer:
    level = github.collaborators.get(login, "none")
    coarse = {"maintain": "write", "triage": "read"}.get(level, level)
    return 200, {"permission": coarse, "role_name": level, "user": user(login)}


@route("GET", "/contents/{rest}", "contents")
def show_contents(github: GitHub, call: Call, rest: str) -> Answer:
    repository, path = github.repository, unquote(rest)
    ref = commit_of(github, call.query.get("ref", "main"))
    shown = subprocess.run(["git", "--git-dir", repository.path, "show", f"{ref}:{path}"], capture_output=True)
    if shown.returncode or repository.git("cat-file", "-t", f"{ref}:{path}") != "blob":
        raise RefusedError(404, "Not Found")
    text = base64.encodebytes(shown.stdout).decode()
    return 200, {"type": "file", "path": path, "encoding": "base64", "size": len(shown.stdout), "content": text}


@route("GET", "/actions/runs/{run}", "actions")
def show_run(github: GitHub, call: Call, run: str) -> Answer:
    return 200, find(github.runs, run)


@route("GET", "/actions/runs", "actions")
@route("GET", "/actions/workflows/{file}/runs", "actions")
def list_runs(github: GitHub, call: Call, file: str = "") -> Answer:
    asked = {key: call.query[key] for key in ("head_sha", "event") if key in call.query}
    asked |= {"head_branch": call.query["branch"]} if "branch" in call.query else {}
    asked |= {"path": f".github/workflows/{file}"} if file else {}
    state = call.query.get("status")  # or a conclusion
    since, actor = call.query.get("created", "").removeprefix(">="), call.query.get("actor")
    found = [
        run
        for run in reversed(github.runs.values())
        if state in (None, run["status"], run["conclusion"]) and asked.items() <= run.items()
    ]
    found = [run for run in found if run["created_at"] >= since and actor in (None, run["actor"]["login"])]
    return 200, {"total_count": len(found), "workflow_runs": found}


@route("GET", "/actions/runs/{run}/jobs", "actions")
def list_jobs(github: GitHub, call: Call, run: str) -> Answer:
    jobs = github.runs[int(run)].get("jobs", [])
    return 200, {"total_count": len(jobs), "jobs": jobs}


@route("GET", "/actions/artifacts", "actions")
@route("GET", "/actions/runs/{run}/artifacts", "actions")
def list_artifacts(github: GitHub, call: Call, run: str = "") -> Answer:
    name, known = call.query.get("name"), [one for one, _ in reversed(github._artifacts.values())]
    found = [one for one in known if run in ("", str(one["workflow_run"]["id"])) and name in (None, one["name"])]
    return 200, {"total_count": len(found), "artifacts": found}


@route("GET", "/actions/artifacts/{number}/zip", "actions")
def download_artifact(github: GitHub, call: Call, number: str) -> Answer:
    if find(github._artifacts, number)[0]["expired"]:
        raise RefusedError(410, "Artifact has expired")
    return 302, f"{github.elsewhere}/_blob/{number}?sig=once"  # another host, which refuses GitHub's token


@route("POST", "/actions/workflows/{file}/dispatches", "actions")
def dispatch(github: GitHub, call: Call, file: str) -> Answer:
    ref = call.body["ref"].removeprefix("refs/heads/")
    try:
        text = github.repository.git("show", f"{commit_of(github, ref)}:.github/workflows/{file}")
    except RefusedError:
        raise RefusedError(404, "Not Found") from None
    if "workflow_dispatch" not in text:
        raise RefusedError(422, "Workflow does not have 'workflow_dispatch' trigger")
    github.dispatches.append({"workflow": file, "ref": ref, "inputs": call.body.get("inputs") or {}})
    return 204, None


# HTTP


@cache
def tls() -> ssl.SSLContext:
    """Make a certificate for loopback, and let what this process starts trust it beside those that the machine trusts."""
    folder = Path(tempfile.mkdtemp(prefix="standin-tls-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", "req", "-x509", *kind, *names], check=True, capture_output=True)
    trusted = Path(ssl.get_default_verify_paths().cafile or os.devnull).read_text()
    (folder / "trusted.pem").write_text(trusted + certificate.read_text())
    os.environ["SSL_CERT_FILE"] = str(folder / "trusted.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


class Server(ThreadingHTTPServer):
    """Answers on one port whoever begins in plain text, as Git and the actions' stand-ins do, and with TLS, as `gh` does."""

    daemon_threads = True

    def finish_request(self, request: Any, client_address: Any) -> None:
        if request.recv(1, socket.MSG_PEEK) == b"\x16":  # a handshake
            with suppress(OSError), tls().wrap_socket(request, server_side=True) as secure:
                super().finish_request(secure, client_address)
        else:
            super().finish_request(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Tells Git from API from artifact store by the path, and keeps the log."""

    github: GitHub
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet for head and body: without it each answer waits 40 ms for Nagle's algorithm
    disable_nagle_algorithm = True

    def handle_any(self) -> None:
        url = urlsplit(self.path)
        path = url.path.removeprefix("/api/v3")
        content = self.read_body()
        token = self._token()
        self.entry = {"method": self.command, "path": path, "query": url.query, "token": token, "status": 0}
        self.github.requests.append(self.entry)
        fault = self.github.fault(f"{self.command} {path}")
        if fault:
            self.send(fault, json.dumps({"message": "arranged to fail"}).encode())
        elif git := re.fullmatch(r"/([\w.-]+/[\w.-]+?)(?:\.git)?/(info/refs|git-(?:upload|receive)-pack)", path):
            self._git(git[1], git[2], url.query, content, token)
        elif path.startswith(("/_blob/", "/_runtime/")):
            self._store(path, content, token)
        else:
            self._api(path, url.query, content, token)

    def __getattr__(self, name: str) -> Callable[[], None]:
        if name.startswith("do_"):  # do_GET, do_POST and so on: how the base class names the handler of a method
            return self.handle_any
        raise AttributeError(name)

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _token(self) -> str | None:
        kind, _, value = self.headers.get("Authorization", "").partition(" ")
        if kind.lower() == "basic":
            return base64.b64decode(value).decode().partition(":")[2]
        return value.strip() or None

    def send(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> int:
        self.entry["status"] = status  # before the answer leaves, so that a test which has it sees it
        self.send_response(status)
        for name, value in {"Content-Type": "application/json; charset=utf-8", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()
        return status

    def log_message(self, *_: Any) -> None:
        """`GitHub.requests` is the log."""

    # -- API --

    def _api(self, path: str, query: str, content: bytes, token: str | None) -> int:
        try:
            with self.github.lock:
                call = Call(
                    self.command,
                    path,
                    {key: values[-1] for key, values in parse_qs(query).items()},
                    json.loads(content) if content else None,
                    self.github.logins.get(token or "", ""),
                )
                status, body = self._dispatch(call, token)
        except RefusedError as refused:
            accepted = {"X-Accepted-GitHub-Permissions": refused.accepted} if refused.accepted else {}
            return self.send(refused.status, json.dumps(refused.body).encode(), accepted)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return self.send(400, json.dumps({"message": f"Problems parsing JSON ({error!r})"}).encode())
        if status == 302:
            return self.send(302, b"", {"Location": body})
        if call.method == "GET":
            body = self._page(call, body)
        return self.send(status, b"" if status == 204 else json.dumps(body).encode())

    def _dispatch(self, call: Call, token: str | None) -> Answer:
        github, method = self.github, "GET" if call.method == "HEAD" else call.method
        if token not in github.tokens:
            raise RefusedError(401, "Bad credentials" if token else "Requires authentication")
        if (method, call.path) in github.answers:
            return github.answers[method, call.path]
        found = re.fullmatch(r"/repos/([^/]+/[^/]+)(/.*)?", call.path)
        if not found or found[1].lower() != github.repository.full_name.lower():
            raise RefusedError(404, "Not Found")
        github.refresh()
        for verb, pattern, needs, function in ROUTES:
            match = pattern.fullmatch(found[2] or "")
            if verb == method and match:
                require(github.tokens[token], needs)
                return function(github, call, **{key: unquote(value) for key, value in match.groupdict().items()})
        raise RefusedError(404, "Not Found")

    def _page(self, call: Call, body: Any) -> Any:
        """Cut a list, or the list inside an object, to the page that was asked for."""
        inside = next((key for key, value in body.items() if isinstance(value, list)), "") if "total_count" in body else ""
        items = body[inside] if inside else body
        if not isinstance(items, list):
            return body
        size, page = min(int(call.query.get("per_page", 30)), 100), int(call.query.get("page", 1))
        cut = items[(page - 1) * size : page * size]
        return {**body, inside: cut} if inside else cut

    # -- Git --

    def _git(self, name: str, service: str, query: str, content: bytes, token: str | None) -> int:
        repository = self.github.repositories.get(name)
        writes = "git-receive-pack" in (service, parse_qs(query).get("service", [""])[0])
        if token not in self.github.tokens:
            return self.send(401, b"Invalid username or token.", {"WWW-Authenticate": 'Basic realm="GitHub"'})
        if repository is None:
            return self.send(404, b"Repository not found.")
        allowed = self.github.tokens[token]
        level = allowed.get("contents", "none")
        if level == "none" or (writes and (level != "write" or repository is not self.github.repository)):
            denied = f"Permission to {name}.git denied to {self.github.logins[token]}."
            return self.send(403, denied.encode(), {"Content-Type": "text/plain"})
        self.github.refresh()
        environment = {"REMOTE_USER": self.github.logins[token]}
        status = self._backend(f"/{name}.git/{service}", query, content, environment)
        if writes:
            self.github.refresh()
        return status

    def _backend(self, path: str, query: str, content: bytes, environment: Mapping[str, str]) -> int:
        """Answer by git's own CGI program (see git-http-backend(1))."""
        if self.headers.get("Content-Encoding") == "gzip":
            content = gzip.decompress(content)
        variables = {
            **os.environ,
            **IDENTITY,
            **environment,
            "GIT_PROJECT_ROOT": str(self.github.folder),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(content)),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        variables.pop("GIT_DIR", None)
        said = subprocess.run(["git", "http-backend"], input=content, env=variables, capture_output=True).stdout
        head, _, body = said.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if ": " in line)
        status = int(headers.pop("Status", "200").split()[0])
        return self.send(status, body, headers)

    # -- Artifacts: the store that the API redirects to, and the service that upload-artifact speaks to in a job --

    def _store(self, path: str, content: bytes, token: str | None) -> int:
        github = self.github
        _, place, *parts = map(unquote, path.split("/"))
        if place == "_blob":
            if token:
                return self.send(403, b"<Error>AuthenticationFailed</Error>", {"Content-Type": "application/xml"})
            blob = github._artifacts.get(int(parts[0]))
            return self.send(200, blob[1], {"Content-Type": "application/zip"}) if blob else self.send(404)
        if token != github.runtime_token:
            return self.send(401)
        run, name = int(parts[0]), parts[1] if len(parts) > 1 else ""
        if self.command == "GET" and not name:
            return self.send(200, json.dumps(list(github.artifacts(run))).encode())
        kept = {number: (one["workflow_run"]["id"], one["name"]) for number, (one, _) in github._artifacts.items()}
        held = [number for number, of in kept.items() if of == (run, name)]
        if self.command == "GET":
            return self.send(200, github._artifacts[held[-1]][1]) if held else self.send(404)
        if held and "overwrite" not in urlsplit(self.path).query:
            return self.send(409, json.dumps({"message": f"an artifact with the name {name} already exists"}).encode())
        with github.lock:
            for number in held:
                del github._artifacts[number]
            github.upload_artifact(run, name, content)
        return self.send(201)


def require(permissions: Mapping[str, str], needs: tuple[str, ...]) -> None:
    """Refuse a token that holds none of the permissions, in GitHub's words."""
    for need in needs:
        name, level = need.split(":")
        if permissions.get(name) in (level, "write"):
            return
    if needs:
        refused = RefusedError(403, "Resource not accessible by integration")
        refused.accepted = "; ".join(needs).replace("-", "_").replace(":", "=")
        raise refused


def clone(github: GitHub, folder: Path) -> Callable[..., str]:
    """Clone the repository by its path (no token needed) and return a function that runs git in the clone."""
    environment = {**os.environ, **IDENTITY}
    source = ["git", "clone", "--quiet", str(github.git), str(folder)]
    subprocess.run(source, env=environment, check=True, capture_output=True)

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        ran = subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True)
        return ran.stdout.strip()

    return git


def commit(git: Callable[..., str], folder: Path, branch: str, **files: str) -> str:
    """Commit files ("a_md" is a.md) on a branch, made from where the clone stands if new, push it, return its commit."""
    git("checkout", "-q", "-B", branch)
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    git("add", "--all")
    git("commit", "-q", "--allow-empty", "-m", f"change {branch}")
    git("push", "-q", "origin", f"+{branch}")
    return git("rev-parse", "HEAD")
