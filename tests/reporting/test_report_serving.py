"""The report shows how fast the service is beside main's: python -m pytest tests/reporting/test_report_serving.py"""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_report import COMMIT, Case, section

from src.core.files import write_json
from src.reporting import markdown, page
from src.reporting.facts import read
from src.reporting.write import compose

TITLE = "The service under load"


def spread(value: float) -> dict[str, float]:
    return {"median": value, "low": value, "high": value}


def server(per_second: float, share: float, added: float, failed: int = 0) -> dict[str, Any]:
    at = {"p50_ms": 2.0, "p95_ms": 3.0, "p99_ms": 4.0, "requests": 900, "checked": 100, "failed": failed, "wrong": 0}
    at |= {"per_second": spread(per_second), "share_of_raw": spread(share)}
    return {"at": dict.fromkeys(("1", "8", "64"), at), "added_ms": spread(added), "memory_mib": 200.0}


def ratios(value: float) -> dict[str, Any]:
    return {"textbook": {c: spread(value) for c in ("1", "8", "64")}}


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    monkeypatch.setenv("PLAN", json.dumps({"sha": COMMIT}))
    made = Case(tmp_path / "case")
    made.paths = replace(made.paths, serving=tmp_path / "case" / "serve.json")
    write_json(made.paths.serving, {
        "servers": {"service": server(4200, 0.6, 0.4), "main": server(3100, 0.5, 0.5, failed=2),
                    "textbook": server(1000, 0.1, 1)},
        "ratios": {"service": ratios(4.2), "main": ratios(3.1)}, "base": {"why": ""}, "load": "wrk", "rounds": 2,
        "upload": {"format": "png", "side": 32, "bytes": 2000}, "model": {"sha256": "5" * 64},
    })  # fmt: skip
    return made


def test_the_ratios_stand_beside_mains_with_the_difference(case: Case) -> None:
    text = section(case.told(), TITLE)
    assert "| times the requests of the textbook's: FastAPI, JSON lists, 64 connections | 3.1 | 4.2 | +1.1 |" in text
    assert "| share of decode and session.run alone, 8 connections | 50.00% | 60.00% | +10.00% |" in text
    assert "| added to decode and inference, p50 | 0.500 ms | 0.400 ms | -0.100 ms |" in text
    assert "| failed or wrong answers | 6 | 0 | -6 |" in text
    assert "| main's service | 8 |" in text


def test_rows_go_from_few_connections_to_many(case: Case) -> None:
    text = section(case.told(), TITLE)
    assert re.findall(r"^\| this pull request \| (\d+) \|", text, re.MULTILINE) == ["1", "8", "64"]
    assert re.findall(r"^\| times .* (\d+) connections? \|", text, re.MULTILINE) == ["1", "8", "64"]


def test_without_a_figure_of_main_the_report_says_why(case: Case) -> None:
    told = json.loads((case.folder / "serve.json").read_text())
    del told["servers"]["main"], told["ratios"]["main"]
    case.json("serve.json", {**told, "base": {"why": "there is no branch origin/main here"}})
    text = section(case.told(), TITLE)
    assert "8 connections | - | 4.2 | - |" in text
    assert "There is no figure of main's service: there is no branch origin/main here." in text


def test_a_benchmark_that_failed_is_a_sentence(case: Case) -> None:
    case.json("serve.json", {"failed": "the service ended: @team <b>", "model": {"sha256": "5" * 64}})
    text = section(case.told(), TITLE)
    assert "It could not be measured: the service ended: @&#8203;team &lt;b&gt;. To see it: `make bench-serve`" in text


@pytest.mark.parametrize("content", [{"model": {"sha256": "6" * 64}, "servers": {}}, {"model": None}, {}])
def test_figures_of_another_model_are_not_shown(case: Case, content: dict[str, Any]) -> None:
    case.json("serve.json", content)
    assert TITLE not in case.told()


def test_without_the_benchmark_there_is_no_section(case: Case) -> None:
    assert TITLE not in case.without("serve.json").told()


def test_the_page_has_it_too(case: Case) -> None:
    shown = page.render(compose(read(case.paths), {}), case.folder)
    assert f"<h2>{TITLE}</h2>" in shown
    assert markdown.render(compose(read(case.paths), {})).index(TITLE) > 0
