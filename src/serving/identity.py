"""Which model this is: what the release wrote into out/release/identity.json, or else what manifest.json says."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.core.card import Card
from src.core.command import UserError
from src.core.files import digest, read_json, sha256

UNREGISTERED = "unregistered"
_log = logging.getLogger("bentoml.image_classifier")


@dataclass(frozen=True)
class Identity:
    """What /model tells of the model that answers."""

    card: Card  # out/model/card.json
    version: str  # in the registry
    manifest: str | None  # digest of manifest.json
    release: dict[str, Any]  # identity.json, or nothing
    since: float  # seconds since 1970: the time of the released commit, or else of the file

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        card = self.card.to_json()
        about = {key: card[key] for key in ("classes", "spec", "network", "model_sha256")}
        fields = ("name", "commit", "pull_request", "data", "verdict", "metrics")
        named = {key: self.release.get(key) for key in fields}
        return {**named, "version": self.version, "manifest": self.manifest, **about}


def read(folder: Path, root: Path) -> Identity:
    """Read the card of the model in `folder`, and the identity under `root` if it is this very model's.

    Raises:
        UserError: the card is missing, unreadable or damaged, or model.onnx is not the file that it describes.
    """
    try:
        return _read(folder, root)
    except OSError as error:
        advice = "let the user that runs the service read it (chmod, chown)"
        raise UserError(f"{error.filename} cannot be read ({error.strerror}): {advice}") from None


def _read(folder: Path, root: Path) -> Identity:
    card = Card.read(folder / "card.json", made_by="train")
    path = folder / "model.onnx"
    if not path.is_file():
        raise UserError(f"{path} is missing: run make reproduce, which makes it, or dvc pull")
    if sha256(path) != card.model_sha256:
        raise UserError(f"{path} is not the model that card.json beside it describes: run dvc checkout, or deploy again")
    release = _release(root / "out" / "release" / "identity.json", card.model_sha256)
    manifest, file = release.get("manifest"), root / "manifest.json"
    if not release and file.is_file():
        content = read_json(file, made_by="evaluate")
        manifest = digest(content) if content.get("outputs", {}).get("model_sha256") == card.model_sha256 else None
    since = float(release.get("committed") or path.stat().st_mtime)
    return Identity(card, str(release.get("version", UNREGISTERED)), manifest, release, since)


def _release(path: Path, model: str) -> dict[str, Any]:
    """Return what the release says, unless it speaks of another model: then this one is not released."""
    if not path.is_file():
        return {}
    found: dict[str, Any] = read_json(path, made_by="evaluate", keys=("version", "manifest", "model_sha256"))
    if found["model_sha256"] != model:
        _log.warning("%s speaks of another model than the one that is served: it is not used", path.name)
        return {}
    return found
