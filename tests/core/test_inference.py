"""An ONNX file is opened by its bytes: python -m pytest tests/core/test_inference.py"""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from src.core.command import UserError
from src.core.files import sha256, write_json
from src.core.inference import Model

SPEC = {"kind": "x", "dtype": "float32", "shape": [2]}


def write(folder: Path, *, outside: bool) -> Path:
    """Write a model of two classes whose weights lie in the file, or outside of it."""
    folder.mkdir(exist_ok=True)
    weights = numpy_helper.from_array(np.eye(2, dtype=np.float32), "weights")
    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in ("examples", "probabilities")]
    node = helper.make_node("MatMul", ["examples", "weights"], ["probabilities"])
    model = helper.make_model(
        helper.make_graph([node], "g", sides[:1], sides[1:], [weights]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    helper.set_model_props(model, {"classes": '["a", "b"]'})
    onnx.save(model, folder / "model.onnx", save_as_external_data=outside, location="weights.bin", size_threshold=0)
    card = {"classes": ["a", "b"], "spec": SPEC, "network": "n", "model_sha256": sha256(folder / "model.onnx")}
    write_json(folder / "card.json", card)
    return folder


def test_a_model_answers_examples_of_any_kind_and_names_no_other_file_to_read(tmp_path: Path) -> None:
    examples = np.array([[0.25, 0.75]] * 300, dtype=np.float32)
    np.testing.assert_array_equal(Model(write(tmp_path / "whole", outside=False)).probabilities(examples), examples)
    with pytest.raises(UserError, match="cannot be opened"):
        Model(write(tmp_path / "split", outside=True))
