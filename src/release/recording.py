"""The MLflow run of a reviewed model: the one that training logged live, else one made from what DVC keeps of it.

One manifest has one run: it carries the manifest's digest as a tag from its first moment, and whatever is logged may be
logged again without a trace, so that a killed process is completed by the next.
"""

import csv
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from src.core.files import read_json
from src.release.reviewed import Release
from src.system.mlflow_client import artifacts_of, database_of
from src.system.params import load
from src.system.registry import Registry

_EXPERIMENT = "image-classifier"  # as src/system/tracking.py names it
_FOLDERS = ("evaluation", "golden", "report")
_FILES = (
    "manifest.json", "metrics.json", "params.yaml", "release.json", "model/card.json", "model/history.csv",
    "model/model.int8.onnx", "model/quantization.json", "model/weights.safetensors",
)  # fmt: skip
_NOT_OF_THE_TEST = ("per_class", "slices", "folds", "repeats")  # parts of it, and images that are none of it
_BATCH = 100  # parameters and tags a request; MLflow takes no more
_METRICS = 1000  # likewise


def record(registry: Registry, folder: Path, release: Release, run_id: str | None, note: str) -> str:
    """Complete the run of this release and return its id; `run_id` is the one its registered version names, if any."""
    client = registry.client
    run = _known(client, run_id, release) or _adopted(registry, folder, release) or _made(registry, release)
    if run.data.tags.get("recorded") != release.manifest:
        _log(client, run, folder, release, note)
    found: str = run.info.run_id
    return found


def _known(client: Any, run_id: str | None, release: Release) -> Any:
    """Return the run that the registered version names, else the oldest with the manifest's tag; deleted ones are gone."""
    runs = _runs(client, f"tags.manifest = '{release.manifest}'")
    return next((run for run in runs if run.info.run_id == run_id), runs[0] if runs else None)


def _runs(client: Any, query: str) -> list[Any]:
    """Return the runs of all experiments that a query finds, the oldest first."""
    experiments = [found.experiment_id for found in _pages(client.search_experiments, max_results=1000)]
    runs = _pages(client.search_runs, experiment_ids=experiments, filter_string=query, max_results=1000)
    return sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))


def _pages(search: Any, **arguments: Any) -> Iterator[Any]:
    token = None
    while True:
        page = search(page_token=token, **arguments)
        yield from page
        token = page.token
        if not token:
            return


# ---------------------------------------------------------------------------------------------------------------------
# The run that training logged
# ---------------------------------------------------------------------------------------------------------------------


def _adopted(registry: Registry, folder: Path, release: Release) -> Any:
    """Take the live run of this very training: of the same data, with equal parameters and equal numbers of each epoch.

    Several runs can be of the same data. A run that belongs to another manifest is left to it, and so is one whose
    artifacts lie in a folder of some clone that may be gone tomorrow.
    """
    client = registry.client
    data = read_json(folder / "model" / "card.json", made_by="train").get("manifest_sha256")
    for run in _runs(client, f"tags.manifest_sha256 = '{data}'") if data else []:
        unclaimed = run.data.tags.get("manifest", release.manifest) == release.manifest
        finished = run.info.status == "FINISHED" and _lasts(registry, client.get_experiment(run.info.experiment_id))
        if unclaimed and finished and _is_same_training(client, run, folder):
            client.set_tag(run.info.run_id, "manifest", release.manifest)
            return run
    return None


def _is_same_training(client: Any, run: Any, folder: Path) -> bool:
    wanted = {key: str(value) for key, value in _train_params(folder)}
    if any(run.data.params.get(key) != value for key, value in wanted.items()):
        return False
    history = _history(folder)
    names = {name for _, row in history for name in row}
    for name in names:
        logged = {metric.step: round(metric.value, 6) for metric in client.get_metric_history(run.info.run_id, name)}
        if logged != {epoch: row[name] for epoch, row in history}:
            return False
    return bool(names)


def _lasts(registry: Registry, experiment: Any) -> bool:
    """Say whether an experiment's artifacts are a server's business, or lie beside the database."""
    database = database_of(registry.uri)
    return database is None or database.parent in Path(experiment.artifact_location.removeprefix("file://")).parents


# ---------------------------------------------------------------------------------------------------------------------
# A run made afterwards
# ---------------------------------------------------------------------------------------------------------------------


