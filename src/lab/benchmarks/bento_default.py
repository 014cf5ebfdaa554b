"""BentoML's own image endpoint as its documentation has it, which ours is measured against.

    BENCH_MODEL=out/model python -m bentoml serve src.lab.benchmarks.bento_default:Default

A Pillow image in, a dictionary out, and no setting changed.
"""

import os
from pathlib import Path
from typing import Any

import bentoml
import numpy as np
import onnxruntime as ort
from PIL import Image

from src.core.card import Card


@bentoml.service
class Default:
    """Classify one image."""

    def __init__(self) -> None:
        folder = Path(os.environ["BENCH_MODEL"])
        card = Card.read(folder / "card.json", made_by="train")
        self.classes, (self.height, self.width, self.channels) = card.classes, card.spec.shape
        self.session = ort.InferenceSession(folder / "model.onnx")
        self.name = self.session.get_inputs()[0].name

    @bentoml.api  # type: ignore[untyped-decorator]
    def predict(self, image: Image.Image) -> dict[str, Any]:
        """Return the most probable label and its probability."""
        small = image.convert("RGB").resize((self.width, self.height), Image.Resampling.BILINEAR)
        pixels = np.asarray(small if self.channels == 3 else small.convert("L"))
        batch = pixels.reshape(1, self.height, self.width, self.channels)
        probabilities = self.session.run(None, {self.name: batch})[0][0]
        best = int(probabilities.argmax())
        return {"label": self.classes[best], "probability": float(probabilities[best])}
