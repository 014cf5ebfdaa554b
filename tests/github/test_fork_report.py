"""A fork's artifact is a claim, and an attack until it is validated: python -m pytest tests/github/test_fork_report.py"""

import html
import io
import json
import os
import re
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from markdown_it import MarkdownIt
from standin import BOT, IDENTITY, GitHub, clone, commit, user

from src.github import comment, fork_report
from src.github.comment import MARKER
from src.github.fork_words import Run, render
from src.github.labels import ENGINE
from src.system import numbers
from src.system.numbers import NumbersError

SHA = "a" * 40
RUN = Run(7, "https://x/run", "success", SHA, "stranger", "change", 2, "main")
HOSTILE = "hostile"  # in every hostile text below, and never to be seen in a comment


def report(**changes: Any) -> dict[str, Any]:
    """Return a numbers.json that fits, with changes."""
    metric = {"name": "accuracy", "candidate": 0.91, "main": 0.9, "low": -0.01, "high": 0.03}
    return {
        "schema": 1,
        "commit": SHA,
        "verdict": "investigate",
        "failed_stage": None,
        "budget": {"epochs": 10, "asked": 50},
        "examples": 388,
        "baseline": True,
        "metrics": [metric],
        "gates": [{"name": "accuracy", "level": "enforce", "outcome": "pass", "value": 0.91, "limit": 0.9}],
        "classes": [{"name": "3", "recall": 0.5, "main": 1, "examples": 28}],
        "checks": [{"name": "drift", "level": "warn"}],
    } | changes


def metrics(**changes: Any) -> dict[str, Any]:
    return report(metrics=[report()["metrics"][0] | changes])


def classes(**changes: Any) -> dict[str, Any]:
    return report(classes=[report()["classes"][0] | changes])


def packed(
    content: Any, name: str = "numbers.json", mode: int = stat.S_IFREG | 0o644, kind: int = zipfile.ZIP_DEFLATED
) -> bytes:
    """Zip one entry; anything but bytes is written as JSON."""
    return packed_all([(name, content, mode)], kind)


def packed_all(entries: list[tuple[str, Any, int]], kind: int = zipfile.ZIP_DEFLATED) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", kind) as archive:
        for name, content, mode in entries:
            entry = zipfile.ZipInfo(name)
            entry.external_attr, entry.compress_type = mode << 16, kind
            archive.writestr(entry, content if isinstance(content, bytes) else json.dumps(content).encode())
    return target.getvalue()


def text(before: str, after: str, content: dict[str, Any] | None = None) -> bytes:
    """Return the JSON of a report with something in it replaced that no Python value could express."""
    whole = json.dumps(content or report())
    assert before in whole
    return whole.replace(before, after, 1).encode()


FILE = (stat.S_IFREG | 0o644,)
ACCURACY = '"candidate": 0.91'

