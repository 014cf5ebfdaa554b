"""What a host is asked to run, and what it tells of it: the values between a deployment and its containers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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
