"""The stand-in for GitHub answers as GitHub does: python -m pytest tests/test_standin.py"""

import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from standin import IDENTITY, GitHub, clone, commit

Ask = Callable[..., tuple[int, Any, Any]]


@pytest.fixture
def github(tmp_path: Path) -> Iterator[GitHub]:
    """A repository whose main holds a.md, with pull request 1 from branch `change`."""
    with GitHub(tmp_path) as started:
        git = clone(started, tmp_path / "clone")
        commit(git, tmp_path / "clone", "main", a_md="one\n")
        commit(git, tmp_path / "clone", "change", b_md="two\n")
        started.open_pull_request("change")
        yield started


def asker(github: GitHub, permissions: dict[str, str] | None) -> Ask:
    token = "unknown" if permissions is None else github.token(permissions)

    def ask(method: str, path: str, body: Any = None) -> tuple[int, Any, Any]:
        url = path if path.startswith("http") else f"{github.url}/repos/team/models{path}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, {"Authorization": f"Bearer {token}"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                text, status, headers = answer.read(), answer.status, answer.headers
        except urllib.error.HTTPError as error:
            text, status, headers = error.read(), error.code, error.headers
        return status, json.loads(text) if text.startswith((b"{", b"[")) else text, headers

    return ask


WRITES = {
    "comment": ("POST", "/issues/1/comments", {"body": "hello"}, ("issues", "pull-requests"), 201),
    "status": ("POST", "/statuses/SHA", {"state": "success", "context": "x"}, ("statuses",), 201),
    "dispatch": ("POST", "/actions/workflows/report.yml/dispatches", {"ref": "main"}, ("actions",), 404),
}


@pytest.mark.journey
@pytest.mark.parametrize("case", WRITES)
def test_a_write_needs_its_own_permission(github: GitHub, case: str) -> None:
    method, path, body, permissions, status = WRITES[case]
    sha = github.head(1)
    body = json.loads(json.dumps(body).replace("SHA", sha))
    everything = dict.fromkeys(("actions", "checks", "contents", "issues", "pull-requests", "statuses"), "write")
    without = {name: level for name, level in everything.items() if name not in permissions}
    read_only = dict.fromkeys(everything, "read")
    for refused in (without, read_only):
        answer = asker(github, refused)(method, path.replace("SHA", sha), body)
        assert answer[:2] == (403, {"message": "Resource not accessible by integration", "status": "403"})
    for permission in permissions:
        assert asker(github, {permission: "write"})(method, path.replace("SHA", sha), body)[0] == status
    assert asker(github, None)(method, path.replace("SHA", sha), body)[0] == 401


def push(github: GitHub, folder: Path, permissions: dict[str, str], refspec: str) -> subprocess.CompletedProcess[str]:
    address = github.server_url.replace("//", f"//x-access-token:{github.token(permissions)}@") + "/team/models.git"
    return subprocess.run(["git", "push", address, refspec], cwd=folder, env=IDENTITY, capture_output=True, text=True)


@pytest.mark.journey
def test_refused_branches_and_workflow_files_cannot_be_pushed(github: GitHub, tmp_path: Path) -> None:
    folder = tmp_path / "clone"
    github.refuse_push("reports")
    refused = push(github, folder, {"contents": "write"}, "HEAD:refs/heads/reports")
    assert "GH013" in refused.stderr
    assert push(github, folder, {"contents": "write"}, "HEAD:refs/heads/other").returncode == 0
    (folder / ".github" / "workflows").mkdir(parents=True)
    (folder / ".github" / "workflows" / "ci.yml").write_text("on: push\n")
    git = clone_of(folder)
    git("add", "--all")
    git("commit", "-q", "-m", "workflow")
    assert "without `workflows` permission" in push(github, folder, {"contents": "write"}, "HEAD:refs/heads/other").stderr
    assert push(github, folder, {"contents": "write", "workflows": "write"}, "HEAD:refs/heads/other").returncode == 0


def clone_of(folder: Path) -> Callable[..., None]:
    return lambda *arguments: subprocess.run(["git", *arguments], cwd=folder, env=IDENTITY, check=True) and None
