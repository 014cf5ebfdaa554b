"""How the jobs of a release ended: `release.outcome.json` of each, as src/release left it, taken for data and no more.

A deploy host is a machine of one's own: what it says is bounded and checked before it reaches GitHub's pages.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from src.core.command import UserError

FILE = "release.outcome.json"
ENVIRONMENTS = ("production", "staging")
_LARGEST = 64 * 2**10  # bytes
_LONGEST = 2_000  # characters of a sentence
_SHAPES = {
    "what": r"deploy|rollback",
    "environment": r"production|staging",
    "version": r"[A-Za-z0-9._-]{1,40}",
    "manifest": r"[0-9a-f]{8,64}",
    "commit": r"[0-9a-f]{40}",
    "result": r"deployed|unchanged|returned|rolled back",
}


@dataclass(frozen=True)
class Outcome:
    """How one job ended. `record` is what it put into an environment, or tried to; None where it came to nothing of that."""

    step: str  # verify, register, build, deploy or rollback
    ok: bool
    kind: str | None
    sentence: str
    then: str  # what to do next
    record: dict[str, Any] | None


def read(folder: Path) -> tuple[dict[str, Outcome], list[str]]:
    """Read the folders `outcome-JOB` that lie in `folder`; return the outcomes by job, and a sentence for each bad one.

    download-artifact unpacks a single one without a folder of its own: then the step tells the job.
    """
    found, faults = {}, []
    for path in sorted([*folder.glob(FILE), *folder.glob(f"outcome-*/{FILE}")]):
        job = path.parent.name.removeprefix("outcome-") if path.parent != folder else ""
        try:
            if path.is_symlink() or not path.is_file() or path.stat().st_size > _LARGEST:
                raise UserError(
                    f"the outcome of {job} is no plain file of at most {_LARGEST} bytes: look at the log of that job"
                )
            outcome = parse(path.read_text(encoding="utf-8", errors="replace"), job)
        except UserError as error:
            faults.append(str(error))
        else:
            found[job or outcome.step] = outcome
    return found, faults


def parse(text: str, job: str) -> Outcome:
    """Read one outcome.

    Raises:
        UserError: it is not of the form.
    """
    try:
        content = json.loads(text, parse_constant=_no_number)
        record = content["record"]
        outcome = Outcome(
            step=_words(content["step"]),
            ok=_switch(content["ok"]),
            kind=None if content["kind"] is None else _words(content["kind"]),
            sentence=_words(content["sentence"]),
            then=_words(content["next"]),
            record=record and checked(record),
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        why = error if isinstance(error, ValueError | TypeError) else f"{type(error).__name__}: {error}"
        raise UserError(
            f"the outcome of {job} is not as src/release/outcome.py writes it ({str(why)[:200]}): see the log of that job"
        ) from None
    return outcome


def checked(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record whose parts have the form that they must have.

    Raises:
        ValueError: a part is missing or has another form.
    """
    for name, shape in _SHAPES.items():
        if not re.fullmatch(shape, str(record[name])):
            raise ValueError(f"{name} is {str(record[name])[:60]!r}")
    number = record["pull_request"]
    if number is not None and not (type(number) is int and number > 0):
        raise ValueError("pull_request is no number")
    before = record["from"]
    if before is not None and not re.fullmatch(_SHAPES["version"], str(before["version"])):
        raise ValueError("from is no version")
    return dict(record)


def _switch(value: object) -> bool:
    if value is not True and value is not False:
        raise ValueError("ok is neither true nor false")
    return value


def _words(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{str(value)[:60]!r} is no text")
    return value[:_LONGEST]


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")
