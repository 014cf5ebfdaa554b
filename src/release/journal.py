"""What this host serves and is about to do: state.json, and journal.jsonl, which has every step of every deployment.

state.json is replaced in one step and says what is live, what was live before, and, while a change is under way, the
intent: what is to become live, and how far it has come. Whatever a killed process leaves, the intent tells how to end it.
"""

import getpass
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from src.core import locks
from src.core.command import UserError
from src.core.files import write_json
from src.core.records import Record
from src.release.reviewed import ImageFile, Release
from src.release.settings import Settings


@dataclass(frozen=True)
class Origin(Record):
    """Who made a version live, and of which commit."""

    who: str
    commit: str


@dataclass(frozen=True)
class Running(Record):
    """One version on this host, serving or stopped, with all that starting it again takes."""

    name: str  # of the container
    image: ImageFile
    port: int  # of 127.0.0.1
    version: str
    manifest: str
    folder: str  # its release: golden examples and release.json
    since: str  # when it became live
    environment: dict[str, str]
    record: Origin

    def short(self) -> dict[str, str]:
        """Return what names it in a record."""
        return {"version": self.version, "manifest": self.manifest, "image_digest": self.image.digest}


@dataclass(frozen=True)
class Intent(Record):
    """A change under way. `step` is starting, switching, promoting or cleaning: before, during and after the switch."""

    what: str  # deploy or rollback
    step: str
    new: Running
    old: Running | None


@dataclass(frozen=True)
class State(Record):
    """What state.json holds. `registry` is where the versions are registered, without a password."""

    live: Running | None = None
    previous: Running | None = None
    intent: Intent | None = None
    registry: str | None = None
    rolled_back: dict[str, str] = field(default_factory=dict)  # manifest: why it was taken out of production

    @property
    def known(self) -> list[Running]:
        """Return the previous and the live version, where there are any."""
        return [running for running in (self.previous, self.live) if running]


class Journal:
    """The state of one environment on this host, under its lock."""

    def __init__(self, settings: Settings) -> None:
        self.home = settings.home
        self.path = self.home / "state.json"
        self.lines = self.home / "journal.jsonl"
        self.state = State()
        if self.path.is_file():
            try:
                self.state = State.parse(self.path.read_text(), "state.json")
            except UserError as error:
                raise UserError(
                    f"{self.path} is damaged ({error}): its last good content is in the lines of {self.lines}; mend it, or "
                    "move it away and run make deploy, which starts anew"
                ) from None

    def save(self, **changes: Any) -> None:
        """Replace parts of the state, on disk before in memory."""
        state = replace(self.state, **changes)
        write_json(self.path, state.to_json())
        self.state = state

    def intend(self, what: str, step: str, new: Running, old: Running | None) -> None:
        """Write how far a change has come, before it goes there."""
        self.save(intent=Intent(what, step, new, old))

    def end(self, record: dict[str, Any], result: str, said: str, started: float, **facts: Any) -> None:
        """Write how a change ended, into its record and as a line that holds the record."""
        record |= {"result": result, "why": said, "seconds": round(time.monotonic() - started, 1)}
        # what was taken back is told by the error that follows
        self.note(result, said="" if result == "returned" else said, record=record, **facts)

    def note(self, step: str, about: Running | None = None, said: str = "", **facts: Any) -> None:
        """Write one line of the journal, and show the sentence."""
        line: dict[str, Any] = {"at": now("milliseconds"), "step": step, "by": who(), **facts}
        line |= about.short() if about else {}
        if said:
            line["said"] = said
            print(said, flush=True)
        self.home.mkdir(parents=True, exist_ok=True)
        with self.lines.open("a") as file:
            file.write(json.dumps(line, sort_keys=True, ensure_ascii=False) + "\n")

    def released(self) -> dict[str, Running]:
        """Return every version that was ever deployed here, by its number, as the lines tell."""
        text = self.lines.read_text() if self.lines.is_file() else ""
        found = [line["running"] for line in map(json.loads, text.splitlines()) if line.get("running")]
        return {entry["version"]: Running.from_json(entry, str(self.lines)) for entry in found}


@contextmanager
def locked(settings: Settings, what: str) -> Iterator[Journal]:
    """Yield the journal under its lock; another deployment on this host is waited for.

    Raises:
        UserError: the other one did not end within an hour.
    """
    holder = f"{what} by {who()}, process {os.getpid()}, since {now()}"
    with locks.locked(
        settings.home / "lock", holder, lambda said: f"waiting for another one to end: {said or 'just begun'}"
    ):
        yield Journal(settings)


def registry_uri(settings: Settings, environment: Mapping[str, str] = os.environ) -> str | None:
    """Return where versions are registered: MLFLOW_TRACKING_URI, else where this host did before, else None: the default.

    In a workflow the default lies under the settings' home: the folder of the job is wiped after it.
    """
    named = environment.get("MLFLOW_TRACKING_URI", "").strip()
    known = None if named else Journal(settings).state.registry
    # a file of a clone that was removed since is not asked for
    if known and (not known.startswith("sqlite:///") or Path(known.removeprefix("sqlite:///")).is_file()):
        return known
    if not named and environment.get("GITHUB_ACTIONS") == "true":
        settings.home.parent.mkdir(parents=True, exist_ok=True)
        return f"sqlite:///{settings.home.parent / 'mlflow.db'}"
    return named or None


def begin(
    what: str, settings: Settings, release: Release, target: Mapping[str, str], old: Running | None, strategy: str
) -> dict[str, Any]:
    """Return the record of a change as it begins; `target` is what `Running.short` gives of the version that comes."""
    return {
        "what": what,
        "environment": settings.environment,
        **target,
        "model_sha256": release.model_sha256,
        "commit": release.commit,
        "pull_request": release.pull_request,
        "verdict": release.verdict,
        "override": release.override.to_json() if release.override else None,
        "who": who(),
        "when": now(),
        "from": old.short() if old else None,
        "strategy": strategy,
    }


def now(parts: str = "seconds") -> str:
    """Return the time as a record has it: UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec=parts).replace("+00:00", "Z")


def who() -> str:
    """Return who does this: the person who started the workflow, else the account."""
    try:
        return os.environ.get("GITHUB_ACTOR") or getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
