"""The folder out/release: the reviewed model with all that releasing it needs, as verify made it and later steps trust it.

release.json   what it is, and the SHA-256 of every other file of the folder
manifest.json  the lineage that was reviewed
model/         model.onnx, weights.safetensors, card.json, history.csv; where INT8 is released also model.int8.onnx and
               quantization.json
golden/        images with the probabilities that the released model gives: golden.json; where that is INT8, those that the
               reviewed model gave are in golden.float.json
evaluation/    pictures and tables of the test split
report/        report.md, report.html, pictures/ of the verdict given again; quantization.json, .md where INT8 was tried
metrics.json, params.yaml
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Self

from src.core.command import UserError
from src.core.files import sha256, write_json
from src.core.records import Record
from src.release.outcome import RefusedError
from src.system.judged import Label

RELEASE = "release.json"


@dataclass(frozen=True, kw_only=True)
class Int8(Record):
    """What the INT8 model of a release costs and gains: differences of accuracy with their interval, times as fast."""

    sha256: str
    accuracy_difference: float
    accuracy_low: float
    accuracy_high: float
    speedup: float


@dataclass(frozen=True, kw_only=True)
class Release(Record):
    """What is released. `manifest` is the digest that names it everywhere (`digest` of manifest.json)."""

    manifest: str
    model_sha256: str
    commit: str  # that is deployed
    trained_commit: str  # where the model was trained and reviewed
    pull_request: int | None
    data: str | None  # DVC's digest of the data
    inputs: str  # the input digest
    verdict: str
    override: Label | None
    metrics: dict[str, float]
    classes: list[str]
    precision: str = "fp32"  # or int8; releases of earlier days do not say
    int8: Int8 | None = None
    files: dict[str, str] = field(default_factory=dict)  # SHA-256 of every file of the folder

    @property
    def served_sha256(self) -> str:
        """Return the SHA-256 of the file that answers."""
        return self.int8.sha256 if self.int8 else self.model_sha256


@dataclass(frozen=True)
class MadeFile(Record):
    """What a later step added to the folder, for the release with this manifest."""

    COMMAND: ClassVar[str]  # the step
    NAME: ClassVar[str]  # of the file

    manifest: str
    version: str  # number of the registered model

    @classmethod
    def of(cls, folder: Path, release: Release) -> Self:
        """Read the file of a release.

        Raises:
            RefusedError: there is none, or it is of another release.
        """
        path = folder / cls.NAME
        if not path.is_file():
            raise RefusedError("missing", f"{path} is missing", f"run python -m src {cls.COMMAND} {folder}, which makes it")
        made = cls.read(path, made_by="evaluate")
        if made.manifest != release.manifest:
            said = f"{path} is of another release than {folder / RELEASE}"
            raise RefusedError("tampered", said, "run make deploy again")
        return made


@dataclass(frozen=True)
class RegisteredFile(MadeFile):
    """What registered.json says; `uri` is where, without a password."""

    COMMAND = "register"
    NAME = "registered.json"

    uri: str


@dataclass(frozen=True)
class ImageFile(MadeFile):
    """What image.json says. `digest` names the image in a registry; `id` on the machine that built it, if known."""

    COMMAND = "build"
    NAME = "image.json"

    image: str  # name, with @digest where it was pushed
    digest: str
    id: str | None


def write(folder: Path, release: Release) -> None:
    """Write release.json over the files that lie in the folder."""
    write_json(folder / RELEASE, replace(release, files=_digests(folder)).to_json())


def read(folder: Path) -> Release:
    """Read release.json and compare every file with it.

    Raises:
        UserError: there is none, or a file was changed, added or lost since verify wrote it.
    """
    release, found = load(folder), _digests(folder)
    known = release.files
    changed = sorted(path for path in {*found, *known} if found.get(path) != known.get(path))
    if changed:
        raise UserError(
            f"{folder} is not as verify left it ({', '.join(changed[:5])}): run make deploy again, which verifies anew"
        )
    return release


def load(folder: Path) -> Release:
    """Read release.json of a folder that a host keeps, where only what a rollback needs is left.

    Raises:
        UserError: there is none, or it is damaged.
    """
    if not (folder / RELEASE).is_file():
        raise UserError(f"{folder / RELEASE} is missing: run python -m src verify {folder}, which makes it")
    return Release.read(folder / RELEASE, made_by="evaluate")


def _digests(folder: Path) -> dict[str, str]:
    """Digest what verify wrote; later steps add files of their own."""
    later = {RELEASE, "registered.json", "image.json", "identity.json", "sbom.json"}
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {name: sha256(path) for path in files if (name := path.relative_to(folder).as_posix()) not in later}
