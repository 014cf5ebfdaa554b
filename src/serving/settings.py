"""How the service is set: the variables SERVE_*, each with a default that fits the processor share that it really has."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from src.core import cgroups
from src.serving import layout
from src.system.variables import filled, number, word

ROOT = Path(__file__).resolve().parents[2]  # the repository, or src/ of a bento


@dataclass(frozen=True)
class Settings:
    """What the variables say. The limits are those of one request, where nothing else is said."""

    model: Path  # folder with model.onnx and card.json
    device: str  # cpu or cuda
    precision: str  # auto (what the release says), fp32 or int8
    workers: int  # processes
    threads: int  # of one process, that compute a batch each; or one together, where it is alone
    batch_seconds: float  # that one batch may take to compute; it decides how many images are one
    queue: int  # images of one process that may wait for the model; one more is answered with 429
    concurrency: int  # requests that one process accepts at once; one more is answered with 429
    timeout: float  # seconds from a request's first byte to its answer
    max_body: int  # bytes
    max_pixels: int  # of one image, before it is decoded
    max_batch: int  # images in one request
    keys: Path | None  # file with API keys; None: whoever reaches the service may ask
    access_log: float  # share of the good requests that leave a line in the log
    demo: bool  # whether there is a page for trying, and where the model looked


def read(environment: Mapping[str, str] = os.environ) -> Settings:
    """Read the variables.

    Raises:
        UserError: one of them is no number, or out of range.
    """
    given = filled(environment)
    model = Path(given.get("SERVE_MODEL", ROOT / "out" / "model"))
    device = word(given, "SERVE_DEVICE", ("cpu", "cuda")) or "cpu"
    share = cgroups.processors()
    side_by_side = 1 if device == "cuda" or layout.is_heavy(model) else layout.processes(share)
    workers = int(number(given, "SERVE_WORKERS", side_by_side, 1, 256))
    keys = given.get("SERVE_API_KEYS_FILE")
    return Settings(
        model=model,
        device=device,
        precision=word(given, "SERVE_PRECISION", ("auto", "fp32", "int8")) or "auto",
        workers=workers,
        threads=int(number(given, "SERVE_THREADS", max(1, round(share / workers)), 1, 1024)),
        batch_seconds=number(given, "SERVE_BATCH_MS", 100, 0, 60_000) / 1000,
        queue=int(number(given, "SERVE_QUEUE", 256, 1, 1_000_000)),
        concurrency=int(number(given, "SERVE_CONCURRENCY", 128, 1, 100_000)),
        timeout=number(given, "SERVE_TIMEOUT", 5, 0.01, 3600),
        max_body=int(number(given, "SERVE_MAX_BODY_MB", 10, 0.001, 4096) * 1e6),
        max_pixels=int(number(given, "SERVE_MAX_MEGAPIXELS", 12.5, 0.0001, 1000) * 1e6),
        max_batch=int(number(given, "SERVE_MAX_BATCH", 64, 1, 10_000)),
        keys=Path(keys) if keys else None,
        access_log=number(given, "SERVE_ACCESS_LOG", 0.01, 0, 1),
        demo=word(given, "SERVE_DEMO", ("on", "off")) != "off",
    )
