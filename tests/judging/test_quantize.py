"""INT8: how it is made, what it must keep to, and what of it gets into a release.

python -m pytest tests/judging/test_quantize.py
"""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import COLOURS, write_params
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from small_service import Service

from src.core.command import UserError
from src.core.files import read_json, sha256, write_json
from src.core.inference import Model
from src.images.prepare_params import image_spec
from src.judging import precision, quantization, quantize, speed
from src.release import int8, modelcheck
from src.release.client import Client
from src.release.containers import State
from src.release.golden import FaultError
from src.release.probes import Limits, smoke
from src.release.reviewed import Int8, Release
from src.system.params import Params

CLASSES = list(COLOURS)
ALIVE = State(exists=True, running=True, restarts=0, started="now", memory=2**20, oom=False, exit_code=None)
SIDE = 8


def colour_model(convolutions: int = 2) -> bytes:
    """Return a network that tells red, green and blue apart: its weights are the mean of each channel."""
    nodes = [
        helper.make_node("Transpose", ["images"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["values", "deviation"], ["x0"]),
    ]
    eye, scale = np.eye(3, dtype=np.float32), np.array([1, 0.1, 10], dtype=np.float32)
    head = eye / scale[:, None] if convolutions else eye
    weights = {"deviation": np.float32(64), "head": head, "temperature": np.float32(0.5)}
    for place in range(convolutions):  # the last one's channels are of very unlike sizes
        weights[f"w{place}"] = ((eye + 0.01) * (scale[:, None] if place else 1))[..., None, None].astype(np.float32)
        nodes += [
            helper.make_node("Conv", [f"x{place}", f"w{place}"], [f"y{place}"]),
            helper.make_node("Relu", [f"y{place}"], [f"x{place + 1}"]),
        ]
    nodes += [
        helper.make_node("GlobalAveragePool", [f"x{convolutions}"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "head"], ["logits"]),
        helper.make_node("Div", ["logits", "temperature"], ["scaled"]),
        helper.make_node("Softmax", ["scaled"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {"classes": json.dumps(CLASSES)})
    return model.SerializeToString(deterministic=True)


def images(each: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    labels = np.tile(np.arange(3), each)
    colours = np.array(list(COLOURS.values()))[labels][:, None, None]
    noisy = colours + random.normal(0, 20, (len(labels), SIDE, SIDE, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8), labels


@pytest.fixture
def run(tmp_path: Path, random: np.random.Generator) -> Path:
    """What prepare and train leave: arrays/, model/."""
    for name in ("arrays", "model"):
        (tmp_path / name).mkdir()
    for name, each in (("train", 40), ("test", 20)):
        pixels, labels = images(each, random)
        np.save(tmp_path / f"arrays/{name}.examples.npy", pixels)
        np.save(tmp_path / f"arrays/{name}.labels.npy", labels)
    shape = {"classes": CLASSES, "spec": image_spec((SIDE, SIDE)).to_json()}
    write_json(tmp_path / "arrays/card.json", {**shape, "manifest_sha256": "0" * 64})
    (tmp_path / "model/model.onnx").write_bytes(colour_model())
    told = {"network": "colours", "width": 3, "model_sha256": sha256(tmp_path / "model/model.onnx")}
    write_json(tmp_path / "model/card.json", {**shape, **told})
    return tmp_path


@pytest.fixture
def command(run: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Return a function that runs the command with changed parameters; the speed is given, for no clock is asked."""
    numbers = {"slow": 1000.0, "fast": 1500.0, "ratio": 1.5, "low": 1.4, "high": 1.6, "rounds": 9}
    monkeypatch.setattr(speed, "side_by_side", lambda *_: numbers)

    def go(**changes: Any) -> dict[str, Any]:
        write_params(run / "params.yaml", **changes)
        words = ["quantize", str(run / "arrays"), str(run / "model"), str(run / "out"), "--params", str(run / "params.yaml")]
        monkeypatch.setattr(sys, "argv", words)
        quantize.main()
        return read_json(run / "out/quantization.json", "")

    return go


# The file


def test_the_file_is_repeatable_and_onnx_s_own_with_seven_bits_a_channel_and_a_float_last_layer(
    random: np.random.Generator, tmp_path: Path
) -> None:
    pixels, _ = images(8, random)
    content = quantization.quantize(colour_model(), pixels)
    assert quantization.quantize(colour_model(), pixels) == content
    assert quantization.quantize(colour_model(), pixels // 2) != content
    (tmp_path / "int8.onnx").write_bytes(content)
    assert modelcheck.unsafe(tmp_path / "int8.onnx") is None
    made, source = onnx.load_from_string(content), onnx.load_from_string(colour_model())
    assert [made.graph.input, made.graph.output] == [source.graph.input, source.graph.output]
    assert list(made.metadata_props) == list(source.metadata_props)
    values = {entry.name: numpy_helper.to_array(entry) for entry in made.graph.initializer}
    by_output = {node.output[0]: node for node in made.graph.node}
    for node in made.graph.node:
        if node.op_type == "Conv":
            weights, scales = (values[name] for name in by_output[node.input[1]].input[:2])
            assert weights.dtype == np.int8
            assert np.abs(weights.astype(int)).max() <= 64
            assert scales.shape == (3,)
        if node.op_type in ("Gemm", "Softmax"):
            assert all(by_output[name].op_type != "DequantizeLinear" for name in node.input if name in by_output)
    with pytest.raises(UserError, match="nothing to quantise"):
        quantization.quantize(colour_model(convolutions=0), pixels)


# The verdict


ACCURACY = {"difference": -0.002, "low": -0.004, "high": 0.0, "examples": 5000, "log_loss_rise": 0.001}
ROWS = (
    {"batch": 1, "threads": 1, "ratio": 1.5, "low": 1.4, "high": 1.6},
    {"batch": 32, "threads": 2, "ratio": 2.0, "low": 1.3, "high": 2.5},
)


def judged(params: Params, accuracy: dict[str, Any], rows: Any = ROWS) -> tuple[str, str]:
    verdict, reasons = precision.judge({**ACCURACY, **accuracy}, rows, params.quantize, params.gates)
    return verdict, "; ".join(reasons)


def test_surely_no_worse_and_surely_faster_passes_with_its_numbers(params: Callable[..., Params]) -> None:
    verdict, reasons = judged(params(), {})
    assert verdict == "pass"
    assert "accuracy -0.20% (-0.40% to +0.00%) on 5000 test images" in reasons
    assert "at least 2.00 times as fast (1.30 to 2.50) at batch 32, 2 threads" in reasons


@pytest.mark.parametrize(
    ("accuracy", "row", "why"),
    [
        ({"difference": -0.02, "low": -0.03}, {}, "more is lost than quantize.max_accuracy_drop 0.50%"),
        ({"difference": 0.0, "low": -0.01, "examples": 50}, {}, "on 50 test images: too few to be sure"),
        ({"log_loss_rise": 0.2}, {}, "its probabilities are worse"),
        ({}, {"ratio": 1.1, "low": 1.0}, "under quantize.min_speedup 1.2"),
        ({}, {"ratio": 1.3, "low": 1.1}, "too uncertain to be over quantize.min_speedup 1.2"),
    ],
)
def test_what_is_lost_slow_or_not_sure_fails_by_name(
    params: Callable[..., Params], accuracy: dict[str, Any], row: dict[str, Any], why: str
) -> None:
    verdict, reasons = judged(params(), accuracy, (ROWS[0], {**ROWS[1], **row}))
    assert (verdict, why in reasons, reasons.count(";")) == ("fail", True, 0)


# The machine


# The command


# The release


@pytest.fixture
def folder(run: Path, random: np.random.Generator) -> Path:
    """A release that verify is writing: the float model with its golden answers."""
    folder = run / "release"
    (folder / "golden").mkdir(parents=True)
    (folder / "report").mkdir()
    shutil.copytree(run / "model", folder / "model")
    pixels, _ = images(1, random)
    np.save(folder / "golden/inputs.npy", pixels)
    answers = Model(folder / "model").probabilities(pixels)
    examples = []
    for place, row in enumerate(answers):
        Image.fromarray(pixels[place]).save(folder / f"golden/{place}.png")
        prediction = CLASSES[int(row.argmax())]
        examples.append(
            {"file": f"{place}.png", "label": prediction, "prediction": prediction, "probabilities": row.tolist()}
        )
    write_json(folder / "golden/golden.json", {"classes": CLASSES, "examples": examples, "tolerance": 1e-6})
    return folder


RELEASE = Release(
    manifest="a" * 64, model_sha256="b" * 64, commit="c" * 40, trained_commit="c" * 40, pull_request=None, data=None,
    inputs="d" * 64, verdict="pass", override=None, metrics={}, classes=CLASSES,
)  # fmt: skip
TOLD = Int8(sha256="e" * 64, accuracy_difference=-0.001, accuracy_low=-0.002, accuracy_high=0.0, speedup=1.5)


def test_a_passing_int8_model_is_released_with_golden_answers_of_its_own(
    command: Callable[..., dict[str, Any]], run: Path, folder: Path
) -> None:
    told = command(quantize__min_speedup=1.2)
    int8.add(folder, run / "out", told)
    kept = read_json(folder / "golden/golden.float.json", "")
    own = read_json(folder / "golden/golden.json", "")
    assert modelcheck.golden_difference(folder / "model", folder / "golden")[0] > 1e-6  # they are not the float model's
    (folder / "golden/golden.float.json").rename(folder / "golden/golden.json")
    assert modelcheck.golden_difference(folder / "model", folder / "golden")[0] < 1e-6
    assert [example["file"] for example in own["examples"]] == [example["file"] for example in kept["examples"]]
    assert {"model.onnx", "model.int8.onnx", "quantization.json"} <= {path.name for path in (folder / "model").iterdir()}
    assert int8.facts(told).sha256 == sha256(folder / "model/model.int8.onnx")


def test_a_service_that_serves_the_other_precision_is_refused(folder: Path) -> None:
    """It says nothing of its precision, as a service of an earlier day: then it is float."""
    release = replace(RELEASE, classes=["cat", "dog", "fox"])
    service = Service({}, release=release)
    try:
        wanted = replace(release, precision="int8", int8=TOLD)
        limits = Limits(latency_ms=1000, tolerance=0.01, memory=2**30)
        with pytest.raises(FaultError, match="/model says precision fp32 instead of int8"):
            smoke(Client(service.url), folder / "golden", wanted, "3", limits, lambda: ALIVE)
    finally:
        service.close()
