"""Judging knows no pixels: rows of a table get their verdict: python -m pytest tests/judging/test_table.py"""

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, write_params

from src.core import results
from src.core.files import read_json, sha256, write_json
from src.core.manifest import OF_EVERY_KIND
from src.judging import judge, request

CLASSES = ["defaults", "repays"]
N = 600
LABELS = np.arange(N) % 2
ROWS = pa.table({
    "path": ["credits.parquet"] * N, "row": np.arange(N), "label": [CLASSES[label] for label in LABELS],
    "group": pa.array([None] * N, pa.string()), "digest": [f"row-{i}" for i in range(N)], "split": ["test"] * N,
    "index": np.arange(N),
})  # fmt: skip
INCOME = {"income: low": np.arange(N) < N // 2, "income: high": np.arange(N) >= N // 2}
OUT = ("--metrics", "metrics.json", "--evaluation", "out/evaluation", "--manifest", "out/manifest.parquet")
JUDGE = ["out/main", "out/run.json", "out/verdict.json", "manifest.json", *OUT, "--validation", "out/validation.json"]


def answer(metrics: Path, details: Path, wrong: Iterable[int]) -> None:
    """Write what `python -m src answer` does, of a model that has some rows wrong."""
    said = LABELS.copy()
    said[list(wrong)] ^= 1
    probabilities = np.where(np.eye(2, dtype=bool)[said], 0.97, 0.03).astype(np.float32)
    told = results.numbers(LABELS, probabilities, CLASSES, INCOME, 0.95, 15)
    write_json(metrics, told | {"model_bytes": 1000, "baseline": {"accuracy": 0.7, "margin": told["accuracy"] - 0.7}})
    details.mkdir(parents=True, exist_ok=True)
    pq.write_table(results.predictions(LABELS, probabilities, CLASSES, ROWS), details / "predictions.parquet")
    pq.write_table(results.memberships(INCOME, ROWS), details / "slices.parquet")


def write_main(folder: Path, wrong: Iterable[int]) -> None:
    """Write what `python -m src compare` does."""
    answer(folder / "metrics.json", folder, wrong)
    pq.write_table(ROWS, folder / "rows.parquet")
    facts = {"found": True, "why": "", "commit": "c" * 40, "example": False, "judging_changed": [], "moved_inputs": []}
    write_json(folder / "facts.json", facts | {"looks": {"examples": 1, "pull_request": 1, "since": None}})
    write_json(folder / "timings.json", {name: {"p95": 1.0, "blocks": [1.0] * 9} for name in ("candidate", "main")})


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the pipeline of a table would leave, but for the answers; the model is a file nobody opens."""
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path / "params.yaml")
    (tmp_path / "out/model").mkdir(parents=True)
    (tmp_path / "out/model/model.onnx").write_bytes(b"a model")
    network = {"network": "linear", "width": 1, "parameters": 3, "epoch": 1, "epochs": 1, "seed": 1}
    write_json(tmp_path / "out/model/card.json", network | {"model_sha256": sha256(tmp_path / "out/model/model.onnx")})
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    pq.write_table(ROWS, tmp_path / "out/manifest.parquet")
    write_json(tmp_path / "out/validation.json", {"passed": True, "findings": []})
    write_json(tmp_path / "out/run.json", {"failed": None, "seconds": {"train": 1.0}, "hardware": {"cores": 2}})
    return tmp_path


CASES = {"pass": (range(10), range(20, 80)), "investigate": (range(14), range(8)), "fail": (range(150), range(8))}


@pytest.mark.journey
@pytest.mark.parametrize("expected", CASES)
def test_rows_of_a_table_get_a_verdict_and_a_lineage(project: Path, expected: str) -> None:
    """In a process of its own, which then tells that nothing was imported that opens a picture or trains."""
    mine, mains = CASES[expected]
    answer(project / "metrics.json", project / "out/evaluation", mine)
    write_main(project / "out/main", mains)
    code = (
        "import json, sys; from src.judging import judge; judge.main(); "
        "print(json.dumps([name for name in sys.modules if name.startswith(('PIL', 'torch', 'simplejpeg', 'src.'))]))"
    )
    command = [sys.executable, "-c", code, *JUDGE]
    done = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    verdict = read_json(project / "out/verdict.json", "")
    assert verdict["verdict"] == expected, verdict["reasons"]
    slices = next(gate for gate in verdict["gates"] if gate["name"] == "worst_slice")
    assert "income: low" in slices["sentence"]
    lineage = read_json(project / "manifest.json", "")
    assert (lineage["data"]["classes"], lineage["data"]["test_examples"]) == (CLASSES, N)
    imported = json.loads(done.stdout.splitlines()[-1])
    of_pixels = ("PIL", "torch", "simplejpeg", "src.images.", "src.evaluation.", "src.training.", "src.data", "src.model")
    assert [name for name in imported if name.startswith(of_pixels) and not name.endswith("_params")] == []


@pytest.mark.journey
@pytest.mark.parametrize("expected", CASES)
def test_the_judge_of_a_merge_reads_files_alone(project: Path, monkeypatch: pytest.MonkeyPatch, expected: str) -> None:
    """Only `answer` and `compare`, commands that it starts, open the model and the arrays."""
    mine, mains = CASES[expected]

    def run(verb: str, arguments: list[str], params: Path = ROOT / "params.yaml") -> None:
        if verb == "answer":
            answer(Path(arguments[3]), Path(arguments[4]), mine)
        elif verb == "compare":
            write_main(Path(arguments[1]), mains)
        else:
            monkeypatch.setattr(sys, "argv", [verb, *arguments, "--params", str(params)])
            judge.main()

    monkeypatch.setattr(request, "_run", run)
    named: dict[str, Any] = {name: f"out/{name}" for name in ("arrays", "model")}
    named |= {"manifest": "out/manifest.parquet", "validation": "out/validation.json", "run": "out/run.json"}
    named |= {"data": "data", "params": "params.yaml", "deployed": "d" * 40, "why": "", "quantize": False}
    answer(project / "metrics.json", project / "out/evaluation", mine)
    write_json(project / "request.json", {"format": 1, **named})
    request.judge(project / "request.json", project / "judged")
    found = read_json(project / "judged/verdict.json", "")
    assert (found["format"], found["verdict"]) == (1, expected)


def test_the_manifest_of_a_table_has_no_column_of_pictures(project: Path) -> None:
    assert set(results.test_rows(project / "out/manifest.parquet").column_names) == set(OF_EVERY_KIND)
