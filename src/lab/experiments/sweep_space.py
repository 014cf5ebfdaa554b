"""What a sweep searches: the section `sweep.space` as Optuna's distributions, and a trial's values put into `train`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pydantic import BaseModel, ValidationError
from scipy.stats import qmc

from src.core.command import UserError
from src.system.params import Params
from src.system.sweep_params import Range, Scalar
from src.training.train_params import Train

Values = dict[str, Scalar]

_DIGITS = 3  # that a drawn number keeps: more say nothing, and make params.yaml hard to read


@dataclass(frozen=True)
class Space:
    """The keys that vary, what each may become, and what it is in params.yaml."""

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
            place = content
            for section in sections:
                place = place[section]
            place[name] = value
        try:
            return Train.model_validate(content)
        except ValidationError as error:
            faults = "; ".join(f"{_name(fault['loc'])} {fault['msg']}" for fault in error.errors())
            told = ", ".join(f"{key}: {value}" for key, value in values.items())
            raise UserError(f"sweep.space leads to params that cannot be trained ({told}): {faults}") from None

    def scattered(self, count: int) -> list[dict[str, Any]]:
        """Return so many random values that cover the space evenly: few independent ones leave gaps and form clusters.

        Source: Art B. Owen, "Scrambling Sobol' and Niederreiter-Xing points" (1998); every shorter list is its beginning.
        """
        power = max(0, math.ceil(math.log2(max(1, count))))
        points = qmc.Sobol(len(self.distributions), rng=self.base.seed).random_base2(power)[:count]
        pairs = list(self.distributions.items())
        return [{key: _at(kind, share) for (key, kind), share in zip(pairs, point, strict=True)} for point in points]

    def rounded(self, drawn: Mapping[str, Any]) -> Values:
        """Return drawn values as they are trained and written: numbers between two ends with three digits."""
        return {key: self._rounded(key, drawn[key]) for key in self.distributions}

    def _rounded(self, key: str, value: Any) -> Scalar:
        distribution = self.distributions[key]
        if not isinstance(distribution, FloatDistribution):
            return value  # type: ignore[no-any-return]
        if distribution.step is not None:
            return round(value, 10)  # type: ignore[no-any-return]  # 0.1 + 0.2 is 0.3
        return min(max(float(f"{value:.{_DIGITS}g}"), distribution.low), distribution.high)


def of(params: Params) -> Space:
    """Read the space of params.yaml.

    Raises:
        UserError: an end or a choice is not in range for its key, a range is given for what is no number, or the present
            value lies outside: the sweep begins with it, to have something to beat.
    """
    searched = params.sweep.space
    space = Space(
        params.train,
        {key: _distribution(key, wanted) for key, wanted in searched.items()},
        {key: _present(params.train, key) for key in searched},
    )
    for key, wanted in searched.items():
        for value in [wanted.low, wanted.high] if isinstance(wanted, Range) else wanted:
            space.train({key: _cast(space.distributions[key], value)})
        _require_inside(key, space)
    return space


def _distribution(key: str, wanted: list[Scalar] | Range) -> BaseDistribution:
    if isinstance(wanted, list):
        return CategoricalDistribution(wanted)
    kind = _annotation(key)
    if kind is float:
        return FloatDistribution(wanted.low, wanted.high, log=wanted.log, step=wanted.step)
    ends = [wanted.low, wanted.high, 1 if wanted.step is None else wanted.step]
    if kind is not int or not all(float(end).is_integer() for end in ends):
        expected = "whole numbers" if kind is int else "a list of choices: it is no number"
        raise UserError(f"sweep.space.{key} should have {expected}")
    low, high, step = map(int, ends)
    return IntDistribution(low, high, log=wanted.log, step=step)


def _at(kind: BaseDistribution, share: float) -> Any:
    """Return what lies at a share of the way, 0 to 1, from the low end to the high one, or through the choices."""
    if isinstance(kind, CategoricalDistribution):
        return kind.choices[int(share * len(kind.choices))]
    assert isinstance(kind, FloatDistribution | IntDistribution)
    if kind.log:
        value = kind.low * (kind.high / kind.low) ** share
        return round(value) if isinstance(kind, IntDistribution) else min(value, kind.high)
    if kind.step is None:
        return kind.low + share * (kind.high - kind.low)
    return kind.low + kind.step * int(share * (round((kind.high - kind.low) / kind.step) + 1))


def _annotation(key: str) -> Any:
    section: type[BaseModel] = Train
    *sections, name = key.split(".")
    for part in sections:
        section = section.model_fields[part].annotation  # type: ignore[assignment]
    return section.model_fields[name].annotation


def _present(train: Train, key: str) -> Scalar:
    value: Any = train
    for part in key.split("."):
        value = getattr(value, part)
    return value  # type: ignore[no-any-return]


def _cast(distribution: BaseDistribution, value: Scalar) -> Scalar:
    return int(value) if isinstance(distribution, IntDistribution) and isinstance(value, float) else value


def _require_inside(key: str, space: Space) -> None:
    """Refuse a present value that cannot be the first trial."""
    distribution, value = space.distributions[key], space.present[key]
    if isinstance(distribution, CategoricalDistribution):
        inside = any(type(choice) is type(value) and choice == value for choice in distribution.choices)
        inside = inside or any(choice == value for choice in distribution.choices if not isinstance(choice, bool))
    else:
        inside = distribution._contains(distribution.to_internal_repr(value))  # noqa: SLF001 - Optuna asks so itself
    if not inside:
        raise UserError(
            f"train.{key} is {value!r}, which sweep.space.{key} leaves out: widen it, for the sweep begins with the params "
            "as they are, to have something to beat"
        )


def _name(place: tuple[int | str, ...]) -> str:
    return "train." + ".".join(map(str, place))
