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


def test_comments_come_in_pages_of_30_with_links(github: GitHub) -> None:
    for i in range(65):
        github.add_comment(1, f"number {i}")
    ask = asker(github, {"issues": "read"})
    status, first, headers = ask("GET", "/issues/1/comments")
    assert (status, len(first), first[0]["body"]) == (200, 30, "number 0")
    assert 'page=2>; rel="next"' in headers["Link"]
    assert 'page=3>; rel="last"' in headers["Link"]
    assert len(ask("GET", "/issues/1/comments?per_page=100")[1]) == 65
    last = ask("GET", "/issues/1/comments?page=3")
    assert len(last[1]) == 5
    assert "next" not in last[2]["Link"]


def test_a_comment_is_the_bots_can_be_changed_and_is_limited(github: GitHub) -> None:
    ask = asker(github, {"pull-requests": "write"})
    made = ask("POST", "/issues/1/comments", {"body": "hello"})[1]
    assert made["user"] == {"login": "github-actions[bot]", "id": made["user"]["id"], "type": "Bot"}
    assert ask("PATCH", f"/issues/comments/{made['id']}", {"body": "changed"})[0] == 200
    assert [comment["body"] for comment in github.comments(1)] == ["changed"]
    assert ask("POST", "/issues/1/comments", {"body": "x" * 65_536})[0] == 201
    assert "body is too long" in json.dumps(ask("POST", "/issues/1/comments", {"body": "x" * 65_537})[1])
    assert ask("POST", "/issues/7/comments", {"body": "hello"})[0] == 404
    assert ask("DELETE", f"/issues/comments/{made['id']}")[0] == 204
    assert ask("GET", f"/issues/comments/{made['id']}")[0] == 404


def test_the_newest_status_of_a_context_counts(github: GitHub) -> None:
    ask, sha = asker(github, {"statuses": "write"}), github.head(1)
    for state in ("failure", "success"):
        assert ask("POST", f"/statuses/{sha}", {"state": state, "context": "model-gate"})[0] == 201
    assert [status["state"] for status in github.statuses(sha, "model-gate")] == ["success", "failure"]
    for wrong in ({"state": "great"}, {"state": "success", "description": "x" * 141}):
        assert ask("POST", f"/statuses/{sha}", wrong)[0] == 422
    assert ask("POST", f"/statuses/{'a' * 40}", {"state": "success"})[0] == 422


def push(github: GitHub, folder: Path, permissions: dict[str, str], refspec: str) -> subprocess.CompletedProcess[str]:
    address = github.server_url.replace("//", f"//x-access-token:{github.token(permissions)}@") + "/team/models.git"
    return subprocess.run(["git", "push", address, refspec], cwd=folder, env=IDENTITY, capture_output=True, text=True)


def test_git_clones_and_pushes_over_http_with_a_token(github: GitHub, tmp_path: Path) -> None:
    address = github.server_url.replace("//", f"//x:{github.token({'contents': 'read'})}@") + "/team/models"
    target = tmp_path / "second"
    subprocess.run(["git", "clone", "-q", address, str(target)], env=IDENTITY, check=True)
    assert (target / "a.md").read_text() == "one\n"
    subprocess.run(["git", "fetch", "-q", "origin", github.head(1), "refs/pull/1/merge"], cwd=target, check=True)
    (target / "big.bin").write_bytes(bytes(3_000_000))
    subprocess.run(["git", "add", "."], cwd=target, check=True)
    subprocess.run(["git", "commit", "-q", "-m", "big"], cwd=target, env=IDENTITY, check=True)
    refused = push(github, target, {"contents": "read"}, "HEAD:refs/heads/change")
    assert "403" in refused.stderr
    assert push(github, target, {"contents": "write"}, "+HEAD:refs/heads/change").returncode == 0
    assert subprocess.run(["git", "ls-remote", address], env=IDENTITY, capture_output=True, check=True).stdout
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=target, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert github.head(1) == head
    assert github.repository.sha("refs/pull/1/merge^2") == head
    no_token = subprocess.run(
        ["git", "ls-remote", f"{github.server_url}/team/models"],
        env={**IDENTITY, "GIT_TERMINAL_PROMPT": "0"},
        capture_output=True,
    )
    assert no_token.returncode == 128


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


def test_a_pull_request_follows_its_branch_and_shows_conflicts(github: GitHub, tmp_path: Path) -> None:
    ask = asker(github, {"pull-requests": "read"})
    pull = ask("GET", "/pulls/1")[1]
    assert pull["mergeable"] is True
    assert pull["merge_commit_sha"] == github.merge_commit(1)
    commit(clone(github, tmp_path / "third"), tmp_path / "third", "main", b_md="three\n")
    assert ask("GET", "/pulls/1")[1]["mergeable"] is False
    assert [file["filename"] for file in ask("GET", "/pulls/1/files")[1]] == ["b.md"]


