"""Register a verified release in MLflow: its run, and its model as a version with the alias `challenger`.

    python -m src register out/release

Reads the folder that verify wrote and writes registered.json into it. One manifest has one run and one version, however
often this runs and wherever it was cut off: the run has the manifest's digest as a tag from its first moment, what is logged
may be logged again without a trace, and a version is made last, of a model that MLflow gave back as the reviewed bytes.
"""

import argparse
import csv
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from src.core.card import Card
from src.core.files import sha256, write_json
from src.core.inference import Model
from src.core.metrics_file import MetricsFile
from src.release import card, reviewed, settings
from src.release.journal import registry_uri
from src.release.outcome import RefusedError, telling
from src.release.reviewed import Release
from src.system.judged import Lineage
from src.system.mlflow_client import RegistryError, answering, artifacts_of
from src.system.params import load
from src.system.registry import Registry, Version

_NEEDED = ("numpy", "onnx", "onnxruntime")  # to load the model from MLflow; MLflow adds itself
_EXPERIMENT = "image-classifier"  # as src/system/tracking.py names it
_MODEL = "registered"  # where the run keeps MLflow's model, beside the files of the release
# what the registered model holds, what later steps write
_NOT_LOGGED = ("model.onnx", "registered.json", "image.json", "sbom.json")
_NOT_OF_THE_TEST = ("per_class", "slices", "folds", "repeats")  # parts of it, and examples that are none of it


def register(folder: Path, registry: Registry) -> dict[str, Any]:
    """Register the release of a folder; return what registered.json holds.

    Raises:
        UserError: the folder is not as verify left it.
        RegistryError: MLflow does not answer, or refuses.
        RefusedError: MLflow holds other bytes than the reviewed ones.
    """
    release = reviewed.read(folder)
    with registry.lock(), answering(registry.uri):
        version, said = registry.version_of(release.manifest), "was registered before,"
        if version is None:
            version, said = _publish(registry, folder, release), "is registered"
        else:
            _require_reviewed(registry, release, version.source, f"version {version.number} of {registry.name}")
            registry.tag(version.number, **_precision_tags(release))
        print(f"version {version.number} of {registry.name} {said} in MLflow at {registry.shown}")
        champion = registry.alias("champion")
        if champion is None or champion.number != version.number:
            registry.move("challenger", version.number, why=f"registered from commit {release.commit[:12]}")
    registered = {"manifest": release.manifest, "name": registry.name, "run_id": version.run_id, "uri": registry.uri}
    registered["version"] = version.number
    write_json(folder / "registered.json", registered)
    return registered


def _publish(registry: Registry, folder: Path, release: Release) -> Version:
    """Log the run, store the model in it, see that it is stored rightly, and only then make a version of it."""
    metrics = MetricsFile.read(folder / "metrics.json", made_by="evaluate")
    manifest = Lineage.read(folder / "manifest.json", made_by="evaluate")
    note = card.write(release, Card.read(folder / "model/card.json", made_by="train"), metrics, manifest)
    run = _run(registry, release)
    _log(registry.client, run, folder, release, metrics, note)
    _upload(registry.client, run.info.run_id, folder, release)
    source = f"{run.info.artifact_uri}/{_MODEL}"
    _require_reviewed(registry, release, source, "the model that was just stored")
    return registry.add(source, run.info.run_id, tags_of(release), note)


def _run(registry: Registry, release: Release) -> Any:
    """Return the run of this manifest, the oldest where there are several; one is made where there is none."""
    client, name = registry.client, os.environ.get("MLFLOW_EXPERIMENT_NAME") or _EXPERIMENT
    folder = artifacts_of(registry.uri)
    experiment = client.get_experiment_by_name(name)
    number = experiment.experiment_id if experiment else None
    number = number or client.create_experiment(name, artifact_location=str(folder / name) if folder else None)
    query = f"tags.manifest = '{release.manifest}'"
    if known := client.search_runs([number], query, order_by=["attributes.start_time ASC"], max_results=1):
        return known[0]
    tags = {"manifest": release.manifest, "mlflow.runName": f"reviewed {release.manifest[:12]}"}
    return client.create_run(number, tags=tags)


