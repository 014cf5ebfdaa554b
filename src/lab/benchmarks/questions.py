"""What each server is asked, and how its answers are held against those of the model alone."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from src.core.inference import Model
from src.images import images

_CANDIDATES = 400
_LARGEST = 100_000_000  # pixels
_CLOSE = 2e-3  # between probabilities: batches and threads may round differently
_BOUNDARY = "bench-image-boundary"

Probabilities = NDArray[np.float32]
Check = Callable[[bytes, Probabilities], bool]


class Questions(NamedTuple):
    """Requests to one server: `files` hold their bodies, `expected` the probabilities, float32 (n, classes)."""

    path: str
    media: str
    files: list[Path]
    expected: Probabilities
    is_right: Check


def uploads(kind: str, side: int, model: Model, count: int) -> list[bytes]:
    """Return image files of smooth noise with grain, which compress as photographs do, of labels as different as there are.

    Args:
        kind: png or jpeg.
        side: of the square pictures, in pixels.
        model: that is to tell them apart.
        count: how many.
    """
    random = np.random.default_rng(1)
    found: dict[int, list[bytes]] = {}
    for content in (_picture(random, kind, side) for _ in range(_CANDIDATES if side <= 64 else 4 * count)):
        label = int(model.probabilities(pixels(content, model)[np.newaxis])[0].argmax())
        found.setdefault(label, []).append(content)
    ranked = [
        content for turn in range(max(map(len, found.values()))) for of in found.values() for content in of[turn : turn + 1]
    ]
    return ranked[:count]


def _picture(random: np.random.Generator, kind: str, side: int) -> bytes:
    low, high = sorted(random.integers(0, 256, 2))
    grid = max(8, side // 4)
    small = random.integers(low, high + 1, (grid, grid, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC), dtype=np.float64)
    grain = np.clip(smooth + random.normal(0, 3, (side, side, 1)), 0, 255).astype(np.uint8)
    target = io.BytesIO()
    Image.fromarray(grain).save(target, kind.upper())
    return target.getvalue()


def pixels(content: bytes, model: Model) -> NDArray[np.uint8]:
    """Return what the model sees of an image file, uint8 of shape (height, width, channels)."""
    return images.load(content, _LARGEST, model.size, model.channels, str(model.card["fit"]))[0]


def ours(contents: Sequence[bytes], kind: str, model: Model, folder: Path) -> Questions:
    """Ask our service: the image is the body."""
    return _questions("/predict", f"image/{kind}", contents, contents, model, folder, _named)


def bentoml(contents: Sequence[bytes], kind: str, model: Model, folder: Path) -> Questions:
    """Ask BentoML's image endpoint: the image is a file of a form."""
    disposition = f'Content-Disposition: form-data; name="image"; filename="a.{kind}"'
    head = f"--{_BOUNDARY}\r\n{disposition}\r\nContent-Type: image/{kind}\r\n\r\n".encode()
    bodies = [head + content + f"\r\n--{_BOUNDARY}--\r\n".encode() for content in contents]
    return _questions("/predict", f"multipart/form-data; boundary={_BOUNDARY}", bodies, contents, model, folder, _named)


def textbook(contents: Sequence[bytes], model: Model, folder: Path) -> Questions:
    """Ask the service of the textbook: the pixels as nested lists, in the model's own size."""
    bodies = [
        json.dumps({"images": [pixels(content, model).tolist()]}, separators=(",", ":")).encode() for content in contents
    ]
    return _questions("/predict", "application/json", bodies, contents, model, folder, _listed)


def _questions(
    path: str, media: str, bodies: Sequence[bytes], contents: Sequence[bytes], model: Model, folder: Path, check: Any
) -> Questions:
    folder.mkdir(parents=True)
    files = [folder / str(number) for number in range(len(bodies))]
    for file, body in zip(files, bodies, strict=True):
        file.write_bytes(body)
    expected = model.probabilities(np.stack([pixels(content, model) for content in contents]))
    classes = model.classes
    return Questions(path, media, files, expected, lambda answer, row: check(json.loads(answer), row, classes))


def _named(answer: Any, row: Probabilities, classes: list[str]) -> bool:
    """Check an answer that names the most probable label."""
    given = answer["probabilities"][0]["probability"] if "probabilities" in answer else answer["probability"]
    return _is_close(row[classes.index(answer["label"])], row.max()) and _is_close(given, row.max())


def _listed(answer: Any, row: Probabilities, _: list[str]) -> bool:
    """Check an answer that lists the probabilities of all classes."""
    given = np.array(answer["probabilities"][0])
    return given.shape == row.shape and bool(np.abs(given - row).max() < _CLOSE)


def _is_close(one: float, other: float) -> bool:
    return abs(float(one) - float(other)) < _CLOSE
