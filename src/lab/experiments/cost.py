"""What a recipe costs in time: short trainings of all recipes by turns, each held against the baseline of its turn."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from src.core.command import progress
from src.core.files import rounded
from src.lab.experiments.mlflow_callbacks import CALLBACKS
from src.lab.experiments.trainings import changed
from src.training.loop import fit
from src.training.task import Task
from src.training.train_params import Train

_STEPS = 20
_EPOCHS = 2  # the faster one counts: the first still warms caches
_TURNS = 5
_VALIDATION = 64


@dataclass(frozen=True)
class Cost:
    """Seconds of an epoch's training steps as a multiple of the baseline's: the median turn, the lowest, the highest."""

    ratio: float
    low: float
    high: float


def relative(task: Task, baseline: Train, recipes: Mapping[str, Train]) -> dict[str, Cost]:
    """Measure recipes beside the baseline, side by side on this machine and at this hour: nothing is kept.

    Args:
        task: what they train on; a small part of it is enough.
        baseline: the recipe that counts as 1.
        recipes: by name.
    """
    rows = np.arange(min(len(task.training.labels), _STEPS * baseline.batch_size))
    held_out = np.arange(min(len(task.validation.labels), _VALIDATION))
    small = replace(task, training=task.training.subset(rows), validation=task.validation.subset(held_out))
    everyone = {"": baseline, **recipes}
    taken: dict[str, list[float]] = {name: [] for name in everyone}
    with progress(_TURNS * len(everyone), "training", "cost") as bar:
        for turn in range(_TURNS):
            for name in list(everyone)[:: -1 if turn % 2 else 1]:  # whoever comes later must not always come later
                taken[name].append(_seconds(small, everyone[name]))
                bar.update()
    return {name: _cost(np.array(taken[name]) / np.array(taken[""])) for name in recipes}


def _seconds(task: Task, params: Train) -> float:
    short = changed(params, epochs=_EPOCHS, patience=0, compile="off")
    fitted = fit(task, short, None, callbacks=CALLBACKS, exportable=False, quiet=True)
    return min(float(row["seconds"]) for row in fitted.throughput)


def _cost(ratios: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> Cost:
    return Cost(*(rounded(float(value), 3) for value in (np.median(ratios), ratios.min(), ratios.max())))
