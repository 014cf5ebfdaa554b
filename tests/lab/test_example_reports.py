"""The example reports show the three verdicts, whole and small: python -m pytest tests/lab/test_example_reports.py"""

import re

import pytest
from conftest import ROOT

from src.lab.example_reports import STORIES

pytestmark = pytest.mark.template  # README and docs are a fork's to change

REPORTS = ROOT / "docs/reports"
VERDICTS = {"green": "## ✅ pass", "yellow": "## 🔎 investigate", "red": "## ❌ fail"}


@pytest.mark.parametrize("story", STORIES)
def test_an_example_is_of_its_verdict_with_its_pictures(story: str) -> None:
    text = (REPORTS / f"{story}.md").read_text()
    assert text.startswith(VERDICTS[story])
    shown = re.findall(r"(?m)^!\[[^\]]+\]\((.+)\)$", text)
    assert sorted(shown) == sorted(f"{story}/{path.name}" for path in (REPORTS / story).iterdir())
    assert f"docs/reports/{story}.md" in (ROOT / "README.md").read_text()


def test_the_examples_are_small() -> None:
    assert sum(path.stat().st_size for path in REPORTS.rglob("*.*")) < 300_000
