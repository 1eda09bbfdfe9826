"""Prometheus names, labels and buckets, and the one observer that feeds them.

Rule: base units, bounded labels (model, class, outcome, reason; never an id); what requests and
batches do is written down as it is heard, and counted by the hundred or when somebody asks. Models
beyond MODELS_MAX share the label `other`.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, repeat
from typing import Protocol, TypeVar

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from tritonsched.core.batch import Batch
from tritonsched.core.fairness import Tenants
from tritonsched.core.observers import Observer
from tritonsched.core.request import Outcome, Request
from tritonsched.core.speed import DeviceSpeed
from tritonsched.core.tuning import Tuning
from tritonsched.core.variant import ServerState

V = TypeVar("V")
End = tuple[str, str, str, Outcome, str]
"""How a request left: model, class, tenant, outcome, reason."""

TENANTS_MAX = 128  # label values: those of two policy files
BATCHES_MAX, ENDS_MAX = 256, 4096  # heard and not yet counted
MODELS_MAX = 32  # label values; with 8 classes a scrape stays in the milliseconds
OTHER = "other"
SECONDS = (
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0,
)  # fmt: skip
ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 128, 256)
RATIO = (0.5, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2, 1.5, 2.0, 5.0)
# Counted from 0 at the start: a counter that appears with its first count shows no increase.
RELOAD_OUTCOMES = ("applied", "refused", "rolled-back")
ERROR = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


COUNTERS = {
    "requests_total": ("Requests by how they left.", ("model", "class", "outcome")),
    "refusals_total": ("Refused requests by reason.", ("model", "class", "reason")),
    "tenant_requests_total": ("Requests by tenant and how they left.", ("tenant", "outcome")),
    "tenant_refusals_total": ("Refused requests by tenant and reason.", ("tenant", "reason")),
    "merge_failures_total": ("Merged batches that failed and were sent one by one.", ("model",)),
    "policy_reloads_total": ("Reloads of the policy file by how they ended.", ("outcome",)),
    "tuning_changes_total": ("Numbers that feedback changed.", ("knob", "direction")),
    "connections_ended_total": ("Connections ended or refused by reason.", ("port", "reason")),
    "shielded_total": ("Requests refused because they would end Triton.", ("rule",)),
    "record_lines_total": ("Lines of --record: written or dropped.", ("result",)),
    "lone_requests_total": ("Requests that could not be merged.", ("model", "reason")),
}
GAUGES = {
    "queued_requests": ("Requests waiting now.", ("model",)),
    "tenant_queued_requests": ("Requests waiting now, by tenant.", ("tenant",)),
    "tenant_in_time_ratio": ("Moving mean of a tenant's requests on time.", ("tenant",)),
    "tenant_boost_ratio": ("Times that fairness makes a tenant's requests worth.", ("tenant",)),
    "connections": ("Clients' connections now.", ("port",)),
    "policy_generation": ("Policies taken into use since the start.", ()),
    "ready": ("1 while the sidecar can serve.", ()),
    "tensor_bytes_in_flight": ("Bytes of the requests held now.", ()),
    "backend_batches": (
        "Merged batches since the start by transport; fallback: no room in the pool.",
        ("transport",),
    ),
    "backend_malformed": ("Answers of Triton that were not what was asked, since the start.", ()),
    "tuning_seconds": ("What feedback has set: rtt, guard, reply, window.", ("name",)),
    "tuning_safety": ("Times that the margin of a promised time counts.", ()),
    "tuning_rows_cap": ("Rows a batch, beside the models' own; 0: none.", ()),
    "tuning_queue_requests_max": ("Requests that may wait for one model.", ()),
    "device_speed_ratio": (
        "Times that batches take now over those of the device's tables.",
        ("device",),
    ),
    "device_speed_changes": ("Changes of speed that were detected since the start.", ("device",)),
    "server_up": ("1 while that server takes work; of several servers.", ("server",)),
    "recording": ("1 while --record writes, 0 once a fault has ended it.", ()),
    "transport_info": ("1 for the transport in use.", ("transport",)),
}
HISTOGRAMS: dict[str, tuple[str, tuple[str, ...], Sequence[float]]] = {
    "request_duration_seconds": (
        "From the first byte of a request to its batch's answer.",
        ("model", "class"),
        SECONDS,
    ),
    "queue_wait_seconds": (
        "From a request's arrival to the dispatch of its batch.",
        ("model", "class"),
        SECONDS,
    ),
    "batch_rows": ("Rows of dispatched batches.", ("model",), ROWS),
    "batch_requests": ("Requests in dispatched batches.", ("model",), ROWS),
    "exec_seconds": ("Execution time of batches as the profile learns it.", ("model",), SECONDS),
    "prediction_error_ratio": (
        "Of batches, |measured - predicted| over the longer of the two.",
        ("model",),
        ERROR,
    ),
    "profile_error_ratio": ("Measured over expected execution time.", ("model",), RATIO),
}


class Recording(Protocol):
    """Lines written and dropped since the start; why it ended, or empty."""

    @property
    def written(self) -> int: ...

    @property
    def dropped(self) -> int: ...

    @property
    def failure(self) -> str: ...


class Metrics(Observer):
    """All metrics of one sidecar; an `Observer` of the scheduler and a collector of
    prometheus_client.

    Counts are plain integers of the one thread that counts; prometheus_client's own children take a
    lock each time, which was 6 % of the sidecar's time under overload.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(self)
        self._models: set[str] = set()
        self._tenants: set[str] = set()
        self._counts: dict[tuple[str, ...], int] = {
            ("policy_reloads_total", outcome): 0 for outcome in RELOAD_OUTCOMES
        }
        self._histograms: dict[tuple[str, ...], _Histogram] = {}
        self._gauges: dict[tuple[str, ...], float] = {("policy_generation",): 1}
        self._sent: list[tuple[Batch, int]] = []  # when
        self._done: list[tuple[Batch, int]] = []  # how long that took
        self._ends: defaultdict[End, list[int]] = defaultdict(list)  # ns since the arrivals
        self._uncounted = 0  # of them

    def collect(self) -> Iterator[Metric]:
        """Every family with what was counted so far; for prometheus_client."""
        self._count_all()
        for name, (text, labels) in COUNTERS.items():
            counter = CounterMetricFamily(f"tritonsched_{name}", text, labels=labels)
            for values, count in _of(self._counts, name):
                counter.add_metric(values, count)
            yield counter
        for name, (text, labels) in GAUGES.items():
            gauge = GaugeMetricFamily(f"tritonsched_{name}", text, labels=labels)
            for values, value in _of(self._gauges, name):
                gauge.add_metric(values, value)
            yield gauge
        for name, (text, labels, _) in HISTOGRAMS.items():
            family = HistogramMetricFamily(f"tritonsched_{name}", text, labels=labels)
            for values, histogram in _of(self._histograms, name):
                family.add_metric(values, histogram.cumulative(), histogram.total)
            yield family

    # -- Observer -----------------------------------------------------------------------------

    def on_dispatch(self, batch: Batch, now: int) -> None:
        self._sent.append((batch, now))
        if len(self._sent) >= BATCHES_MAX:
            self._count_all()

    def on_complete(self, batch: Batch, *, measured_ns: int, now: int) -> None:
        self._done.append((batch, measured_ns))
        if len(self._done) >= BATCHES_MAX:
            self._count_all()

    def on_outcomes(
        self, requests: Sequence[Request], outcome: Outcome, reason: str, now: int
    ) -> None:
        for request in requests:
            end = (request.model, request.slo, request.tenant, outcome, reason)
            self._ends[end].append(now - request.arrival_ns)
        self._uncounted += len(requests)
        if self._uncounted >= ENDS_MAX:
            self._count_all()

    # -- what was heard, counted --------------------------------------------------------------

    def _count_all(self) -> None:
        """In one go, which costs a fifth of counting each as it is heard."""
        sent, done, ends = self._sent, self._done, self._ends
        self._sent, self._done, self._ends = [], [], defaultdict(list)
        self._uncounted = 0
        for model in {batch.model for batch, _ in sent}:
            self._count_sent(model, [heard for heard in sent if heard[0].model == model])
        for model in {batch.model for batch, _ in done}:
            self._count_done(model, [heard for heard in done if heard[0].model == model])
        for end, spent_ns in ends.items():
            self._count_end(end, spent_ns)

    def _count_sent(self, model: str, sent: list[tuple[Batch, int]]) -> None:
        """Batches of one model."""
        label = self._label(model)
        self._histogram("batch_rows", label).observe([batch.rows for batch, _ in sent])
        sizes = [len(batch.requests) for batch, _ in sent]
        self._histogram("batch_requests", label).observe(sizes)
        waits_ns: defaultdict[str, list[int]] = defaultdict(list)
        for batch, now in sent:
            for request in batch.requests:
                waits_ns[request.slo].append(now - request.arrival_ns)
        for slo, ns in waits_ns.items():
            waits_s = [wait_ns / 1e9 if wait_ns > 0 else 0.0 for wait_ns in ns]
            self._histogram("queue_wait_seconds", label, slo).observe(waits_s)

    def _count_done(self, model: str, done: list[tuple[Batch, int]]) -> None:
        """Batches of one model."""
        label = self._label(model)
        self._histogram("exec_seconds", label).observe([ns / 1e9 for _, ns in done])
        foreseen = [heard for heard in done if heard[0].expected_ns > 0]
        if foreseen:
            ratios = [ns / batch.expected_ns for batch, ns in foreseen]
            self._histogram("profile_error_ratio", label).observe(ratios)
            errors = [batch.error_of(ns) for batch, ns in foreseen]
            self._histogram("prediction_error_ratio", label).observe(errors)

    def _count_end(self, end: End, spent_ns: list[int]) -> None:
        named, slo, tenant, outcome, reason = end
        count, model, tenant = len(spent_ns), self._label(named), self._tenant_label(tenant)
        self._add(count, "requests_total", model, slo, outcome)
        self._add(count, "tenant_requests_total", tenant, outcome)
        if reason:
            self._add(count, "tenant_refusals_total", tenant, reason)
            self._add(count, "refusals_total", model, slo, reason)
        if outcome in (Outcome.SERVED, Outcome.LATE):
            histogram = self._histogram("request_duration_seconds", model, slo)
            histogram.observe([ns / 1e9 for ns in spent_ns])

    # -- the rest -----------------------------------------------------------------------------

    def lone(self, model: str, reason: str) -> None:
        """A call goes alone."""
        self._count("lone_requests_total", model, reason)

    def shielded(self, rule: str) -> None:
        """A request was refused by a rule of the shield."""
        self._bump("shielded_total", rule)

    def connection_ended(self, port: str, reason: str) -> None:
        """A client's connection was ended or refused; not one that ended by itself."""
        self._bump("connections_ended_total", port, reason)

    def set_connections(self, connections: Mapping[str, int]) -> None:
        """How many there are, by port."""
        for port, count in connections.items():
            self._gauges["connections", port] = count

    def policy_reloaded(self, outcome: str, generation: int) -> None:
        """A reload ended: applied, refused or rolled-back."""
        self._bump("policy_reloads_total", outcome)
        self._gauges["policy_generation",] = generation

    def tuning_changed(self, knob: str, direction: str) -> None:
        """Feedback turned a knob up or down."""
        self._bump("tuning_changes_total", knob, direction)

    def merge_failed(self, model: str) -> None:
        """A merged batch failed and is taken apart."""
        self._count("merge_failures_total", model)

    def set_state(self, *, ready: bool, tensor_bytes: int, queued: Mapping[str, int]) -> None:
        """What is read at scrape time. queued: requests waiting, by model."""
        self._gauges["ready",] = float(ready)
        self._gauges["tensor_bytes_in_flight",] = tensor_bytes
        self._clear("queued_requests")  # models may have gone
        for model, count in queued.items():
            key = ("queued_requests", self._label(model))
            self._gauges[key] = self._gauges.get(key, 0) + count

    def set_tenants(self, tenants: Tenants, queued: Mapping[str, int]) -> None:
        """How the policy file's tenants fare. queued: requests waiting, by tenant."""
        for gauge in ("tenant_queued_requests", "tenant_in_time_ratio", "tenant_boost_ratio"):
            self._clear(gauge)  # of tenants that are gone
        for name in tenants.rules:
            label = self._tenant_label(name)
            self._gauges["tenant_queued_requests", label] = queued.get(name, 0)
            self._gauges["tenant_in_time_ratio", label] = tenants.on_time_share(name)
            self._gauges["tenant_boost_ratio", label] = tenants.boost(name)

    def set_tuning(self, tuning: Tuning) -> None:
        """What feedback has set."""
        for name in ("rtt", "guard", "reply", "window"):
            self._gauges["tuning_seconds", name] = getattr(tuning, f"{name}_ns") / 1e9
        self._gauges["tuning_safety",] = tuning.safety
        self._gauges["tuning_rows_cap",] = tuning.rows_cap
        self._gauges["tuning_queue_requests_max",] = tuning.queue_requests_max

    def set_speeds(self, speeds: Mapping[str, DeviceSpeed]) -> None:
        """By device; devices beyond MODELS_MAX are left out."""
        for name, speed in list(speeds.items())[:MODELS_MAX]:
            self._gauges["device_speed_ratio", name] = speed.factor
            self._gauges["device_speed_changes", name] = speed.changes

    def set_recordings(self, recorders: Iterable[Recording]) -> None:
        """Of --record, if there is one."""
        for recorder in recorders:
            self._counts["record_lines_total", "written"] = recorder.written
            self._counts["record_lines_total", "dropped"] = recorder.dropped
            self._gauges["recording",] = float(not recorder.failure)

    def set_backend(
        self, *, transport: str, cuda: int, system: int, inline: int, fallbacks: int, malformed: int
    ) -> None:
        """Counts since the start, from the backend's own counters."""
        self._clear("transport_info")
        self._gauges["transport_info", transport] = 1
        self._gauges["backend_batches", "cuda"] = cuda
        self._gauges["backend_batches", "system"] = system
        self._gauges["backend_batches", "inline"] = inline
        self._gauges["backend_batches", "fallback"] = fallbacks
        self._gauges["backend_malformed",] = malformed

    def set_servers(self, states: Mapping[str, ServerState]) -> None:
        """Whether each of several servers takes work; a single one has no name."""
        self._clear("server_up")
        for server, state in states.items() if len(states) > 1 else ():
            self._gauges["server_up", server] = float(state is not ServerState.AWAY)

    def render(self) -> bytes:
        """The exposition text, Prometheus 0.0.4."""
        return generate_latest(self.registry)

    def _clear(self, gauge: str) -> None:
        for key in [key for key in self._gauges if key[0] == gauge]:
            del self._gauges[key]

    def _label(self, model: str) -> str:
        return _one_of(self._models, model, MODELS_MAX)

    def _tenant_label(self, tenant: str) -> str:
        return _one_of(self._tenants, tenant, TENANTS_MAX)

    def _count(self, name: str, model: str, *rest: str) -> None:
        self._bump(name, self._label(model), *rest)

    def _bump(self, *key: str) -> None:
        """Name and label values of a counter."""
        self._add(1, *key)

    def _add(self, count: int, *key: str) -> None:
        self._counts[key] = self._counts.get(key, 0) + count

    def _histogram(self, name: str, *labels: str) -> "_Histogram":
        key = (name, *labels)
        histogram = self._histograms.get(key)
        if histogram is None:
            histogram = self._histograms[key] = _Histogram(HISTOGRAMS[name][2])
        return histogram


def _of(values: Mapping[tuple[str, ...], V], name: str) -> Iterator[tuple[tuple[str, ...], V]]:
    """Label values and value of each sample of a family."""
    return ((key[1:], value) for key, value in values.items() if key[0] == name)


def _one_of(seen: set[str], name: str, most: int) -> str:
    """The name as a label; OTHER for those that come when there are `most`."""
    if name not in seen:
        if len(seen) >= most:
            return OTHER
        seen.add(name)
    return name


class _Histogram:
    """Counts by bucket."""

    __slots__ = ("_bounds", "_counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, values: Sequence[float]) -> None:
        """Some at once, which C's loops go through."""
        counts = self._counts
        for index in map(bisect_left, repeat(self._bounds), values):
            counts[index] += 1
        self.total += sum(values)

    def cumulative(self) -> list[tuple[str, float]]:
        """(upper bound, observations up to it), as Prometheus wants them."""
        names = [*map(str, map(float, self._bounds)), "+Inf"]
        return list(zip(names, accumulate(self._counts), strict=True))
