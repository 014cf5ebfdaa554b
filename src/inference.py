"""Run the ONNX file that is served, through ONNX Runtime: uint8 images in, probabilities out. No torch here."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # since 1.29 builds for Linux send facts to their maker: read at import
import onnxruntime as ort
from numpy.typing import NDArray

from src.command import UserError, cores
from src.files import read_json, sha256

_BATCH = 256


class Model:
    """An ONNX classifier with its card.

    `classes` are in the order of the probabilities; `size` (height, width) and `channels` are what it takes.
    """

    def __init__(self, folder: Path, threads: int = 0) -> None:
        """Open `model.onnx` and `card.json` of a folder; `threads` 0 takes all cores.

        Raises:
            UserError: a file is missing or damaged, or the model is not the one that the card describes.
        """
        keys = ("classes", "size", "channels", "network", "width", "model_sha256")
        self.card: dict[str, Any] = read_json(folder / "card.json", made_by="train", keys=keys)
        self.path = folder / "model.onnx"
        self.classes: list[str] = self.card["classes"]
        self.size: tuple[int, int] = tuple(self.card["size"])
        self.channels: int = self.card["channels"]
        self._session = _open(self.path, self.card, threads)
        self._input = self._session.get_inputs()[0].name

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return probabilities, float32 of shape (n, classes), for uint8 images of shape (n, height, width, channels)."""
        pieces = [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
        results = [self._session.run(None, {self._input: np.ascontiguousarray(piece)})[0] for piece in pieces]
        return np.concatenate(results) if results else np.empty((0, len(self.classes)), dtype=np.float32)


def _open(path: Path, card: dict[str, Any], threads: int) -> ort.InferenceSession:
    if not path.is_file():
        raise UserError(f"{path} is missing: run `dvc repro train`, which makes it, or `dvc pull`")
    if sha256(path) != card["model_sha256"]:
        raise UserError(f"{path} is not the model that card.json beside it describes: run `dvc checkout`, or train again")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or cores()
    options.log_severity_level = 3
    try:
        # from bytes: a path would let the file name others to read its tensors from
        session = ort.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises classes of its own for a damaged file
        raise UserError(f"{path} cannot be opened ({str(error).splitlines()[0][:200]}): run `dvc repro -f train`") from None
    names = session.get_modelmeta().custom_metadata_map.get("classes", "[]")
    if json.loads(names) != card["classes"]:
        raise UserError(f"{path} has other classes than card.json beside it: run `dvc repro -f train`")
    return session
