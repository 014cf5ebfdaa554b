"""Weights of one network copied into another, as far as they fit, and a table of what happened to each layer.

Called by src/training/start.py.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from torch import Tensor, nn

from src.core.command import table

COPIED = "copied"
_SHOWN = 6  # a run of as many tensors that fare alike is told in one line


@dataclass(frozen=True)
class Fate:
    """What happened to one tensor of the file or the network; a shape is None where it has none of that name."""

    name: str
    given: tuple[int, ...] | None
    own: tuple[int, ...] | None
    what: str


@dataclass(frozen=True)
class Transfer:
    """What a file brought: the fate of every tensor, and the prefix that was taken off or put before the file's names."""

    fates: list[Fate]
    renamed: str

    @property
    def copied(self) -> list[Fate]:
        """Return what was copied."""
        return [fate for fate in self.fates if fate.what.startswith(COPIED)]

    @property
    def fits(self) -> bool:
        """Whether a weight of two dimensions or more was copied: counters and biases alone are no start."""
        return any(len(fate.own or ()) > 1 for fate in self.copied)

    def told(self) -> str:
        """Lay out layer by layer what happened; a long run of layers that fared alike is one line."""
        rows: list[tuple[str, str, str, str]] = []
        for what, fates in groupby(self.fates, lambda fate: fate.what):
            run = list(fates)
            if len(run) >= (2 if what == COPIED else _SHOWN):
                rows.append((f"{run[0].name} ... {run[-1].name}", f"{len(run)} tensors", f"{len(run)} tensors", what))
            else:
                rows += [(fate.name, _shape(fate.given), _shape(fate.own), what) for fate in run]
        return table(("layer", "in the file", "in the network", "what happens"), rows)


def _shape(shape: tuple[int, ...] | None) -> str:
    return "-" if shape is None else "x".join(map(str, shape)) or "one number"


def transfer(
    network: nn.Module, given: Mapping[str, Tensor], classes: Sequence[str], known: Sequence[str] | None
) -> Transfer:
    """Copy in every layer that fits, by name and shape; a layer with one tensor of another shape stays fresh as a whole.

    The rows of the last layer go by class name: those of shared classes are copied, each to its own place, the others
    stay fresh. A first convolution takes weights of 3 channels for 1 as their sum, and of 1 channel for 3 as a third
    each: on grey images both compute what they did (as in timm, Wightman 2019, for other numbers of channels).

    Args:
        network: what is to start from the weights; changed in place.
        given: tensors by name; a prefix before all names of a network may be there or be missing.
        classes: that the network tells apart, in order.
        known: those of the weights, in order; None where nobody knows: then equal numbers count as the same classes.
    """
    own = network.state_dict()
    alike, renamed = _alike(given, own)
    head = None  # the layer that tells the classes apart: the last whose parameters all have one row a class
    for name, module in network.named_modules():
        held = list(module.parameters(recurse=False))
        if any(value.ndim > 1 for value in held) and all(value.ndim and len(value) == len(classes) for value in held):
            head = name
    copied: dict[str, Tensor] = {}
    fates: list[Fate] = []
    pictures = next((name.rpartition(".")[0] for name, value in own.items() if value.ndim == 4), None)  # sees the images
    for layer, names in groupby(own, lambda name: name.rpartition(".")[0]):
        mine = {name: own[name] for name in names}
        found = {name: given[alike[name]] for name in mine if alike[name] in given}
        fitting, what = _by_channel(mine, found) if layer == pictures else (found, COPIED)
        if layer == head:
            fitting, what = _by_class(mine, found, classes, known)
        if any(value.shape != mine[name].shape for name, value in fitting.items()):
            fitting, what = {}, "fresh: layer of another shape"
        copied |= fitting
        for name, value in mine.items():
            theirs = tuple(found[name].shape) if name in found else None
            fates.append(Fate(name, theirs, tuple(value.shape), what if name in found else "fresh: not in the file"))
    network.load_state_dict(copied, strict=False)
    taken = set(alike.values())
    only = [(name, tuple(value.shape)) for name, value in given.items() if name not in taken]
    fates += [Fate(name, shape, None, "in the file only: not used") for name, shape in only]
    return Transfer(fates, renamed)


def _alike(given: Iterable[str], own: Iterable[str]) -> tuple[dict[str, str], str]:
    """Return for each of the network's names the file's, by the prefix that lets most names fit, and words about it."""
    theirs, ours = set(given), list(own)
    trials = [("", ""), *((prefix, "") for prefix in _prefixes(given)), *(("", prefix) for prefix in _prefixes(ours))]
    off, before = max(
        trials, key=lambda trial: (sum(_theirs(name, *trial) in theirs for name in ours), -len(trial[0] + trial[1]))
    )
    words = f", with {off} taken off its names" if off else f", with {before} put before its names" if before else ""
    return {name: _theirs(name, off, before) for name in ours}, words


def _theirs(name: str, off: str, before: str) -> str:
    """Return what the file calls a tensor of the network; "" where it can have no name for it."""
    return off + name.removeprefix(before) if name.startswith(before) else ""


def _prefixes(names: Iterable[str]) -> list[str]:
    """Return every beginning of a name that ends at a dot, in the order of the names."""
    parts = [name.split(".") for name in names]
    return list(dict.fromkeys(".".join(part[:length]) + "." for part in parts for length in range(1, len(part))))


def _by_channel(mine: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Make weights for 3 channels of those for 1, and the other way round."""
    fitting, what = dict(found), COPIED
    for name, value in found.items():
        if value.ndim == mine[name].ndim == 4 and {value.shape[1], mine[name].shape[1]} == {1, 3}:
            summed = value.shape[1] == 3
            fitting[name] = value.sum(dim=1, keepdim=True) if summed else value.expand(-1, 3, -1, -1) / 3
            what = f"{COPIED}, summed over its channels" if summed else f"{COPIED}, a third for each channel"
    return fitting, what


def _by_class(
    mine: Mapping[str, Tensor], found: Mapping[str, Tensor], classes: Sequence[str], known: Sequence[str] | None
) -> tuple[dict[str, Tensor], str]:
    """Put the rows of the last layer where the classes of the same names are."""
    replaced: tuple[dict[str, Tensor], str] = ({}, "fresh: other classes")
    rows = {len(value) for value in found.values() if value.ndim}
    if known is None or rows != {len(known)}:
        return replaced if rows and rows != {len(classes)} else (dict(found), COPIED)
    shared = [name for name in classes if name in known]
    if not shared:
        return replaced
    if list(known) == list(classes) or any(value.shape[1:] != mine[name].shape[1:] for name, value in found.items()):
        return dict(found), COPIED
    to, of = ([list(names).index(name) for name in shared] for names in (classes, known))
    fitting = {name: mine[name].clone() for name in found}
    for name, value in found.items():
        fitting[name][to] = value[of].to(mine[name].dtype)
    every = len(shared) == len(classes)
    return fitting, f"{COPIED}, by class name" + ("" if every else f": {len(shared)} of {len(classes)} classes")
