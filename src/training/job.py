"""One training beside the one that ships: a fold or a further seed. Its result is kept until the whole series is done.

What a job came to lies in its own folder under the checkpoints, under a
key of everything that shaped it, so that a series that was killed does not train it again.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from src.core import metrics
from src.core.arrays import Arrays, Split
from src.core.files import write_json
from src.training import checkpoint, loop, machine
from src.training.callbacks import NO_CALLBACKS, Callbacks
from src.training.classifier import Classifier
from src.training.loop import fit
from src.training.task import of
from src.training.train_params import Train
from src.training.world import World

METRICS = ("accuracy", "macro_f1", "log_loss", "ece")
_BATCH = 512
_BINS = 15  # of the calibration error
_RESULT = "result.json"

Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One training: `training` and `held` are rows of the training split; None is all of it, and the validation split."""

    kind: str  # folds or repeats
    name: str
    folder: str  # under the checkpoints
    seed: int
    training: NDArray[np.int64] | None = None
    held: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Setting:
    """What all jobs of a series share. `tags` are those of their tracked runs; None tracks nothing."""

    data: Arrays
    params: Train
    checkpoints: Path
    tags: dict[str, str] | None
    callbacks: Callbacks = NO_CALLBACKS


def train(setting: Setting, job: Job, world: World | None = None) -> Row:
    """Train, score the held-out images, keep the result; go on from a checkpoint where there is one.

    `right` of the result has a mark for each held-out image; of a further seed, for each image of the test split. The test
    split is scored as evidence for the gates only: nothing is selected by it.

    Raises:
        UserError: as src.training.loop.fit does.
    """
    world, key = world or World(), _key(setting, job)
    task, params = of(setting.data), setting.params.model_copy(update={"seed": job.seed})
    training = task.training if job.training is None else task.training.subset(job.training)
    scored = task.validation if job.held is None else task.training.subset(job.held)
    tags = None if setting.tags is None else {**setting.tags, "mlflow.runName": job.name}
    fitted = fit(
        replace(task, training=training),
        params,
        setting.checkpoints / job.folder,
        world=world,
        tags=tags,
        callbacks=setting.callbacks,
        exportable=False,
        quiet=True,
    )
    facts = {"epoch": fitted.best["epoch"], "seed": job.seed, "training_images": len(training.labels)}
    if not world.writes:
        return facts
    device = machine.device(params, world)
    row, right = score(fitted.classifier, scored, device)
    if job.held is None:
        right = marks(fitted.classifier, setting.data.split("test"), device)
    row = {**facts, **row, "right": right}
    write_json(setting.checkpoints / job.folder / _RESULT, {"key": key, "row": row})
    return row


def kept(setting: Setting, job: Job) -> Row | None:
    """Return the result that an earlier run of this very job left, or None."""
    try:
        found = json.loads((setting.checkpoints / job.folder / _RESULT).read_text())
    except (OSError, ValueError):  # none, or one that was damaged: the job is done again
        return None
    same = isinstance(found, dict) and found.get("key") == _key(setting, job)
    return found["row"] if same else None


def _key(setting: Setting, job: Job) -> str:
    rows = [None if part is None else part.tolist() for part in (job.training, job.held)]
    params = setting.params.model_dump(exclude={"folds", "repeats", "processes"})
    shaped = [
        setting.data.manifest_sha256,
        setting.data.size,
        setting.data.channels,
        torch.get_num_threads(),
        job.seed,
        rows,
        params,
    ]
    return checkpoint.key(shaped, torch.__version__, *loop.CODE)


def score(classifier: Classifier, split: Split, device: torch.device) -> tuple[Row, str]:
    """Return `images` and METRICS of a split, and its marks; the classifier ends on the CPU."""
    probabilities = _probabilities(classifier, split, device)
    found = metrics.overall(split.labels, probabilities, 0.95, _BINS)
    return {"images": len(split.labels), **{name: found[name] for name in METRICS}}, _marks(probabilities, split)


def marks(classifier: Classifier, split: Split, device: torch.device) -> str:
    """Return a 1 for each example of a split that is answered rightly, a 0 for each other one, in order."""
    return _marks(_probabilities(classifier, split, device), split) if len(split.labels) else ""


def _marks(probabilities: NDArray[np.float32], split: Split) -> str:
    return "".join("01"[right] for right in (probabilities.argmax(axis=1) == split.labels).astype(int))


@torch.inference_mode()
def _probabilities(classifier: Classifier, split: Split, device: torch.device) -> NDArray[np.float32]:
    classifier.to(device).eval()
    parts = []
    for first in range(0, len(split.labels), _BATCH):
        images = torch.from_numpy(np.array(split.images[first : first + _BATCH])).to(device).permute(0, 3, 1, 2)
        parts.append(classifier(images).float().softmax(dim=1).cpu())
    classifier.cpu()
    probabilities: NDArray[np.float32] = torch.cat(parts).numpy()
    return probabilities
