"""The steps of a training run, one by one: what the range test and the profile share."""

from collections.abc import Iterator

import torch
from torch import Tensor

from src.lab.experiments.mlflow_callbacks import CALLBACKS
from src.training import loop, start
from src.training.batches import Batches
from src.training.loop import Learner
from src.training.task import Task
from src.training.train_params import Train
from src.training.world import World


def prepare(task: Task, params: Train, quiet: bool = False) -> tuple[Learner, Batches]:
    """Build what a run of training builds, in training mode; `quiet` leaves out what it says."""
    say = (lambda _: None) if quiet else print
    torch.manual_seed(params.seed)
    classifier, frozen = start.start(task, params, say, CALLBACKS)
    learner, training, _ = loop.prepare(classifier, frozen, task, params, World(), say)
    learner.classifier.train()
    for module in frozen:
        module.eval()
    return learner, training


def endless(training: Batches, params: Train) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches as training sees them, one epoch after the other."""
    epoch = 1
    while True:
        yield from training.epoch(params.batch_size, loop.epoch_seed(params.seed, epoch))
        epoch += 1
