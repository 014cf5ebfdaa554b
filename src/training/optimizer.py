"""The optimiser, how its learning rate moves, and the moving average of the weights."""

import math

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from src.model import Classifier
from src.params import Train


def build(classifier: Classifier, params: Train) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum or AdamW; weight decay only on weights of two dimensions and more.

    Each group has an entry `scale`: the share of the scheduled learning rate at which it learns.
    """
    learning = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in learning if parameter.ndim > 1], "weight_decay": params.weight_decay},
        {"params": [parameter for parameter in learning if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [{**group, "scale": 1.0} for group in groups if group["params"]]
    if params.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=params.learning_rate, fused=True)
    return torch.optim.SGD(groups, lr=params.learning_rate, momentum=0.9, nesterov=True, fused=True)


def learning_rate(step: int, steps_per_epoch: int, params: Train) -> float:
    """Linear warm-up, then half a cosine or a line down to zero. Source: Loshchilov and Hutter, "SGDR" (2017).

    Args:
        step: of the whole run, from 0.
        steps_per_epoch: so many are in each of `train.epochs`.
        params: the section `train`.
    """
    total, warm = params.epochs * steps_per_epoch, min(params.warmup_epochs, params.epochs / 2) * steps_per_epoch
    if step < warm:
        return params.learning_rate * (step + 1) / (warm + 1)
    done = (step - warm) / max(1, total - warm)
    return params.learning_rate * (1 - done if params.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done)))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set every group to its share of a learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]


def averaged(classifier: nn.Module, params: Train) -> AveragedModel | None:
    """Return the moving average of the weights that `train.ema` asks for: average = decay * average + (1 - decay) * weights.

    Its buffers, the statistics of batch norm among them, are averaged too. Source: Polyak and Juditsky (1992).
    """
    if not params.ema:
        return None
    return AveragedModel(
        classifier,
        multi_avg_fn=get_ema_multi_avg_fn(params.ema),  # type: ignore[no-untyped-call]
        use_buffers=True,
    )
