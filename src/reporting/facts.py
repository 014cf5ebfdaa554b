"""Everything a report tells, read once: what this pull request's run made, what main has, the verdict, the circumstances.

A run that stopped early leaves files of an earlier one behind (metrics.json and manifest.json live in Git); what the failed
stage would have made, or a later one, is therefore not read.
"""

import csv
import json
import math
import os
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from src.core import arrays
from src.core.arrays import Split
from src.core.card import Trained
from src.core.command import UserError
from src.core.metrics_file import ClassScores, MetricsFile, SliceScores
from src.core.records import Record
from src.core.yaml_files import read_yaml
from src.judging import plan
from src.reporting import changes
from src.system.git_command import git
from src.system.judged import Comparison, Hardware, JudgedFile, Lineage, Throughput
from src.system.params import filled

Json = dict[str, Any]
_File = TypeVar("_File", bound=Record)

STAGES = ("prepare", "validate", "train", "evaluate")
_PREDICTIONS = ["path", "row", "digest", "label", "prediction", "confidence", "log_loss"]
_ROWS = ["path", "row", "digest", "label", "split", "fault", "brightness", "contrast", "sharpness", "saturation"]


@dataclass(frozen=True)
class Paths:
    """Where the files lie; only `run` and `verdict` must be there."""

    metrics: Path = Path("metrics.json")
    evaluation: Path = Path("out/evaluation")
    model: Path = Path("out/model")
    manifest: Path = Path("out/manifest.parquet")
    arrays: Path = Path("out/arrays")
    validation: Path = Path("out/validation.json")
    profile: Path = Path("out/profile")
    run: Path = Path("out/run.json")
    main: Path = Path("out/main")  # what compare wrote
    verdict: Path = Path("out/report/verdict.json")
    lineage: Path = Path("manifest.json")
    params: Path = Path("params.yaml")
    history: Path = Path("out/history")


