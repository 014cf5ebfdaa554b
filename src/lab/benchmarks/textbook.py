"""The plain service of the textbook, which ours is measured against: FastAPI, JSON lists in, `session.run`, lists out.

    BENCH_MODEL=out/model python -m uvicorn src.lab.benchmarks.textbook:app --loop asyncio --http h11

Loop and parser are those of a plain `pip install fastapi uvicorn`. Its client sends pixels in the model's own size as whole
numbers, and nothing looks at them: both make it faster than most examples are.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from fastapi import FastAPI
from pydantic import BaseModel

session = ort.InferenceSession(Path(os.environ["BENCH_MODEL"]) / "model.onnx")
name = session.get_inputs()[0].name
app = FastAPI()


class Images(BaseModel):
    """What is sent: images as nested lists of shape (n, height, width, channels), 0..255."""

    images: list[Any]


@app.post("/predict")
def predict(request: Images) -> dict[str, Any]:
    """Return the probabilities of each class, nested lists of shape (n, classes)."""
    batch = np.array(request.images, dtype=np.uint8)
    return {"probabilities": session.run(None, {name: batch})[0].tolist()}
