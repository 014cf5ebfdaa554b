"""Networks are wired right, load what fits and export faithfully: python -m pytest tests/training/test_model.py"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from src.core.card import Card
from src.core.command import UserError
from src.core.shape import Shape
from src.images.prepare_params import image_spec
from src.training import export
from src.training.classifier import Classifier, build, load, networks, save


def classifier(
    name: str = "small_resnet", size: tuple[int, int] = (16, 16), channels: int = 3, width: int = 8
) -> Classifier:
    torch.manual_seed(3)
    return build(name, Shape(size, channels, 5), width, [100.0] * channels, [50.0] * channels)


@pytest.mark.parametrize("name", networks())
@pytest.mark.parametrize(("size", "channels"), [((2, 2), 3), ((33, 20), 1), ((96, 65), 3)])
def test_every_network_takes_every_size(name: str, size: tuple[int, int], channels: int) -> None:
    made = classifier(name, size, channels).eval()
    images = torch.randint(0, 256, (3, channels, *size), dtype=torch.uint8)
    logits = made(images)
    assert logits.shape == (3, 5)
    torch.testing.assert_close(made(images[:1]), logits[:1], atol=1e-5, rtol=1e-4)


def test_resnet18_has_the_layers_of_torchvisions() -> None:
    """The published ResNet-18 for 1000 classes: 62 tensors with weights, 11,689,512 parameters."""
    made = build("resnet18", Shape((224, 224), 3, 1000), 64, [0.0] * 3, [1.0] * 3).network
    assert sum(p.numel() for p in made.parameters()) == 11_689_512
    names = [name for name, _ in made.named_parameters()]
    assert len(names) == 62
    assert {"conv1.weight", "bn1.bias", "layer1.0.conv1.weight", "layer2.0.downsample.0.weight", "fc.bias"} <= set(names)
    assert made.conv1.weight.shape == (64, 3, 7, 7)


def test_save_and_load_give_the_same_answers(tmp_path: Path) -> None:
    made = classifier().eval()
    made.temperature.fill_(0.7)
    save(made, tmp_path / "w.safetensors")
    card = Card(spec=image_spec((16, 16)), classes=list("abcde"), network="small_resnet", width=8, model_sha256="0" * 64)
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    assert torch.equal(load(card, tmp_path / "w.safetensors")(images), made(images))
    with pytest.raises(UserError, match="does not fit network small_resnet"):
        load(replace(card, width=16), tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").write_bytes(b"garbage")
    with pytest.raises(UserError, match="is no safetensors file .*run `dvc repro -f train`"):
        load(card, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="is missing"):
        load(card, tmp_path / "none.safetensors")


@pytest.mark.parametrize("name", networks())
def test_onnx_is_one_file_that_takes_uint8_of_any_batch(name: str) -> None:
    made = classifier(name).eval()
    made.temperature.fill_(0.6)
    exported = export.to_onnx(made, image_spec((16, 16)), list("abcde"))
    onnx.checker.check_model(exported, full_check=True)
    assert all(tensor.data_location != onnx.TensorProto.EXTERNAL for tensor in exported.graph.initializer)
    session = ort.InferenceSession(exported.SerializeToString())
    for n in (1, 2, 7):
        images = np.random.default_rng(n).integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)
        (probabilities,) = session.run(["probabilities"], {"images": images})
        own = made(torch.from_numpy(images).permute(0, 3, 1, 2)).softmax(1).detach().numpy()
        np.testing.assert_allclose(probabilities, own, atol=1e-5)
        np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == list("abcde")


def test_equal_models_are_equal_files_without_paths_of_this_machine() -> None:
    first, second = (export.to_onnx(classifier(), image_spec((16, 16)), list("abcde")).SerializeToString() for _ in range(2))
    assert first == second
    assert b".py" not in first
    assert str(Path.cwd()).encode() not in first


class Unexportable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3)) if x.sum() > 0 else x.amax(dim=(2, 3))


def test_what_onnx_cannot_say_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"cannot be exported to ONNX \(.+\); rewrite that operation") as caught:
        export.to_onnx(Classifier(Unexportable(), [0.0] * 3, [1.0] * 3), image_spec((16, 16)), list("abcde"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tta", ["flip", "flip_shift"])
def test_test_time_augmentation_answers_the_mean_over_its_views(tta: str) -> None:
    made = classifier(size=(16, 12)).eval()
    made.temperature.fill_(0.7)
    images = torch.randint(0, 256, (4, 3, 16, 12), dtype=torch.uint8)
    padded = nn.functional.pad(images.float(), (1, 1, 1, 1), "reflect")
    upper_left, lower_right = padded[:, :, :-2, :-2], padded[:, :, 2:, 2:]
    weighted = {"flip": [(1.0, images)], "flip_shift": [(0.5, images), (0.25, upper_left), (0.25, lower_right)]}[tta]
    single = sum(weight * (made(view) + made(view.flip(3))) / 2 for weight, view in weighted)
    made.tta = tta
    torch.testing.assert_close(made(images), single, atol=1e-5, rtol=1e-5)
    session = ort.InferenceSession(export.to_onnx(made, image_spec((16, 12)), list("abcde")).SerializeToString())
    for count in (1, 3):
        (answer,) = session.run(None, {"images": images[:count].permute(0, 2, 3, 1).numpy()})
        np.testing.assert_allclose(answer, single[:count].softmax(1).detach().numpy(), atol=1e-5)


def test_test_time_augmentation_costs_nothing_in_training_and_is_counted_in_serving(tmp_path: Path) -> None:
    made = classifier()
    once = export.flops(made, image_spec((16, 16)))
    trained = export.training_flops(made, image_spec((16, 16)))
    made.tta = "flip_shift"
    assert export.flops(made, image_spec((16, 16))) == 6 * once
    assert export.training_flops(made, image_spec((16, 16))) == trained == 3 * once
    seen: list[int] = []
    made.network.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    made.train()(torch.zeros(2, 3, 16, 16))
    made.eval()(torch.zeros(2, 3, 16, 16))
    assert seen == [2, 12]
    save(made, tmp_path / "w.safetensors")
    card = Card(spec=image_spec((16, 16)), classes=list("abcde"), network="small_resnet", width=8, model_sha256="0" * 64)
    assert load(replace(card, tta="flip_shift"), tmp_path / "w.safetensors").tta == "flip_shift"
    assert load(card, tmp_path / "w.safetensors").tta == "none"
