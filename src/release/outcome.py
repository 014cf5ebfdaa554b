"""How a step of the release ended, for the workflow that tells it: out/release.outcome.json."""

from collections.abc import Iterator
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
    record: dict[str, Any] = {}

    def write(**told: Any) -> None:
        path = folder.with_name(f"{folder.name}.outcome.json")
        write_json(path, {"step": step, "record": dict(record) or None, **told})

    try:
        yield record
    except UserError as error:
        # also of a registry's error, which is raised below the release
        kind, sentence, then = (getattr(error, name, "") for name in ("kind", "sentence", "then"))
        write(ok=False, kind=kind or "other", sentence=sentence or str(error), next=then)
        raise
    write(ok=True, kind=None, sentence=record.get("why", ""), next="")
