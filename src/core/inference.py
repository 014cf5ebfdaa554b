"""Run the ONNX file that is served, through ONNX Runtime: examples in, probabilities out. No torch here."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # since 1.29 builds for Linux send facts to their maker: read at import
import onnxruntime as ort
from numpy.typing import NDArray

from src.core.card import Card
from src.core.command import UserError, cores
from src.core.files import read_json, sha256

_BATCH = 256


_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_PRECISE = {"cpu": {}, "cuda": {"use_tf32": "0"}}  # with ten bits of mantissa answers would leave the golden ones


class Model:
    """An ONNX classifier with its card.

    `classes` are in the order of the probabilities; `spec` says what it takes.
    """

    def __init__(self, folder: Path, threads: int = 0, device: str = "cpu", precision: str = "fp32") -> None:
        """Open the model of a folder.

        Args:
            folder: holds `model.onnx` and `card.json`; for INT8 also `model.int8.onnx` and `quantization.json`.
            threads: that compute one batch; 0 takes all cores.
            device: cpu or cuda, which needs the GPU build of ONNX Runtime and never falls back to the CPU.
            precision: fp32 or int8.

        Raises:
            UserError: a file is missing or damaged, the model is not the one that its card describes, or the device is not
                there.
        """
        self.card = Card.read(folder / "card.json", made_by="train")
        self.path, digest = _file(folder, self.card, precision)
        self.sha256 = digest
        self.classes, self.spec = self.card.classes, self.card.spec
        self._session = _open(self.path, digest, self.card, _options(threads), device)
        self._input = self._session.get_inputs()[0].name

    def probabilities(self, examples: NDArray[Any]) -> NDArray[np.float32]:
        """Return probabilities, float32 of shape (n, classes), for examples of shape (n, *spec.shape)."""
        if 0 < len(examples) <= _BATCH:
            return np.asarray(self._session.run(None, {self._input: examples})[0])
        pieces = [examples[start : start + _BATCH] for start in range(0, len(examples), _BATCH)]
        results = [self._session.run(None, {self._input: np.ascontiguousarray(piece)})[0] for piece in pieces]
        return np.concatenate(results) if results else np.empty((0, len(self.classes)), dtype=np.float32)


def _file(folder: Path, card: Card, precision: str) -> tuple[Path, str]:
    """Return the file of a precision, and the SHA-256 that it must have."""
    if precision == "fp32":
        return folder / "model.onnx", card.model_sha256
    made = read_json(folder / "quantization.json", made_by="quantize", keys=("model_sha256", "int8_sha256"))
    if made["model_sha256"] != card.model_sha256:
        raise UserError(f"{folder / 'quantization.json'} is of another model than card.json beside it: run make quantize")
    return folder / "model.int8.onnx", made["int8_sha256"]


def _options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or cores()
    options.log_severity_level = 3
    # threads that spin while a batch is computed make it faster; after it they would take the cores from other work
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _open(path: Path, digest: str, card: Card, options: ort.SessionOptions, device: str) -> ort.InferenceSession:
    if not path.is_file():
        raise UserError(f"{path} is missing: run `dvc repro train`, which makes it, or `dvc pull`")
    if sha256(path) != digest:
        raise UserError(f"{path} is not the model that card.json beside it describes: run `dvc checkout`, or train again")
    provider = _PROVIDERS[device]
    if provider not in ort.get_available_providers():
        raise UserError(
            f"ONNX Runtime here has no {provider}: install requirements/serving-gpu.txt, or set SERVE_DEVICE=cpu"
        )
    if device == "cuda":
        ort.preload_dlls()  # the libraries of the nvidia-* wheels, which no loader looks for
    try:
        # from bytes: a path would let the file name others to read its tensors from
        session = ort.InferenceSession(path.read_bytes(), options, providers=[(provider, _PRECISE[device])])
    except Exception as error:  # ONNX Runtime raises classes of its own for a damaged file
        raise UserError(f"{path} cannot be opened ({str(error).splitlines()[0][:200]}): run `dvc repro -f train`") from None
    if provider not in session.get_providers():  # it is in the build, but its libraries or the GPU are not
        raise UserError(f"{provider} cannot be used here: look at nvidia-smi, or set SERVE_DEVICE=cpu")
    names = session.get_modelmeta().custom_metadata_map.get("classes", "[]")
    if json.loads(names) != card.classes:
        raise UserError(f"{path} has other classes than card.json beside it: run `dvc repro -f train`")
    return session
