"""What /metrics tells of requests, predictions and their input, in the text format of Prometheus.

Counted in the cells of a `Board`, which costs a request about a microsecond a number; the client library's own counters cost
ten times that, and its files for several processes kill a process with SIGBUS when the disk fills up. BentoML's own request
metrics are off: they take every unknown path as a label, so anyone could fill memory with them.
"""

import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, count
from pathlib import Path

import numpy as np
import prometheus_client as prometheus
from numpy.typing import NDArray
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from src.serving.board import Board
from src.serving.identity import Identity

OTHER = "other"
ROUTES = (
    "/predict", "/predict_batch", "/explain", "/model", "/", "/demo", "/docs.json", "/metrics",
    "/livez", "/readyz", "/static_content", OTHER,
)  # fmt: skip
STAGES = ("decode", "queue", "inference")
_STATUSES = (*map(str, (200, 304, 400, 401, 404, 405, 408, 413, 415, 422, 429, 431, 500, 503, 504)), OTHER)
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_CONFIDENCE = (*_SHARES, 0.95, 0.99, 0.999)
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_STAGE_SECONDS = (0.0001, 0.00025, *_SECONDS)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_PIXELS = (0.001, 0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 20, 50)
_INPUTS = {"brightness": _SHARES, "contrast": _SHARES, "sharpness": _SHARES, "saturation": _SHARES}


class _Histogram:
    """Cells for each bucket, then one for what lies above all of them, then the sum."""

    def __init__(self, cells: "memoryview[float]", start: int, bounds: Sequence[float]) -> None:
        self._cells, self._start, self._bounds = cells, start, bounds
        self._sum = start + len(bounds) + 1

    def observe(self, value: float) -> None:
        self._cells[self._start + bisect_left(self._bounds, value)] += 1
        self._cells[self._sum] += value

    def told(self, totals: Sequence[float]) -> tuple[list[tuple[str, float]], float]:
        """Return the cumulative buckets and the sum, as the client library takes them."""
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        return list(zip(names, accumulate(totals[self._start : self._sum]), strict=True)), totals[self._sum]


