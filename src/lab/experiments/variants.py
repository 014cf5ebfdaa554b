"""What an ablation varies: each augmentation, taken out of the recipe where it is on, put in where it is off."""

from collections.abc import Sequence
from dataclasses import dataclass

from src.core.command import UserError
from src.images.augment_params import Augment
from src.lab.experiments.trainings import changed
from src.training.train_params import Train

Value = float | int | bool

_REST = {"label_smoothing": 0.1, "ema": 0.999, "warmup_epochs": 3.0, "gradient_clip": 1.0, "weight_decay": 5e-4}


@dataclass(frozen=True)
class Variant:
    """The recipe with one thing switched: `strength` is its value where it is on, `on` says whether the recipe has it."""

    name: str
    strength: Value
    on: bool
    params: Train

    @property
    def title(self) -> str:
        """Say what the training is."""
        return f"without {self.name}" if self.on else f"with {self.name} {shown(self.strength)}"


def shown(strength: Value) -> str:
    """Return a strength as params.yaml writes it."""
    return str(strength).lower() if isinstance(strength, bool) else f"{strength:g}"


def variants(params: Train, size: tuple[int, int], only: Sequence[str], also: bool) -> list[Variant]:
    """Return the recipes to hold against `params`.

    Args:
        params: the recipe.
        size: of the images, which decides how strong a suggestion is.
        only: names to vary, each may come with the strength to try, `erase=0.5`; none asks for every augmentation.
        also: vary what else regularises too: label smoothing, averaged weights, warm-up, clipping, weight decay.

    Raises:
        UserError: a name is unknown, a strength is no number or out of range, or one is on already.
    """
    known: dict[str, Value] = {**_suggested(size), **_REST}
    wanted = [item.partition("=") for item in only] or [(name, "", "") for name in _suggested(size)]
    wanted += [(name, "", "") for name in _REST if also and name not in {item[0] for item in wanted}]
    for name, _, _ in wanted:
        if name not in known:
            raise UserError(f"--only names {name!r}, which cannot be switched; expected one of {', '.join(known)}")
    return [_variant(params, name, text, known[name]) for name, _, text in wanted]


def _suggested(size: tuple[int, int]) -> dict[str, Value]:
    """Return the strength at which an augmentation that is off is tried, for every one there is."""
    side = min(size)
    usual: dict[str, Value] = {
        "crop": max(1, side // 8),
        "flip": True,
        "rotate": 10.0,
        "scale": 0.1,
        "brightness": 0.2,
        "contrast": 0.2,
        "cutout": max(2, side // 4),
        "erase": 0.25,
        "mixup": 0.2,
        "cutmix": 1.0,
    }
    return {name: usual[name] for name in Augment.model_fields if name in usual}


def _variant(params: Train, name: str, text: str, suggested: Value) -> Variant:
    inside = name in Augment.model_fields
    current: Value = getattr(params.augment if inside else params, name)
    path = f"augment__{name}" if inside else name
    if current:
        if text:
            raise UserError(f"--only {name}={text}: it is on in the recipe ({shown(current)}) and can only be taken out")
        return Variant(name, current, True, changed(params, **{path: type(current)(0)}))
    strength = _strength(name, text, suggested) if text else suggested
    try:
        return Variant(name, strength, False, changed(params, **{path: strength}))
    except ValueError:
        raise UserError(f"--only {name}={text}: the strength is out of range (see src/images/augment_params.py)") from None


def _strength(name: str, text: str, suggested: Value) -> Value:
    try:
        return text == "true" if isinstance(suggested, bool) else type(suggested)(text)
    except ValueError:
        raise UserError(f"--only {name}={text}: expected a {type(suggested).__name__} after the equals sign") from None
