"""Everything a report tells, read once: what this pull request's run made, what main has, the verdict, the circumstances.

A run that stopped early leaves files of an earlier one behind (metrics.json and manifest.json live in Git); what the failed
stage would have made, or a later one, is therefore not read.
"""

import csv
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from src.core import arrays
from src.core.arrays import Split
from src.core.command import UserError
from src.core.files import read_json
from src.core.yaml_files import read_yaml
from src.judging import plan
from src.reporting import changes
from src.system.git_command import git
from src.system.judged import JudgedFile
from src.system.params import filled

Json = dict[str, Any]

STAGES = ("prepare", "validate", "train", "evaluate")
_PREDICTIONS = ["path", "row", "digest", "label", "prediction", "confidence", "log_loss"]
_ROWS = ["path", "row", "digest", "label", "split", "fault", "brightness", "contrast", "sharpness", "saturation"]


@dataclass(frozen=True)
class Paths:
    """Where the files lie; only `run` and `verdict` must be there."""

    metrics: Path
    evaluation: Path
    model: Path
    manifest: Path
    arrays: Path
    validation: Path
    profile: Path
    run: Path
    main: Path
    verdict: Path
    lineage: Path
    params: Path
    history: Path


@dataclass(frozen=True)
class Side:
    """One model with its data, the pull request's or main's. What was not made is empty, or None."""

    metrics: Json = field(default_factory=dict)
    predictions: pd.DataFrame = field(default_factory=pd.DataFrame)  # one row a test image, in the order of the test array
    history: list[dict[str, float]] = field(default_factory=list)  # one entry an epoch
    card: Json = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)  # dotted key to value, as text
    rows: pa.Table | None = None  # the manifest: one row an image
    latency: Json = field(default_factory=dict)  # p50, p95, p99 in ms

    @property
    def kept_epoch(self) -> dict[str, float]:
        """The history of the epoch whose weights are the model; empty where it is not known."""
        return next((row for row in self.history if row.get("epoch") == self.card.get("epoch")), {})


@dataclass(frozen=True)
class Circumstances:
    """Where and for whom the run happened; each may be unknown."""

    commit: str  # 40 hexadecimal digits, zeros where there is no Git
    pull_request: int | None
    run_url: str | None
    hourly_cost: str | None  # HOURLY_COST as it is set
    uncommitted: tuple[str, ...] = ()  # what the commit has otherwise, on a person's own machine


