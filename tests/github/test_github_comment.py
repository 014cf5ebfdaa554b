"""One comment a pull request, by CML where that is right, else by the API.

python -m pytest tests/github/test_github_comment.py
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from standin import BOT, LONGEST_BODY, clone, commit
from standin import GitHub as StandIn

from src.core.command import UserError
from src.github import api as api_module
from src.github import cml
from src.github.api import ApiError, GitHub
from src.github.comment import MARKER, post

SHA = "c0ffee" * 6 + "c0ff"

# What `cml comment update` does by src/cml.js and src/drivers/github.js of the pinned commit: it lists the first page only,
# takes the last comment with the same mark whoever wrote it, and puts the mark below the text.
FAKE = f"""#!{sys.executable}
import json, os, re, sys, urllib.request
said = dict(a[2:].split("=", 1) for a in sys.argv if a.startswith("--"))
record = os.path.join(os.path.dirname(sys.argv[0]), "record.json")
json.dump({{"arguments": sys.argv[1:], "environment": dict(os.environ)}}, open(record, "w"))
mode = open(os.path.join(os.path.dirname(sys.argv[0]), "mode")).read()
if mode == "fails":
    sys.exit(json.dumps({{"level": "error", "message": "request with " + os.environ["REPO_TOKEN"] + " refused"}}))
