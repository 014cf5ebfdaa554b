"""Let an ONNX model answer the test split: numbers, predictions, slices. Needs neither torch nor the network's code.

    python -m src answer out/arrays out/manifest.parquet out/model metrics.json out/evaluation

Judging runs it for each model that it looks at: the one under review, main's and the anchor. Each may be of a commit whose
network this one does not know. For a model of another spec the test examples are encoded anew from --data.
"""

import argparse
from pathlib import Path

import numpy as np

from src.core import arrays, results
from src.core.command import UserError
from src.core.files import check_outputs, write_json
from src.core.inference import Model
from src.core.manifest import MANIFEST, read_manifest
from src.core.params import section
from src.evaluation.evaluate_params import Evaluate
from src.evaluation.scores import numbers, write_tables
from src.images import slices
from src.images.decoding import encode_split
from src.images.prepare_params import Prepare


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
    examples = data.split("test").examples
    if model.spec != data.spec:
        if not args.data.is_dir():
            raise UserError(
                f"{model.path} takes {model.spec}, {args.arrays} holds {data.spec}, and {args.data} is not there: "
                "run dvc pull"
            )
        most = section(args.params, "prepare", Prepare).max_pixels
        examples = encode_split(args.data, read_manifest(args.manifest, MANIFEST.names), "test", model.spec, most)
    # a class that the model does not know has probability 0
    probabilities = np.zeros((len(examples), len(classes)), dtype=np.float32)
    probabilities[:, [classes.index(name) for name in model.classes]] = model.probabilities(examples)
    params = section(args.params, "evaluate", Evaluate)
    told = numbers(data, model, probabilities, classes, members, params, with_baseline=args.baseline)
    args.details.mkdir(parents=True, exist_ok=True)
    write_tables(args.details, data.split("test").labels, probabilities, classes, rows, members)
    write_json(args.metrics, told)
