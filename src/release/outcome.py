"""How a step of the release ended, for the workflow that tells it: out/release.outcome.json."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from src.core.command import UserError
from src.core.files import write_json

KINDS = ("moved", "tampered", "gates", "missing", "registry", "image", "host", "fault", "other")


class RefusedError(UserError):
    """A release that must not go on. `kind` is one of KINDS; the text is what happened, then what to do next."""

    def __init__(self, kind: str, sentence: str, then: str) -> None:
        super().__init__(f"{sentence}: {then}")
        self.kind, self.sentence, self.then = kind, sentence, then


@contextmanager
def telling(step: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Write how the step inside ended beside `folder`; what it puts into the dictionary is the record of a deployment."""
    path = folder.with_name(f"{folder.name}.outcome.json")
    record: dict[str, Any] = {}
    try:
        yield record
    except UserError as error:
        _write(path, step, error, record)
        raise
    write_json(path, {**_start(step, record), "ok": True, "kind": None, "sentence": record.get("why", ""), "next": ""})


def _write(path: Path, step: str, error: UserError, record: Mapping[str, Any]) -> None:
    # also of a registry's error, which is raised below the release
    kind, sentence, then = (getattr(error, name, "") for name in ("kind", "sentence", "then"))
    told = {"kind": kind or "other", "sentence": sentence or str(error), "next": then}
    write_json(path, {**_start(step, record), "ok": False, **told})


def _start(step: str, record: Mapping[str, Any]) -> dict[str, Any]:
    return {"step": step, "record": dict(record) or None}
