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
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from src.core.command import UserError
from src.core.files import write_json
from src.release.reviewed import Release
from src.release.settings import Settings
from src.system import locks


@dataclass(frozen=True)
class Running:
    """One version on this host, serving or stopped, with all that starting it again takes."""

    name: str  # of the container or process
    image: dict[str, Any]  # image.json
    port: int
    version: str
    manifest: str
    folder: str  # its release: golden examples and release.json
    since: str  # when it became live
    environment: dict[str, str]
    record: dict[str, Any]

    @property
    def digest(self) -> str:
        """Return the image's digest, or what stands for it without a container engine."""
        return str(self.image["digest"])

    def short(self) -> dict[str, str]:
        """Return what names it in a record."""
        return {"version": self.version, "manifest": self.manifest, "image_digest": self.digest}


@dataclass(frozen=True)
class Intent:
    """A change under way. `step` is starting, switching, promoting or cleaning: before, during and after the switch."""

    what: str  # deploy or rollback
    step: str
    new: Running
    old: Running | None


@dataclass(frozen=True)
class State:
    """What state.json holds. `registry` is where the versions are registered, without a password."""

    live: Running | None = None
    previous: Running | None = None
    intent: Intent | None = None
    registry: str | None = None
    rolled_back: dict[str, str] = field(default_factory=dict)  # manifest: why it was taken out of production

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Read what JSON holds; raises TypeError or KeyError for anything else."""
        intent = content["intent"]
        return cls(
            live=_running(content["live"]),
            previous=_running(content["previous"]),
            intent=Intent(intent["what"], intent["step"], Running(**intent["new"]), _running(intent["old"]))
            if intent
            else None,
            registry=content["registry"],
            rolled_back=content["rolled_back"],
        )


def _running(content: Mapping[str, Any] | None) -> Running | None:
    return Running(**content) if content else None


class Journal:
    """The state of one environment on this host, under its lock."""

    def __init__(self, settings: Settings) -> None:
        self.home = settings.home
        self.path = self.home / "state.json"
        self.state = State()
        if not self.path.is_file():
            return
        try:
            self.state = State.from_dict(json.loads(self.path.read_text()))
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{self.path} is damaged ({type(error).__name__}): its last good content is in the lines of "
                f"{self.home / 'journal.jsonl'}; mend it, or move it away and run make deploy, which starts anew"
            ) from None

    def save(self, **changes: Any) -> None:
        """Replace parts of the state, on disk before in memory."""
        state = replace(self.state, **changes)
        write_json(self.path, asdict(state))
        self.state = state

    def intend(self, what: str, step: str, new: Running, old: Running | None) -> None:
        """Say what comes next, before it is done."""
        self.save(intent=Intent(what, step, new, old))
        self.note(step, new)

    def end(self, record: dict[str, Any], result: str, said: str, started: float, **facts: Any) -> None:
        """Complete the record of a change, with the seconds since `started`, and write it down."""
        record |= {"result": result, "why": said, "seconds": round(time.monotonic() - started, 1)}
        # what was taken back is told by the error that follows
        self.note(result, said="" if result == "returned" else said, record=record, **facts)

    def note(self, step: str, about: Running | None = None, said: str = "", **facts: Any) -> None:
        """Write one line of the journal, and show the sentence."""
        line: dict[str, Any] = {"at": now("milliseconds"), "step": step, "by": who(), **facts}
        if about:
            line |= about.short()
        if said:
            line["said"] = said
            print(said, flush=True)
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / "journal.jsonl").open("a") as file:
            file.write(json.dumps(line, sort_keys=True, ensure_ascii=False) + "\n")


@contextmanager
def locked(settings: Settings, what: str) -> Iterator[tuple[Journal, int]]:
    """Yield the journal and the descriptor of its lock; another deployment on this host is waited for.

    Raises:
        UserError: the other one did not end within an hour.
    """
    path = settings.home / "lock"
    with locks.locked(path, lambda: f"waiting for another one to end: {path.read_text() or 'just begun'}") as descriptor:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{what} by {who()}, process {os.getpid()}, since {now()}".encode(), 0)
        yield Journal(settings), descriptor


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


def begin(what: str, settings: Settings, release: Release, target: Mapping[str, str], old: Running | None) -> dict[str, Any]:
    """Return the record of a change as it begins; `target` is what `Running.short` gives of the version that comes."""
    return {
        "what": what,
        "environment": settings.environment,
        **target,
        "model_sha256": release.model_sha256,
        "commit": release.commit,
        "pull_request": release.pull_request,
        "verdict": release.verdict,
        "override": release.override,
        "who": who(),
        "when": now(),
        "from": old.short() if old else None,
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
