"""The report says what a reviewer must know, whatever the run left and whatever the data are called.

python -m pytest tests/reporting/test_report.py
"""

import csv
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import encode, write_params
from ruamel.yaml import YAML
from test_escaping import EVIL, Page, rendered

from src.core import metrics
from src.core.manifest import MANIFEST
from src.images.occlusion import occlusion
from src.images.prepare_params import image_spec
from src.reporting import drawing, numbers, page, render
from src.reporting.facts import Paths, read
from src.reporting.write import compose, write
from src.system import numbers as schema

COMMIT = "1234567890abcdef1234567890abcdef12345678"


class Case:
    """What a run leaves, small and consistent: images of noise, a network that was never trained, answers by choice."""

    def __init__(self, folder: Path, classes: tuple[str, ...] = ("cat", "dog", "owl"), images: int = 60) -> None:
        self.folder, self.classes, self.random = folder, list(classes), np.random.default_rng(5)
        self.labels = np.arange(images) % len(classes)
        (folder / "main").mkdir(parents=True)
        files = {"manifest": "manifest.parquet", "verdict": "report/verdict.json", "lineage": "manifest.json"}
        files |= {name: f"{name}.json" for name in ("metrics", "validation", "run")} | {"params": "params.yaml"}
        self.paths = Paths(**{part.name: folder / files.get(part.name, part.name) for part in fields(Paths)})
        self._data()
        self._model()
        self._answers(folder, folder / "evaluation", wrong=range(3))
        self._answers(folder / "main", folder / "main", wrong=range(2, 12))
        self._rest()

    def _data(self) -> None:
        (self.folder / "arrays").mkdir()
        pixels = self.random.integers(0, 256, (len(self.labels), 8, 8, 3), dtype=np.uint8)
        for split in ("train", "validation", "test"):
            np.save(self.folder / f"arrays/{split}.examples.npy", pixels)
            np.save(self.folder / f"arrays/{split}.labels.npy", self.labels)
        card = {"classes": self.classes, "spec": image_spec((8, 8)).to_json(), "manifest_sha256": "0" * 64}
        self.json("arrays/card.json", card)
        rows = [self.row(i, split) for split in ("train", "validation", "test") for i in range(len(self.labels))]
        self.rows("manifest.parquet", rows)
        # main: two images fewer, one more, one with another label, one on another side
        changed = [*rows[2:], {**rows[0], "digest": "gone", "path": "old/gone.png"}]
        changed[0] = {**changed[0], "label": self.classes[0]}
        changed[1] = {**changed[1], "split": "validation"}
        self.rows("main/rows.parquet", changed)

    def row(self, i: int, split: str, **values: Any) -> dict[str, Any]:
        name = f"{split}-{i}"
        light = {key: float(self.random.random()) for key in ("brightness", "contrast", "sharpness", "saturation")}
        fixed = {"path": f"{self.classes[self.labels[i]]}/{name}.png", "row": -1, "label": self.classes[self.labels[i]]}
        return {**fixed, "digest": name, "split": split, "index": i, "width": 8, "height": 8, **light, **values}

    def rows(self, name: str, rows: list[dict[str, Any]]) -> None:
        pq.write_table(pa.Table.from_pylist(rows, schema=MANIFEST), self.folder / name)

    def _model(self) -> None:
        (self.folder / "model").mkdir()
        card = {"classes": self.classes, "spec": image_spec((8, 8)).to_json(), "network": "small_resnet", "width": 4,
                "temperature": 0.5, "parameters": 1234, "epoch": 4, "model_sha256": "5" * 64}  # fmt: skip
        self.json("model/card.json", card)
        self.json("main/card.json", {**card, "temperature": 0.75, "model_sha256": "7" * 64})
        for name, gain in (("model/history.csv", 0.1), ("main/history.csv", 0.08)):
            with (self.folder / name).open("w", newline="") as file:
                lines = csv.writer(file)
                lines.writerow(["epoch", "learning_rate", "train_loss", "validation_loss", "validation_accuracy"])
                lines.writerows([i, 0.1, 2 - gain * i, 2.1 - gain * i, 0.2 + gain * i] for i in range(1, 7))

    def _answers(self, numbers: Path, folder: Path, wrong: Any) -> None:
        folder.mkdir(exist_ok=True)
        n = len(self.classes)
        probabilities = np.full((len(self.labels), n), 0.1 / max(1, n - 1), dtype=np.float32)
        said = self.labels.copy()
        said[list(wrong)] = (said[list(wrong)] + 1) % n
        probabilities[np.arange(len(said)), said] = 0.9
        told = metrics.overall(self.labels, probabilities, 0.95, 15)
        right = said == self.labels
        told |= {
            "examples": len(said),
            "model_bytes": 500_000 if numbers == self.folder else 400_000,
            "per_class": metrics.per_class(self.labels, probabilities, self.classes),
            "slices": metrics.slices(right, {"dark": self.labels == 0, "light": self.labels != 0}, 0.95),
        }
        if numbers == self.folder:
            told["baseline"] = {**metrics.overall(self.labels, probabilities, 0.95, 15), "margin": 0.125}
        (numbers / "metrics.json").write_text(json.dumps(told))
        names = np.array(self.classes, dtype=object)
        table = {
            "path": [f"{names[label]}/test-{i}.png" for i, label in enumerate(self.labels)],
            "row": pa.array([-1] * len(said), pa.int64()),
            "digest": [f"test-{i}" for i in range(len(said))],
            "label": list(names[self.labels]),
            "group": pa.array([None] * len(said), pa.string()),
            "prediction": list(names[said]),
            "confidence": probabilities.max(axis=1),
            "log_loss": metrics.log_losses(self.labels, probabilities),
        }
        pq.write_table(pa.table(table), folder / "predictions.parquet")

    def _rest(self) -> None:
        hardware = {"accelerator": None, "cores": 2, "machine": "x86_64", "memory_gib": 7.5, "processor": "Zilog Z80"}
        write_params(self.folder / "params.yaml")
        write_params(self.folder / "main/params.yaml", train__learning_rate=0.05)
        self.json("validation.json", {"drift": {}, "faults": {"count": 0, "files": []}, "findings": [], "passed": True})
        latency = {"p50": 1.0, "p95": 2.0, "p99": 3.0}
        self.json("main/timings.json", {"candidate": latency, "main": {**latency, "p95": 1.5}, "hardware": hardware})
        digests = {"inputs": {"digest": "1" * 64, "environment": {"requirements/run.txt": "2" * 64}},
                   "outputs": {"model_sha256": "5" * 64, "evaluation_sha256": "3" * 64},
                   "data": {"digest": "4" * 32}, "commit": "6" * 40, "metrics": {},
                   "verdict": {"verdict": "pass", "reasons": []}}  # fmt: skip
        self.json("manifest.json", {**digests, "training_seconds": 90.0})
        main_run = {**digests, "outputs": {"model_sha256": "7" * 64}, "training_seconds": 30.0, "hardware": hardware}
        self.json("main/facts.json", {
            "found": True, "why": "", "ref": "origin/main", "commit": "8" * 40, "merge_base": "9" * 40, "behind": 0,
            "moved_inputs": [], "same_test_set": True, "judging_changed": [], "main_run": main_run,
        })  # fmt: skip
        self.json("run.json", {
            "failed": None, "said": "", "lane": {"name": "self-hosted", "comparable": True}, "hardware": hardware,
            "seconds": {"prepare": 1.5, "train": 90.0}, "budget": None,
        })  # fmt: skip
        gates = [
            {"name": "no_worse_than_main", "level": "enforce", "outcome": "pass", "value": 0.95, "limit": -0.01,
             "main": 0.83, "difference": 0.1167, "low": 0.0167, "high": 0.2, "confidence": 0.95,
             "sentence": "clearly better than main"},
            {"name": "latency", "level": "warn", "outcome": "skipped", "value": None, "limit": 50.0, "sentence": "none"},
        ]  # fmt: skip
        paired = {"only_main_right": 1, "only_candidate_right": 9, "p": 0.0215}
        self.json("report/verdict.json", {
            "verdict": "pass", "reasons": ["clearly better than main"], "gates": gates, "baseline": True, "override": None,
            "mcnemar": paired, "churn": 0.1667,
        })  # fmt: skip

    def json(self, name: str, value: Any) -> None:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(value))

    def change(self, name: str, **values: Any) -> "Case":
        self.json(name, {**json.loads((self.folder / name).read_text()), **values})
        return self

    def compared(self, **values: Any) -> list[dict[str, Any]]:
        """Change the gate that compares with main; return all gates."""
        gates: list[dict[str, Any]] = json.loads((self.folder / "report/verdict.json").read_text())["gates"]
        gates[0] |= values
        self.change("report/verdict.json", gates=gates)
        return gates

    def without(self, *names: str) -> "Case":
        for name in names:
            (self.folder / name).unlink()
        return self

    def write(self) -> str:
        write(self.paths, self.folder / "report", occlusion)
        return self.text("report.md")

    def told(self) -> str:
        """The report without its pictures, which takes a hundredth of the time."""
        head, *sections = compose(read(self.paths), {})
        return render.joined(head, sections)

    def text(self, name: str) -> str:
        return (self.folder / "report" / name).read_text()


