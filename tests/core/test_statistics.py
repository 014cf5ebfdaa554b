"""The ruler: python -m pytest tests/core/test_statistics.py"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from src.core import statistics


def test_measures_are_what_they_say() -> None:
    black, white = np.zeros((1, 6, 6, 3), np.uint8), np.full((1, 6, 6, 3), 255, np.uint8)
    red = np.zeros((1, 6, 6, 3), np.uint8)
    red[..., 0] = 255
    stripes = np.zeros((1, 6, 6, 3), np.uint8)
    stripes[:, :, ::2] = 255
    values = statistics.measure(np.concatenate([black, white, red, stripes]))
    assert values["brightness"].round(3).tolist() == pytest.approx([0, 1, 0.299, 0.5], abs=1e-3)
    assert values["contrast"].round(3).tolist() == pytest.approx([0, 0, 0, 0.5], abs=1e-3)
    assert values["saturation"].tolist() == [0, 0, 1, 0]
    assert values["sharpness"].round(3).tolist() == pytest.approx([0, 0, 0, 0.5], abs=1e-3)


def test_grey_and_replicated_grey_measure_alike(random: np.random.Generator) -> None:
    grey = random.integers(0, 256, (5, 9, 7, 1), dtype=np.uint8)
    for one, three in zip(statistics.measure(grey).values(), statistics.measure(grey.repeat(3, 3)).values(), strict=True):
        np.testing.assert_allclose(one, three, atol=1e-5)


@pytest.mark.journey
@pytest.mark.skipif(
    not any("avx512f" in path.read_text() for path in Path("/proc").glob("cpuinfo")),
    reason="no processor whose products round otherwise",
)
def test_the_measures_do_not_depend_on_the_processors_matrix_product(random: np.random.Generator) -> None:
    """One with AVX-512 rounds a product otherwise than an old one: the manifest's digest, and all after it, would differ."""
    images = random.integers(0, 256, (50, 33, 47, 3), dtype=np.uint8)
    code = (
        "import sys, numpy; from src.core import statistics\n"
        f"images = numpy.frombuffer(sys.stdin.buffer.read(), numpy.uint8).reshape({images.shape})\n"
        "sys.stdout.buffer.write(b''.join(values.tobytes() for values in statistics.measure(images).values()))"
    )
    found = set()
    for kernels in ("Prescott", "SkylakeX"):
        environment = {**os.environ, "OPENBLAS_CORETYPE": kernels}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=ROOT, env=environment, input=images.tobytes(), capture_output=True, check=True)
        found.add(done.stdout)
    assert len(found) == 1


@pytest.mark.parametrize("side", [2, 5, 8, 9, 32, 100])
def test_the_hash_survives_resizing_and_noise_but_not_another_image(random: np.random.Generator, side: int) -> None:
    small = random.integers(0, 256, (6, 9, 3), dtype=np.uint8)
    images = [np.asarray(Image.fromarray(small).resize((n, n), Image.Resampling.BILINEAR)) for n in (64, 128)]
    other = random.integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    a, b, c = (int(statistics.difference_hash(statistics.luma(x))[0]) for x in (images[0][None], images[1][None], other))
    assert (a ^ b).bit_count() <= 3
    assert (a ^ c).bit_count() > 8
    assert statistics.difference_hash(
        statistics.luma(random.integers(0, 256, (4, side, side, 3), dtype=np.uint8))
    ).shape == (4,)


@pytest.mark.parametrize("n", [30, 300])
def test_samples_of_one_population_do_not_drift(random: np.random.Generator, n: int) -> None:
    measured = [
        statistics.drift(
            statistics.summarize({"x": random.normal(0.5, 0.1, n)}),
            {"x": random.normal(0.5, 0.1, n)},
        )["x"]
        for _ in range(200)
    ]
    assert np.quantile(measured, 0.95) < (0.6 if n == 30 else 0.15)
    reference = statistics.summarize({"x": random.normal(0.5, 0.1, 500)})
    assert statistics.drift(reference, {"x": random.normal(0.6, 0.1, 500)})["x"] > 0.25


def test_area_weights_average_exactly() -> None:
    line = np.array([1.0, 2, 3, 4, 5, 6])
    np.testing.assert_allclose(statistics.area_weights(6, 3) @ line, [1.5, 3.5, 5.5])
    np.testing.assert_allclose(statistics.area_weights(3, 6) @ line[:3], [1, 1, 2, 2, 3, 3])
    np.testing.assert_allclose(statistics.area_weights(5, 2) @ line[:5], [1.8, 4.2], rtol=1e-6)
