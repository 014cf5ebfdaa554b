"""The model alone: decode and `session.run` in a plain loop, in one process. Started and told by `src.lab.benchmarks.limit`.

    echo '{"threads": 1, "batch": 1, "seconds": 2}' | python -m src bench-raw out/model a.png b.png

For each line of JSON it gets ready, says so, waits for another line, works, and prints JSON: images, seconds, and p50_ms of
one round of the loop.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from src.core.files import read_json
from src.images import images

_FILES = {"fp32": "model.onnx", "int8": "model.int8.onnx"}
_LARGEST = 100_000_000  # pixels
_WARM_UP = 3


class Alone:
    """The model with some files to decode, in turns."""

    def __init__(self, folder: Path, precision: str, files: list[Path]) -> None:
        card = read_json(folder / "card.json", made_by="train", keys=("size", "channels", "fit"))
        self._path = folder / _FILES[precision]
        self._size, self._channels, self._fit = (card["size"][0], card["size"][1]), card["channels"], card["fit"]
        self._contents = cycle([file.read_bytes() for file in files])
        self._session = cache(self._open)

    def step(self, threads: int, batch: int) -> Callable[[], int]:
        """Return what decodes and computes one batch, and returns how many images that were."""
        session = self._session(threads)
        name = session.get_inputs()[0].name
        pool = ThreadPoolExecutor(threads) if threads > 1 and batch > 1 else None

        def step() -> int:
            contents = islice(self._contents, batch)
            decoded = pool.map(self._decode, contents) if pool else map(self._decode, contents)
            session.run(None, {name: np.stack(list(decoded))})
            return batch

        return step

    def _open(self, threads: int) -> ort.InferenceSession:
        """Open it with ONNX Runtime's own settings, but for the threads."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        return ort.InferenceSession(self._path, options, providers=["CPUExecutionProvider"])

    def _decode(self, content: bytes) -> NDArray[np.uint8]:
        return images.load(content, _LARGEST, self._size, self._channels, self._fit)[0]


def work(step: Callable[[], int], seconds: float) -> dict[str, Any]:
    """Do one step after the other for so many seconds."""
    taken: list[float] = []
    done, started = 0, time.perf_counter()
    now = started
    while now < started + seconds or not taken:
        before = now
        done += step()
        now = time.perf_counter()
        taken.append(now - before)
    return {"images": done, "seconds": now - started, "p50_ms": float(np.median(taken)) * 1000}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure decode and session.run in a plain loop.")
    parser.add_argument("model", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--precision", choices=_FILES, default="fp32")
    args = parser.parse_args()
    alone = Alone(args.model, args.precision, args.files)
    for line in sys.stdin:
        asked = json.loads(line)
        step = alone.step(asked["threads"], asked["batch"])
        for _ in range(_WARM_UP):
            step()
        print("ready", flush=True)
        sys.stdin.readline()
        print(json.dumps(work(step, asked["seconds"])), flush=True)
