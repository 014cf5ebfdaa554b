"""A job that no runner takes is told of, once: python -m pytest tests/github/test_watchdog.py"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from standin import GitHub as Standin
from standin import clone, commit

from src.github.api import GitHub
from src.github.status import CONTEXT
from src.github.watchdog import WAITS, look

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
GRANTED = {"actions": "read", "pull-requests": "write", "statuses": "write", "issues": "write"}


def job(minutes: float, status: str = "queued", labels: tuple[str, ...] = ("self-hosted", "gpu")) -> dict[str, Any]:
    created = (NOW - timedelta(minutes=minutes)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"name": "Train and judge", "status": status, "labels": list(labels), "created_at": created}


@pytest.fixture
def github(tmp_path: Path) -> Iterator[Standin]:
    with Standin(tmp_path) as standin:
        git = clone(standin, tmp_path / "clone")
        commit(git, tmp_path / "clone", "main", a="1")
        commit(git, tmp_path / "clone", "change", a="2")
        yield standin


def watch(github: Standin) -> list[str]:
    return look(GitHub("team/models", github.token(GRANTED), github.url), NOW)


def waits(github: Standin, *jobs: dict[str, Any], file: str = "report.yml", **more: Any) -> None:
    github.add_run(
        github.next_run(), path=f".github/workflows/{file}", status="queued", conclusion=None, jobs=list(jobs), **more
    )


@pytest.mark.journey
def test_a_pull_request_is_told_once_with_a_way_out(github: Standin) -> None:
    number = github.open_pull_request("change")
    sha = github.head(number)
    waits(github, job(31), head_sha=sha, pull_requests=[{"number": number}])
    for _ in range(2):
        assert len(watch(github)) == 1
    [comment] = github.comments(number)
    assert "waits for a runner with the labels `self-hosted`, `gpu`" in comment["body"]
    assert f"gh workflow run report.yml -f pull_request={number} -f sha={sha} -f hosted=true" in comment["body"]
    [status] = github.statuses(sha, CONTEXT)
    assert (status["state"], status["description"]) == ("pending", WAITS)
    assert len(WAITS) <= 140


@pytest.mark.journey
@pytest.mark.parametrize(
    "calm",
    [job(29), job(500, "in_progress"), job(500, "waiting"), job(500, "completed"), job(500, labels=("ubuntu-24.04",))],
    ids=["short", "running", "for a reviewer", "done", "hosted"],
)
def test_a_job_that_waits_for_no_runner_is_left_alone(github: Standin, calm: dict[str, Any]) -> None:
    number = github.open_pull_request("change")
    waits(github, calm, head_sha=github.head(number), pull_requests=[{"number": number}])
    assert watch(github) == []
    assert github.wrote() == []


@pytest.mark.journey
def test_a_deployment_that_waits_has_the_issue_once(github: Standin) -> None:
    waits(github, job(45, labels=("self-hosted", "deploy")), file="deploy.yml", event="push")
    waits(github, job(45), file="sweep.yml")  # nobody waits for it
    for _ in range(2):
        assert len(watch(github)) == 1
    [issue] = github.issues.values()
    assert issue["title"] == "Deployment stopped: no runner has taken the job Train and judge for 30 minutes"
    assert "`gh run cancel " in issue["body"]
    assert github.comments(issue["number"]) == []
