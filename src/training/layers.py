"""Layers by name and depth: which stay as they are, and how fast each one learns.

Depth is the order in which a network defines its layers, so any network will do. Called by src/training/start.py and
src/training/optimizer.py.
"""

from collections.abc import Sequence

from torch import nn

from src.core.command import UserError
from src.training.classifier import Classifier
from src.training.train_params import Train


def freeze(classifier: Classifier, params: Train) -> list[nn.Module]:
    """Stop the layers of `train.freeze`, and all that are defined before `train.freeze_until`, from learning.

    Returns:
        The modules that must stay in evaluation mode, so that no norm moves its statistics and no dropout draws.

    Raises:
        UserError: a name is no layer, or nothing is left to learn.
    """
    network = classifier.network
    modules, still = dict(network.named_modules()), list(params.freeze)
    for name in params.freeze:
        _require_known(network, name, "freeze")
    if (until := params.freeze_until) is not None:
        _require_known(network, until, "freeze_until")
        if until not in modules:
            raise UserError(f"train.freeze_until is {until!r}, which is a parameter: name the layer that holds it")
        for name in list(modules)[: list(modules).index(until)]:
            if name and not _is_under(until, [name]):
                still.append(name)
            else:  # a module around it: what it holds itself comes before its layers
                still += [f"{name}.{own}".lstrip(".") for own, _ in modules[name].named_parameters(recurse=False)]
    for name, parameter in network.named_parameters():
        if _is_under(name, still):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise UserError("train.freeze and train.freeze_until leave nothing to learn: take the last layer out of them")
    return [module for name, module in modules.items() if _is_under(name, still)]


def _require_known(network: nn.Module, name: str, key: str) -> None:
    modules = dict(network.named_modules())
    if name and name in {*modules, *dict(network.named_parameters())}:
        return
    parts = name.split(".")
    outer = (".".join(parts[:length]) for length in range(len(parts) - 1, -1, -1))
    around = next(each for each in outer if each in modules)  # the level at which the name goes wrong
    known = [f"{around}.{child}".lstrip(".") for child, _ in modules[around].named_children()]
    raise UserError(
        f"train.{key} names {name!r}, which is no layer; expected one of {', '.join(known) or around}, or a layer inside"
    )


def _is_under(name: str, prefixes: Sequence[str]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def layer_scales(network: nn.Module, decay: float) -> dict[str, float]:
    """Return for each parameter the share of the learning rate that it learns at: 1 at the head, less towards the images.

    The head is the last child that has parameters; each child before it learns at `decay` times the rate of the next
    one. Parameters that the network holds itself learn as the first child does. Source: Howard and Ruder, "Universal
    Language Model Fine-tuning for Text Classification" (2018), discriminative fine-tuning.

    Args:
        network: any network; where one child alone has parameters, its children count.
        decay: over 0, at most 1, which is the same rate for all.
    """
    depths = _depths(network)
    deepest = max(depths.values(), default=0)
    return {name: decay ** (deepest - depth) for name, depth in depths.items()}


def _depths(network: nn.Module) -> dict[str, int]:
    """Return the place of each parameter's child among those that have parameters, from 0, by the parameter's name."""
    children = [name for name, child in network.named_children() if next(child.parameters(), None) is not None]
    if len(children) == 1:
        [only] = children
        inner = {f"{only}.{name}": depth for name, depth in _depths(network.get_submodule(only)).items()}
    else:
        inner = {
            f"{child}.{name}": depth
            for depth, child in enumerate(children)
            for name, _ in network.get_submodule(child).named_parameters()
        }
    return {name: inner.get(name, 0) for name, _ in network.named_parameters()}
