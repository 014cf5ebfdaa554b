"""What a model file may hold, and limits of its first run: python -m pytest tests/release/test_modelcheck.py"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from src import model
from src.core.command import UserError
from src.core.files import sha256, write_json
from src.core.shape import Shape
from src.images.prepare_params import image_spec
from src.release import modelcheck
from src.training import export
from src.training.classifier import build

CLASSES = ["a", "b"]
IMAGES = helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", 4, 4, 1])
PROBABILITIES = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 2])


def fault(path: Path, made: onnx.ModelProto) -> str:
    (path / "model.onnx").write_bytes(made.SerializeToString())
    return modelcheck.unsafe(path / "model.onnx") or ""


def made_of(*nodes: onnx.NodeProto, initializers: Any = (), **options: Any) -> onnx.ModelProto:
    graph = helper.make_graph(list(nodes), "graph", [IMAGES], [PROBABILITIES], list(initializers))
    made = helper.make_model(graph, **{"opset_imports": [helper.make_opsetid("", 20)], "ir_version": 10} | options)
    helper.set_model_props(made, {"classes": '["a", "b"]'})
    return made


def branching(inside: onnx.NodeProto) -> onnx.NodeProto:
    branch = helper.make_graph([inside], "inside", [], [])
    return helper.make_node("If", ["x"], [], "branching", then_branch=branch, else_branch=branch)


@pytest.mark.parametrize("name", model.NETWORKS)
def test_what_export_writes_of_the_template_is_allowed(tmp_path: Path, name: str) -> None:
    classifier = build(name, Shape((8, 8), 3, 2), 4, [0.0] * 3, [1.0] * 3, "flip_shift")
    assert fault(tmp_path, export.to_onnx(classifier, image_spec((8, 8)), CLASSES)) == ""


def test_weights_in_other_files_are_found_wherever_they_hide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modelcheck, "OPERATORS", modelcheck.OPERATORS | {"If"})
    weight = onnx.numpy_helper.from_array(np.ones(4, np.float32), "w")
    whole = made_of(branching(helper.make_node("Constant", [], ["c"], value=weight)), initializers=[weight])
    assert fault(tmp_path, whole) == ""
    for tensor in (whole.graph.initializer[0], whole.graph.node[0].attribute[0].g.node[0].attribute[0].t):
        tensor.data_location = TensorProto.EXTERNAL
        assert fault(tmp_path, whole).startswith("reads its weights from other files: export it")
        tensor.data_location = TensorProto.DEFAULT


def test_a_node_of_another_domain_is_refused_without_its_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modelcheck, "OPERATORS", modelcheck.OPERATORS | {"If"})
    foreign = helper.make_node("Gelu", ["x"], ["y"], "hidden", domain="com.microsoft")
    for node in (foreign, branching(foreign)):
        assert "not ONNX's own ('com.microsoft', 'Gelu' of node 'hidden')" in fault(tmp_path, made_of(node))
    imported = made_of(opset_imports=[helper.make_opsetid("com.evil", 1)])
    assert fault(tmp_path, imported).startswith("uses operators that are not ONNX's own ('com.evil')")


def test_a_function_cannot_stand_for_an_operator(tmp_path: Path) -> None:
    inside = [helper.make_node("Relu", ["x"], ["y"])]
    function = helper.make_function("", "Softmax", ["x"], ["y"], inside, [helper.make_opsetid("", 20)])
    assert "defines a function of its own ('Softmax')" in fault(tmp_path, made_of(functions=[function]))


def endless() -> list[onnx.NodeProto]:
    names = ("kept_before", "kept", "value_before", "value")
    before, after, value_before, value = (helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in names)
    turn = helper.make_tensor_value_info("turn", TensorProto.INT64, [])
    same = [helper.make_node("Identity", [f"{name}_before"], [name]) for name in ("kept", "value")]
    body = helper.make_graph(same, "body", [turn, before, value_before], [after, value])
    yes = helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("t", TensorProto.BOOL, [], [True]))
    loop = helper.make_node("Loop", ["", "yes", "yes"], ["left"], "for ever", body=body)
    number = helper.make_node("Cast", ["left"], ["number"], to=TensorProto.FLOAT)
    return [yes, loop, number, *answering("halves"), helper.make_node("Add", ["halves", "number"], ["probabilities"])]


def answering(output: str = "probabilities") -> list[onnx.NodeProto]:
    """Return nodes that answer every image with one half each."""
    half = helper.make_tensor("value", TensorProto.FLOAT, [1, 2], [0.5, 0.5])
    return [
        helper.make_node("Shape", ["images"], ["count"], start=0, end=1),
        helper.make_node("Constant", [], ["two"], value=helper.make_tensor("t", TensorProto.INT64, [1], [2])),
        helper.make_node("Concat", ["count", "two"], ["shape"], axis=0),
        helper.make_node("Constant", [], ["half"], value=half),
        helper.make_node("Expand", ["half", "shape"], [output]),
    ]


def huge(side: int) -> list[onnx.NodeProto]:
    """Return nodes that add up a square of float zeros."""
    size = helper.make_tensor("size", TensorProto.INT64, [2], [side, side])
    return [
        helper.make_node("Constant", [], ["size"], value=size),
        helper.make_node("ConstantOfShape", ["size"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros"], ["sum"], keepdims=0),
        helper.make_node("Constant", [], ["halves"], value=helper.make_tensor("h", TensorProto.FLOAT, [1, 2], [0.5, 0.5])),
        helper.make_node("Add", ["halves", "sum"], ["probabilities"]),
    ]


def test_an_operator_that_export_does_not_write_is_named(tmp_path: Path) -> None:
    said = fault(tmp_path, made_of(*endless()))
    assert said.startswith("uses the operator 'Loop' (node 'for ever'), which is not allowed: write the network without")
    noise = helper.make_node("RandomUniform", [], ["y"], "two\n::lines", shape=[1])
    assert "the operator 'RandomUniform' (node 'two\\n::lines')" in fault(tmp_path, made_of(noise))


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\xff" * 64)
    assert str(modelcheck.unsafe(tmp_path / "model.onnx")).startswith("is no ONNX file")


def folder_of(folder: Path, made: onnx.ModelProto) -> tuple[Path, Path]:
    """Write a model folder, and one golden example that is answered with one half each."""
    path, golden = folder / "model.onnx", folder / "golden"
    golden.mkdir()
    path.write_bytes(made.SerializeToString())
    card = {
        "classes": CLASSES,
        "spec": image_spec((4, 4), 1).to_json(),
        "network": "n",
        "width": 1,
        "model_sha256": sha256(path),
    }
    write_json(folder / "card.json", card)
    np.save(golden / "inputs.npy", np.zeros((1, 4, 4, 1), np.uint8))
    examples = [{"probabilities": [0.5, 0.5]}]
    write_json(golden / "golden.json", {"classes": CLASSES, "examples": examples, "tolerance": 1e-6})
    return folder, golden


def test_an_ordinary_model_answers_within_the_limits(tmp_path: Path) -> None:
    assert modelcheck.bounded_difference(*folder_of(tmp_path, made_of(*answering()))) == (0.0, 1e-6)


def test_an_endless_model_ends_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has not answered its golden examples after 2 s|ended the process"):
        modelcheck.bounded_difference(*folder_of(tmp_path, made_of(*endless())), seconds=2)


def test_a_huge_model_ends_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model.onnx (cannot be (opened|run) \(|ended the process)") as caught:
        modelcheck.bounded_difference(*folder_of(tmp_path, made_of(*huge(2**15))), memory=2**31)  # 4 GiB in 2 GiB
    assert "\n" not in str(caught.value)
