"""The heat is where the model looks, whatever the picture's shape, and never costs more than 64 images."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from conftest import COLOURS, write_params

from src.core.arrays import Split
from src.images.occlusion import occlusion
from src.images.prepare_params import image_spec
from src.training.loop import fit
from src.training.task import Task

Model = Callable[[np.ndarray], np.ndarray]
SHAPES = [(8, 8, 3), (8, 8, 1), (32, 32, 3), (20, 60, 3), (61, 7, 1), (224, 224, 3), (1, 300, 1), (1, 1, 3)]


def looks_at(region: tuple[slice, slice]) -> Model:
    """Return a model of three classes that is the surer of class 1, the brighter one region is."""

    def probabilities(images: np.ndarray) -> np.ndarray:
        assert images.dtype == np.uint8
        brightness = images[:, region[0], region[1]].mean(axis=(1, 2, 3)) / 255
        return np.stack([(1 - brightness) / 2, brightness, (1 - brightness) / 2], axis=1).astype(np.float32)

    return probabilities


def bright(shape: tuple[int, int, int], region: tuple[slice, slice]) -> np.ndarray:
    pixels = np.full(shape, 40, dtype=np.uint8)
    pixels[region] = 240
    return pixels


@pytest.mark.parametrize("shape", SHAPES[:-2])
@pytest.mark.parametrize("place", [(0.4, 0.6), (0.0, 0.75)])
def test_the_maximum_is_in_the_region_that_the_model_looks_at(
    shape: tuple[int, int, int], place: tuple[float, float]
) -> None:
    height, width, _ = shape
    top, left = (round(share * side) for share, side in zip(place, (height, width), strict=True))
    region = np.s_[top : top + max(3, height // 4), left : left + max(3, width // 4)]
    pixels = bright(shape, region)
    pixels.flags.writeable = False
    heat = occlusion(pixels, 1, looks_at(region))
    assert not occlusion(pixels, 0, looks_at(region)).any(), "what speaks against a label is shown as speaking for it"
    assert heat.max() == 1
    middle = (np.argwhere(heat > 0.99) + 0.5).mean(axis=0) / heat.shape * (height, width)
    assert region[0].start <= middle[0] < region[0].stop
    assert region[1].start <= middle[1] < region[1].stop
    assert np.median(heat) < 0.1, "places that the model does not look at are warm"


# A network that was trained: strides and shortcuts that read every second cell must not show in the answer


def spots(random: np.random.Generator, places: np.ndarray) -> Split:
    """Draw 8x8 images of noise with 2x2 pixels of the colour of their class at a place of each."""
    images = random.integers(0, 256, (len(places), 8, 8, 3), dtype=np.uint8)
    labels = np.arange(len(places), dtype=np.int64) % len(COLOURS)
    for image, label, (row, column) in zip(images, labels, places, strict=True):
        image[row : row + 2, column : column + 2] = list(COLOURS.values())[label]
    return Split(images, labels)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Model:
    random = np.random.default_rng(3)
    training, validation = (spots(random, random.integers(0, 7, (count, 2))) for count in (600, 200))
    changes = {"train__epochs": 12, "train__width": 8, "train__batch_size": 32, "train__seed": 3}
    params = write_params(tmp_path_factory.mktemp("params") / "params.yaml", **changes).train
    task = Task(training, validation, list(COLOURS), image_spec((8, 8)), "")
    classifier = fit(task, params, None, quiet=True).classifier.eval()

    def probabilities(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return classifier(torch.from_numpy(np.array(images)).permute(0, 3, 1, 2)).softmax(dim=1).numpy()

    return probabilities


def peaks(network: Model, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    heats = [occlusion(image, int(label), network) for image, label in zip(images, labels, strict=True)]
    return np.array([np.unravel_index(heat.argmax(), heat.shape) for heat in heats])


def test_peaks_for_noise_prefer_no_row_or_column_of_the_feature_map(network: Model) -> None:
    """Gradient times activation before a shortcut of stride 2 put most of these peaks into even cells of its 4x4 map."""
    images = np.random.default_rng(4).integers(0, 256, (300, 8, 8, 3), dtype=np.uint8)
    cells = peaks(network, images, network(images).argmax(axis=1)) // 2
    shares = np.bincount(cells[:, 0] % 2 * 2 + cells[:, 1] % 2, minlength=4) / len(cells)
    assert shares.min() > 0.15
    assert shares.max() < 0.35


@pytest.mark.parametrize("corner", [(0, 0), (6, 6)])
def test_the_peak_is_in_the_corner_that_shows_the_class(network: Model, corner: tuple[int, int]) -> None:
    split = spots(np.random.default_rng(5), np.array([corner] * 30))
    inside = (peaks(network, split.examples, split.labels) // 2 == np.array(corner) // 2).all(axis=1)
    assert inside.mean() > 0.6
