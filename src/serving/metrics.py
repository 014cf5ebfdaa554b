"""What /metrics tells of requests, predictions and their input: prometheus_client, in its multiprocess mode with workers.

BentoML's own request metrics are off: they take every unknown path as a label, so anyone could fill memory with them.
"""

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from src.serving.identity import Identity

_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_ROUTES = (
    "/predict", "/predict_batch", "/explain", "/model", "/metrics", "/livez", "/readyz", "/healthz", "/docs.json", "/",
    "/demo", "/static_content", "other",
)  # fmt: skip
_STATUSES = (200, 304, 400, 401, 404, 405, 408, 413, 414, 415, 422, 429, 431, 500, 503, 504)
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_STAGE_SECONDS = (0.0001, 0.00025, *_SECONDS)
_CONFIDENCE = (*_SHARES, 0.95, 0.99, 0.999)
_PIXELS = (0.001, 0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 20, 50)
_STAGES = ("decode", "queue", "inference")
_INPUTS = ("brightness", "contrast", "sharpness", "saturation")


def forget_the_dead(folder: Path) -> None:
    """Remove the gauges of workers that have ended; what they had counted stays."""
    for process in {int(file.stem.rpartition("_")[2]) for file in folder.glob("gauge_live*.db")}:
        try:
            os.kill(process, 0)
        except OSError:
            multiprocess.mark_process_dead(process, str(folder))  # type: ignore[no-untyped-call]


class _Age(Collector):
    """Seconds since the model was released, told when they are asked for."""

    def __init__(self, since: float) -> None:
        self._since = since

    def collect(self) -> Iterator[Metric]:
        about = "Since the model was registered, or else since its file was written"
        yield GaugeMetricFamily("model_age_seconds", about, value=max(0.0, time.time() - self._since))


class Metrics:
    """The numbers of this process; `text` tells those of all workers. Children are bound once: to look one up costs most."""

    media = CONTENT_TYPE_LATEST

    def __init__(self, identity: Identity, precision: str) -> None:
        """Begin to count; `precision` is the arithmetic by which the model answers."""
        self._own = registry = CollectorRegistry()
        self._age = _Age(identity.since)
        registry.register(self._age)
        about = "Requests answered; unknown paths are one route"
        self._requests = Counter("http_requests", about, ["route", "status"], registry=registry)
        about = "From first byte to answer"
        self._seconds = Histogram("http_request_duration_seconds", about, ["route"], buckets=_SECONDS, registry=registry)
        # their space is taken now: on a disk that fills up later, the system would kill who takes some
        self._answered = {(route, status): self._bind(route, status) for route in _ROUTES for status in _STATUSES}
        about = "Where the time of a prediction goes, of a sample"
        stages = Histogram("serving_stage_seconds", about, ["stage"], buckets=_STAGE_SECONDS, registry=registry)
        self.decode, self.queue, self.inference = (stages.labels(stage) for stage in _STAGES)
        self.batch = Histogram(
            "serving_batch_size",
            "Images of a batch, of a sample",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
            registry=registry,
        )
        about = "Images that waited when a batch was taken"
        self.waiting = Gauge("serving_queue_images", about, registry=registry, multiprocess_mode="livesum")
        about, labels = "Images by predicted label", ["label", "model_version"]
        predictions = Counter("model_predictions", about, labels, registry=registry)
        self.predictions = [predictions.labels(label, identity.version) for label in identity.card.classes]
        about = "Probability of the predicted label"
        self.confidence = Histogram("model_prediction_confidence", about, buckets=_CONFIDENCE, registry=registry)
        about = "Size of an uploaded picture, of a sample"
        self.megapixels = Histogram("model_input_megapixels", about, buckets=_PIXELS, registry=registry)
        about = "{} of what the model sees, 0 to 1, of a sample"
        self._inputs = {
            name: Histogram(f"model_input_{name}", about.format(name.capitalize()), buckets=_SHARES, registry=registry)
            for name in _INPUTS
        }
        labels = ["version", "manifest", "model_sha256", "precision"]
        model = Gauge("model_info", "The model that answers", labels, registry=registry, multiprocess_mode="max")
        model.labels(identity.version, identity.manifest or "", identity.card.model_sha256, precision).set(1)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count a request; `route` is one of the known ones, or `other`."""
        requests, took = self._answered.get((route, status)) or self._bind(route, status)
        requests.inc()
        took.observe(seconds)

    def _bind(self, route: str, status: int) -> tuple[Counter, Histogram]:
        return self._requests.labels(route, status), self._seconds.labels(route)

    def measured(self, statistics: Mapping[str, NDArray[np.float32]]) -> None:
        """Count what `src.core.statistics.measure` says of some images."""
        for name, values in statistics.items():
            for value in values:
                self._inputs[name].observe(float(value))

    def text(self) -> bytes:
        """Return the numbers of all workers as Prometheus reads them."""
        registry = self._own
        if _FOLDER in os.environ:
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
            registry.register(self._age)
        return generate_latest(registry)