@pytest.fixture(autouse=True)
def _no_circumstances(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    monkeypatch.setenv("PLAN", json.dumps({"sha": COMMIT}))


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path / "case")


class Brightness:
    """A model that is the surer of every class, the brighter the upper left corner is."""

    @staticmethod
    def probabilities(images: np.ndarray) -> np.ndarray:
        return np.repeat(images[:, :2, :2].mean(axis=(1, 2, 3))[:, None] / 255, 3, axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A report where everything is there, written once for the tests that only read it."""
    made = Case(tmp_path_factory.mktemp("whole") / "case")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLAN", json.dumps({"sha": COMMIT}))
        patch.setattr(drawing, "Model", lambda _: Brightness)
        made.write()
    return made


def section(text: str, title: str) -> str:
    """Return what stands under a heading."""
    found = re.search(rf"^### {re.escape(title)}\n(.*?)(?=^### |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"no section {title} in:\n{text}"
    return found[1]


def first_lines(text: str) -> str:
    """Return what stands over the first heading."""
    return text.partition("\n### ")[0]


# What it says


def test_the_first_line_is_the_verdict_with_both_accuracies_and_the_interval(whole: Case) -> None:
    lines = whole.text("report.md").splitlines()
    expected = "accuracy 95.00% against 83.33% of main (+11.67 points, 95% interval +1.67 to +20.00)"
    assert lines[0] == f"## ✅ pass: {expected}"
    assert lines[2] == "- **no worse than main**: clearly better than main"


@pytest.mark.parametrize(
    ("title", "words_in_it"),
    [
        ("Metrics", ["| accuracy | 83.33% | **95.00%** | +11.67 points | +1.67 to +20.00 (95%) | better |", "same 60"]),
        ("Metrics", ["| worst class, recall (cat) | 85.00% | **95.00%** | +10.00 points |"]),
        ("Metrics", ["9 examples only this", "p = 0.021"]),
        ("Gates", ["1 gate holds, 1 skipped", "| latency | warn |  skipped | — | 50.0 ms | none |"]),
        ("Parameters", ["| `train.learning_rate` | `0.05` | `0.1` |"]),
        ("Data", ["| rows in all | 179 | 180 | +1 |", "added, by content | | 2 |", "removed, by content | | 1 |"]),
        ("Data", ["| `owl/train-2.png` | cat | owl |", "| `cat/train-3.png` | validation | train |", "`old/gone.png`"]),
        ("Data", ["Examples of each class, before and after", "| class balance |", "All checks of the data passed."]),
        ("Data", ["<details><summary>Drift against main: none to speak of</summary>", "| brightness | 0.0"]),
        ("Examples newly wrong and newly right", ["2 examples newly wrong", "9 examples newly right",
          "![Examples newly wrong, below each where this pull request's model looked"]),
        ("Examples newly wrong and newly right", ["| `cat/test-0.png` | cat | cat (90%) | dog (90%) |", "newly_right.png"]),
        ("Classes", ["Recall fell in 0 and rose in 3 of 3 classes.", "| cat | 85.00% | 95.00% | +10.00 points | 20 |"]),
        ("Slices", ["| dark | 85.00% | 95.00% | +10.00 points | 20 |"]),
        ("Confusion", ["| owl | cat | 4 | 1 | -3 |", "![Confusion: this pull request minus main](pictures/"]),
        ("Calibration", ["| calibration error | ", "| temperature, fitted | 0.75 | 0.5 |", "pictures/calibration.png"]),
        ("Learning curves", ["| this pull request | 6 | 4 | 60.00% | 1.7000 |", "pictures/curves.png"]),
        ("Latency and size", ["| latency p95, one example | 1.50 ms | 2.00 ms | +0.500 ms | less than a millisecond |"]),
        ("Latency and size", ["Zilog Z80, 2 cores"]),
        ("Latency and size", ["| size of model.onnx | 0.38 MiB | 0.48 MiB | +0.10 MiB (+25%) |  |"]),
        ("Training time", ["| training | 30.0 s | 1 min 30 s |"]),
        ("Where it comes from", ["| model | `777777777777` | `555555555555` |", f"`{'5' * 64}`", "requirements/run.txt"]),
        ("Where it comes from", [f"git fetch origin\ngit checkout {COMMIT}\nmake reproduce\nmake report"]),
    ],
)  # fmt: skip
def test_every_part_that_a_reviewer_asks_for_is_there(whole: Case, title: str, words_in_it: list[str]) -> None:
    text = section(whole.text("report.md"), title)
    for expected in words_in_it:
        assert expected in text


def test_a_gate_that_limits_a_difference_shows_that_difference(case: Case) -> None:
    names = {
        "log_loss": ("+0.0200", "+0.0500"),
        "no_worse_than_anchor": ("+2.00 points", "+5.00 points"),
        "new": ("0.9", "0.05"),
    }
    gate = {"level": "enforce", "outcome": "pass", "value": 0.9, "difference": 0.02, "limit": 0.05, "sentence": "why"}
    case.change("report/verdict.json", gates=[{"name": name, **gate} for name in names])
    text = case.told()
    for name, (value, limit) in names.items():
        assert f"| {name.replace('_', ' ')} | enforce | ✅ pass | {value} | {limit} | why |" in text
    assert [gate["value"] for gate in numbers.collect(read(case.paths))["gates"]] == [0.02, 0.02, 0.9]


@pytest.mark.parametrize(
    ("name", "main", "this", "rounds", "expected"),
    [
        ("p95", 1.0, 3.0, [9.0, 9.5, 9.0, 1.0], "1.00 ms | 3.00 ms | +2.00 ms (+200%) | slower in 3 of 4 rounds |"),
        ("p95", 1.0, 3.0, [9.0, 0.8, 0.9, 1.5],
         "1.00 ms | 3.00 ms | +2.00 ms | noise, the rounds disagree: slower in 2 of 4 rounds |"),
        ("p99", 2.7, 10.9, [9.0] * 4, "2.70 ms | 10.9 ms | +8.20 ms | noise, p95 differs by less than a millisecond |"),
    ],
)  # fmt: skip
def test_latency_is_read_by_its_rounds(
    case: Case, name: str, main: float, this: float, rounds: list[float], expected: str
) -> None:
    usual = {"p95": 0.04, "blocks": [1.0] * 4}
    case.change("main/timings.json", main=usual | {name: main}, candidate=usual | {name: this, "blocks": rounds})
    assert f"| latency {name}, one example | {expected}" in section(case.told(), "Latency and size")


def test_a_difference_that_chance_explains_is_no_headline(case: Case) -> None:
    case.compared(low=-0.01, confidence=0.9)
    text = case.told()
    said = "no difference shown (+7 of 60 examples), accuracy 95.00% against 83.33% of main, 90% interval -1.00 to +20.00"
    assert text.startswith(f"## ✅ pass: {said}\n")


def test_a_validation_split_that_points_the_other_way_is_in_the_first_lines(case: Case) -> None:
    case.rows("main/rows.parquet", pq.read_table(case.folder / "manifest.parquet").to_pylist())
    assert "disagrees" not in case.told()  # it rose with the accuracy of the test split
    for name, accuracy in (("model", 0.9), ("main", 0.98333)):
        path = case.folder / name / "history.csv"
        path.write_text(f"epoch,validation_loss,validation_accuracy\n4,1,{accuracy}\n5,2,0.5\n")
    said = "- **validation disagrees**: accuracy 90.00% against 98.33% of main, -5 of 60 examples (-8.33 points).\n"
    assert said in first_lines(case.told())
    case.rows("main/rows.parquet", [case.row(i, "validation") for i in range(59)])
    assert "disagrees" not in case.told(), "other images were compared"


def test_a_test_log_loss_that_points_the_other_way_is_in_the_first_lines(case: Case) -> None:
    gate = {"name": "log_loss", "level": "enforce", "outcome": "pass", "low": 0.001, "high": 0.02, "sentence": "it rose"}
    assert "- **test log loss disagrees**: it rose\n" in first_lines(case.change("report/verdict.json", gates=[gate]).told())
    assert "disagrees" not in case.change("report/verdict.json", gates=[{**gate, "low": -0.001}]).told()


def test_a_new_class_takes_no_part_in_the_comparison(case: Case) -> None:
    metrics_of_main = json.loads((case.folder / "main/metrics.json").read_text())
    case.change("main/facts.json", labels_added=["owl"], labels_gone=["emu"])
    text = case.write()
    assert metrics_of_main["per_class"]["owl"]["recall"] == 0.8
    assert "accuracy 95.00% against 85.00% of main on the classes that both know (+10.00 points" in text.splitlines()[0]
    said = "Accuracy over all classes 95.00%, over those that both know 95.00% against 85.00% of main."
    assert f"- **1 class added**: owl. Main never saw it. {said}\n- **1 class gone or renamed**: emu.\n" in first_lines(text)
    assert "| owl | — | 95.00% | — | 20 |" in section(text, "Classes")
    assert "of 2 classes." in section(text, "Classes")
    assert "No slice can be compared with main's." in section(text, "Slices")
    assert "| dark | — | 95.00% | — | 20 |" in section(text, "Slices")
    assert "| owl | cat |" not in section(text, "Confusion")
    assert "6 examples newly right" in section(text, "Examples newly wrong and newly right")
    assert "`owl/" not in section(text, "Examples newly wrong and newly right")
    told = schema.parse(case.text("numbers.json").encode())
    assert (told.metrics[0].candidate, told.metrics[0].main) == (0.95, 0.85)
    assert {row.name: row.main for row in told.classes}["owl"] is None
    (case.folder / "evaluation/confusion.png").write_bytes(encode(np.zeros((2, 2, 3), np.uint8)))
    text = case.change("main/facts.json", labels_added=["cat", "dog", "owl"]).write()
    assert "![Confusion of the test examples](pictures/confusion.png)" in section(text, "Where this model is weak")
    assert text.startswith("## ✅ pass: accuracy 95.00%, of classes that main does not know\n")
    assert "| accuracy | — | **95.00%** | — |" in section(text, "Metrics")
    assert "against" not in section(text, "Where this model is weak")


def test_what_left_the_test_split_is_in_the_first_lines(case: Case) -> None:
    left = {"examples": 50, "of": 388, "main_right": 40, "names": ["a.png (cat)", "b.png (owl)"]}
    relabelled = {"examples": 1, "names": ["c.png (dog)"]}
    text = first_lines(case.change("main/facts.json", left_test=left, relabelled=relabelled).told())
    said = "main had 40 of them right: a.png (cat), b.png (owl) and more."
    assert f"- **50 of 388 examples left main's test split**: {said}\n" in text
    assert "- **1 test example relabelled since main**: c.png (dog).\n" in text
    gate = {"name": "test_set", "level": "enforce", "outcome": "investigate", "sentence": "50 images are gone"}
    text = case.change("report/verdict.json", gates=[gate], reasons=["50 images are gone"]).told()
    assert "- **test set**: 50 images are gone\n" in first_lines(text)
    assert "left main" not in text


NEAR = {"check": "near_duplicates", "level": "warn", "message": "3 pairs", "count": 3, "files": []}


@pytest.mark.parametrize(
    ("file", "values", "expected"),
    [
        ("validation", {"findings": [NEAR]}, "- **near duplicates**: 3 pairs. The test accuracy may be too good.\n"),
        ("run", {"lane": {"name": "CPU", "comparable": False}}, "Lane CPU: not comparable where the hardware matters."),
        ("run", {"budget": {"epochs": 10, "asked": 50}}, "Trained with a small budget: 10 of 50 epochs."),
        ("main/facts", {"judging_changed": ["src/judging/gates.py"]},
         "> [!WARNING]\n> This pull request also touches the engine: src/judging/gates.py."),
        ("main/facts", {"retrained": "its artifact expired"}, "- **main was trained again**: its artifact expired\n"),
        ("main/facts", {"behind": 2, "moved_inputs": ["src/model.py"]},
         "Main is 2 commits ahead of where this branch left it and has changed what the model depends on: src/model.py."),
        ("main/facts", {"behind": 2, "moved_inputs": ["src/model.py"]}, "up to date and push: `make update`\n"),
        ("main/facts", {"behind": 2}, "Main is 2 commits ahead of where this branch left it; none of it touches what the"),
    ],
)  # fmt: skip
def test_circumstances_are_in_the_first_lines(case: Case, file: str, values: dict[str, Any], expected: str) -> None:
    assert expected not in first_lines(case.told())
    assert expected in first_lines(case.change(f"{file}.json", **values).told())


RECORD = {"ended": "2024-05-01T10:00:00Z", "hardware": {"processor": "MOS 6502", "cores": 1}, "seconds": 45.0}


def test_a_model_that_was_restored_has_the_figures_of_its_own_training(case: Case) -> None:
    """The fixture's manifest.json names this model; out/history may hold an earlier training of it, or another one's."""
    case.change("run.json", seconds={"prepare": 1.5})
    case.json("history/throughput.json", {**SPEED, **RECORD, "model_sha256": "8" * 64})
    text = case.told()
    assert "the model was restored, not trained in this run. It was trained at commit `6666666666` in 1 min 30 s." in text
    assert "| training | 30.0 s | 1 min 30 s |" in text
    assert "examples a second" not in text
    case.change("manifest.json", outputs={"model_sha256": "0" * 64, "evaluation_sha256": "0" * 64})
    text = case.told()
    assert "not trained in this run. Where and when it was trained is not known here." in text
    assert "| training | 30.0 s | — |" in text
    assert "commit it was trained at" not in text
    assert "| model | `777777777777` | `555555555555` |" in text, "the lineage is that of another model"
    case.json("history/throughput.json", {**SPEED, **RECORD, "model_sha256": "5" * 64})
    text = case.told()
    assert "It was trained in an earlier run, until `2024-05-01T10:00:00Z`, in 45.0 s." in text
    assert "| training | 30.0 s | 45.0 s |" in text
    assert "| trained on | Zilog Z80, 2 cores" in text
    assert "MOS 6502" in section(text, "Training time")
    assert "| training examples a second | — | 4,610 |" in text


def test_without_a_model_of_main_the_report_is_of_this_one_alone(case: Case) -> None:
    case.without(
        "main/metrics.json", "main/predictions.parquet", "main/history.csv", "main/rows.parquet", "main/params.yaml"
    )
    (case.folder / "evaluation/confusion.png").write_bytes(encode(np.zeros((2, 2, 3), np.uint8)))
    text = case.change("main/facts.json", found=False, never=True, why="main has no dvc.lock", main_run=None).write()
    assert text.startswith("## ✅ pass: accuracy 95.00%, and main never had a model to compare with")
    assert "Main never had a model to compare with (main has no dvc.lock): only the absolute gates were applied." in text
    assert "| cat | 95.00% | 20 |" in section(text, "Where this model is weak")
    assert "![Confusion of the test examples](pictures/confusion.png)" in section(text, "Where this model is weak")
    assert not json.loads(case.text("numbers.json"))["baseline"]


@pytest.mark.parametrize(
    ("never", "headline", "said"),
    [
        (True, "and main never had a model to compare with", "> [!NOTE]\n> Main never had a model to compare with (lost)"),
        (False, "not compared: main's model could not be had", "> [!WARNING]\n> Main's model could not be had: lost."),
    ],
)
def test_main_without_a_model_is_no_main_whose_model_is_lost(case: Case, never: bool, headline: str, said: str) -> None:
    case.without("main/metrics.json", "main/predictions.parquet").change("main/facts.json", never=never, why="lost")
    text = case.told()
    assert text.splitlines()[0].endswith(f"accuracy 95.00%, {headline}")
    assert said in first_lines(text)
    assert said not in case.change("report/verdict.json", reasons=["its model is lost"]).told(), "a reason says it already"


def test_the_evidence_is_in_the_first_lines(case: Case) -> None:
    evidence = {"kind": "folds", "examples": 1558, "way_out": "3 seeds", "looks": "third model of this pull request",
                "models_judged": "7 models since 2026-01-02.", "vouches_for": 0.0181}  # fmt: skip
    text = first_lines(case.change("report/verdict.json", evidence=evidence).told())
    vouches = "These examples can vouch for differences of 1.81 points."
    convention = "To pass is a one-sided test at 2.5%, which the 95% interval agrees with."
    looks = "Third model of this pull request. 7 models since 2026-01-02."
    assert f"\nEvidence: 1,558 examples of test split and folds. {vouches} {convention} {looks}\n" in text
    assert "3 seeds" not in text, "a pass needs no way out"
    text = case.change("report/verdict.json", verdict="investigate").told()
    assert "- **what would settle the accuracy**: 3 seeds\n" in first_lines(text)


def test_a_model_that_is_mains_gets_one_screen(case: Case) -> None:
    case.json("main/card.json", json.loads((case.folder / "model/card.json").read_text()))
    text = case.write()
    assert text.startswith("## ✅ pass: this is main's model, bit for bit: accuracy 95.00%\n")
    assert re.findall(r"(?m)^### (.*)$", text) == ["Gates", "Parameters", "Data", "The same model"]
    for name in ("params.yaml", "rows.parquet"):
        source = {"rows.parquet": "manifest.parquet"}.get(name, name)
        (case.folder / "main" / name).write_bytes((case.folder / source).read_bytes())
    shown = re.sub(r"(?s)<details>.*?</details>", "", case.told())
    assert re.findall(r"(?m)^### (.*)$", shown) == ["Gates", "The same model"]
    assert len(shown) < 800
    assert "bit for bit" not in case.change("main/facts.json", same_test_set=False).told().splitlines()[0]


# A run that stopped


def stop(case: Case, stage: str, said: str = "") -> Case:
    gate = {"name": "pipeline", "level": "enforce", "outcome": "fail", "sentence": f"the pipeline stopped in stage {stage}"}
    case.change("report/verdict.json", verdict="fail", reasons=[gate["sentence"]], gates=[gate], mcnemar=None, churn=None)
    return case.change("run.json", failed=stage, said=said)


def test_bad_data_are_the_report(case: Case) -> None:
    finding = {"check": "corrupt", "level": "error", "message": "12% are no image", "count": 7, "files": list("abcdefg")}
    faults = {"count": 40, "files": [{"path": f"dog/{i}.png", "row": -1, "fault": "truncated"} for i in range(40)]}
    case.change("validation.json", passed=False, findings=[finding], faults=faults)
    text = stop(case, "validate").write()
    assert text.startswith("## ❌ fail: the data failed 1 check, nothing was trained")
    told = section(text, "What is wrong with the data")
    assert "| **error** | `corrupt` | 12% are no image | `a`, `b`, `c` and 4 more |" in told
    assert "| `dog/0.png` | truncated |" in told
    assert "and 25 more" in told
    assert text.index("### What is wrong") < text.index("### Parameters")
    assert "95.00%" not in text, "metrics.json of an earlier run was read"


@pytest.mark.parametrize("stage", ["prepare", "validate", "train", "evaluate"])
def test_a_crash_shows_its_last_words_and_no_numbers_of_an_earlier_run(case: Case, stage: str) -> None:
    lines = [f"line {i}" for i in range(100)]
    text = stop(case, stage, "\n".join([*lines, "RuntimeError: \x1b[31mout of memory\x1b[0m"])).write()
    assert text.startswith("## ❌ fail: ")
    told = section(text, f"What stopped: {stage}")
    assert "line 99\nRuntimeError: out of memory\n```" in told
    assert "line 5\n" not in told
    assert f"git checkout {COMMIT}\nmake reproduce" in told
    assert "95.00%" not in text
    assert "### Metrics" not in text
    numbers = schema.parse(case.text("numbers.json").encode())
    assert (numbers.failed_stage, numbers.metrics, numbers.verdict) == (stage, (), "fail")


SPEED = {"threads": 2, "examples_per_second": 4610.4, "data_wait_share": 0.004, "memory_gib": 0.61}


def test_speed_memory_and_energy_stand_beside_main(case: Case) -> None:
    assert "examples a second" not in case.told()
    case.json("history/throughput.json", {**SPEED, "energy_kwh": 0.5, "model_sha256": "5" * 64})
    rows = {"threads of the CPU": "2", "training examples a second": "4,610", "time waiting for data": "0.40%",
            "memory at most": "0.61 GiB", "energy": "0.5 kWh"}  # fmt: skip
    told = case.told()
    assert [name for name, this in rows.items() if f"| {name} | — | {this} |" not in told] == []
    main_run = json.loads((case.folder / "main/facts.json").read_text())["main_run"]
    case.change("main/facts.json", main_run={**main_run, "throughput": {**SPEED, "examples_per_second": 4000.0}})
    told = case.told()
    assert "| training examples a second | 4,000 | 4,610 |" in told
    case.json("history/throughput.json", {**SPEED, "energy_kwh": None, "model_sha256": "5" * 64})
    assert "| energy |" not in case.told(), "where the machine does not tell it"
    assert "4,610" not in case.change("run.json", failed="train").told()


def test_refused_parameters_are_told_and_no_earlier_numbers(case: Case) -> None:
    (case.folder / "params.yaml").write_text("train: [")
    text = case.change("report/verdict.json", verdict="fail", reasons=["params.yaml is not valid YAML"], gates=[]).told()
    assert text.startswith("## ❌ fail: params.yaml cannot be used\n\n- params.yaml is not valid YAML")
    assert "95.00%" not in text


# Pictures, page, summary, numbers


@pytest.mark.parametrize(
    ("pictures", "main", "expected"),
    [
        ("charts", True, {"calibration.png", "confusion_difference.png", "curves.png"}),
        ("charts", False, {"calibration.png", "confusion.png", "curves.png"}),
        ("none", True, set()),
        ("none", False, set()),
    ],
)
def test_no_picture_that_params_forbid_reaches_report_page_or_artifact(
    case: Case, pictures: str, main: bool, expected: set[str]
) -> None:
    for name in ("confusion", "curves", "calibration", "errors", "activation"):
        (case.folder / f"evaluation/{name}.png").write_bytes(encode(np.zeros((2, 2, 3), dtype=np.uint8)))
    write_params(case.folder / "params.yaml", report__pictures=pictures)
    if not main:
        (case.folder / "main/metrics.json").unlink()
    text = case.write()
    shown = set(re.findall(r"!\[[^\]]*\]\(pictures/([\w.-]+)\)", text))
    files = {path.name for path in (case.folder / "report").rglob("*.png")}
    assert shown == files == expected
    assert case.text("report.html").count("<img") == len(expected)
    assert f"`report.pictures` of `params.yaml` is {pictures}" in text


def test_pictures_colour_better_and_worse_and_hide_what_is_chance(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(drawing.pictures, "save", lambda made, path: drawn.setdefault(path.stem, made.axes[0]))
    drawing.draw(read(case.paths), case.folder)
    cells = np.asarray(drawn["confusion_difference"].images[0].get_array())
    assert (np.diag(cells) >= 0).all(), "more right answers are better"
    assert cells.sum() > 0, "and so are fewer errors"
    assert {text.get_text() for text in drawn["calibration"].texts} == {"60"}
    predictions = pq.read_table(case.folder / "evaluation/predictions.parquet").to_pandas()
    predictions.loc[:3, "confidence"] = 0.5
    predictions.to_parquet(case.folder / "evaluation/predictions.parquet")
    drawn.clear()
    drawing.draw(read(case.paths), case.folder)
    assert {text.get_text() for text in drawn["calibration"].texts} == {"60", "56"}, "a bin of four examples is hidden"


def test_of_many_classes_those_that_changed_most_are_drawn() -> None:
    difference = np.zeros((120, 120), dtype=np.int64)
    difference[range(60), range(60, 120)] = np.arange(1, 61)
    assert drawing._most_changed(difference) == [*range(50, 60), *range(110, 120)]


def test_the_page_needs_nothing_else(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAN", json.dumps({"sha": COMMIT, "run_url": "https://github.com/team/models/actions/runs/7"}))
    text = case.write()
    told = Page(case.text("report.html"))
    assert told.open == []
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(told.tags)
    assert {address.split(",")[0] for address in told.addresses} == {
        "data:image/png;base64", "https://github.com/team/models/actions/runs/7",
    }  # fmt: skip
    assert told.tags.count("img") == 5
    assert "default-src 'none'" in case.text("report.html")
    assert "url(" not in case.text("report.html")
    for title in re.findall(r"^### (.+)$", text, re.MULTILINE):
        assert title in told.words
    assert "mermaid" not in told.words


def test_a_page_takes_three_tags_of_ours_and_no_file_from_outside(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "secret.png").write_bytes(b"secret")
    text = "<details><summary>a</summary></details>\n\n<script>x</script> <b onclick=y>\n\n"
    text += "![p](../secret.png)\n\n[l](javascript:x)\n"
    page.write(tmp_path / "out/page.html", text)
    told = Page((tmp_path / "out/page.html").read_text())
    assert {"details", "summary"} <= set(told.tags)
    assert {"script", "b", "img", "a"}.isdisjoint(told.tags)


def test_numbers_keep_to_the_schema_that_the_poster_reads(tmp_path: Path) -> None:
    names = tuple(f"{'long ' * 20}{i}" if i % 2 else f"class {i}" for i in range(300))
    case = Case(tmp_path / "case", names, images=600)
    finding = {"check": "near duplicates!", "level": "warn", "message": "m", "count": 1, "files": []}
    case.change("validation.json", findings=[finding])
    case.write()
    told = schema.parse(case.text("numbers.json").encode())
    assert (told.commit, told.verdict, told.examples, told.baseline) == (COMMIT, "pass", 600, True)
    assert told.metrics[0].name == "accuracy"
    assert (told.metrics[0].low, told.metrics[0].high) == (0.0167, 0.2)
    assert [check.name for check in told.checks] == ["near_duplicates_"]
    assert {row.name for row in told.classes} > {"class 0", "class 2"}


# Hostile names, and too much of everything


def assert_harmless(text: str) -> None:
    told = rendered(text)
    assert told.open == []
    assert not {"img", "a", "script", "h1"} & set(told.tags)
    prose = re.sub(r"```.*?```|`[^`]*`|<code>.*?</code>", "", text, flags=re.DOTALL)
    assert not re.search(r"@\w|(?<!&)#\d|www\.|:smile:|(?<!&)\$x\$", prose)


def test_hostile_names_everywhere_stay_names(tmp_path: Path) -> None:
    case = Case(tmp_path / "case", (EVIL, "- b |", "</details>\n# c"))
    params = YAML(typ="safe").load((case.folder / "params.yaml").read_text())
    params["train"]["network"] = EVIL
    with (case.folder / "params.yaml").open("w") as file:
        YAML().dump(params, file)
    finding = {"check": EVIL, "level": "warn", "message": EVIL, "count": 3, "files": [EVIL, "a`b", "c|d"]}
    case.change("validation.json", findings=[finding])
    case.change("main/facts.json", behind=1, moved_inputs=[EVIL], ref=EVIL, judging_changed=[EVIL], retrained=EVIL)
    left = {"examples": 2, "of": 9, "main_right": 1, "names": [EVIL]}
    case.change("main/facts.json", labels_added=[EVIL], labels_gone=[EVIL], left_test=left, relabelled=left)
    case.change("report/verdict.json", reasons=[EVIL], override={"by": EVIL, "label": EVIL, "at": EVIL}, verdict="fail")
    case.change("run.json", lane={"name": EVIL, "comparable": False}, hardware={"processor": EVIL})
    text = case.write()
    assert_harmless(re.sub(r"(?m)^!\[.*$", "", text))
    assert re.findall(r"(?m)^#+ .*c$", text) == []
    titles = [tag for tag in rendered(text).tags if re.fullmatch("h[1-6]", tag)]
    assert titles == ["h2"] + ["h3"] * text.count("\n### ")
    assert Page(case.text("report.html")).open == []
    schema.parse(case.text("numbers.json").encode())


def test_a_huge_change_still_fits_into_a_comment(tmp_path: Path) -> None:
    case = Case(tmp_path / "case", tuple(f"{'<' * 70}{i}" for i in range(1000)), images=2000)
    content = YAML(typ="safe").load((case.folder / "params.yaml").read_text())
    for i in range(500):
        content["train"][f"parameter_{i}_{'|' * 60}"] = "<" * 200
    with (case.folder / "params.yaml").open("w") as file:
        YAML().dump(content, file)
    many = [case.row(i % 2000, "train", digest=f"new-{i}", path="`|" * 200 + str(i)) for i in range(10_000)]
    case.rows("manifest.parquet", many)
    files = ["<" * 300] * 20
    findings = [{"check": f"c{i}", "level": "warn", "message": "|" * 400, "count": 900, "files": files} for i in range(30)]
    case.change("validation.json", findings=findings)
    reasons = [f"{i} {'&' * 600}" for i in range(50)]
    case.change("report/verdict.json", reasons=reasons)
    text = case.write()
    assert len(text) <= 60_000
    assert text.count("<details>") == text.count("</details>")
    assert Page(case.text("report.html")).open == []
    assert rendered(text).open == []


# What changed, in numbers


def manifest(*rows: tuple[str | None, str, str | None]) -> pa.Table:
    """Rows of digest, label and split."""
    columns = {name: pa.array([None] * len(rows), field.type) for name, field in zip(MANIFEST.names, MANIFEST, strict=True)}
    columns["path"] = pa.array([f"{i}.png" for i in range(len(rows))])
    columns["row"] = pa.array([-1] * len(rows), pa.int64())
    for place, name in enumerate(("digest", "label", "split")):
        columns[name] = pa.array([row[place] for row in rows], pa.string())
    return pa.table(columns)
