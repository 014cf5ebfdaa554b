"""Where a run starts: the network with fresh or given weights, layers frozen, statistics of the images inside."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from src import model
from src.command import UserError
from src.files import sha256
from src.model import Classifier
from src.params import Train
from src.training.task import Task


def start(task: Task, params: Train) -> tuple[Classifier, list[nn.Module]]:
    """Build the network, copy in the given weights, freeze what is to stay.

    Returns:
        The classifier, and the modules that must stay in evaluation mode while it trains.

    Raises:
        UserError: there is no training image, no such network, or the weights are missing or fit nowhere.
    """
    images = task.training.images
    if not len(images):
        raise UserError("there is no training image: lower prepare.validation_share and prepare.test_share, or add images")
    mean, deviation = channel_statistics(images)
    classifier = model.build(params.network, task.shape, params.width, mean, deviation)
    if params.weights:
        _load(classifier, params)
    return classifier, model.freeze(classifier, params.freeze)


def channel_statistics(images: NDArray[np.uint8]) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel over the split, in grey levels, from 64-bit sums of bounded pieces."""
    total, squares, count = np.zeros(images.shape[-1]), np.zeros(images.shape[-1]), 0
    step = max(1, 2**24 // images[0].size)
    for first in range(0, len(images), step):
        piece = images[first : first + step].reshape(-1, images.shape[-1])
        values = np.arange(256, dtype=np.float64)
        for channel in range(images.shape[-1]):
            histogram = np.bincount(piece[:, channel], minlength=256)
            total[channel] += histogram @ values
            squares[channel] += histogram @ values**2
        count += len(piece)
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 1.0))  # never under one grey level: a blank channel
    return mean.round(4).tolist(), deviation.round(4).tolist()


def _load(classifier: Classifier, params: Train) -> None:
    path = Path(params.weights or "")
    weights = model.read_weights(path)
    digest = sha256(path)
    if digest != params.weights_sha256:
        raise UserError(
            f"train.weights_sha256 is {params.weights_sha256!r}, but {path} has {digest}: "
            "put that into params.yaml if this is the file you mean (DVC then notices when it changes)"
        )
    copied, fresh = model.start_from(classifier, weights)
    if not any(classifier.network.state_dict()[name].ndim > 1 for name in copied):
        raise UserError(f"not one layer of {path} fits network {params.network}: check train.network and train.width")
    print(f"start from {path}: {len(copied)} tensors copied, {len(fresh)} fresh")
    for line in fresh:
        print(f"  fresh: {line}")
