"""What a run learns from, what it is held against, and what an example is."""

from dataclasses import dataclass
from pathlib import Path

from src.core.arrays import Arrays, Split
from src.core.command import UserError
from src.core.files import read_json
from src.core.shape import Shape, Spec


@dataclass(frozen=True)
class Task:
    """Training and validation split with the facts that travel with them; `dataclasses.replace` makes a variant."""

    training: Split
    validation: Split
    classes: list[str]
    spec: Spec
    manifest_sha256: str

    @property
    def shape(self) -> Shape:
        """What a network is built for."""
        return Shape.of(self.spec, len(self.classes))


def of(data: Arrays) -> Task:
    """Return the task that the arrays of `prepare` set.

    Raises:
        UserError: a split's files are missing or damaged.
    """
    training, validation = data.split("train"), data.split("validation")
    return Task(training, validation, data.classes, data.spec, data.manifest_sha256)


def require_passed(validation: Path, data: Arrays) -> None:
    """Refuse data that `validate` has not passed, or arrays that are not those it looked at."""
    report = read_json(validation, made_by="validate", keys=("passed", "findings", "manifest_sha256"))
    if not report["passed"]:
        failed = ", ".join(finding["check"] for finding in report["findings"] if finding["level"] == "error")
        raise UserError(f"the data did not pass validation ({failed}; see {validation}): mend it, then run `dvc repro`")
    if report["manifest_sha256"] != data.manifest_sha256:
        raise UserError(f"{validation} speaks of other data than {data.folder} holds: run `dvc repro validate`")