def _made(registry: Registry, release: Release) -> Any:
    """Make the run; where another process made one at the same moment, the older one stays."""
    client = registry.client
    tags = {
        "backfilled": "true",
        "manifest": release.manifest,
        "mlflow.runName": f"reviewed {release.manifest[:12]}",
    }
    made = client.create_run(_experiment(registry), tags=tags)
    first = _runs(client, f"tags.manifest = '{release.manifest}'")[0]
    if first.info.run_id != made.info.run_id:
        client.delete_run(made.info.run_id)
    return first


def _experiment(registry: Registry) -> str:
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or _EXPERIMENT
    for candidate in (name, f"{name}-reviewed"):
        found = registry.client.get_experiment_by_name(candidate)
        if found is None:
            folder = artifacts_of(registry.uri)
            place = str(folder / candidate) if folder else None
            return str(registry.client.create_experiment(candidate, artifact_location=place))
        if found.lifecycle_stage == "active" and _lasts(registry, found):
            break
    return str(found.experiment_id)


# ---------------------------------------------------------------------------------------------------------------------
# What is logged
# ---------------------------------------------------------------------------------------------------------------------


def _log(client: Any, run: Any, folder: Path, release: Release, note: str) -> None:
    from mlflow.entities import Metric, Param, RunTag

    run_id, started = run.info.run_id, run.info.start_time  # one time for all: the same number logged twice is one
    for batch in _batches(_params(folder), _BATCH):
        client.log_batch(run_id, params=[Param(key, str(value)[:6000]) for key, value in batch])
    logged = set() if run.data.tags.get("backfilled") else set(run.data.metrics)
    metrics = [(key, value, epoch) for epoch, row in _history(folder) for key, value in row.items() if key not in logged]
    last = max((epoch for epoch, _ in _history(folder)), default=0)
    metrics += [(f"test_{key}", value, last) for key, value in _test_metrics(folder)]
    for pieces in _batches(metrics, _METRICS):
        client.log_batch(run_id, metrics=[Metric(key, value, started + step, step) for key, value, step in pieces])
    _log_data(client, run_id, folder, release)
    for name in _FOLDERS:
        if (folder / name).is_dir():
            client.log_artifacts(run_id, str(folder / name), name)
    for name in _FILES:
        if (folder / name).is_file():
            parent = Path(name).parent
            client.log_artifact(run_id, str(folder / name), None if parent == Path() else str(parent))
    tags = {**tags_of(release), "mlflow.note.content": note, "mlflow.source.git.commit": release.trained_commit}
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
    if run.info.status != "FINISHED":
        client.set_terminated(run_id, "FINISHED")
    client.set_tag(run_id, "recorded", release.manifest)


def _log_data(client: Any, run_id: str, folder: Path, release: Release) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    if release.data:
        source = json.dumps({"tags": {"mlflow.source.git.commit": release.trained_commit, "path": "data.dvc"}})
        images = read_json(folder / "metrics.json", made_by="evaluate").get("images")
        profile = json.dumps({"test_images": images, "classes": len(release.classes)})
        data = Dataset("data", release.data[:36], "code", source, profile=profile)
        client.log_inputs(run_id, [DatasetInput(data, [InputTag("mlflow.data.context", "training")])])


def tags_of(release: Release) -> dict[str, str]:
    """Return what a run and a version are found by."""
    override = release.override or {}
    tags = {
        "commit": release.commit,
        "data": release.data,
        "inputs": release.inputs,
        "manifest": release.manifest,
        "model_sha256": release.model_sha256,
        "overridden_by": override.get("by"),
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


def _train_params(folder: Path) -> list[tuple[str, Any]]:
    """Return the parameters of training under the names that training logs them by."""
    return list(_flat(load(folder / "params.yaml").train.model_dump()))


def _params(folder: Path) -> list[tuple[str, Any]]:
    sections = load(folder / "params.yaml").model_dump(by_alias=True)
    others = {name: values for name, values in sections.items() if name != "train"}
    return [*_train_params(folder), *_flat(others)]


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


def _test_metrics(folder: Path) -> Iterator[tuple[str, float]]:
    metrics = read_json(folder / "metrics.json", made_by="evaluate")
    for key, value in _flat({name: metrics[name] for name in metrics if name not in _NOT_OF_THE_TEST}):
        if isinstance(value, int | float) and math.isfinite(value):
            yield key, float(value)


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    listed = list(items)
    yield from (listed[start : start + size] for start in range(0, len(listed), size))
