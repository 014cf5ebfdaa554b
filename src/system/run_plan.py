"""What the first job of report.yml decided, handed on to its other jobs in the variable PLAN, as JSON."""

from dataclasses import dataclass, field

from src.core.records import Record
from src.system.judged import Label


@dataclass(frozen=True, kw_only=True)
class RunPlan(Record):
    """What report.yml is to do, and to which commit the result belongs; src/github/plan.py explains the lanes."""

    lane: str
    sha: str
    base: str
    run_url: str
    branch: str = ""
    number: int | None = None
    fork: bool = False
    environment: str = "training"
    override: Label | None = None
    engine_reviewed: Label | None = None
    refused: dict[str, str] = field(default_factory=dict)
    protected: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    relevant: list[str] = field(default_factory=list)

    @property
    def is_published(self) -> bool:
        """False for a fork's own run, which holds no token that writes: report-comment.yml speaks for it."""
        return not self.fork or self.environment == "fork-training"
