"""Workflows run on this machine as they do on GitHub: python -m pytest tests/test_act.py"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from act import Result, run_workflow
from standin import GitHub, clone, commit

SHA = "3d3c42e5aac5ba805825da76410c181273ba90b1"
WORKFLOW = f"""
name: Toy
on:
  pull_request:
permissions: {{}}
env:
  SWITCH: ${{{{ vars.SWITCH }}}}
jobs:
  first:
    name: The first
    runs-on: ubuntu-24.04
    permissions:
      contents: read
    steps:
      - uses: actions/checkout@{SHA} # v7.0.1
        with:
          fetch-depth: 0
          persist-credentials: false
      - name: See
        run: mkdir out && git log --format=%s -1 > out/subject && cat a.md && echo "switch=$SWITCH" && env
      - name: Hide
        run: touch out/.hidden && echo "# Seen" >> "$GITHUB_STEP_SUMMARY" && python3 -c 'import numpy' || echo "it is bare"
      - name: Keep
        uses: actions/upload-artifact@{SHA} # v7.0.0
        with:
          name: seen
          path: out
  second:
    needs: first
    runs-on: ubuntu-24.04
    permissions:
      contents: write
      statuses: write
    steps:
      - uses: actions/download-artifact@{SHA} # v8.0.1
        with:
          name: seen
          path: down
      - name: Speak
        env:
          TOKEN: ${{{{ github.token }}}}
          API: ${{{{ github.api_url }}}}
          COMMIT: ${{{{ github.event.pull_request.head.sha }}}}
          BODY: '{{"state": "success", "context": "toy"}}'
        run: ls -A down && curl -fsS --oauth2-bearer "$TOKEN" --data "$BODY" "$API/repos/$GITHUB_REPOSITORY/statuses/$COMMIT"
  third:
    needs: second
    if: github.event.pull_request.draft
    runs-on: ubuntu-24.04
    permissions: {{}}
    steps:
      - run: echo never
  nobody:
    needs: first
    runs-on: [quantum]
    permissions: {{}}
    steps:
      - run: echo never
"""


@pytest.fixture
def github(tmp_path: Path) -> Iterator[GitHub]:
    with GitHub(tmp_path) as started:
        git, folder = clone(started, tmp_path / "clone"), tmp_path / "clone"
        (folder / ".github" / "workflows").mkdir(parents=True)
        (folder / ".github" / "workflows" / "toy.yml").write_text(WORKFLOW)
        commit(git, folder, "main", a_md="one\n")
        commit(git, folder, "change", a_md="two\n")
        git("push", "-q", str(started.fork("stranger/models")), "change")
        yield started


def start(github: GitHub, number: int, folder: Path, **options: Any) -> Result:
    payload = github.payload("pull_request", number=number)
    return run_workflow(github, "toy.yml", "pull_request", payload, folder=folder, **options)


@pytest.mark.journey
def test_jobs_run_with_a_token_a_clone_and_artifacts_of_their_own(github: GitHub, tmp_path: Path) -> None:
    number = github.open_pull_request("change")
    result = start(github, number, tmp_path, variables={"SWITCH": "on"}, secrets={"STORE": "hunter2"})
    assert result.jobs == {"first": "success", "second": "success", "third": "skipped", "nobody": "no runner"}, result.log
    assert "two\n" in result.logs["first"]
    assert "switch=on" in result.logs["first"]
    assert "it is bare" in result.logs["first"]
    assert result.summaries == {"first": "# Seen\n"}
    assert "subject\n" in result.logs["second"]
    assert ".hidden" not in result.logs["second"]
    assert "hunter2" not in result.log
    assert not [token for token in github.tokens if token in result.logs["first"]]
    assert [status["context"] for status in github.statuses(github.head(number))] == ["toy"]
    checks = {check["name"]: check["conclusion"] for check in github.checks(github.head(number))}
    assert checks["The first"] == "success"
    run = github.runs[result.run_id]
    assert (run["conclusion"], run["head_sha"], run["name"]) == ("success", github.head(number), "Toy")


@pytest.mark.journey
def test_a_fork_gets_no_variable_no_secret_and_a_token_that_only_reads(github: GitHub, tmp_path: Path) -> None:
    number = github.open_pull_request("change", fork="stranger/models")
    result = start(github, number, tmp_path, variables={"SWITCH": "on"}, secrets={"STORE": "hunter2"})
    assert result.jobs["first"] == "success", result.log
    assert "switch=\n" in result.logs["first"]
    assert result.jobs["second"] == "failure"
    assert "403" in result.logs["second"]
    assert github.statuses(github.head(number)) == []
    assert github.runs[result.run_id]["head_repository"]["full_name"] == "stranger/models"


@pytest.mark.journey
def test_the_workflow_file_is_the_one_of_the_commit_that_the_event_names(github: GitHub, tmp_path: Path) -> None:
    number = github.open_pull_request("change")
    folder = tmp_path / "clone"
    (folder / ".github" / "workflows" / "toy.yml").write_text(WORKFLOW.replace("pull_request:", "push:"))
    commit(clone(github, tmp_path / "other"), tmp_path / "other", "main", b_md="x")
    assert start(github, number, tmp_path / "one").jobs["first"] == "success"
    git = clone(github, tmp_path / "third")
    git("checkout", "-q", "change")
    path = tmp_path / "third" / ".github" / "workflows" / "toy.yml"
    path.write_text(WORKFLOW.replace("pull_request:", "push:"))
    commit(git, tmp_path / "third", "change")
    assert start(github, number, tmp_path / "two").jobs == {}
