"""One check stands for all jobs: python -m pytest tests/github/test_all_green.py"""

import json
import subprocess
import sys

import pytest
from conftest import ROOT


def check(needs: object, allowed: str = "") -> subprocess.CompletedProcess[str]:
    text = needs if isinstance(needs, str) else json.dumps(needs)
    return subprocess.run(
        [sys.executable, "-S", "-m", "src", "all-green"],  # -S: with no package installed
        cwd=ROOT,
        env={"NEEDS": text, "ALLOWED_TO_SKIP": allowed},
        capture_output=True,
        text=True,
    )


def results(**jobs: str) -> dict[str, dict[str, object]]:
    return {job: {"result": result, "outputs": {}} for job, result in jobs.items()}


def test_it_is_green_when_every_job_succeeded() -> None:
    done = check(results(test="success", lint="success"))
    assert (done.returncode, done.stdout) == (0, "all green: test, lint\n")


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ("failure", "lint failed"),
        ("cancelled", "lint was cancelled"),
        ("skipped", "lint was skipped and must not be"),
        ("", "lint has no known result"),
        ("neutral", "lint has no known result"),
    ],
)
def test_it_names_each_job_that_is_not_green(result: str, words: str) -> None:
    done = check(results(test="success", lint=result, docs="failure"))
    assert done.returncode == 1
    assert done.stderr.startswith(f"all-green: not all green: {words}; docs failed. ")
    assert "test" not in done.stderr


def test_a_job_may_be_skipped_only_where_it_is_named_and_may_never_fail() -> None:
    assert check(results(test="success", docs="skipped"), allowed="docs").returncode == 0
    assert check(results(test="skipped", docs="skipped"), allowed="docs").returncode == 1
    assert check(results(test="success", docs="failure"), allowed="docs").returncode == 1
    assert "dosc is allowed to skip but is no job" in check(results(docs="success"), allowed="dosc").stderr


@pytest.mark.parametrize("needs", ["", "{}", "null", "[]", "{", '{"test": "success"}', '{"test": {}}', "[" * 100_000])
def test_an_empty_or_unreadable_list_of_jobs_is_not_green(needs: str) -> None:
    done = check(needs)
    assert done.returncode == 1
    assert "NEEDS" in done.stderr
    assert "Traceback" not in done.stderr
