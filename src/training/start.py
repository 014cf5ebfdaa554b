"""Where a run starts: the network with fresh or given weights, layers frozen, statistics of the images inside."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from src.core.command import UserError
from src.training import layers
from src.training.callbacks import NO_CALLBACKS, Callbacks
from src.training.classifier import Classifier, build
from src.training.pretrained import pretrained
from src.training.streaming import Reader
from src.training.task import Task
from src.training.train_params import Train
from src.training.transfer import transfer


def start(
    task: Task, params: Train, say: Callable[[str], None] = print, callbacks: Callbacks = NO_CALLBACKS
) -> tuple[Classifier, list[nn.Module]]:
    """Build the network, copy in the given weights, freeze what is to stay.

    Returns:
        The classifier, and the modules that must stay in evaluation mode while it trains.

    Raises:
        UserError: there is no training image, no such network, or the weights are missing or fit nowhere.
    """
    images = task.training.examples
    if not len(images):
        raise UserError("there is no training image: lower prepare.validation_share and prepare.test_share, or add images")
    mean, deviation = channel_statistics(images)
    classifier = build(params.network, task.shape, params.width, mean, deviation, params.tta)
    if initialise_from := getattr(classifier.network, "initialise_from", None):
        count = min(len(images), 5000, max(64, 2**24 // images[0].size))
        rows = np.sort(np.random.default_rng(params.seed).choice(len(images), count, replace=False))
        initialise_from(classifier.normalised(torch.from_numpy(np.array(images[rows])).permute(0, 3, 1, 2)))
    if params.weights:
        given = pretrained(params, callbacks)
        made = transfer(classifier.network, given.weights, task.classes, given.classes)
        if not made.fits:
            raise UserError(
                f"not one layer of {given.shown} fits network {params.network}: check train.network and train.width"
            )
        unused = sum(fate.own is None for fate in made.fates)
        say(
            f"start from {given.shown}{made.renamed}: {len(made.copied)} of {len(made.fates) - unused} tensors copied, "
            f"{unused} of the file not used"
        )
        say(made.told())
    return classifier, layers.freeze(classifier, params)


def channel_statistics(images: NDArray[Any]) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel over the split, in grey levels: exact sums, from pieces of bounded size."""
    reader = Reader(images)
    total, squares = (torch.zeros(reader.shape[1:], dtype=torch.float64) for _ in range(2))
    step = max(1, min(256, 2**22 // reader.row_bytes))  # 256 squares of 255 are the most that float32 sums exactly
    for first in range(0, len(reader), step):
        piece = torch.from_numpy(reader.take(np.arange(first, min(first + step, len(reader))))).float()
        total += piece.sum(0)
        squares += piece.square_().sum(0)
    count = len(reader) * reader.shape[1] * reader.shape[2]
    mean, square = (sums.sum((0, 1)).numpy() / count for sums in (total, squares))
    deviation = np.sqrt(np.maximum(square - mean**2, 1.0))  # never under one grey level: a blank channel
    return mean.round(4).tolist(), deviation.round(4).tolist()