class Metrics:
    """The numbers of this process, and of all processes of this service when they are told."""

    media = prometheus.CONTENT_TYPE_LATEST.encode()

    def __init__(self, classes: Sequence[str], file: Path | None = None) -> None:
        """Begin to count; `classes` are those of the model, `file` is where this process counts, as `Board` says."""
        self._classes = list(classes)
        self._identity: Identity | None = None
        self._precision, self._since = "", time.time()
        self._requests, cells = 0, len(ROUTES) * len(_STATUSES)  # the first cell of each kind, and how many there are so far
        self._predictions, cells = cells, cells + len(self._classes)
        self._waiting, cells = cells, cells + 1
        sizes: dict[str, Mapping[str, Sequence[float]]] = {
            "seconds": dict.fromkeys(ROUTES, _SECONDS),
            "stages": dict.fromkeys(STAGES, _STAGE_SECONDS),
            "inputs": _INPUTS,
            "single": {"confidence": _CONFIDENCE, "batch": _SIZES, "megapixels": _PIXELS},
        }
        lengths = [len(bounds) + 2 for of in sizes.values() for bounds in of.values()]
        self._board = Board(cells + sum(lengths), file)
        self._cells = self._board.cells
        starts = accumulate(lengths, initial=cells)
        made = {
            kind: {name: _Histogram(self._cells, next(starts), bounds) for name, bounds in of.items()}
            for kind, of in sizes.items()
        }
        self._seconds, self._stages, self._inputs, self._single = made.values()
        self._cells[self._waiting] = 0
        self._status = {status: place for place, status in enumerate(_STATUSES)}
        self._route = {route: self._requests + place * len(_STATUSES) for place, route in enumerate(ROUTES)}

    def introduce(self, identity: Identity, precision: str) -> None:
        """Tell which model answers, and by which arithmetic."""
        self._identity, self._precision = identity, precision
        self._since = identity.since

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._cells[self._route[route] + self._status.get(str(status), len(_STATUSES) - 1)] += 1
        self._seconds[route].observe(seconds)

    def took(self, stage: str, seconds: float) -> None:
        """Count the time of one of STAGES."""
        self._stages[stage].observe(seconds)

    def batch(self, images: int, waiting: int) -> None:
        """Count a batch, and tell how many images wait behind it."""
        self._single["batch"].observe(images)
        self._cells[self._waiting] = waiting

    def predicted(self, label: int, probability: float) -> None:
        """Count an image by its most probable label, the number of a class."""
        self._cells[self._predictions + label] += 1
        self._single["confidence"].observe(probability)

    def seen(self, pixels: int) -> None:
        """Count the size of an uploaded picture."""
        self._single["megapixels"].observe(pixels / 1e6)

    def measured(self, statistics: Mapping[str, NDArray[np.float32]]) -> None:
        """Count what `src.core.statistics.measure` says of some images."""
        for name, values in statistics.items():
            for value in values:
                self._inputs[name].observe(float(value))

    def text(self) -> bytes:
        """Return all of them as Prometheus reads them."""
        return prometheus.generate_latest(self)  # it asks for collect() only

    def collect(self) -> Iterator[Metric]:
        """Yield the families, of all processes together."""
        totals = self._board.totals()
        yield from self._requests_told(totals)
        yield from self._model_told(totals)
        yield _single("serving_batch_size", "Images of a batch", self._single["batch"], totals)
        yield _single(
            "model_prediction_confidence", "Probability of the predicted label", self._single["confidence"], totals
        )
        yield _single("model_input_megapixels", "Size of an uploaded picture", self._single["megapixels"], totals)
        for name, histogram in self._inputs.items():
            text = f"{name.capitalize()} of what the model sees, 0 to 1, of a sample"
            yield _single(f"model_input_{name}", text, histogram, totals)
        waiting = GaugeMetricFamily("serving_queue_images", "Images that waited when the last batch was taken")
        waiting.add_metric([], totals[self._waiting])
        yield waiting

    def _requests_told(self, totals: Sequence[float]) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "http_requests", "Requests answered; unknown paths are one route", labels=["route", "status"]
        )
        for route, start in self._route.items():
            for status, place in self._status.items():
                if totals[start + place]:
                    requests.add_metric([route, status], totals[start + place])
        yield requests
        yield _labelled("http_request_duration_seconds", "From first byte to answer", "route", self._seconds, totals)
        yield _labelled("serving_stage_seconds", "Where the time of a prediction goes", "stage", self._stages, totals)

    def _model_told(self, totals: Sequence[float]) -> Iterator[Metric]:
        if self._identity is None:
            return
        version = self._identity.version
        predictions = CounterMetricFamily(
            "model_predictions", "Images by predicted label", labels=["label", "model_version"]
        )
        for label, cell in zip(self._classes, count(self._predictions)):
            predictions.add_metric([label, version], totals[cell])
        yield predictions
        about = GaugeMetricFamily(
            "model_info", "The model that answers", labels=["version", "manifest", "model_sha256", "precision"]
        )
        digest = self._identity.card.model_sha256
        about.add_metric([version, self._identity.manifest or "", digest, self._precision], 1)
        yield about
        age = GaugeMetricFamily("model_age_seconds", "Since the model was registered, or else since its file was written")
        age.add_metric([], max(0.0, time.time() - self._since))
        yield age


def _single(name: str, text: str, histogram: _Histogram, totals: Sequence[float]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, text)
    family.add_metric([], *histogram.told(totals))
    return family


def _labelled(
    name: str, text: str, label: str, histograms: Mapping[str, _Histogram], totals: Sequence[float]
) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, text, labels=[label])
    for value, histogram in histograms.items():
        buckets, total = histogram.told(totals)
        if buckets[-1][1]:
            family.add_metric([value], buckets, total)
    return family
