"""The weights of the registered model that is champion, fetched from MLflow to start a training from."""

import os
from pathlib import Path

from src.core.command import UserError
from src.system.mlflow_client import answering
from src.system.registry import Registry
from src.system.variables import filled

_WEIGHTS, _CARD = "model/weights.safetensors", "model/card.json"  # in the run of a registered version


def fetch(folder: str) -> tuple[Path, Path, str]:
    """Fetch weights and card of the version that is champion; return both files, and words that name the version.

    Raises:
        UserError: MLflow does not answer, has no champion, or has it without its weights.
    """
    registry = Registry.connect(name=filled(os.environ).get("MODEL_NAME", "image-classifier"))
    version = registry.alias("champion")
    if version is None:
        raise UserError(
            f"train.weights is champion, but {registry.name} has none in MLflow at {registry.shown}: deploy a model first, "
            "correct MLFLOW_TRACKING_URI, or name a file"
        )
    shown = f"the champion, version {version.number} of {registry.name} in MLflow at {registry.shown},"
    with answering(registry.uri):
        kept = {found.path for found in registry.client.list_artifacts(version.run_id, "model")} if version.run_id else set()
        if not {_WEIGHTS, _CARD} <= kept:
            commit = version.tags.get("trained_commit", "COMMIT")[:12]
            raise UserError(
                f"{shown} was registered without its weights.safetensors: bring them with `.venv/bin/dvc get . out/model "
                f"--rev {commit} --out pretrained` and set train.weights to pretrained/weights.safetensors"
            )
        files = [Path(registry.client.download_artifacts(version.run_id, name, folder)) for name in (_WEIGHTS, _CARD)]
    return files[0], files[1], shown
