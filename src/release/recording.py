"""The MLflow run of a reviewed model: the one that training logged live, else one made from what DVC keeps of it.

One manifest has one run: it carries the manifest's digest as a tag from its first moment, and whatever is logged may be
logged again without a trace, so that a killed process is completed by the next.
"""

import csv
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from src.core.files import read_json
from src.release.reviewed import Release
from src.system.mlflow_client import artifacts_of
from src.system.params import load
from src.system.registry import Registry

_EXPERIMENT = "image-classifier"  # as src/system/tracking.py names it
# what the registered model holds, what later steps write
_NOT_LOGGED = ("model.onnx", "registered.json", "image.json", "sbom.json")
_NOT_OF_THE_TEST = ("per_class", "slices", "folds", "repeats")  # parts of it, and images that are none of it
_BATCH = 100  # parameters a request; MLflow takes no more
_METRICS = 1000  # likewise


def record(registry: Registry, folder: Path, release: Release, run_id: str | None, note: str) -> str:
    """Complete the run of this release and return its id; `run_id` is the one its registered version names, if any.

    Without a run that has the manifest's tag, the oldest that training logged live is taken, else one is made.
    """
    client = registry.client
    known = _runs(client, f"tags.manifest = '{release.manifest}'")
    run = next((run for run in known if run.info.run_id == run_id), known[0] if known else None)
    run = run or _live_run(client, folder, release)
    if run is None:
        name = f"reviewed {release.manifest[:12]}"
        tags = {"backfilled": "true", "manifest": release.manifest, "mlflow.runName": name}
        run = client.create_run(_experiment(registry), tags=tags)
    if run.data.tags.get("recorded") != release.manifest:
        _log(client, run, folder, release, note)
    found: str = run.info.run_id
    return found


def _runs(client: Any, query: str) -> list[Any]:
    """Return the runs of all experiments that a query finds, the oldest first; deleted ones are gone."""
    experiments = [found.experiment_id for found in client.search_experiments(max_results=1000)]
    found = client.search_runs(experiments, query, max_results=1000)
    return sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))


def _live_run(client: Any, folder: Path, release: Release) -> Any:
    """Take the live run of this very training: of the same data, with equal parameters and numbers of each epoch.

    Several runs can be of the same data. A run that belongs to another manifest is left to it.
    """
    data, history = read_json(folder / "model" / "card.json", made_by="train").get("manifest_sha256"), _history(folder)
    names = {name for _, row in history for name in row}
    params = {key: str(value) for key, value in _flat(load(folder / "params.yaml").train.model_dump())}
    for run in _runs(client, f"tags.manifest_sha256 = '{data}'") if data and names else []:
        if run.info.status != "FINISHED" or run.data.tags.get("manifest", release.manifest) != release.manifest:
            continue
        if any(run.data.params.get(key) != value for key, value in params.items()):
            continue
        logged = {name: client.get_metric_history(run.info.run_id, name) for name in names}
        if all(
            {metric.step: round(metric.value, 6) for metric in logged[name]} == {epoch: row[name] for epoch, row in history}
            for name in names
        ):
            client.set_tag(run.info.run_id, "manifest", release.manifest)
            return run
    return None


def _experiment(registry: Registry) -> str:
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or _EXPERIMENT
    if found := registry.client.get_experiment_by_name(name):
        return str(found.experiment_id)
    folder = artifacts_of(registry.uri)
    return str(registry.client.create_experiment(name, artifact_location=str(folder / name) if folder else None))


def _log(client: Any, run: Any, folder: Path, release: Release, note: str) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

    run_id, started = run.info.run_id, run.info.start_time  # one time for all: the same number logged twice is one
    params = [Param(key, str(value)[:6000]) for key, value in _params(folder)]
    for start in range(0, len(params), _BATCH):
        client.log_batch(run_id, params=params[start : start + _BATCH])
    logged, history = set() if run.data.tags.get("backfilled") else set(run.data.metrics), _history(folder)
    metrics = [(key, value, epoch) for epoch, row in history for key, value in row.items() if key not in logged]
    last, test = max((epoch for epoch, _ in history), default=0), read_json(folder / "metrics.json", made_by="evaluate")
    for key, value in _flat({name: test[name] for name in test if name not in _NOT_OF_THE_TEST}):
        if isinstance(value, int | float) and math.isfinite(value):
            metrics.append((f"test_{key}", float(value), last))
    points = [Metric(key, value, started + step, step) for key, value, step in metrics]
    for start in range(0, len(points), _METRICS):
        client.log_batch(run_id, metrics=points[start : start + _METRICS])
    if release.data:
        source = json.dumps({"tags": {"mlflow.source.git.commit": release.trained_commit, "path": "data.dvc"}})
        profile = json.dumps({"test_examples": test.get("examples"), "classes": len(release.classes)})
        data = Dataset("data", release.data[:36], "code", source, profile=profile)
        client.log_inputs(run_id, [DatasetInput(data, [InputTag("mlflow.data.context", "training")])])
    with TemporaryDirectory() as temporary:
        shutil.copytree(folder, f"{temporary}/run", ignore=shutil.ignore_patterns(*_NOT_LOGGED))
        client.log_artifacts(run_id, f"{temporary}/run")
    tags = {**tags_of(release), "mlflow.note.content": note, "mlflow.source.git.commit": release.trained_commit}
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
    if run.info.status != "FINISHED":
        client.set_terminated(run_id, "FINISHED")
    client.set_tag(run_id, "recorded", release.manifest)


def tags_of(release: Release) -> dict[str, str]:
    """Return what a run and a version are found by."""
    tags = {
        "commit": release.commit,
        "data": release.data,
        "inputs": release.inputs,
        "manifest": release.manifest,
        "model_sha256": release.model_sha256,
        "overridden_by": (release.override or {}).get("by"),
        "pull_request": release.pull_request,
        "trained_commit": release.trained_commit,
        "verdict": release.verdict,
        **precision_tags(release),
    }
    return {key: str(value) for key, value in tags.items() if value is not None}


def precision_tags(release: Release) -> dict[str, Any]:
    """Return what a version is told apart by that was released as float one day and as INT8 another."""
    int8 = release.int8 or {}
    return {
        "precision": release.precision,
        "int8_sha256": int8.get("sha256"),
        "int8_accuracy_difference": int8.get("accuracy_difference"),
        "int8_speedup": int8.get("speedup"),
    }


def _params(folder: Path) -> list[tuple[str, Any]]:
    """Return all parameters; those of training under the names that training logs them by."""
    params = load(folder / "params.yaml")
    others = {name: values for name, values in params.model_dump(by_alias=True).items() if name != "train"}
    return [*_flat(params.train.model_dump()), *_flat(others)]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _history(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """Read the numbers of each epoch; the test split's own are not among them."""
    path = folder / "model" / "history.csv"
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    return [(int(row.pop("epoch")), row) for row in rows]