def _log(client: Any, run: Any, folder: Path, release: Release, metrics: MetricsFile, note: str) -> None:
    from mlflow.entities import Metric, Param, RunTag

    run_id, started = run.info.run_id, run.info.start_time  # one time for all: the same number logged twice is one
    told = load(folder / "params.yaml")
    # those of training by the names that training logs them by
    params = {**told.model_dump(by_alias=True, exclude={"train"}), **told.train.model_dump()}
    history = _history(folder)
    points = [Metric(key, value, started + epoch, epoch) for epoch, row in history for key, value in row.items()]
    last = max((epoch for epoch, _ in history), default=0)
    test = {name: value for name, value in metrics.to_json().items() if name not in _NOT_OF_THE_TEST}
    for key, value in _flat(test):
        if isinstance(value, int | float) and math.isfinite(value):
            points.append(Metric(f"test_{key}", float(value), started + last, last))
    tags = {**tags_of(release), "mlflow.note.content": note, "mlflow.source.git.commit": release.trained_commit}
    client.log_batch(
        run_id,
        metrics=points,
        params=[Param(key, str(value)[:6000]) for key, value in _flat(params)],
        tags=[RunTag(key, value) for key, value in tags.items()],
    )
    with tempfile.TemporaryDirectory() as temporary:
        shutil.copytree(folder, f"{temporary}/run", ignore=shutil.ignore_patterns(*_NOT_LOGGED))
        client.log_artifacts(run_id, f"{temporary}/run")
    client.set_terminated(run_id, "FINISHED")


def _upload(client: Any, run_id: str, folder: Path, release: Release) -> None:
    """Store an MLflow model whose model.onnx is the reviewed file.

    MLflow parses the file and writes it anew, which can change bytes (unknown fields, their order): the reviewed ones
    are put in their place.
    """
    import mlflow.onnx
    import onnx
    from mlflow.models import infer_signature

    model, path = Model(folder / "model"), folder / "golden" / "inputs.npy"
    example = np.zeros((1, *model.spec.shape), model.spec.dtype)
    golden = np.load(path)[:1] if path.is_file() else example
    example = golden if golden.shape == example.shape else example
    network = onnx.load(folder / "model" / "model.onnx", load_external_data=False)
    with tempfile.TemporaryDirectory() as temporary:
        mlflow.onnx.save_model(
            network,
            f"{temporary}/model",
            signature=infer_signature(example, {network.graph.output[0].name: model.probabilities(example)}),
            input_example=example,
            pip_requirements=[f"{name}=={metadata.version(name)}" for name in _NEEDED],
            onnx_execution_providers=["CPUExecutionProvider"],  # as it was evaluated; CUDA would warn where there is none
            metadata={
                "classes": json.dumps(release.classes, ensure_ascii=False),
                "manifest": release.manifest,
                "model_sha256": release.model_sha256,
            },
            save_as_external_data=False,
        )
        shutil.copyfile(folder / "model" / "model.onnx", f"{temporary}/model/model.onnx")
        client.log_artifacts(run_id, f"{temporary}/model", _MODEL)


def _require_reviewed(registry: Registry, release: Release, source: str, what: str) -> None:
    """Fetch the model and compare it with the reviewed one, byte by byte.

    Raises:
        RefusedError: they differ.
    """
    import mlflow

    with tempfile.TemporaryDirectory() as temporary:
        place = mlflow.artifacts.download_artifacts(f"{source}/model.onnx", dst_path=temporary, tracking_uri=registry.uri)
        found = sha256(Path(place))
    if found != release.model_sha256:
        said = f"{what} in MLflow at {registry.shown} is not the reviewed model: its SHA-256 is {found[:12]}..., "
        said += f"reviewed was {release.model_sha256[:12]}..."
        raise RefusedError("tampered", said, "find out who changed it, delete that version in MLflow, then run again")


def tags_of(release: Release) -> dict[str, str]:
    """Return what a run and a version are found by."""
    tags = {
        "commit": release.commit,
        "data": release.data,
        "inputs": release.inputs,
        "manifest": release.manifest,
        "model_sha256": release.model_sha256,
        "overridden_by": release.override.by if release.override else None,
        "pull_request": release.pull_request,
        "trained_commit": release.trained_commit,
        "verdict": release.verdict,
        **_precision_tags(release),
    }
    return {key: str(value) for key, value in tags.items() if value is not None}


def _precision_tags(release: Release) -> dict[str, Any]:
    """Return what a version is told apart by that was released as float one day and as INT8 another."""
    int8 = {f"int8_{name}": getattr(release.int8, name, None) for name in ("sha256", "accuracy_difference", "speedup")}
    return {"precision": release.precision, **int8}


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


def main() -> None:
    """Parse the command line and register."""
    parser = argparse.ArgumentParser(description="Register a verified release in MLflow, as challenger.")
    parser.add_argument("folder", type=Path, help="what verify wrote, such as out/release")
    folder = parser.parse_args().folder
    with telling("register", folder):
        try:
            told = settings.read()
            register(folder, Registry.connect(registry_uri(told), name=told.name))
        except RegistryError as error:
            raise RefusedError("registry", error.sentence, error.then) from None
