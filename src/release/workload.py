"""What a host is asked to run, and what it tells of it: the contract between deploy and the kinds of host."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Workload:
    """One version to run. `image` is the content of image.json, `port` the loopback port that it answers on."""

    name: str
    image: Mapping[str, Any]
    port: int
    environment: Mapping[str, str]


@dataclass(frozen=True)
class State:
    """What the host knows of a version now. What it cannot know is None."""

    exists: bool
    running: bool
    restarts: int  # since it was started: a version that cannot start is started again and again
    started: str | None  # ISO 8601
    memory: int | None  # bytes in use, without what the system would give back
    oom: bool  # it was ended because it used more memory than it may
    exit_code: int | None  # of one that has ended


ABSENT = State(exists=False, running=False, restarts=0, started=None, memory=None, oom=False, exit_code=None)


class Host(Protocol):
    """Where versions run. Every call may be repeated; a failure is a UserError that carries the engine's reason."""

    kind: str  # docker or podman

    def pull(self, image: Mapping[str, Any]) -> None:
        """Bring what is to run onto this machine, if it is not here yet."""

    def start(self, workload: Workload) -> None:
        """Run it; what is left of an earlier one of this name goes first."""

    def resume(self, name: str) -> None:
        """Run a stopped one again."""

    def stop(self, name: str, *, wait: bool = True) -> None:
        """Let requests in flight end, then stop it; without `wait` that goes on while this process does something else."""

    def remove(self, name: str) -> None:
        """End it at once and forget it."""

    def state(self, name: str) -> State:
        """Return what is known of it now, in some 50 ms."""

    def names(self) -> list[str]:
        """Return the names of this environment's versions, running or not."""

    def logs(self, name: str, lines: int = 50) -> str:
        """Return the last lines that it printed; empty when it is not there."""
