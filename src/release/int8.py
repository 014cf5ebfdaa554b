"""The INT8 model of a release: whether one is wanted, and what of it gets into out/release. Used by verify.

Golden examples are what a deployment is tried with: those of an INT8 release hold what the INT8 model answers, and what the
reviewed float model answered stays beside them as golden.float.json.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from src.core.files import read_json, rounded, write_json
from src.core.inference import Model
from src.core.yaml_files import read_yaml
from src.release.reviewed import Int8

FOLDER = "quantized"  # among what is judged
_SERVED = ("model.int8.onnx", "quantization.json")
_TOLD = ("quantization.json", "quantization.md")


def is_wanted(params: Path) -> bool:
    """True where params.yaml, of whatever day, says quantize.release: true."""
    content = read_yaml(params)
    return (content.get("quantize") or {}).get("release") is True


def facts(table: Mapping[str, Any]) -> Int8:
    """Return what a release tells of its INT8 model; `table` is quantization.json of one that may serve."""
    told = {f"accuracy_{name}": table["accuracy"][name] for name in ("difference", "low", "high")}
    return Int8(sha256=table["int8_sha256"], speedup=table["speed"]["slowest"]["ratio"], **told)


def add(folder: Path, made: Path, table: Mapping[str, Any] | None) -> None:
    """Put the tables into the report of `folder`; where INT8 may serve, the model too, and golden answers that are its own.

    Args:
        folder: the release as it is written.
        made: what `src.judging.quantize` wrote, if anything.
        table: quantization.json where INT8 passed, else None.
    """
    for name in _TOLD:
        if (made / name).is_file():
            shutil.copyfile(made / name, folder / "report" / name)
    if table is None:
        return
    for name in _SERVED:
        shutil.copyfile(made / name, folder / "model" / name)
    _answer_golden(folder / "golden", Model(folder / "model", precision="int8"))


def _answer_golden(golden: Path, model: Model) -> None:
    told = read_json(golden / "golden.json", made_by="evaluate", keys=("classes", "examples"))
    answers = model.probabilities(np.load(golden / "inputs.npy"))
    examples = [
        {
            **example,
            "prediction": model.classes[int(row.argmax())],
            "probabilities": [rounded(value) for value in row],
        }
        for example, row in zip(told["examples"], answers, strict=True)
    ]
    (golden / "golden.json").rename(golden / "golden.float.json")
    write_json(golden / "golden.json", {**told, "examples": examples})
