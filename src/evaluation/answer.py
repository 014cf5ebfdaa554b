"""Let an ONNX model answer the test split: numbers, predictions, slices. Needs neither torch nor the network's code.

    python -m src answer out/arrays out/manifest.parquet out/model metrics.json out/evaluation

Judging runs it for each model that it looks at: the one under review, main's and the anchor. Each may be of a commit whose
network this one does not know. A model of another input gets the test examples prepared anew from --data.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from src.core import arrays, results
from src.core.arrays import Arrays
from src.core.command import UserError
from src.core.files import check_outputs, write_json
from src.core.inference import Model
from src.core.params import content, section
from src.evaluation.evaluate_params import Evaluate
from src.evaluation.scores import numbers, write_tables
from src.images import slices


def _spread(probabilities: NDArray[np.float32], own: list[str], classes: list[str]) -> NDArray[np.float32]:
    """Place a model's columns among those of all classes; a class that it does not know has probability 0."""
    spread = np.zeros((len(probabilities), len(classes)), dtype=np.float32)
    spread[:, [classes.index(name) for name in own]] = probabilities
    return spread


def _examples_for(model: Model, data: Arrays, raw: Path, params: Path) -> NDArray[np.uint8]:
    """Return the test examples as the model takes them: prepared anew where its input is another."""
    if (data.size, data.channels, data.fit) == (model.size, model.channels, model.card.fit):
        return data.split("test").images
    if not raw.is_dir():
        raise UserError(f"{model.path} takes other images than {data.folder} holds, and {raw} is not there: dvc pull {raw}")
    own = {"image_size": list(model.size), "channels": model.channels, "fit": model.card.fit}
    with TemporaryDirectory(dir=model.path.parent) as temporary:
        folder = Path(temporary)
        write_json(folder / "params.yaml", {"prepare": {**(content(params).get("prepare") or {}), **own}})
        safe = ["-P"] if sys.flags.safe_path else []  # at a merge the working directory is not this code's
        made = [raw, folder / "arrays", folder / "manifest.parquet", "--params", folder / "params.yaml"]
        command = [sys.executable, *safe, "-m", "src", "prepare", *map(str, made)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            raise UserError(f"{raw} could not be prepared for {model.path} ({done.stderr.strip()[-200:]}): mend that")
        return np.array(arrays.load(folder / "arrays").split("test").images)


def main() -> None:
    """Parse the command line and let the model answer."""
    parser = argparse.ArgumentParser(description="Let an ONNX model answer the test split; write numbers and tables.")
    parser.add_argument("arrays", type=Path, help="folder that prepare wrote")
    parser.add_argument("manifest", type=Path, help="manifest that prepare wrote")
    parser.add_argument("model", type=Path, help="folder that train wrote")
    parser.add_argument("metrics", type=Path, help="metrics.json to write")
    parser.add_argument("details", type=Path, help="folder to write predictions.parquet and slices.parquet into")
    parser.add_argument("--data", type=Path, default=Path("data"), help="raw data, for a model of another input")
    parser.add_argument("--baseline", action="store_true", help="also compare with a logistic regression")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    args = parser.parse_args()
    check_outputs([args.arrays, args.manifest, args.data], files=[args.metrics])
    data, model = arrays.load(args.arrays), Model(args.model)
    rows = results.test_rows(args.manifest)
    members = slices.members(rows)
    classes = [*data.classes, *(name for name in model.classes if name not in data.classes)]
    examples = _examples_for(model, data, args.data, args.params)
    probabilities = _spread(model.probabilities(examples), model.classes, classes)
    params = section(args.params, "evaluate", Evaluate)
    told = numbers(data, model, probabilities, classes, members, params, with_baseline=args.baseline)
    args.details.mkdir(parents=True, exist_ok=True)
    write_tables(args.details, data.split("test").labels, probabilities, classes, rows, members)
    write_json(args.metrics, told)