@dataclass(frozen=True)
class Facts:
    """All that a report is written from."""

    paths: Paths
    failed: str | None  # the stage that stopped the pipeline, or what else kept it from its end
    run: Json
    verdict: Json
    this: Side
    main: Side
    base: Json  # facts.json of the comparison
    timed_on: Json  # the hardware both latencies were measured on
    validation: Json
    lineage: Json
    test: Split | None  # the pixels of the test images
    training: Json  # of this very model: `here` or not, seconds, hardware, throughput, commit or end; empty: not known
    at: Circumstances

    @property
    def labels_added(self) -> list[str]:
        """The labels of this data that main's model never saw."""
        return [str(label) for label in self.base.get("labels_added") or []]

    @property
    def answers(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """What main and this model said of the test images whose label both know; the index is the row of the test array."""
        main, this = self.main.predictions, self.this.predictions
        if not self.labels_added or main.empty or this.empty:
            return main, this
        return main[~main["label"].isin(self.labels_added)], this[~this["label"].isin(self.labels_added)]

    @property
    def calibration_bins(self) -> int:
        """What evaluate.calibration_bins of params.yaml says, or the template's own 15."""
        told = self.this.params.get("evaluate.calibration_bins", "")
        return int(told) if told.isdecimal() and int(told) else 15

    @property
    def pictures(self) -> str:
        """Return report.pictures of params.yaml: all, charts or none."""
        wanted = self.this.params.get("report.pictures", "all")
        return wanted if wanted in ("all", "charts") else "none"

    def compared(self, metric: str) -> tuple[float | None, float | None]:
        """Return what main and this model have of a metric, over the test images whose label both know.

        Where there is none, this model's own over all of them.
        """
        if not self.labels_added or metric == "model_bytes":
            return self.main.metrics.get(metric), self.this.metrics.get(metric)
        if not self.has_answers:
            return None, self.this.metrics.get(metric)
        main, this = (changes.overall(frame, self.calibration_bins).get(metric) for frame in self.answers)
        return main, this

    @property
    def has_main(self) -> bool:
        """True when main's model was judged on the same test images."""
        return bool(self.main.metrics) and bool(self.this.metrics)

    @property
    def has_answers(self) -> bool:
        """True when it is known what both models said of each test image."""
        return self.has_main and all(len(frame) > 0 for frame in self.answers)


def read(paths: Paths) -> Facts:
    """Read what there is.

    Raises:
        UserError: the run or the verdict is missing, or a file is damaged; the text says which, and what to do.
    """
    for path, command in ((paths.run, "make reproduce"), (paths.verdict, "make report")):
        if not path.is_file():
            raise UserError(f"{path} is missing: run `{command}` first, which makes it")
    run = read_json(paths.run, made_by="", keys=("failed",))
    verdict = read_json(paths.verdict, made_by="evaluate", keys=("verdict", "reasons", "gates"))
    JudgedFile.from_json(verdict, str(paths.verdict))
    failed = None if run["failed"] is None else str(run["failed"])
    if failed is None and verdict["verdict"] == "fail" and not verdict["gates"]:
        failed = "params"  # params.yaml was refused, so nothing has run
    made = {stage: _is_made(stage, failed) for stage in STAGES}
    base, timings = _json(paths.main / "facts.json"), _json(paths.main / "timings.json")
    this = _this(paths, made, run.get("budget"), timings)
    lineage = _json(paths.lineage)
    recorded = (lineage.get("outputs") or {}).get("model_sha256")
    if recorded is None or recorded != this.card.get("model_sha256"):
        lineage = {}  # Git may still have that of another model, as after a preview or a failure
    has_arrays = (paths.arrays / "card.json").is_file()
    return Facts(
        paths=paths,
        failed=failed,
        run=run,
        verdict=verdict,
        this=this,
        main=_main(paths.main, run.get("budget"), timings, base.get("labels_added") or []),
        base=base,
        timed_on=timings.get("hardware") or {},
        validation=_json(paths.validation) if made["validate"] else {},
        lineage=lineage,
        test=arrays.load(paths.arrays).split("test") if made["evaluate"] and has_arrays else None,
        training=_training(run, lineage, _json(paths.history / "throughput.json"), this.card) if made["train"] else {},
        at=_circumstances(lineage),
    )


def _is_made(stage: str, failed: str | None) -> bool:
    if failed is None:
        return True
    done = STAGES.index(failed) if failed in STAGES else 0
    return STAGES.index(stage) < done or stage == failed == "validate"  # validate writes its findings, then fails


def _this(paths: Paths, made: Mapping[str, bool], budget: Json | None, timings: Json) -> Side:
    return Side(
        metrics=_json(paths.metrics) if made["evaluate"] else {},
        predictions=_predictions(paths.evaluation / "predictions.parquet") if made["evaluate"] else pd.DataFrame(),
        history=_history(paths.model / "history.csv") if made["train"] else [],
        card=_json(paths.model / "card.json") if made["train"] else {},
        params=_comparable(_params(paths.params), budget),
        rows=_parquet(paths.manifest, _ROWS) if made["prepare"] else None,
        latency=(timings.get("candidate") or {}) if made["evaluate"] else {},
    )


def _comparable(params: dict[str, str], budget: Json | None) -> dict[str, str]:
    """Without what a small budget has lowered in the work tree's params.yaml: the pull request did not change it."""
    if not budget:
        return params
    return {key: value for key, value in params.items() if key not in ("train.epochs", "train.warmup_epochs")}


def _training(run: Json, lineage: Json, measured: Json, card: Json) -> Json:
    """Return what is known of the training that made the model at hand, from this run, its lineage or an earlier run here.

    `measured` is throughput.json, which an earlier training may have left: it counts where it names this model.
    """
    if not card or measured.get("model_sha256") != card.get("model_sha256"):
        measured = {}
    seconds = (run.get("seconds") or {}).get("train")
    if seconds is not None:
        throughput = measured or lineage.get("throughput") or {}  # at a deployment there is the lineage alone
        return {"here": True, "seconds": seconds, "hardware": run.get("hardware"), "throughput": throughput}
    if (seconds := lineage.get("training_seconds")) is not None:
        told = {name: lineage.get(name) for name in ("commit", "hardware", "throughput")}
        return {"here": False, "seconds": seconds, **told}
    return {"here": False, "throughput": measured, **measured} if measured else {}


def _main(folder: Path, budget: Json | None, timings: Json, labels_added: list[str]) -> Side:
    metrics = _json(folder / "metrics.json")
    if metrics and labels_added:  # slices hold images of these labels too
        classes = {name: row for name, row in (metrics.get("per_class") or {}).items() if name not in labels_added}
        metrics |= {"per_class": classes, "slices": {}}
    return Side(
        metrics=metrics,
        predictions=_predictions(folder / "predictions.parquet"),
        history=_history(folder / "history.csv"),
        card=_json(folder / "card.json"),
        params=_comparable(_params(folder / "params.yaml"), budget),
        rows=_parquet(folder / "rows.parquet", _ROWS),
        latency=timings.get("main") or {},
    )


def _json(path: Path) -> Json:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise _damaged(path, error) from None
    return content if isinstance(content, dict) else {}


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


def _params(path: Path) -> dict[str, str]:
    """Return every value of a params.yaml, or its default, by its dotted key; main's may have other keys."""
    if not path.is_file():
        return {}
    try:
        content = read_yaml(path)
    except UserError:
        return {}  # then the pipeline has stopped for it, and said so
    return flattened(filled(content)) if isinstance(content, dict) else {}


def flattened(content: Any, key: str = "") -> dict[str, str]:
    """Return the leaves of nested mappings by dotted key, each as the text that JSON and YAML share."""
    if isinstance(content, dict) and content:
        pairs = [flattened(value, f"{key}.{name}" if key else str(name)) for name, value in content.items()]
        return {name: value for pair in pairs for name, value in pair.items()}
    return {key: json.dumps(content, ensure_ascii=False, default=str).strip('"')}


def _damaged(path: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200]
    return UserError(f"{path} cannot be read ({reason}): delete it, run `make reproduce`, then `make report`")


def _circumstances(lineage: Json) -> Circumstances:
    told = plan.read()
    made_of = ("params.yaml", "dvc.yaml", "*.dvc", "requirements", "src")
    uncommitted = () if os.environ.get("PLAN") else git("diff", "--name-only", "HEAD", "--", *made_of).splitlines()
    return Circumstances(
        commit=told.commit,
        pull_request=told.pull_request or lineage.get("pull_request"),
        run_url=told.run_url or lineage.get("run_url"),
        hourly_cost=os.environ.get("HOURLY_COST") or None,
        uncommitted=tuple(uncommitted),
    )
