"""What pip-audit found, or left out, is told: python -m pytest tests/github/test_audit.py"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from standin import GitHub as Standin

from src.core.command import UserError
from src.github.api import GitHub
from src.github.audit import found, tell

LOCK = "Good_One==1.0 \\\n    --hash=sha256:1\nbad==2.0 \\\n    --hash=sha256:2\nelsewhere==3 ; sys_platform == 'win32' \\\n"
BAD = {"id": "PYSEC-2026-1", "fix_versions": ["2.1"], "aliases": [], "description": "@team <b>"}
GOOD = {"name": "good-one", "version": "1.0", "vulns": []}


@pytest.fixture
def look(tmp_path: Path) -> Callable[..., list[str]]:
    """Give pip-audit's result of one lock, and read it."""

    def go(*packages: dict[str, Any], text: str | None = None) -> list[str]:
        (tmp_path / "run.txt").write_text(LOCK)
        (tmp_path / "run.txt.json").write_text(text or json.dumps({"dependencies": list(packages), "fixes": []}))
        return found(tmp_path, tmp_path)

    return go


def test_a_vulnerable_package_is_named_with_the_version_that_mends_it(look: Callable[..., list[str]]) -> None:
    lines = look(GOOD, {"name": "bad", "version": "2.0", "vulns": [BAD, BAD | {"id": "X", "fix_versions": []}]})
    assert lines == ["bad 2.0: PYSEC-2026-1, mended in 2.1", "bad 2.0: X, mended in no version yet"]
    assert look(GOOD, {"name": "bad", "version": "2.0", "vulns": []}) == []


@pytest.mark.parametrize(
    "packages",
    [[], [GOOD], [GOOD, {"name": "bad", "skip_reason": "x"}], [GOOD, {"name": "bad", "version": "9", "vulns": []}]],
)
def test_a_package_that_was_left_out_is_no_package_without_fault(
    look: Callable[..., list[str]], packages: list[dict[str, Any]]
) -> None:
    with pytest.raises(UserError, match="pip-audit left out"):
        look(*packages)


@pytest.mark.journey
def test_one_issue_stands_open_while_something_is_found(tmp_path: Path) -> None:
    with Standin(tmp_path) as standin:
        github = GitHub("team/models", standin.token({"issues": "write"}), standin.url)
        for lines in (["bad 2.0: X, mended in 2.1"], ["bad 2.0: X, mended in 2.1"], ["bad 2.0: X", "worse 1: @Y"]):
            tell(github, lines)
        [issue] = standin.issues.values()
        assert issue["title"] == "Vulnerable packages: 2 packages have known vulnerabilities"
        assert "@Y" not in issue["body"]
        assert len(standin.comments(issue["number"])) == 1  # what is as it was is not told again
        tell(github, [])
        assert [one["state"] for one in standin.issues.values()] == ["closed"]


def test_the_workflow_installs_a_hashed_pip_audit_and_looks_up_every_lock() -> None:
    text = (ROOT / ".github/workflows/audit.yml").read_text()
    assert "--no-deps --require-hashes --requirement requirements/audit.txt" in text
    assert "for lock in requirements/*.txt; do audit/bin/pip-audit --strict " in text
    pins = re.findall(r"^\S+==\S+.*\\$", (ROOT / "requirements/audit.txt").read_text(), re.MULTILINE)
    assert any(pin.startswith("pip-audit==") for pin in pins)
