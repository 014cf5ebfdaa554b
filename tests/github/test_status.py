"""A host on which nothing is deployed says so, also without a container engine.

python -m pytest tests/github/test_status.py
"""

from pathlib import Path

import pytest

from src.release import settings
from src.release.outcome import RefusedError
from src.release.rollback import rollback
from src.release.status import status


@pytest.fixture(autouse=True)
def _empty_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOY_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("DEPLOY_ENGINE", raising=False)


def test_the_status_of_an_empty_host_is_no_fault() -> None:
    assert status(settings.read()) == ("nothing is deployed on this host yet: make deploy", [])


@pytest.mark.parametrize("version", [None, "3"])
def test_a_rollback_on_an_empty_host_is_one_sentence(version: str | None) -> None:
    with pytest.raises(RefusedError, match="^nothing is deployed on this host yet: make deploy$"):
        rollback(version, "a trial", {})
