"""The optimiser, how its learning rate moves, and the moving average of the weights."""

import math
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from src.training.classifier import Classifier
from src.training.layers import layer_scales
from src.training.muon import Muon
from src.training.train_params import Train

MUON_PLAIN_RATE = 3.0  # of plain steps for one of orthogonal steps; 0.03 for filters then goes with SGD's usual 0.1
MUON_MOMENTUM = {True: 0.6, False: 0.85}  # of orthogonal and of plain steps, as in Jordan's record on CIFAR-10


def build(classifier: Classifier, params: Train) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, AdamW or Muon; weight decay only on weights of two dimensions and more.

    Each group has an entry `scale`: the multiple of the scheduled learning rate at which it learns. It is the product of
    `train.layer_decay` and what the network's `rate_scales` asks for; AdamW adapts, and needs no such hint.

    Muon takes orthogonal steps for every weight of two dimensions and more but the last one, which answers.
    """
    network, muon = classifier.network, params.optimizer == "muon"
    hints: dict[str, float] = {}
    if params.optimizer != "adamw" and hasattr(network, "rate_scales"):
        hints = network.rate_scales()  # type: ignore[operator]
    depths = layer_scales(network, params.layer_decay)
    answers = [name for name, parameter in network.named_parameters() if parameter.ndim > 1][-1:]
    members: dict[tuple[bool, bool, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            orthogonal = muon and parameter.ndim > 1 and name not in answers
            scale = depths[name] * hints.get(name, 1.0) * (MUON_PLAIN_RATE if muon and not orthogonal else 1.0)
            members.setdefault((orthogonal, parameter.ndim > 1, scale), []).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": group, "weight_decay": params.weight_decay if decays and not orthogonal else 0.0, "scale": scale}
        | ({"orthogonal": orthogonal, "momentum": MUON_MOMENTUM[orthogonal]} if muon else {})
        for (orthogonal, decays, scale), group in members.items()
    ]
    if muon:
        return Muon(groups, params.learning_rate)
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
