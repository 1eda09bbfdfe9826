"""Prometheus names, labels and buckets, and the one observer that feeds them.

Rule: base units, bounded labels (model, class, outcome, reason; never an id), children cached,
because a `.labels()` call costs more than the observation. Models beyond MODELS_MAX share the
label `other`.
"""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from tritonsched.core.batch import Batch
from tritonsched.core.request import Outcome, Request

MODELS_MAX = (
    32  # label values; with 8 classes a scrape stays in the milliseconds (ecosystem trap 8)
)
OTHER = "other"
SECONDS = (
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0,
)  # fmt: skip
ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 128, 256)
RATIO = (0.5, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2, 1.5, 2.0, 5.0)
CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

_Child = Counter | Gauge | Histogram


class Metrics:
    """All metrics of one sidecar; an `Observer` of the scheduler."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        registry = self.registry
        both = ("model", "class")
        self._requests = Counter(
            "tritonsched_requests_total",
            "Requests by how they left.",
            ("model", "class", "outcome"),
            registry=registry,
        )
        self._refusals = Counter(
            "tritonsched_refusals_total",
            "Refused requests by reason.",
            ("model", "class", "reason"),
            registry=registry,
        )
        self._latency = Histogram(
            "tritonsched_request_duration_seconds",
            "From the first byte of a request to its batch's answer.",
            both,
            buckets=SECONDS,
            registry=registry,
        )
        self._queue = Histogram(
            "tritonsched_queue_wait_seconds",
            "From a request's arrival to the dispatch of its batch.",
            both,
            buckets=SECONDS,
            registry=registry,
        )
        self._rows = Histogram(
            "tritonsched_batch_rows",
            "Rows of dispatched batches.",
            ("model",),
            buckets=ROWS,
            registry=registry,
        )
        self._members = Histogram(
            "tritonsched_batch_requests",
            "Requests in dispatched batches.",
            ("model",),
            buckets=ROWS,
            registry=registry,
        )
        self._exec = Histogram(
            "tritonsched_exec_seconds",
            "Execution time of batches as the profile learns it.",
            ("model",),
            buckets=SECONDS,
            registry=registry,
        )
        self._error = Histogram(
            "tritonsched_profile_error_ratio",
            "Measured over expected execution time of batches.",
            ("model",),
            buckets=RATIO,
            registry=registry,
        )
        self._queued = Gauge(
            "tritonsched_queued_requests", "Requests waiting now.", ("model",), registry=registry
        )
        self._lone = Counter(
            "tritonsched_lone_requests_total",
            "Requests that could not be merged, by reason.",
            ("model", "reason"),
            registry=registry,
        )
        self._ready = Gauge(
            "tritonsched_ready", "1 while the sidecar can serve.", registry=registry
        )
        self._bytes = Gauge(
            "tritonsched_tensor_bytes_in_flight",
            "Bytes of the requests held now.",
            registry=registry,
        )
        self._batches = Gauge(
            "tritonsched_backend_batches",
            "Merged batches since the start by transport (system, inline), and pool fallbacks.",
            ("transport",),
            registry=registry,
        )
        self._malformed = Gauge(
            "tritonsched_backend_malformed",
            "Answers of Triton that were not what was asked.",
            registry=registry,
        )
        self._info = Gauge(
            "tritonsched_transport_info",
            "1 for the transport in use.",
            ("transport",),
            registry=registry,
        )
        self._models: set[str] = set()
        self._children: dict[tuple[int, tuple[str, ...]], _Child] = {}

    # -- Observer -----------------------------------------------------------------------------

    def on_submit(self, request: Request, now: int) -> None:
        """Counted when it leaves."""

    def on_dispatch(self, batch: Batch, now: int) -> None:
        self._histogram(self._rows, batch.model).observe(batch.rows)
        self._histogram(self._members, batch.model).observe(len(batch.requests))
        for request in batch.requests:
            wait_s = max(0, now - request.arrival_ns) / 1e9
            self._histogram(self._queue, batch.model, request.slo).observe(wait_s)

    def on_complete(self, batch: Batch, *, measured_ns: int, now: int) -> None:
        self._histogram(self._exec, batch.model).observe(measured_ns / 1e9)
        if batch.expected_ns > 0:
            self._histogram(self._error, batch.model).observe(measured_ns / batch.expected_ns)

    def on_outcome(self, request: Request, outcome: Outcome, reason: str, now: int) -> None:
        self._counter(self._requests, request.model, request.slo, outcome.value).inc()
        if reason:
            self._counter(self._refusals, request.model, request.slo, reason).inc()
        if outcome in (Outcome.SERVED, Outcome.LATE):
            spent_s = (now - request.arrival_ns) / 1e9
            self._histogram(self._latency, request.model, request.slo).observe(spent_s)

    # -- the rest -----------------------------------------------------------------------------

    def lone(self, model: str, reason: str) -> None:
        """A call goes alone."""
        self._counter(self._lone, model, reason).inc()

    def set_state(self, *, ready: bool, tensor_bytes: int, queued: Mapping[str, int]) -> None:
        """What is read at scrape time. queued: requests waiting, by model."""
        self._ready.set(ready)
        self._bytes.set(tensor_bytes)
        for model, count in queued.items():
            self._gauge(self._queued, model).set(count)

    def set_backend(
        self, *, transport: str, system: int, inline: int, fallbacks: int, malformed: int
    ) -> None:
        """Counts since the start, from the backend's own counters."""
        self._info.labels(transport).set(1)
        self._batches.labels("system").set(system)
        self._batches.labels("inline").set(inline)
        self._batches.labels("fallback").set(fallbacks)
        self._malformed.set(malformed)

    def render(self) -> bytes:
        """The exposition text, Prometheus 0.0.4."""
        return generate_latest(self.registry)

    def _labels(self, model: str, rest: tuple[str, ...]) -> tuple[str, ...]:
        if model not in self._models:
            if len(self._models) >= MODELS_MAX:
                return (OTHER, *rest)
            self._models.add(model)
        return (model, *rest)

    def _child(self, metric: _Child, model: str, rest: tuple[str, ...]) -> _Child:
        labels = self._labels(model, rest)
        key = (id(metric), labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*labels)
        return child

    def _counter(self, metric: Counter, model: str, *rest: str) -> Counter:
        child = self._child(metric, model, rest)
        assert isinstance(child, Counter)
        return child

    def _gauge(self, metric: Gauge, model: str, *rest: str) -> Gauge:
        child = self._child(metric, model, rest)
        assert isinstance(child, Gauge)
        return child

    def _histogram(self, metric: Histogram, model: str, *rest: str) -> Histogram:
        child = self._child(metric, model, rest)
        assert isinstance(child, Histogram)
        return child