# Each is the whole artifact and the words that the comment refuses it with: those of security.md 3.3, whose last two (a
# foreign comment with the marker, two pull requests with one branch) are tests of their own.
REFUSED: dict[str, tuple[bytes, str]] = {
    "link instead of the file": (packed(b"/etc/passwd", mode=stat.S_IFLNK | 0o777), "not a regular file"),
    "extra file": (
        packed_all([("numbers.json", report(), *FILE), ("hostile.md", b"# hostile", *FILE)]),
        "something other than",
    ),
    "2 MiB": (os.urandom(2 * 2**20), "artifact is larger than 1024 KiB"),
    "too large unpacked": (packed(report(hostile="x" * 2 * 2**20)), "numbers.json is larger than 256 KiB"),
    "not JSON": (packed(b"# hostile @org/team"), "it is not JSON"),
    "NaN": (packed(text(ACCURACY, '"candidate": NaN')), "NaN or infinite"),
    "unknown key": (packed(report(hostile=1)), "the file has an unknown key, or lacks one"),
    "10,000 metrics": (
        packed(report(metrics=[{"name": f"m{i}"} for i in range(10_000)])),
        "metrics is not a list of at most 200 entries",
    ),
    "mention": (packed(metrics(name="@org/team-hostile")), "metrics[0].name is not of the form"),
    "HTML": (packed(metrics(name="<img src=hostile>")), "metrics[0].name is not of the form"),
    "javascript link": (packed(metrics(name="[hostile](javascript:alert(1))")), "metrics[0].name is not of the form"),
    "wrong commit": (packed(report(commit="b" * 40)), "another commit than the one that was run"),
}
# More of the same kind, which need no server to be refused.
REFUSED_TOO: dict[str, tuple[bytes, str]] = {
    "zip bomb that lies about its size": (
        packed(b"0" * 40_000_000).replace((40_000_000).to_bytes(4, "little"), (1000).to_bytes(4, "little")),
        "its artifact is not a whole zip",
    ),
    "bomb in a packing without bound": (packed(b"0" * 200_000, kind=zipfile.ZIP_BZIP2), "packed in an unusual way"),
    "zip slip": (packed(report(), name="../numbers.json"), "something other than"),
    "a name that ends early": (packed(report(), name="numbers.jsonX").replace(b"jsonX", b"json\0"), "something other than"),
    "encrypted": (
        packed(report()).replace(b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00"),
        "its artifact is not a whole zip",
    ),
    "a key twice": (packed(text('"schema": 1', '"schema": 1, "schema": 1')), "a key twice"),
    "deep nesting": (packed(b"[" * 200_000), "nested too deep"),
    "1e400": (packed(text(ACCURACY, '"candidate": 1e400')), "metrics[0].candidate is not a finite number"),
    "a missing key": (packed({k: v for k, v in report().items() if k != "checks"}), "unknown key, or lacks one"),
    "recall of two": (packed(classes(recall=2)), "classes[0].recall is not a finite number from 0 to 1"),
    "class name with a line": (packed(classes(name="a\n# hostile")), "classes[0].name is not a printable text"),
    "class name that turns round": (packed(classes(name="\u202ehostile")), "classes[0].name is not a printable text"),
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitHub]:
    """A repository, and a fork of it whose branch `change` is pull request 1."""
    folder = tmp_path_factory.mktemp("github")
    with GitHub(folder) as started:
        git = clone(started, folder / "clone")
        commit(git, folder / "clone", "main", a_md="one\n", params_yaml="a: 1\n")
        push_to_fork(started, folder, {"src/model.py": "two\n"})
        started.open_pull_request("change", fork="stranger/models")
        yield started


@pytest.fixture
def github(service: GitHub) -> GitHub:
    """The same service, with nothing left of the test before."""
    service.comments(1).clear()
    service.runs.clear()
    service._artifacts.clear()
    service._statuses.clear()
    service.requests.clear()
    return service


JUDGES = {"contents": "read", "actions": "read", "pull-requests": "read", "statuses": "write"}


def push_to_fork(github: GitHub, folder: Path, files: dict[str, str], branch: str = "change") -> str:
    fork, work = github.fork("stranger/models"), folder / f"work-{len(list(folder.iterdir()))}"
    subprocess.run(["git", "clone", "--quiet", fork, work], check=True)

    def git(*words: str) -> str:
        command = ["git", "-C", work, *words]
        return subprocess.run(command, env=os.environ | IDENTITY, check=True, capture_output=True, text=True).stdout.strip()

    git("checkout", "--quiet", "-B", branch)
    for name, content in files.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text(content)
    git("add", "--all")
    git("commit", "--quiet", "-m", "x")
    git("push", "--quiet", "origin", f"+{branch}")
    return git("rev-parse", "HEAD")


@pytest.fixture
def push(github: GitHub, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Return a function that pushes files to the fork's branch, which is put back afterwards."""
    before = github.head(1)
    yield lambda **files: push_to_fork(github, tmp_path, {name.replace("__", "/"): text for name, text in files.items()})
    subprocess.run(["git", "update-ref", "refs/heads/change", before], cwd=github.fork("stranger/models"), check=True)
    github.refresh()


@pytest.fixture
def poster(
    github: GitHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Return a function that runs the poster on a finished run of the fork, and returns what it printed."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "cml").write_text("#!/bin/sh\nexit 1\n")  # the API posts: this is not about CML
    (tmp_path / "bin" / "cml").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    for name, value in {
        "GITHUB_TOKEN": github.token(JUDGES),
        "GITHUB_REPOSITORY": "team/models",
        "GITHUB_SERVER_URL": github.server_url,
        "GITHUB_RUN_ID": "8",
        "GITHUB_EVENT_PATH": str(tmp_path / "event.json"),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
        "GITHUB_OUTPUT": str(tmp_path / "output"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["fork-report", str(tmp_path / "comment.md")])

    def run_it(artifact: bytes | None, name: str = "report", **run: Any) -> str:
        asked = {"head_branch": "change", "head_repository": "stranger/models", "head_sha": github.head(1)} | run
        github.add_run(7, **asked)
        if artifact is not None:
            github.upload_artifact(7, name, artifact)
        (tmp_path / "event.json").write_text(json.dumps(github.payload("workflow_run", run_id=7)))
        (tmp_path / "output").write_text("")
        fork_report.main()
        if number := (tmp_path / "output").read_text().partition("number=")[2].strip():
            with monkeypatch.context() as next_job:
                next_job.setenv("GITHUB_TOKEN", github.token({"contents": "read", "pull-requests": "write"}))
                next_job.setenv("NUMBER", number)
                comment.main()
        return capsys.readouterr().out

    return run_it


@pytest.mark.parametrize("case", REFUSED_TOO)
def test_whatever_does_not_fit_is_refused_in_our_own_words(case: str) -> None:
    artifact, words = REFUSED_TOO[case]
    with pytest.raises(NumbersError) as caught:
        numbers.parse(fork_report.unpack(artifact))
    assert words in str(caught.value)
    assert HOSTILE not in str(caught.value)
    assert len(str(caught.value)) < 150


def the_comment(github: GitHub) -> str:
    found = [one["body"] for one in github.comments(1) if one["user"]["login"] == BOT]
    assert len(found) == 1
    return found[0]


@pytest.mark.journey
def test_a_report_is_posted_with_the_warning_that_it_is_the_forks_own(
    github: GitHub, poster: Callable[..., str], tmp_path: Path
) -> None:
    sha = github.head(1)
    said = poster(packed(report(commit=sha)))
    body = the_comment(github)
    assert body.startswith(f"{MARKER}\n## 🔎 This fork reports of itself: investigate\n")
    assert f"**The numbers were computed by the pull request's own code at `{sha}`**" in body
    assert "with a small budget (10 of 50 epochs)" in body
    assert "[The run](" + github.runs[7]["html_url"] + ")" in body
    assert f"```bash\ngh workflow run report.yml -f pull_request=1 -f sha={sha}\n```" in body
    assert "| `accuracy` | 0.9 | 0.91 | -0.01 to 0.03 |" in body
    assert "| `accuracy` | enforce | pass | 0.91 | 0.9 |" in body
    assert "| `3` | 28 | 1 | 0.5 |" in body
    assert "| `drift` | warn |" in body
    assert "[!WARNING]" not in body
    assert body.startswith((tmp_path / "summary.md").read_text().rstrip())
    assert "posted by GitHub's API, not by CML" in said


@pytest.mark.journey
@pytest.mark.parametrize("case", REFUSED)
def test_a_hostile_artifact_is_refused_in_our_own_words(github: GitHub, poster: Callable[..., str], case: str) -> None:
    artifact, words = REFUSED[case]
    poster(artifact)
    body = the_comment(github)
    assert words in body
    assert "## ❔ This fork's report cannot be shown" in body
    assert "gh workflow run report.yml -f pull_request=1" in body
    assert len(body) < 1500
    for trace in (HOSTILE, "@org", "<img", "javascript", "/etc/passwd", "b" * 40):
        assert trace not in body


@pytest.mark.journey
def test_an_artifact_over_the_limit_is_not_even_downloaded(github: GitHub, poster: Callable[..., str]) -> None:
    poster(b"x" * (2**20 + 1))
    asked = [request["path"] for request in github.requests]
    assert not [path for path in asked if path.startswith(("/_blob", "/repos/team/models/actions/artifacts"))]


@pytest.mark.journey
def test_an_artifact_that_is_larger_than_github_says_is_not_read_to_its_end(
    github: GitHub, poster: Callable[..., str]
) -> None:
    number = github.upload_artifact(7, "report", b"x" * (2**20 + 1))
    github._artifacts[number][0]["size_in_bytes"] = 10
    poster(None)
    assert "its artifact is larger than 1024 KiB" in the_comment(github)


@pytest.mark.journey
@pytest.mark.parametrize(
    ("run", "words"),
    [
        ({"head_sha": "c" * 40}, "no single open pull request"),
        ({"head_branch": "main"}, "no single open pull request"),
        ({"head_repository": "other/models"}, "no single open pull request"),
        ({"closed": True}, "no single open pull request"),
        *(({"conclusion": word}, "the run did nothing") for word in ("cancelled", "skipped", "action_required")),
        ({"head_repository": "team/models"}, "whose own run posts its report"),
        ({"event": "push"}, "not started by a pull request but by push"),
    ],
)
def test_a_run_that_is_no_finished_one_of_an_open_pull_requests_head_posts_nothing(
    github: GitHub, poster: Callable[..., str], run: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    github.fork("other/models")
    run = dict(run)
    monkeypatch.setattr(github.pulls[1], "state", "closed" if run.pop("closed", False) else "open")
    assert words in poster(None, **run)
    assert github.wrote() == []


@pytest.mark.parametrize(("repository", "found"), [(2, 9), (3, None), (None, None)])
def test_a_pull_request_of_another_repository_of_that_name_is_not_meant(repository: int | None, found: int | None) -> None:
    head = {"sha": SHA, "repo": repository and {"id": repository}}
    pull = {"number": 9, "head": head, "state": "open", "base": {"ref": "main"}}
    api: Any = SimpleNamespace(pages=lambda *_, **__: iter([pull]))
    assert fork_report.find_pull_request(api, RUN) == found


@pytest.mark.journey
def test_the_gate_is_left_pending_and_an_earlier_status_stands(github: GitHub, poster: Callable[..., str]) -> None:
    sha = github.head(1)
    poster(packed(report(commit=sha)))
    poster(packed(report(commit=sha)))
    assert [one["state"] for one in github.statuses(sha, "model-gate")] == ["pending"]
    assert len(github.statuses(sha)[0]["description"]) <= 140


@pytest.mark.journey
def test_a_fork_that_leaves_the_model_alone_passes_by_githubs_own_list_of_files(
    github: GitHub, poster: Callable[..., str], push: Callable[..., str]
) -> None:
    sha = push(**{"docs__@team.md": "words\n"})
    poster(None)
    assert [one["state"] for one in github.statuses(sha, "model-gate")] == ["success"]
    assert "Nothing was trained" in the_comment(github)
    assert "`docs/@team.md`" in the_comment(github)


@pytest.mark.journey
def test_a_fork_that_touches_the_engine_alone_waits_for_the_label_at_its_head(
    github: GitHub, poster: Callable[..., str], push: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(github.collaborators, "alice", "write")
    sha = push(**{"Makefile": "x\n", "docs__a.md": "words\n"})
    poster(None)
    status = github.statuses(sha, "model-gate")[0]
    assert status["state"] == "pending"
    assert status["description"].endswith("add the label engine: reviewed: Makefile")
    assert "## 🔎 investigate" in the_comment(github)
    asked = "must read this and add the label `engine: reviewed`, which counts for this commit: `Makefile`."
    assert asked in the_comment(github)
    github.add_label(1, ENGINE, by="alice")
    started = {"head_sha": sha, "head_branch": "change", "head_repository": "stranger/models", "actor": user("alice")}
    github.add_run(6, **started)
    poster(None)
    assert github.statuses(sha, "model-gate")[0]["state"] == "success"
    assert "`alice` has read what it changes of the engine" in the_comment(github)
    later = push(Makefile="y\n")
    poster(None)
    assert github.statuses(later, "model-gate")[0]["state"] == "pending"
    assert "remove it and add it again" in html.unescape(the_comment(github))


def test_names_of_classes_and_files_are_shown_and_do_nothing() -> None:
    evil = ["@org/team", "<img src=x>", "](javascript:alert(1))", "a|b", "`x`", "#1 GH-1", "www.evil.example", "*b* _i_"]
    rows = [{"name": name, "recall": 0.5, "main": None, "examples": 1} for name in evil]
    found = numbers.validate(report(classes=rows))
    body = render(found, 1, RUN, [f".github/{name}\n{name}" for name in evil])
    shown = MarkdownIt("commonmark", {"html": True}).enable("table").render(body).replace("\u200b", "")
    assert set(evil) <= {html.unescape(cell) for cell in re.findall(r"<td><code>(.*?)</code>", shown)}
    assert not re.search(r"<img|<a href=\"(?!https://x/run)", shown)
    table = body.split("### Classes")[1].split("\n\n")[1]
    assert {line.count("|") for line in table.splitlines()} == {5}


@pytest.mark.parametrize(("given", "made"), [("cat", "cat"), ("a\nb\u202e", "a?b?"), ("", "?"), ("x" * 99, "x" * 80)])
def test_any_text_is_made_a_class_name_that_fits(given: str, made: str) -> None:
    assert numbers.label(given) == made
    numbers.validate(classes(name=numbers.label(given)))


def test_no_damaged_zip_or_json_is_anything_but_a_refusal() -> None:
    good = packed(report())
    for place in range(0, len(good), 3):
        for value in (0, 255, good[place] ^ 1):
            damaged = good[:place] + bytes([value]) + good[place + 1 :]
            try:
                numbers.parse(fork_report.unpack(damaged))
            except NumbersError:
                continue
