"""Search space of a sweep: `sweep.space` of params.yaml as Optuna's distributions, and a trial's values put into `train`."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from math import isclose
from typing import Any

from optuna import Trial
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import ValidationError

from src.core.command import UserError
from src.system.params import Params
from src.system.sweep_params import Range, Scalar
from src.training.train_params import Train

Values = dict[str, Scalar]

_DIGITS = 3  # of a suggested number: more say nothing, and make params.yaml hard to read


@dataclass(frozen=True)
class Space:
    """The keys that vary with their distributions, and their values in params.yaml."""

    base: Train
    distributions: dict[str, BaseDistribution]
    present: Values

    def train(self, values: Mapping[str, Scalar]) -> Train:
        """Return the section `train` with a trial's values.

        Raises:
            UserError: together they are not in range; the text names each.
        """
        content: dict[str, Any] = self.base.model_dump()
        for key, value in values.items():
            *sections, name = key.split(".")
            reduce(lambda section, part: section[part], sections, content)[name] = value
        try:
            return Train.model_validate(content)
        except ValidationError as error:
            faults = "; ".join(f"train.{'.'.join(map(str, fault['loc']))} {fault['msg']}" for fault in error.errors())
            pairs = ", ".join(f"{key}: {value}" for key, value in values.items())
            raise UserError(f"sweep.space leads to params that cannot be trained ({pairs}): {faults}") from None

    def suggest(self, trial: Trial) -> Values:
        """Let Optuna suggest a value for each key; numbers of a continuous range are rounded to three digits."""
        return {key: _suggest(trial, key, distribution) for key, distribution in self.distributions.items()}

    def grid_size(self, most: int) -> int | None:
        """Return the number of combinations where every key is a list of choices and they are at most so many."""
        size = 1
        for distribution in self.distributions.values():
            size *= len(distribution.choices) if isinstance(distribution, CategoricalDistribution) else most + 1
        return size if size <= most else None


def of(params: Params) -> Space:
    """Read the space of params.yaml.

    Raises:
        UserError: an end or a choice is not in range for its key, a range is given for what is no number, or the present
            value lies outside: the sweep begins with it, to have something to beat.
    """
    searched = params.sweep.space
    distributions = {key: _distribution(key, wanted) for key, wanted in searched.items()}
    train: Any = params.train
    present = {key: reduce(getattr, key.split("."), train) for key in searched}
    space = Space(params.train, distributions, present)
    for key, wanted in searched.items():
        whole = isinstance(distributions[key], IntDistribution)
        for value in [wanted.low, wanted.high] if isinstance(wanted, Range) else wanted:
            space.train({key: int(value) if whole and isinstance(value, float) else value})
        if not _contains(wanted, present[key]):
            raise UserError(
                f"train.{key} is {present[key]!r}, which sweep.space.{key} leaves out: widen it, for the sweep begins with "
                "the params as they are, to have something to beat"
            )
    return space


def _distribution(key: str, wanted: list[Scalar] | Range) -> BaseDistribution:
    if isinstance(wanted, list):
        return CategoricalDistribution(wanted)
    kind: Any = Train
    for part in key.split("."):
        kind = kind.model_fields[part].annotation
    if kind is float:
        return FloatDistribution(wanted.low, wanted.high, log=wanted.log, step=wanted.step)
    ends = [wanted.low, wanted.high, 1 if wanted.step is None else wanted.step]
    if kind is not int or not all(float(end).is_integer() for end in ends):
        expected = "whole numbers" if kind is int else "a list of choices: it is no number"
        raise UserError(f"sweep.space.{key} should have {expected}")
    low, high, step = map(int, ends)
    return IntDistribution(low, high, log=wanted.log, step=step)


def _contains(wanted: list[Scalar] | Range, value: Any) -> bool:
    if isinstance(wanted, list):
        return any(choice == value and isinstance(choice, bool) == isinstance(value, bool) for choice in wanted)
    steps = (value - wanted.low) / wanted.step if wanted.step else 0
    return wanted.low <= value <= wanted.high and isclose(steps, round(steps), abs_tol=1e-9)


def _suggest(trial: Trial, key: str, distribution: BaseDistribution) -> Scalar:
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(key, distribution.choices)
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(key, distribution.low, distribution.high, log=distribution.log, step=distribution.step)
    assert isinstance(distribution, FloatDistribution)
    low, high = distribution.low, distribution.high
    value = trial.suggest_float(key, low, high, log=distribution.log, step=distribution.step)
    if distribution.step is not None:
        return round(value, 10)  # 0.1 + 0.2 is 0.3
    return min(max(float(f"{value:.{_DIGITS}g}"), low), high)
