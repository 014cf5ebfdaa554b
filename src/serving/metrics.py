"""What /metrics tells: predictions, confidence, requests and their time, in the text format of Prometheus.

BentoML's own request metrics are off: they take every unknown path as a label, so anyone could fill memory with them.
"""

import os
from collections.abc import Iterable, Sequence

import prometheus_client as prometheus
from prometheus_client import multiprocess

from src.serving.identity import Identity

_CONFIDENCE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class Metrics:
    """The counters of this process, or of all worker processes where PROMETHEUS_MULTIPROC_DIR names a folder."""

    media = prometheus.CONTENT_TYPE_LATEST.encode()

    def __init__(self, registry: prometheus.CollectorRegistry = prometheus.REGISTRY) -> None:
        self._registry = registry
        self._requests = prometheus.Counter(
            "http_requests", "Requests answered; unknown paths are one route", ["route", "status"], registry=registry
        )
        self._seconds = prometheus.Histogram(
            "http_request_duration_seconds", "From first byte to answer", ["route"], buckets=_SECONDS, registry=registry
        )
        self._predictions = prometheus.Counter(
            "model_predictions", "Images by predicted label", ["label", "model_version"], registry=registry
        )
        self._confidence = prometheus.Histogram(
            "model_prediction_confidence", "Probability of the predicted label", buckets=_CONFIDENCE, registry=registry
        )
        self._about = prometheus.Gauge(
            "model_info", "The model that answers", ["version", "manifest", "model_sha256"],
            registry=registry, multiprocess_mode="max",
        )  # fmt: skip
        self._version = ""

    def introduce(self, identity: Identity) -> None:
        """Tell the model, and every label at zero so that rates are right from the first prediction on."""
        self._version = identity.version
        self._about.labels(identity.version, identity.manifest or "", identity.card["model_sha256"]).set(1)
        for label in identity.card["classes"]:
            self._predictions.labels(label, identity.version)

    def predicted(self, predictions: Iterable[Sequence[tuple[str, float]]]) -> None:
        """Count images by their most probable label."""
        for ranked in predictions:
            label, probability = ranked[0]
            self._predictions.labels(label, self._version).inc()
            self._confidence.observe(probability)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """Return all of them as Prometheus reads them."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return prometheus.generate_latest(self._registry)
        together = prometheus.CollectorRegistry()
        multiprocess.MultiProcessCollector(together)  # type: ignore[no-untyped-call]
        return prometheus.generate_latest(together)