def test_pull_requests_of_a_fork_are_found_by_owner_and_branch(github: GitHub, tmp_path: Path) -> None:
    path = github.fork("stranger/models")
    subprocess.run(["git", "push", "-q", str(path), "HEAD:refs/heads/theirs"], cwd=tmp_path / "clone", check=True)
    number = github.open_pull_request("theirs", fork="stranger/models", author="stranger")
    ask = asker(github, {"pull-requests": "read"})
    found = ask("GET", "/pulls?state=open&head=stranger:theirs&base=main")[1]
    assert [pull["number"] for pull in found] == [number]
    assert found[0]["head"]["repo"]["id"] != found[0]["base"]["repo"]["id"]
    assert found[0]["head"]["sha"] == github.head(number) == github.repository.sha(f"refs/pull/{number}/head")
    github.pulls[number].head_gone = True
    assert ask("GET", f"/pulls/{number}")[1]["head"]["repo"] is None
    payload = github.payload("pull_request", number=number, action="opened", sender="stranger")
    assert payload["pull_request"]["head"]["repo"] is None
    assert payload["sender"]["login"] == "stranger"


def test_labels_leave_events_with_the_person(github: GitHub) -> None:
    github.add_label(1, "model-gate: override", by="alice")
    github.collaborators["alice"] = "maintain"
    ask = asker(github, {"issues": "read"})
    event = ask("GET", "/issues/1/events")[1][0]
    assert (event["event"], event["actor"]["login"], event["label"]["name"]) == ("labeled", "alice", "model-gate: override")
    assert ask("GET", "/collaborators/alice/permission")[1]["permission"] == "write"
    assert ask("GET", "/collaborators/bob/permission")[1]["permission"] == "none"


def test_an_artifact_is_downloaded_from_another_host_without_the_token(github: GitHub, tmp_path: Path) -> None:
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "numbers.json").write_text("{}")
    github.add_run(7, head_branch="change", head_sha=github.head(1))
    number = github.upload_artifact(7, "report", tmp_path / "up")
    assert asker(github, {"contents": "read"})("GET", "/actions/runs/7/artifacts")[0] == 403
    ask = asker(github, {"actions": "read"})
    listed = ask("GET", "/actions/runs/7/artifacts?name=report")[1]
    assert listed["total_count"] == 1
    assert listed["artifacts"][0]["workflow_run"]["head_sha"] == github.head(1)
    assert listed["artifacts"][0]["size_in_bytes"] == len(github.artifacts(7)["report"])
    status, _, _ = ask("GET", f"/actions/artifacts/{number}/zip")
    assert status == 403  # urllib sends the token on, which the store refuses
    assert ask("GET", "/actions/artifacts/1/zip")[0] == 404
    with urllib.request.urlopen(f"{github.elsewhere}/_blob/{number}?sig=once", timeout=5) as answer:
        assert answer.read() == github.artifacts(7)["report"]


def test_a_dispatch_needs_the_workflow_on_that_branch(github: GitHub, tmp_path: Path) -> None:
    ask = asker(github, {"actions": "write"})
    assert ask("POST", "/actions/workflows/report.yml/dispatches", {"ref": "main"})[0] == 404
    folder = tmp_path / "clone"
    (folder / ".github" / "workflows").mkdir(parents=True)
    (folder / ".github" / "workflows" / "report.yml").write_text("on: workflow_dispatch\n")
    commit(lambda *arguments: clone_of(folder)(*arguments) or "", folder, "main")
    answer = ask("POST", "/actions/workflows/report.yml/dispatches", {"ref": "main", "inputs": {"a": "1"}})
    assert answer[0] == 204
    assert github.dispatches == [{"workflow": "report.yml", "ref": "main", "inputs": {"a": "1"}}]


def test_faults_are_arranged_and_every_request_is_kept(github: GitHub) -> None:
    ask = asker(github, {"issues": "write"})
    github.fail_next("POST .*/comments", 502, times=2)
    codes = [ask("POST", "/issues/1/comments", {"body": "x"})[0] for _ in range(3)]
    assert codes == [502, 502, 201]
    assert github.wrote() == [f"POST /repos/team/models/issues/1/comments {code}" for code in codes]
    assert ask("GET", "/no/such/thing")[0] == 404
    github.answer("GET /repos/team/models/rulesets", 200, [{"name": "main"}])
    assert ask("GET", "/rulesets")[1] == [{"name": "main"}]
    assert ask("GET", f"{github.url}/api/v3/repos/team/models")[1]["default_branch"] == "main"
