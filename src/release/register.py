"""Register a verified release in MLflow: its run, and its model as a version with the alias `challenger`.

    python -m src register out/release

Reads the folder that verify wrote and writes registered.json into it. One manifest has one run and one version, however
often this runs and wherever it was cut off. What MLflow gives back must be the reviewed bytes.
"""

import argparse
import json
import shutil
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from src.core.files import read_json, sha256, write_json
from src.core.inference import Model
from src.release import card, recording, reviewed, settings
from src.release.journal import registry_uri
from src.release.outcome import RefusedError, telling
from src.release.reviewed import Release
from src.system.mlflow_client import RegistryError, answering
from src.system.registry import Registry, Version

_NEEDED = ("numpy", "onnx", "onnxruntime")  # to load the model from MLflow; MLflow adds itself


def register(folder: Path, registry: Registry) -> dict[str, Any]:
    """Register the release of a folder; return what registered.json holds.

    Raises:
        UserError: the folder is not as verify left it.
        RegistryError: MLflow does not answer, or refuses.
        RefusedError: MLflow holds other bytes than the reviewed ones.
    """
    release = reviewed.read(folder)
    facts = (("model/card.json", "train"), ("metrics.json", "evaluate"), ("manifest.json", "evaluate"))
    note = card.write(release, *(read_json(folder / name, made_by=stage) for name, stage in facts))
    with registry.lock(), answering(registry.uri):
        version = registry.version_of(release.manifest)
        run_id = recording.record(registry, folder, release, version.run_id if version else None, note)
        if version is None:
            version, said = _publish(registry, folder, release, run_id, note), "is registered"
        else:
            _require_complete(registry, folder, release, version)
            registry.tag(version.number, **recording.precision_tags(release))
            said = "was registered before,"
        print(f"version {version.number} of {registry.name} {said} in MLflow at {registry.shown}")
        champion = registry.alias("champion")
        if champion is None or champion.number != version.number:
            registry.move("challenger", version.number, why=f"registered from commit {release.commit[:12]}")
    registered = {"manifest": release.manifest, "name": registry.name, "run_id": run_id, "uri": registry.uri}
    registered["version"] = version.number
    write_json(folder / "registered.json", registered)
    return registered


def _publish(registry: Registry, folder: Path, release: Release, run_id: str, note: str) -> Version:
    """Store the model, see that it is stored rightly, and only then make a version of it.

    A model that a killed process began to store is gone on with.
    """
    from mlflow.entities import LoggedModelOutput

    client = registry.client
    run = client.get_run(run_id)
    experiment = run.info.experiment_id
    begun = client.search_logged_models([experiment], filter_string=f"tags.manifest = '{release.manifest}'")
    tags = {"manifest": release.manifest, "model_sha256": release.model_sha256}
    model = begun[0] if begun else client.create_logged_model(experiment, "model", run_id, tags=tags, model_type="onnx")
    _upload(client, folder, release, model)
    _require_reviewed(registry, release, model.model_id, "the model that was just stored")
    client.finalize_logged_model(model.model_id, "READY")
    linked = run.outputs.model_outputs if run.outputs else []
    if model.model_id not in {output.model_id for output in linked}:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    return registry.add(f"models:/{model.model_id}", run_id, model.model_id, recording.tags_of(release), note)


def _upload(client: Any, folder: Path, release: Release, logged: Any) -> None:
    """Store an MLflow model whose model.onnx is the reviewed file.

    MLflow parses the file and writes it anew, which can change bytes (unknown fields, their order): the reviewed ones
    are put in their place.
    """
    import mlflow.onnx
    import onnx
    from mlflow.models import Model as Description
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
            mlflow_model=Description(
                artifact_path=logged.artifact_location,
                run_id=logged.source_run_id,
                model_uuid=logged.model_id,
                model_id=logged.model_id,
            ),
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
        client.log_model_artifacts(logged.model_id, f"{temporary}/model")


def _require_complete(registry: Registry, folder: Path, release: Release, version: Version) -> None:
    """Look at what a version of an earlier day holds; a lost file is stored again, a changed one is refused."""
    client = registry.client
    model_id = version.source.removeprefix("models:/")
    stored = {Path(found.path).name for found in client.list_logged_model_artifacts(model_id)}
    if not {"MLmodel", "model.onnx"} <= stored:
        _upload(client, folder, release, client.get_logged_model(model_id))
    _require_reviewed(registry, release, model_id, f"version {version.number} of {registry.name}")


def _require_reviewed(registry: Registry, release: Release, model_id: str, what: str) -> None:
    """Fetch the model and compare it with the reviewed one, byte by byte.

    Raises:
        RefusedError: they differ.
    """
    import mlflow

    with tempfile.TemporaryDirectory() as temporary:
        place = mlflow.artifacts.download_artifacts(
            artifact_uri=f"models:/{model_id}", dst_path=temporary, tracking_uri=registry.uri
        )
        found = sha256(Path(place) / "model.onnx")
    if found != release.model_sha256:
        said = f"{what} in MLflow at {registry.shown} is not the reviewed model: its SHA-256 is {found[:12]}..., "
        said += f"reviewed was {release.model_sha256[:12]}..."
        raise RefusedError("tampered", said, "find out who changed it, delete that version in MLflow, then run again")


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
