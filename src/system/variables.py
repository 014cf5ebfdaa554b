"""Settings read from environment variables: a number within bounds, or a word out of a list; else one sentence."""

from collections.abc import Mapping

from src.core.command import UserError


def filled(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that hold something; an empty one counts as unset, as a workflow passes it."""
    return {name: value.strip() for name, value in environment.items() if value.strip()}


def number(given: Mapping[str, str], name: str, default: float, low: float, high: float) -> float:
    """Return a variable as a number from `low` to `high`, `default` where it is unset.

    Raises:
        UserError: it is no number, or out of range.
    """
    text = given.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise UserError(f"{name} is {text!r}: use a number from {low:g} to {high:g}, or leave it unset")
    return value


def word(given: Mapping[str, str], name: str, words: tuple[str, ...]) -> str | None:
    """Return a variable that is one of some words, None where it is unset.

    Raises:
        UserError: it is another word.
    """
    value = given.get(name)
    if value is not None and value not in words:
        raise UserError(f"{name} is {value!r}: use one of {', '.join(words)}, or leave it unset")
    return value
