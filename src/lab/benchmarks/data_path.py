"""Measure the data path against the textbook's: `make bench-data`.

    python -m src bench-data            (synthetic photographs of 32x32, as many as --images says)

Textbook: decode in one process with Pillow; a `DataLoader` of two workers with per-sample transforms, float32,
contiguous. Ours: `prepare`, and batches from the uint8 array. Read the ratios; the rates are this machine's.
"""

import argparse
import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from src.core import arrays
from src.core.command import cores, table
from src.core.shape import Shape
from src.images.augment_params import Augment
from src.lab.benchmarks.per_sample import PerSample
from src.system.params_text import put
from src.training.batches import Batches
from src.training.classifier import build
from src.training.world import World

_CLASSES = 10
_SIDE = 32
_BATCH = 128
_STEPS = 40
_AUGMENT = Augment(crop=4, flip=True, rotate=0, scale=0, brightness=0, contrast=0, cutout=0, erase=0, mixup=0, cutmix=0)


def make_data(folder: Path, images: int) -> None:
    """Write one Parquet shard of JPEG photographs: smooth noise, which compresses as photographs do."""
    random = np.random.default_rng(1)
    blobs = []
    for start in range(0, images, 1000):
        small = random.integers(0, 256, (min(1000, images - start), 8, 8, 3), dtype=np.uint8)
        blobs += [_jpeg(image) for image in small]
    labels = [str(label) for label in random.integers(0, _CLASSES, images)]
    rows = pa.array(
        [{"bytes": blob, "path": None} for blob in blobs], pa.struct({"bytes": pa.binary(), "path": pa.string()})
    )
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"image": rows, "label": labels}), folder / "photographs.parquet", row_group_size=5000)


def _jpeg(small: NDArray[np.uint8]) -> bytes:
    target = io.BytesIO()
    Image.fromarray(small).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC).save(target, "JPEG", quality=75)
    return target.getvalue()


def plain_decode(folder: Path) -> float:
    """Decode a shard in one process with Pillow; return the seconds."""
    started = time.perf_counter()
    rows = pq.read_table(folder / "photographs.parquet", columns=["image"]).column("image").to_pylist()
    images = [
        np.asarray(Image.open(io.BytesIO(row["bytes"])).convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BILINEAR))
        for row in rows
    ]
    assert np.stack(images).shape == (len(rows), _SIDE, _SIDE, 3)
    return time.perf_counter() - started


def our_decode(folder: Path, out: Path) -> float:
    """Run the whole prepare stage as its own command, start and imports included; return the seconds."""
    arguments = [folder, out / "arrays", out / "manifest.parquet", "--params", out / "params.yaml"]
    command = [sys.executable, "-m", "src", "prepare", *map(str, arguments)]
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def write_params(path: Path) -> None:
    """Write the repository's params with the photographs' size."""
    path.write_text(put(Path("params.yaml").read_text(), {("prepare", "image_size"): _SIDE}))


def ours(batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield our batches for ever."""
    for seed in count():
        yield from batches.epoch(_BATCH, seed)


def textbook(loader: "DataLoader[Any]") -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the DataLoader's batches for ever."""
    while True:
        yield from loader


def rate(source: Iterable[tuple[Tensor, Tensor]], steps: int) -> float:
    """Return images a second of a source alone; the first batch, which starts workers, is not counted."""
    iterator = iter(source)
    next(iterator)
    started, done = time.perf_counter(), 0
    for _ in range(steps):
        done += len(next(iterator)[1])
    return done / (time.perf_counter() - started)


def training(source: Iterable[tuple[Tensor, Tensor]], fast: bool, steps: int) -> tuple[float, float]:
    """Train a small network; return images a second and the share of time spent waiting for data."""
    torch.manual_seed(1)
    network: nn.Module = build("small_resnet", Shape((_SIDE, _SIDE), 3, _CLASSES), 16, [127.0] * 3, [64.0] * 3)
    if fast:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)
    iterator = iter(source)
    next(iterator)
    waited, done, started = 0.0, 0, time.perf_counter()
    for _ in range(steps):
        asked = time.perf_counter()
        images, labels = next(iterator)
        waited += time.perf_counter() - asked
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            logits = network(images)
        optimizer.zero_grad()
        F.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        done += len(labels)
    spent = time.perf_counter() - started
    return done / spent, waited / spent


def measure(images: int, rounds: int) -> str:
    """Time each pair side by side, several rounds in turn; return a table of the medians."""
    decode, load, train = [], [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "data"
        make_data(folder, images)
        write_params(Path(name) / "params.yaml")
        for _ in range(rounds):
            decode.append((images / plain_decode(folder), images / our_decode(folder, Path(name))))
        split = arrays.load(Path(name) / "arrays").split("train")
        batches = Batches(split, torch.device("cpu"), _AUGMENT, _CLASSES, World())
        per_sample = PerSample(np.array(split.images), split.labels, _AUGMENT.crop, scaled=True)
        loader = DataLoader(per_sample, _BATCH, shuffle=True, num_workers=2, persistent_workers=True, drop_last=True)
        for _ in range(rounds):
            load.append((rate(textbook(loader), _STEPS), rate(ours(batches), 10 * _STEPS)))
            train.append((training(textbook(loader), False, _STEPS), training(ours(batches), True, _STEPS)))
    speeds = [[speed for speed, _ in pair] for pair in train]
    waits = [[wait for _, wait in pair] for pair in train]
    rows = [_row("prepare / one-process Pillow, images/s", decode), _row("batches / DataLoader, images/s", load)]
    rows.append(_row("training step / textbook step, images/s", speeds))
    rows.append(["waiting for data, share of a step", *(f"{value:.1%}" for value in np.median(waits, axis=0)), ""])
    return table([f"{images} images, {cores()} cores", "textbook", "ours", "ratio"], rows)


def _row(name: str, pairs: Any) -> list[str]:
    plain, own = np.median(np.array(pairs), axis=0)
    ratio = np.median([pair[1] / pair[0] for pair in pairs])
    return [name, f"{plain:,.0f}", f"{own:,.0f}", f"{ratio:.1f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the data path as ratios to a plain DataLoader.")
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=3, help="how often each pair is timed; the median is shown")
    args = parser.parse_args()
    print(measure(args.images, args.rounds))