server, owner, name = said["repo"].rsplit("/", 2)
def ask(method, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{{server}}/api/v3/repos/{{owner}}/{{name}}/{{path}}", data, method=method)
    request.add_header("Authorization", "token " + os.environ["REPO_TOKEN"])
    return json.load(urllib.request.urlopen(request, timeout=5))
number = said["target"].removeprefix("pr/")
title = "CML watermark " + said["watermark-title"]
mark = f'![](https://cml.dev/watermark.png#{{os.environ["GITHUB_SHA"]}} "{{title}}")'
pattern = r'!\\[\\]\\(https://cml\\.dev/watermark\\.png#[0-9a-fA-F]+ "' + title + r'"\\)'
body = {{"body": open(sys.argv[-1]).read() + "\\n\\n" + mark}}
chosen = [c for c in ask("GET", f"issues/{{number}}/comments") if re.search(pattern, c["body"])]
if chosen:
    done = ask("PATCH", f"issues/comments/{{chosen[-1]['id']}}", body)
else:
    done = ask("POST", f"issues/{{number}}/comments", body)
print(done["html_url"])
"""


@pytest.fixture
def github(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A repository with pull request 1, and an environment in which CML cannot be had."""
    with StandIn(tmp_path) as started:
        git = clone(started, tmp_path / "clone")
        commit(git, tmp_path / "clone", "main", a_md="one\n")
        commit(git, tmp_path / "clone", "change", b_md="two\n")
        started.open_pull_request("change")
        monkeypatch.setattr(api_module, "_PAUSE", 0.01)
        for name in ("GITHUB_TOKEN", "GH_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("GITHUB_SERVER_URL", started.server_url)
        monkeypatch.setenv("GITHUB_REPOSITORY", "team/models")
        monkeypatch.setenv("GITHUB_RUN_ID", "7")
        monkeypatch.setenv("GITHUB_SHA", SHA)
        monkeypatch.setenv("RUNNER_TEMP", str(tmp_path / "temp"))
        monkeypatch.setenv("CML_REPOSITORY", str(tmp_path / "nowhere"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "git").symlink_to(shutil.which("git"))  # the stand-in needs it
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
        yield started


@pytest.fixture
def api(github: StandIn) -> GitHub:
    return GitHub("team/models", github.token({"pull-requests": "write"}), github.url)


@pytest.fixture
def fake(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that puts a `cml` on PATH; it writes what it was given into record.json."""

    def put(mode: str = "works") -> Path:
        program = tmp_path / "bin" / "cml"
        program.write_text(FAKE)
        program.chmod(0o755)
        (tmp_path / "bin" / "mode").write_text(mode)
        return tmp_path / "bin" / "record.json"

    return put


def ours(github: StandIn) -> list[str]:
    return [one["body"] for one in github.comments(1) if one["user"]["login"] == BOT]


@pytest.mark.journey
def test_cml_creates_the_comment_and_a_second_post_updates_it(
    github: StandIn, api: GitHub, fake: Callable[[str], Path]
) -> None:
    fake()
    first = post(api, 1, "the first report\n")
    second = post(api, 1, "the second report\n")
    assert (first.by, first.why, second.by, second.why) == ("cml", "", "cml", "")
    assert first.url == second.url == github.comments(1)[0]["html_url"]
    assert ours(github) == [f"{MARKER}\nthe second report\n\n\n{cml.watermark()}"]
    assert [line.split()[0] for line in github.wrote()] == ["POST", "PATCH"]


@pytest.mark.journey
def test_cml_gets_one_token_a_throwaway_home_and_no_say(
    api: GitHub, fake: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = fake()
    for name in ("GITHUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "CML_COMMENT_WATCH", "GITHUB_ENV", "GIT_CONFIG_GLOBAL"):
        monkeypatch.setenv(name, "secret")
    post(api, 1, "report")
    seen = json.loads(record.read_text())
    assert seen["environment"]["REPO_TOKEN"] == api.token
    assert seen["environment"]["ITERATIVE_DO_NOT_TRACK"] == "1"
    assert seen["environment"]["PAGER"] == "cat"
    assert seen["environment"]["HOME"] not in (os.environ["HOME"], "")
    assert not Path(seen["environment"]["HOME"]).exists()
    assert "secret" not in seen["environment"].values()
    assert seen["arguments"][:4] == ["comment", "update", "--target=pr/1", "--publish=false"]
    assert not any(api.token in argument for argument in seen["arguments"])


@pytest.mark.journey
def test_the_marker_of_somebody_else_is_left_alone(github: StandIn, api: GitHub, fake: Callable[[str], Path]) -> None:
    fake()
    github.add_comment(1, f"{MARKER}\nI am the report", login="mallory")
    result = post(api, 1, "the report")
    assert result.by == "cml"
    assert github.comments(1)[0]["body"] == f"{MARKER}\nI am the report"
    assert len(ours(github)) == 1


@pytest.mark.journey
@pytest.mark.parametrize("ours_first", [True, False])
def test_cmls_mark_in_a_comment_of_somebody_else_keeps_cml_away(
    github: StandIn, api: GitHub, fake: Callable[[str], Path], ours_first: bool
) -> None:
    fake()
    stolen = f"{MARKER}\nnot the report\n\n{cml.watermark()}"
    if ours_first:
        post(api, 1, "the first report")
    github.add_comment(1, stolen, login="mallory")
    result = post(api, 1, "the report")
    assert result.by == "api"
    assert result.why == "a comment of mallory carries CML's mark, and CML would change that one"
    assert [one["body"] for one in github.comments(1) if one["user"]["login"] == "mallory"] == [stolen]
    assert len(ours(github)) == 1
    assert ours(github)[0].startswith(f"{MARKER}\nthe report\n")


@pytest.mark.journey
def test_without_cml_the_api_posts_the_same_text_and_says_why(
    github: StandIn, api: GitHub, fake: Callable[[str], Path]
) -> None:
    missing = post(api, 1, "the report")
    assert missing.by == "api"
    assert missing.why.startswith("CML is not on PATH, and node and npm to install it with neither")
    by_api = ours(github)
    github.comments(1).clear()
    fake()
    post(api, 1, "the report")
    assert ours(github) == by_api


@pytest.mark.journey
def test_when_cml_fails_the_api_posts_and_the_token_is_in_no_message(
    github: StandIn, api: GitHub, fake: Callable[[str], Path]
) -> None:
    fake("fails")
    result = post(api, 1, "the report")
    assert result.by == "api"
    assert "failed with code 1 (request with *** refused)" in result.why
    assert len(ours(github)) == 1


@pytest.mark.journey
def test_a_report_that_is_too_long_is_cut_at_a_line_and_says_so(
    github: StandIn, api: GitHub, fake: Callable[[str], Path]
) -> None:
    fake()
    lines = ["<details>", "", "```text", *(f"line {i} 🔎" for i in range(9000))]
    assert post(api, 1, "\n".join(lines)).by == "cml"
    body = ours(github)[0]
    assert LONGEST_BODY - 1500 < len(body.encode("utf-16-le")) / 2 <= LONGEST_BODY
    text, _, end = body.rpartition("\n```\n")
    assert text.splitlines()[-1] in lines
    assert end.startswith("\n</details>\n\n**This comment has no room for the rest of the report: see the summary of ")
    assert f"[the run]({github.server_url}/team/models/actions/runs/7)" in end


# -- CML from its source ------------------------------------------------------------------------------------------------


@pytest.fixture
def head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """CML's repository with one commit, which is returned; the real git, and an npm that only notes what it was asked."""
    npm = tmp_path / "npm"
    npm.write_text('#!/bin/sh\nmkdir -p node_modules; echo "$@" >> node_modules/.package-lock.json; env > environment\n')
    npm.chmod(0o755)
    (tmp_path / "node").symlink_to("/bin/true")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("CML_REPOSITORY", str(tmp_path / "source"))
    monkeypatch.setattr(cml.shutil, "which", lambda name: None if name == "cml" else f"{tmp_path}/{name}")
    git = ["git", "-C", str(tmp_path / "source"), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "init", "--quiet", tmp_path / "source"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "-m", "x"], check=True)
    return subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.journey
def test_cml_is_installed_from_its_pinned_commit_once_without_scripts_and_without_a_token(
    tmp_path: Path, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cml"
    with pytest.raises(UserError, match=r"CML cannot be installed from .*: `git fetch .*failed with code"):
        cml.find_or_install(folder)  # the repository lacks the pinned commit
    monkeypatch.setattr(cml, "COMMIT", head)
    monkeypatch.setenv("GITHUB_TOKEN", "ghs_secret")
    for _ in range(2):
        assert cml.find_or_install(folder) == ["node", str(folder / "bin" / "cml.js")]
    asked = (folder / "node_modules" / ".package-lock.json").read_text().splitlines()
    assert [line.split()[:3] for line in asked] == [["ci", "--omit=dev", "--ignore-scripts"]]
    assert "ghs_secret" not in (folder / "environment").read_text()


# -- The API client -------------------------------------------------------------------------------------------------------


@pytest.mark.journey
def test_the_token_does_not_follow_a_redirect_to_another_host(github: StandIn, tmp_path: Path) -> None:
    (tmp_path / "numbers.json").write_text("{}")
    number = github.upload_artifact(7, "report", tmp_path / "numbers.json")
    client = GitHub("team/models", github.token({"actions": "read"}), github.url)
    assert client.download(f"actions/artifacts/{number}/zip", 10_000).startswith(b"PK")
    sent = {request["path"].split("/")[1]: request["token"] for request in github.requests}
    assert sent == {"repos": client.token, "_blob": None}


@pytest.mark.journey
def test_a_download_stops_at_its_limit(github: StandIn, tmp_path: Path) -> None:
    number = github.upload_artifact(7, "report", b"x" * 2000)
    client = GitHub("team/models", github.token({"actions": "read"}), github.url)
    assert len(client.download(f"actions/artifacts/{number}/zip", 2000)) == 2000
    with pytest.raises(ApiError, match="larger than 1999 bytes"):
        client.download(f"actions/artifacts/{number}/zip", 1999)


@pytest.mark.journey
def test_a_read_is_tried_again_after_a_fault_and_a_creation_is_not(github: StandIn, api: GitHub) -> None:
    github.fail_next("GET .*/comments", status=502, times=3)
    assert list(api.pages("issues/1/comments")) == []
    github.fail_next("POST .*/comments", status=502)
    with pytest.raises(ApiError, match="GitHub has a fault: run again later"):
        api.post("issues/1/comments", {"body": "x"})
    assert github.comments(1) == []
    github.fail_next("GET .*/comments", status=500, times=4)
    with pytest.raises(ApiError, match="500") as caught:
        list(api.pages("issues/1/comments"))
    assert caught.value.status == 500
