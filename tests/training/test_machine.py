"""What training takes of a CPU: threads that pay, and gradients that are right.

python -m pytest tests/training/test_machine.py
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_params
from torch import nn

from src import model
from src.core.arrays import Split
from src.core.command import UserError
from src.core.shape import Shape
from src.images.prepare_params import image_spec
from src.training import export, machine
from src.training.classifier import build
from src.training.loop import fit
from src.training.onednn import StridedConv1x1
from src.training.task import Task
from src.training.train_params import Train
from src.training.world import World


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def train(tmp_path: Path) -> Train:
    return write_params(tmp_path / "params.yaml", train__width=8, train__epochs=1, train__batch_size=33).train


def task(side: int = 8, count: int = 132) -> Task:
    random = np.random.default_rng(1)

    def split(count: int) -> Split:
        return Split(random.integers(0, 256, (count, side, side, 3), dtype=np.uint8), np.arange(count) % 3)

    return Task(split(count), split(30), ["a", "b", "c"], image_spec((side, side)), "0" * 64)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("inputs", "images"), [(4, 33), (12, 129)])
def test_the_gradient_of_a_replaced_convolution_is_right_for_any_number_of_threads_and_images(
    threads: int, inputs: int, images: int
) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    layer = StridedConv1x1(inputs, 2 * inputs, 1, 2, bias=False).to(memory_format=torch.channels_last)
    x = torch.randn(images, inputs, 32, 32).to(memory_format=torch.channels_last)
    for _ in range(5):
        answer = layer(x)
        (found,) = torch.autograd.grad(answer.square().sum(), layer.weight)
    with torch.no_grad():
        assert torch.allclose(answer, layer(x), atol=1e-5)
    wanted = 2 * torch.einsum("nchw,nohw->oc", x[:, :, ::2, ::2].double(), answer.double())
    assert torch.allclose(found[:, :, 0, 0].double(), wanted, rtol=1e-4, atol=1e-2)


def test_an_exported_replacement_is_one_convolution() -> None:
    network = build("small_resnet", Shape((8, 8), 3, 3), 8, [127.0] * 3, [64.0] * 3).eval()
    assert any(isinstance(layer, StridedConv1x1) for layer in network.modules())
    made = export.to_onnx(network, image_spec((8, 8)), ["a", "b", "c"])
    kinds = [node.op_type for node in made.graph.node]
    assert "Slice" not in kinds
    assert kinds.count("Conv") == 9


class Narrow(nn.Module):
    def __init__(self, shape: Shape, width: int, **more: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, width, 1, 2, **more)
        self.last = nn.Linear(width, shape.classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.down(x).mean((2, 3)))


def test_replacing_a_convolution_changes_no_weight_name_random_number_or_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(model.NETWORKS, "narrow", Narrow)
    shape = Shape((9, 8), 3, 3)
    torch.manual_seed(1)
    plain, after = Narrow(shape, 8), torch.rand(1)
    torch.manual_seed(1)
    built = build("narrow", shape, 8, [0.0] * 3, [1.0] * 3).network
    assert torch.equal(torch.rand(1), after)
    assert isinstance(built.down, StridedConv1x1)
    assert list(built.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(built.state_dict()[name], value) for name, value in plain.state_dict().items())
    images = torch.rand(2, 3, 9, 8)
    with torch.no_grad():
        wanted = plain(images)
        assert torch.equal(built(images), wanted)
    assert torch.allclose(built(images), wanted)


def test_a_wrong_gradient_that_cannot_be_replaced_is_refused_by_layer(monkeypatch: pytest.MonkeyPatch, train: Train) -> None:
    monkeypatch.setitem(model.NETWORKS, "narrow", Narrow)
    monkeypatch.setitem(model.NETWORKS, "padded", partial(Narrow, padding=1))
    fit(task(), train.model_copy(update={"network": "narrow"}), None, quiet=True)
    with pytest.raises(UserError, match="layer down is a strided 1x1 convolution of 3 input channels.*plain nn.Conv2d"):
        fit(task(), train.model_copy(update={"network": "padded"}), None, quiet=True)
    frozen = {"network": "padded", "freeze": ["down"]}
    fit(task(), train.model_copy(update=frozen), None, quiet=True)


@pytest.mark.parametrize(
    ("step_flops", "local_size", "threads"),
    [(0.67e9, 1, 1), (3.1e9, 1, 2), (196e9, 4, 2)],
)
def test_the_number_of_threads_follows_from_a_steps_operations_and_the_cores(
    step_flops: float, local_size: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is the starter's step, 196 GFLOP are those of params/cifar10.yaml."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(machine, "cores", lambda: 8)
    assert machine.threads(step_flops, World(local_size=local_size)).startswith(
        f"{threads} of {8 // local_size or 1} threads"
    )
    assert torch.get_num_threads() == threads


class Failing(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("\n  no C++ compiler here\nand pages of text")


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda module: Failing(), "torch.compile: not used, since it fails here (RuntimeError: no C++ compiler here)"),
        (lambda module: module, "torch.compile"),
    ],
)
def test_compiling_is_no_training_and_a_compiler_that_fails_is_done_without(
    train: Train, monkeypatch: pytest.MonkeyPatch, made: Any, said: str
) -> None:
    monkeypatch.setattr(machine, "_compile", made)
    classifier = build("small_resnet", Shape((8, 8), 3, 3), 8, [100.0] * 3, [50.0] * 3).train()
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    images, labels = torch.arange(4 * 3 * 8 * 8, dtype=torch.uint8).view(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
    recipe = train.model_copy(update={"compile": "on"})
    assert machine.compiled(classifier, images, labels, True, 100, recipe) == (classifier, said)
    assert all(torch.equal(classifier.state_dict()[name], value) for name, value in before.items())
    assert all(parameter.grad is None for parameter in classifier.parameters())
