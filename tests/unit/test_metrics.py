"""What a scrape shows: each metric fed, in base units, with labels of bounded number."""

import math
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.helpers import MS, S, request
from tritonsched.core.batch import Batch
from tritonsched.core.fairness import Fairness, Tenants
from tritonsched.core.request import Outcome, Tenant
from tritonsched.core.speed import DeviceSpeed
from tritonsched.core.tuning import Tuning
from tritonsched.core.variant import ServerState
from tritonsched.metrics import (
    COUNTERS,
    GAUGES,
    HISTOGRAMS,
    MODELS_MAX,
    OTHER,
    TENANTS_MAX,
    Metrics,
)

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(metrics: Metrics) -> Samples:
    """What Prometheus reads."""
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        (sample.name.removeprefix("tritonsched_"), frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def value(metrics: Metrics, metric: str, /, **labels: str) -> float | None:
    """One sample; `class_` stands for the label `class`."""
    key = frozenset((label.rstrip("_"), text) for label, text in labels.items())
    return scrape(metrics).get((metric, key))


def batch(*numbers: int, model: str = "m", expected_ns: int = 8 * MS) -> Batch:
    members = tuple(request(number, model=model, rows=2) for number in numbers)
    return Batch(1, model, "gpu", members, 2 * len(members), 3 * MS, 3 * MS, expected_ns)


def _tenants() -> Tenants:
    """One that was served late all the time, and one of which nothing was heard."""
    tenants = Tenants()
    tenants.adopt({name: Tenant(name) for name in ("shop", "lab")}, Fairness(1.0, strength=3.0))
    for number in range(2000):
        tenants.on_outcomes((request(number, tenant="shop"),), Outcome.LATE, "", 0)
    return tenants


def fed() -> Metrics:
    """Everything that can be counted has happened once."""
    metrics = Metrics()
    done = batch(1, 2)
    metrics.on_submit(done.requests[0], 0)
    metrics.on_dispatch(done, 3 * MS)
    metrics.on_complete(done, measured_ns=4 * MS, now=7 * MS)
    metrics.on_outcomes((done.requests[0],), Outcome.SERVED, "", 7 * MS)
    metrics.on_outcomes((done.requests[1],), Outcome.REJECTED, "queue-full", 7 * MS)
    metrics.lone("m", "ensemble")
    metrics.merge_failed("m")
    metrics.shielded("json-depth")
    metrics.policy_reloaded("applied", 2)
    metrics.connection_ended("http", "slow-head")
    metrics.set_connections({"http": 1})
    metrics.tuning_changed("safety", "up")
    metrics.set_speeds({"gpu0": DeviceSpeed()})
    metrics.set_servers({"left": ServerState.READY, "right": ServerState.AWAY})
    metrics.set_recordings([SimpleNamespace(written=5, dropped=1, failure="")])
    metrics.set_state(ready=True, tensor_bytes=12, queued={"m": 3})
    metrics.set_tenants(_tenants(), {"shop": 2})
    metrics.set_tuning(Tuning(rtt_ns=S, guard_ns=2 * S, reply_ns=3 * S, window_ns=4 * S))
    metrics.set_backend(transport="system", cuda=0, system=1, inline=2, fallbacks=3, malformed=4)
    return metrics


def test_every_metric_that_is_announced_is_fed() -> None:
    """And each is told with its help, its type and exactly its labels."""
    text = fed().render().decode()
    samples = scrape(fed())
    for name, (told, labels) in (COUNTERS | GAUGES).items():
        assert f"# HELP tritonsched_{name} {told}" in text
        found = [key for key in samples if key[0] == name]
        assert found, name
        assert all({label for label, _ in key} == set(labels) for _, key in found), name
    for name, (told, labels, bounds) in HISTOGRAMS.items():
        assert f"# HELP tritonsched_{name} {told}" in text
        assert f"# TYPE tritonsched_{name} histogram" in text
        buckets = [key for key in samples if key[0] == f"{name}_bucket"]
        assert len(buckets) == len(bounds) + 1, name
        assert all({label for label, _ in key} == {*labels, "le"} for _, key in buckets), name


def test_nothing_is_told_before_it_happened_but_the_names() -> None:
    """But the policy: the first is in use, and the first refused reload must be an increase."""
    told = scrape(Metrics())
    assert told.pop(("policy_generation", frozenset())) == 1
    assert {name for name, _ in told} == {"policy_reloads_total"}
    assert list(told.values()) == [0, 0, 0]
    assert b"# HELP tritonsched_requests_total" in Metrics().render()


def test_requests_are_counted_by_how_they_left() -> None:
    metrics = fed()
    m = {"model": "m", "class_": "c"}
    assert value(metrics, "requests_total", **m, outcome="served") == 1
    assert value(metrics, "requests_total", **m, outcome="rejected") == 1
    assert value(metrics, "refusals_total", **m, reason="queue-full") == 1
    assert value(metrics, "lone_requests_total", model="m", reason="ensemble") == 1
    assert value(metrics, "merge_failures_total", model="m") == 1


def test_tenants_are_counted_and_told_how_they_fare() -> None:
    metrics = fed()
    metrics.on_outcomes((request(9, tenant="shop"),), Outcome.REJECTED, "tenant-over-share", 0)
    assert value(metrics, "tenant_requests_total", tenant="shop", outcome="rejected") == 1
    assert value(metrics, "tenant_refusals_total", tenant="shop", reason="tenant-over-share") == 1
    told = [
        [value(metrics, f"tenant_{name}", tenant=tenant) for tenant in ("shop", "lab")]
        for name in ("queued_requests", "in_time_ratio", "boost_ratio")
    ]
    assert told == [[2, 0], [pytest.approx(0.0, abs=1e-6), 1.0], [4.0, 1.0]]
    gone = Tenants()
    gone.adopt({"lab": Tenant("lab")}, Fairness())
    metrics.set_tenants(gone, {})
    assert value(metrics, "tenant_queued_requests", tenant="shop") is None


def test_tenants_beyond_the_bound_share_a_label() -> None:
    metrics = Metrics()
    for number in range(TENANTS_MAX + 5):
        metrics.on_outcomes((request(1, tenant=f"t{number}"),), Outcome.SERVED, "", 0)
    assert value(metrics, "tenant_requests_total", tenant=OTHER, outcome="served") == 5


def test_times_are_in_seconds_and_only_answers_have_a_duration() -> None:
    metrics = fed()
    m = {"model": "m", "class_": "c"}
    assert value(metrics, "request_duration_seconds_sum", **m) == 0.007
    assert value(metrics, "request_duration_seconds_count", **m) == 1
    metrics.on_outcomes((request(3),), Outcome.LATE, "", 9 * MS)
    metrics.on_outcomes((request(4),), Outcome.FAILED, "", 9 * MS)
    metrics.on_outcomes((request(5),), Outcome.CANCELLED, "", 9 * MS)
    assert value(metrics, "request_duration_seconds_count", **m) == 2
    assert value(metrics, "queue_wait_seconds_sum", **m) == 0.006
    assert value(metrics, "queue_wait_seconds_count", **m) == 2
    assert value(metrics, "exec_seconds_sum", model="m") == 0.004
    assert value(metrics, "profile_error_ratio_sum", model="m") == 0.5
    assert value(metrics, "tuning_seconds", name="rtt") == 1
    assert value(metrics, "tuning_seconds", name="window") == 4
    assert value(metrics, "prediction_error_ratio_sum", model="m") == 0.5


def test_what_feedback_did_is_counted_and_shown() -> None:
    metrics = fed()
    metrics.tuning_changed("safety", "up")
    metrics.set_tuning(Tuning(safety=1.25, rows_cap=24, queue_requests_max=70))
    assert value(metrics, "tuning_changes_total", knob="safety", direction="up") == 2
    assert value(metrics, "tuning_safety") == 1.25
    assert value(metrics, "tuning_rows_cap") == 24
    assert value(metrics, "tuning_queue_requests_max") == 70
    speed = DeviceSpeed()
    for _ in range(3):
        speed.observe(math.log(2), "m")
    metrics.set_speeds({f"gpu{number}": speed for number in range(MODELS_MAX + 5)})
    assert value(metrics, "device_speed_ratio", device="gpu0") == pytest.approx(2)
    assert value(metrics, "device_speed_changes", device="gpu0") == 1
    assert value(metrics, "device_speed_ratio", device=f"gpu{MODELS_MAX}") is None


def test_a_probe_of_which_nothing_was_expected_has_no_error() -> None:
    metrics = Metrics()
    metrics.on_complete(batch(1, expected_ns=0), measured_ns=MS, now=MS)
    assert value(metrics, "exec_seconds_count", model="m") == 1
    assert value(metrics, "profile_error_ratio_count", model="m") is None


def test_a_value_on_a_bound_is_in_the_bounds_bucket() -> None:
    """Prometheus' `le`: buckets are cumulative and include their bound."""
    metrics = Metrics()
    for numbers in ((1, 2), (1, 2, 3), range(1000)):
        metrics.on_dispatch(batch(*numbers), 3 * MS)
    counts = {
        le: value(metrics, "batch_rows_bucket", model="m", le=le)
        for le in ("2.0", "4.0", "8.0", "256.0", "+Inf")
    }
    assert counts == {"2.0": 0, "4.0": 1, "8.0": 2, "256.0": 2, "+Inf": 3}
    assert value(metrics, "batch_requests_sum", model="m") == 1005


def test_models_beyond_the_bound_share_a_label() -> None:
    """Of two of them nothing is lost: counts and queues add up."""
    metrics = Metrics()
    names = [f"m{number}" for number in range(MODELS_MAX + 2)]
    for name in names:
        metrics.merge_failed(name)
    metrics.set_state(ready=True, tensor_bytes=0, queued=dict.fromkeys(names, 3))
    for metric, count in (("merge_failures_total", 1), ("queued_requests", 3)):
        told = {key: number for (name, key), number in scrape(metrics).items() if name == metric}
        assert len(told) == MODELS_MAX + 1
        assert set(told.values()) == {count, 2 * count}
        assert told[frozenset({("model", OTHER)})] == 2 * count


def test_a_model_that_triton_no_longer_serves_has_no_queue() -> None:
    metrics = fed()
    metrics.set_state(ready=False, tensor_bytes=0, queued={"other-model": 1})
    assert value(metrics, "queued_requests", model="m") is None
    assert value(metrics, "queued_requests", model="other-model") == 1
    assert value(metrics, "ready") == 0


def test_one_transport_is_in_use_at_a_time() -> None:
    metrics = fed()
    metrics.set_backend(transport="inline", cuda=0, system=5, inline=6, fallbacks=7, malformed=8)
    assert value(metrics, "transport_info", transport="system") is None
    assert value(metrics, "transport_info", transport="inline") == 1
    counts = [value(metrics, "backend_batches", transport=t) for t in ("system", "inline")]
    assert counts == [5, 6]
    assert value(metrics, "backend_batches", transport="fallback") == 7
    assert value(metrics, "backend_malformed") == 8


def test_a_name_with_quotes_does_not_break_the_exposition() -> None:
    metrics = Metrics()
    metrics.merge_failed('a"b\n\\c')
    assert value(metrics, "merge_failures_total", model='a"b\n\\c') == 1


def test_what_is_heard_and_not_yet_counted_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """And all of it is counted, whenever that is: waits by class, a clock that is behind as 0."""
    monkeypatch.setattr("tritonsched.metrics.BATCHES_MAX", 3)
    monkeypatch.setattr("tritonsched.metrics.ENDS_MAX", 5)
    metrics = Metrics()
    for number in range(20):
        sent = batch(number, model=f"m{number % 2}")
        sent.requests[0].slo = f"c{number % 2}"
        metrics.on_dispatch(sent, -MS)
        metrics.on_complete(sent, measured_ns=4 * MS, now=0)
        metrics.on_outcomes((sent.requests[0],), Outcome.SERVED, "", 2 * MS)
        assert len(metrics._sent) < 3
        assert len(metrics._done) < 3
        assert sum(map(len, metrics._ends.values())) < 5
    for model, slo in (("m0", "c0"), ("m1", "c1")):
        assert value(metrics, "queue_wait_seconds_count", model=model, class_=slo) == 10
        assert value(metrics, "queue_wait_seconds_sum", model=model, class_=slo) == 0
        assert value(metrics, "exec_seconds_sum", model=model) == pytest.approx(0.04)
        assert value(metrics, "batch_rows_sum", model=model) == 20
        ends = {"model": model, "class_": slo, "outcome": "served"}
        assert value(metrics, "requests_total", **ends) == 10
