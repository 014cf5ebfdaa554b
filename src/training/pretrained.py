"""Weights to start from, as `train.weights` names them: a safetensors file, a PyTorch state dict, or the champion.

Nothing that a file holds is ever run: safetensors hold no code, and a PyTorch file is opened for tensors alone, once its
digest is the one that was asked for. Called by src/training/start.py.
"""

import hashlib
import io
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from src.core.command import UserError
from src.core.records import Record
from src.training.callbacks import NO_CALLBACKS, Callbacks
from src.training.train_params import Train

CHAMPION = "champion"
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "weights", "params")  # what holds a state dict
_MAGIC = (b"PK\x03\x04", b"\x80\x02\x8a\x0a")  # of torch.save: a zip archive, and before 2020 a pickle
_ADVICE = "correct train.weights in params.yaml"


@dataclass(frozen=True)
class _Origin(Record):
    """What the card.json beside weights says of them, of whatever version of the engine it is."""

    weights_sha256: str | None = None
    classes: list[str] | None = None


@dataclass(frozen=True)
class Pretrained:
    """Weights by name. `classes` are those they tell apart, in order, where known; `shown` names them to a person."""

    weights: dict[str, Tensor]
    classes: list[str] | None
    shown: str


def pretrained(params: Train, callbacks: Callbacks = NO_CALLBACKS) -> Pretrained:
    """Read what `train.weights` names; parse it only where its digest is `train.weights_sha256`.

    Raises:
        UserError: it is missing, no weights, holds code, or has another digest; MLflow or its champion is not there.
    """
    if params.weights != CHAMPION:
        path = Path(params.weights or "")
        return _read(path, path.with_name("card.json"), str(path), params)
    if callbacks.champion is None:
        raise UserError(f"train.weights is {CHAMPION}, and this command fetches none: name a file in params.yaml")
    with tempfile.TemporaryDirectory() as temporary:
        return _read(*callbacks.champion(temporary), params)


def _read(path: Path, card: Path, shown: str, params: Train) -> Pretrained:
    if not path.is_file():
        raise UserError(f"{path} is missing: {_ADVICE}")
    content = path.read_bytes()  # once: what is parsed is what was compared
    digest = hashlib.sha256(content).hexdigest()
    if digest != params.weights_sha256:
        raise UserError(
            f"train.weights_sha256 is {params.weights_sha256!r}, but {shown} has {digest}: "
            "put that into params.yaml if these are the weights you mean (DVC then notices when they change)"
        )
    about = _Origin.read(card, made_by="train") if card.is_file() else _Origin()
    # a card tells the classes only of the very weights that it names
    return Pretrained(state_dict(content, path), about.classes if about.weights_sha256 == digest else None, shown)


def state_dict(content: bytes, path: Path) -> dict[str, Tensor]:
    """Parse the bytes of a safetensors file or of a PyTorch file: its tensors, on the CPU, by name.

    Raises:
        UserError: `path`, which they are of, is neither of the two, damaged, holds code, or holds no tensors by name.
    """
    if not content.startswith(_MAGIC):
        try:
            tensors: dict[str, Tensor] = load(content)
        except SafetensorError as error:
            raise UserError(
                f"{path} is no safetensors file ({error}): {_ADVICE}; expected is a safetensors file or a PyTorch state dict"
            ) from None
        return tensors
    try:
        return _tensors(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True), path)
    except UserError:
        raise
    except Exception as error:  # torch raises almost any class on a file that is damaged or holds more than tensors
        code = re.search(r"safe_globals\(\[(\S+?)\]|unsupported GLOBAL (\S+)", str(error))
        if code:
            raise UserError(
                f"{path} holds code ({code[1] or code[2]}), which is not run: where the file was made, or where you "
                "trust it, write the model's state_dict() with safetensors.torch.save_file, and name that file"
            ) from None
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{path} is a damaged PyTorch file ({reason}): fetch it again, or {_ADVICE}") from None


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the tensors of a state dict, taken out of what training scripts wrap around it."""
    if isinstance(content, Mapping):
        found = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
        if found:
            return found
        for wrapper in _WRAPPERS:
            if isinstance(content.get(wrapper), Mapping):
                return _tensors(content[wrapper], path)
    keys = ", ".join(map(str, content))[:200] if isinstance(content, Mapping) else type(content).__name__
    raise UserError(
        f"{path} holds no tensors by name, nor under {', '.join(_WRAPPERS)} (it holds: {keys or 'nothing'}): write the "
        "model's state_dict() with safetensors.torch.save_file, and name that file"
    )