@dataclass(frozen=True, kw_only=True)
class ModelCard(Trained):
    """The card of a model, whatever its examples are, with the names of its classes."""

    classes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Run(Record):
    """run.json of `make reproduce`: the stage that stopped it with its last words, where it ran, for how long."""

    failed: str | None
    said: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    hardware: Hardware | None = None
    lane: Json = field(default_factory=dict)
    budget: dict[str, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Finding(Record):
    """What one check of the data found."""

    check: str
    level: str
    message: str = ""
    count: int = 0
    files: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Validation(Record):
    """validation.json."""

    passed: bool = True
    findings: list[Finding] = field(default_factory=list)
    faults: Json = field(default_factory=dict)  # count, and the first files with path, row, fault


@dataclass(frozen=True, kw_only=True)
class Latency(Record):
    """Latency of one example in ms; `blocks` holds the p95 of each round."""

    p50: float | None = None
    p95: float | None = None
    p99: float | None = None
    blocks: list[float] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Timings(Record):
    """timings.json of the comparison: both models on one machine, in turns."""

    main: Latency | None = None
    candidate: Latency | None = None
    hardware: Hardware | None = None


@dataclass(frozen=True, kw_only=True)
class Measured(Throughput):
    """throughput.json: speed and machine of the last training here, and which model came out."""

    model_sha256: str | None = None
    seconds: float | None = None
    ended: str | None = None
    hardware: Hardware | None = None


@dataclass(frozen=True)
class Training:
    """The training of the model at hand: in this run, an earlier one, or unknown (no seconds)."""

    here: bool = False
    seconds: float | None = None
    hardware: Hardware | None = None
    throughput: Throughput | None = None
    commit: str | None = None
    ended: str | None = None


@dataclass(frozen=True)
class Side:
    """One model with its data, the pull request's or main's. What was not made is empty, or None."""

    metrics: MetricsFile | None = None
    predictions: pd.DataFrame = field(default_factory=pd.DataFrame)  # one row a test example, in the order of the test array
    history: list[dict[str, float]] = field(default_factory=list)  # one entry an epoch
    card: ModelCard | None = None
    params: dict[str, str] = field(default_factory=dict)  # dotted key to value, as text
    rows: pa.Table | None = None  # the manifest: one row an example
    latency: Latency = field(default_factory=Latency)

    @property
    def kept_epoch(self) -> dict[str, float]:
        """The history of the epoch whose weights are the model; empty where it is not known."""
        return next((row for row in self.history if self.card and row.get("epoch") == self.card.epoch), {})

    def parts(self, kind: str) -> dict[str, ClassScores | SliceScores]:
        """Return the numbers of each class (`per_class`) or slice (`slices`)."""
        return getattr(self.metrics, kind) if self.metrics else {}


@dataclass(frozen=True)
class Circumstances:
    """Where and for whom the run happened; each may be unknown."""

    commit: str  # 40 hexadecimal digits, zeros where there is no Git
    pull_request: int | None
    run_url: str | None
    uncommitted: tuple[str, ...] = ()  # what the commit has otherwise, on a person's own machine


@dataclass(frozen=True)
class Facts:
    """All that a report is written from."""

    paths: Paths
    failed: str | None  # the stage that stopped the pipeline, or what else kept it from its end
    run: Run
    verdict: JudgedFile
    this: Side
    main: Side
    base: Comparison
    timed_on: Hardware | None  # the hardware both latencies were measured on
    validation: Validation | None
    lineage: Lineage | None
    test: Split | None  # the test examples
    training: Training
    at: Circumstances

    @cached_property
    def answers(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """What main and this model said of the test examples whose label both know; the index is a row of the test array."""
        main, this = self.main.predictions, self.this.predictions
        if not self.base.labels_added or main.empty or this.empty:
            return main, this
        return tuple(side[~side["label"].isin(self.base.labels_added)] for side in (main, this))  # type: ignore[return-value]

    @property
    def has_main(self) -> bool:
        """True when main's model was judged on the same test examples."""
        return bool(self.main.metrics and self.this.metrics)

    @property
    def has_answers(self) -> bool:
        """True when it is known what both models said of each test example."""
        return self.has_main and all(len(frame) > 0 for frame in self.answers)

    @property
    def is_main(self) -> bool:
        """True when this is main's model, bit for bit, judged on the same test examples: there is nothing to compare."""
        cards = self.main.card, self.this.card
        same = all(cards) and len({card.model_sha256 for card in cards if card}) == 1
        return same and self.failed is None and self.has_main and self.base.same_test_set

    @property
    def pictures(self) -> str:
        """Return report.pictures of params.yaml: all, charts or none."""
        wanted = self.this.params.get("report.pictures", "all")
        return wanted if wanted in ("all", "charts") else "none"

    @property
    def pooled(self) -> str:
        """Name the examples that main was compared on where they are more than the test split: another difference."""
        found = self.verdict.evidence
        return f"{found.examples:,} examples of test split and {found.kind}" if found and found.kind != "test" else ""

    def number(self, key: str, default: float) -> float:
        """Return a number of params.yaml; the template's own where it is none."""
        try:
            return float(self.this.params.get(key, default))
        except ValueError:
            return default

    def overall(self, side: int) -> dict[str, float]:
        """Return the four numbers of main (0) or this model (1) over the examples of `answers`."""
        return changes.overall(self.answers[side], int(self.number("evaluate.calibration_bins", 15)))

    def compared(self, metric: str) -> tuple[float | None, float | None]:
        """Return what main and this model have of a metric, over the test examples whose label both know.

        Where there is none, this model's own over all of them.
        """
        main, this = (getattr(side.metrics, metric, None) for side in (self.main, self.this))
        if not self.base.labels_added or metric == "model_bytes":
            return main, this
        return (self.overall(0).get(metric), self.overall(1).get(metric)) if self.has_answers else (None, this)

    def is_told(self, gate: str) -> bool:
        """True when the reasons already hold that gate's sentence."""
        return self.verdict.gate(gate).sentence in self.verdict.reasons


def read(paths: Paths) -> Facts:
    """Read what there is.

    Raises:
        UserError: the run or the verdict is missing, or a file is damaged; the text says which, and what to do.
    """
    for path, command in ((paths.run, "make reproduce"), (paths.verdict, "make report")):
        if not path.is_file():
            raise UserError(f"{path} is missing: run `{command}` first, which makes it")
    run, verdict = Run.read(paths.run, made_by=""), JudgedFile.read(paths.verdict, made_by="evaluate")
    failed = run.failed
    if failed is None and verdict.verdict == "fail" and not verdict.gates:
        failed = "params"  # params.yaml was refused, so nothing has run
    done = STAGES.index(failed) if failed in STAGES else 0 if failed else len(STAGES)
    prepared, _, trained, evaluated = (number < done for number in range(len(STAGES)))
    validated = done > 1 or failed == "validate"  # which writes its findings, then fails
    base = _read(Comparison, paths.main / "facts.json") or Comparison()
    timings = _read(Timings, paths.main / "timings.json") or Timings()
    card = _read(ModelCard, paths.model / "card.json") if trained else None
    this = Side(
        metrics=_read(MetricsFile, paths.metrics) if evaluated else None,
        predictions=_predictions(paths.evaluation / "predictions.parquet") if evaluated else pd.DataFrame(),
        history=_history(paths.model / "history.csv") if trained else [],
        card=card,
        params=_params(paths.params, run),
        rows=_parquet(paths.manifest, _ROWS) if prepared else None,
        latency=(timings.candidate if evaluated else None) or Latency(),
    )
    main = Side(
        metrics=_read(MetricsFile, paths.main / "metrics.json"),
        predictions=_predictions(paths.main / "predictions.parquet"),
        history=_history(paths.main / "history.csv"),
        card=_read(ModelCard, paths.main / "card.json"),
        params=_params(paths.main / "params.yaml", run),
        rows=_parquet(paths.main / "rows.parquet", _ROWS),
        latency=timings.main or Latency(),
    )
    if main.metrics and base.labels_added:  # slices hold examples of these labels too
        classes = {name: row for name, row in main.metrics.per_class.items() if name not in base.labels_added}
        main = replace(main, metrics=replace(main.metrics, per_class=classes, slices={}))
    lineage = _read(Lineage, paths.lineage)
    if not lineage or not card or lineage.outputs.model_sha256 != card.model_sha256:
        lineage = None  # Git may still have that of another model, as after a preview or a failure
    has_arrays = evaluated and (paths.arrays / "card.json").is_file()
    told = plan.read()
    made_of = ("params.yaml", "dvc.yaml", "*.dvc", "requirements", "src")
    uncommitted = () if os.environ.get("PLAN") else git("diff", "--name-only", "HEAD", "--", *made_of).splitlines()
    return Facts(
        paths=paths,
        failed=failed,
        run=run,
        verdict=verdict,
        this=this,
        main=main,
        base=base,
        timed_on=timings.hardware,
        validation=_read(Validation, paths.validation) if validated else None,
        lineage=lineage,
        test=arrays.load(paths.arrays).split("test") if has_arrays else None,
        training=_training(run, lineage, _read(Measured, paths.history / "throughput.json"), card)
        if trained
        else Training(),
        at=Circumstances(
            commit=told.commit,
            pull_request=told.pull_request or (lineage.pull_request if lineage else None),
            run_url=told.run_url or (lineage.run_url if lineage else None),
            uncommitted=tuple(uncommitted),
        ),
    )


def _training(run: Run, lineage: Lineage | None, measured: Measured | None, card: ModelCard | None) -> Training:
    """Return what is known of the training that made the model at hand, from this run, its lineage or an earlier run here.

    `measured` is throughput.json, which an earlier training may have left: it counts where it names this model.
    """
    if not card or not measured or measured.model_sha256 != card.model_sha256:
        measured = None
    seconds = run.seconds.get("train")
    if seconds is not None:  # at a deployment there is the lineage alone
        return Training(True, seconds, run.hardware, measured or (lineage.throughput if lineage else None))
    if lineage and lineage.training_seconds is not None:
        return Training(False, lineage.training_seconds, lineage.hardware, lineage.throughput, lineage.commit)
    return Training(False, measured.seconds, measured.hardware, measured, ended=measured.ended) if measured else Training()


def _read(kind: type[_File], path: Path) -> _File | None:
    return kind.read(path, made_by="evaluate") if path.is_file() else None


def _predictions(path: Path) -> pd.DataFrame:
    table = _parquet(path, _PREDICTIONS)
    return pd.DataFrame() if table is None else table.to_pandas()


def _parquet(path: Path, columns: list[str]) -> pa.Table | None:
    if not path.is_file():
        return None
    try:
        return pq.read_table(path, columns=columns).select(columns)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise _damaged(path, error) from None


def _history(path: Path) -> list[dict[str, float]]:
    if not path.is_file():
        return []
    try:
        with path.open(newline="") as file:
            rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    except (ValueError, TypeError) as error:
        raise _damaged(path, error) from None
    return [row for row in rows if all(math.isfinite(value) for value in row.values())]


def _params(path: Path, run: Run) -> dict[str, str]:
    """Return every value of a params.yaml, or its default, by its dotted key; main's may have other keys.

    Without what a small budget has lowered in the work tree's params.yaml: the pull request did not change it.
    """
    if not path.is_file():
        return {}
    try:
        content = read_yaml(path)
    except UserError:
        return {}  # then the pipeline has stopped for it, and said so
    lowered = ("train.epochs", "train.warmup_epochs") if run.budget else ()
    found = flattened(filled(content)) if isinstance(content, dict) else {}
    return {key: value for key, value in found.items() if key not in lowered}


def flattened(content: Any, key: str = "") -> dict[str, str]:
    """Return the leaves of nested mappings by dotted key, each as the text that JSON and YAML share."""
    if isinstance(content, dict) and content:
        pairs = [flattened(value, f"{key}.{name}" if key else str(name)) for name, value in content.items()]
        return {name: value for pair in pairs for name, value in pair.items()}
    return {key: json.dumps(content, ensure_ascii=False, default=str).strip('"')}


def _damaged(path: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200]
    return UserError(f"{path} cannot be read ({reason}): delete it, run `make reproduce`, then `make report`")
