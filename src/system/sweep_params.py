"""The section `sweep` of params.yaml, with its defaults."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from src.core.params import Section
from src.images.augment_params import Augment
from src.training.train_params import Train


class Range(Section):
    """Numbers from `low` to `high`, both included: by their logarithm, in steps, or neither."""

    low: float
    high: float
    log: bool = False
    step: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _runs_upwards(self) -> "Range":
        if self.low >= self.high:
            raise ValueError("low must be under high")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log must have a low over 0 and no step")
        return self


def _searched(value: object) -> "list[Scalar] | Range":
    """Read what one key may become; a union of types would be refused in the words of each."""
    if isinstance(value, dict):
        try:
            return Range.model_validate(value)
        except ValidationError as error:
            fault = error.errors()[0]
            reason = f"{'.'.join(map(str, fault['loc']))} {fault['msg'].removeprefix('Value error, ')}".strip()
            raise ValueError(f"should be {{low, high}}, with log: true or step if need be ({reason})") from None
    scalars = isinstance(value, list) and all(one is None or isinstance(one, str | bool | int | float) for one in value)
    if not isinstance(value, list) or not scalars or not value or len(set(map(repr, value))) < len(value):
        raise ValueError("should be a list of different choices, or {low, high}")
    return value


Scalar = str | bool | int | float | None
Searched = Annotated[list[Scalar] | Range, BeforeValidator(_searched)]

# what picks luck, or how fast and where a model is trained rather than how good it is
_NOT_SEARCHED = {"seed", "weights", "weights_sha256", "device", "compile", "processes", "folds", "repeats", "precision"}


_SPACE: dict[str, Searched] = {
    "learning_rate": Range(low=0.01, high=1.0, log=True),
    "weight_decay": Range(low=0.00001, high=0.01, log=True),
    "batch_size": [32, 64, 128],
    "label_smoothing": Range(low=0.0, high=0.2),
    "augment.rotate": Range(low=0.0, high=20.0),
}


class Sweep(Section):
    """How `make sweep` searches, and over what."""

    trials: int = Field(
        default=20,
        ge=1,
        le=100_000,
        description="in all, over every restart and worker; the first one is the params as they are",
    )
    random: int = Field(
        default=8,
        ge=0,
        le=100_000,
        description="of them spread at random over the space, before TPE learns from what it has seen",
    )
    objective: Literal["accuracy", "log_loss"] = Field(
        default="accuracy", description="on the validation split, equal ones decided by log loss; or log_loss"
    )
    prune_after: float = Field(
        default=0.4,
        ge=0,
        le=1,
        description="share of its epochs after which the median of other trials may end one; 1: never",
    )
    space: dict[str, Searched] = Field(
        default=_SPACE,
        min_length=1,
        description="keys of train that may vary: a list of choices, or {low, high} with `log: true` or `step`",
    )

    @model_validator(mode="after")
    def _searches_keys_of_train(self) -> "Sweep":
        keys = [name for name in Train.model_fields if name not in {*_NOT_SEARCHED, "freeze", "augment"}]
        keys += [f"augment.{name}" for name in Augment.model_fields]
        for key in self.space:
            if key not in keys:
                raise ValueError(f"space.{key} is no key of train that can be searched; expected one of {', '.join(keys)}")
        return self
