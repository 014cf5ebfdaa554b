"""verdict.json and manifest.json: what was judged, why, what people decided by a label, and what the model came from."""

from dataclasses import dataclass, field
from typing import Any

from src.core.records import Record


@dataclass(frozen=True, kw_only=True)
class GateRow(Record):
    """What a reader of verdict.json needs of one gate: its name and outcome; src/judging/gates.py has the numbers."""

    name: str
    outcome: str


@dataclass(frozen=True, kw_only=True)
class JudgedFile(Record):
    """verdict.json: `override` and `engine_reviewed` name who gave a label; `lacking` are those that are needed yet."""

    verdict: str  # pass, investigate or fail
    reasons: list[str]
    gates: list[GateRow] = field(default_factory=list)
    accepted: bool = False
    lacking: list[str] = field(default_factory=list)
    override: dict[str, Any] | None = None
    engine_reviewed: dict[str, Any] | None = None
    format: int | None = None  # of an answer to a request


@dataclass(frozen=True, kw_only=True)
class Lineage(Record):
    """manifest.json: inputs and outputs by their digests, the data, the verdict.

    `main`, `anchor` and `looks` are compared whole with what judging finds again, so a hand's change of them is no damage.
    """

    inputs: dict[str, Any]
    outputs: dict[str, Any]
    data: dict[str, Any]
    commit: str | None
    metrics: dict[str, Any]
    verdict: dict[str, Any]
    network: dict[str, Any] | None = None
    hardware: dict[str, Any] | None = None
    throughput: dict[str, Any] | None = None
    training_seconds: float | None = None
    pull_request: int | None = None
    run_url: str | None = None
    main: Any = None
    anchor: Any = None
    looks: Any = None
