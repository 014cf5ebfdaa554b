"""What each server is asked, and how its answers are held against those of the model alone."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

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


class Questions(NamedTuple):
    """Requests to one server: `files` hold their bodies, `expected` the probabilities, float32 (n, classes)."""

    path: str
    media: str
    files: list[Path]
    expected: Probabilities
    classes: list[str]

    def is_right(self, status: int, content: bytes, index: int) -> bool:
        """Return whether an answer to a question agrees with the model alone."""
        row = self.expected[index]
        try:
            answer = json.loads(content)
            if "label" not in answer:  # the textbook's lists all probabilities
                return status == 200 and bool(np.abs(np.array(answer["probabilities"][0]) - row).max() < _CLOSE)
            given = answer["probabilities"][0]["probability"] if "probabilities" in answer else answer["probability"]
            named = row[self.classes.index(answer["label"])]
            return status == 200 and max(abs(named - row.max()), abs(given - row.max())) < _CLOSE
        except (ValueError, KeyError, IndexError, TypeError):  # no answer of the kind that is agreed on
            return False


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
    return images.encode(content, model.spec, _LARGEST)[0]


def ask(server: str, contents: Sequence[bytes], kind: str, model: Model, folder: Path) -> Questions:
    """Write the bodies of requests as a server wants them.

    Args:
        server: `textbook` takes pixels in the model's own size as nested lists, `bentoml` a form, ours the image itself.
        contents: the image files.
        kind: png or jpeg.
        model: gives the answers that are right.
        folder: to write into.
    """
    path, media, bodies = "/predict", f"image/{kind}", list(contents)
    if server == "textbook":
        media = "application/json"
        listed = [pixels(content, model).tolist() for content in contents]
        bodies = [json.dumps({"images": [one]}, separators=(",", ":")).encode() for one in listed]
    elif server == "bentoml":
        media = f"multipart/form-data; boundary={_BOUNDARY}"
        disposition = f'Content-Disposition: form-data; name="image"; filename="a.{kind}"'
        head = f"--{_BOUNDARY}\r\n{disposition}\r\nContent-Type: image/{kind}\r\n\r\n".encode()
        bodies = [head + content + f"\r\n--{_BOUNDARY}--\r\n".encode() for content in contents]
    folder.mkdir(parents=True)
    files = [folder / str(number) for number in range(len(bodies))]
    for file, body in zip(files, bodies, strict=True):
        file.write_bytes(body)
    expected = model.probabilities(np.stack([pixels(content, model) for content in contents]))
    return Questions(path, media, files, expected, model.classes)
