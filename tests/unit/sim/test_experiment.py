"""One run of the study, and the floors of its most important figures."""

from collections.abc import Iterator

import pytest

from tests.helpers import MS
from tritonsched.core.request import Outcome
from tritonsched.core.tuning import Tuning
from tritonsched.sim.experiment import Trace, bound_of, contenders, run, tuned, workload_names
from tritonsched.sim.world import Faults


@pytest.fixture(autouse=True)
def _quick_tuning(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Triton's sweep on a few requests: its result is not what these tests are about."""
    monkeypatch.setattr("tritonsched.sim.experiment.TUNE_LENGTH", 400)
    yield
    tuned.cache_clear()


SHORT = Trace("W3", 0.7, seed=1, length=1000)


def test_a_run_is_the_same_each_time_and_another_with_another_seed() -> None:
    first, again = (run(SHORT, "lite").record for _ in range(2))
    assert (first.utility, first.rows) == (again.utility, again.rows)
    assert first.rows != run(Trace("W3", 0.7, seed=2, length=1000), "lite").record.rows


def test_every_request_has_one_outcome_whoever_serves() -> None:
    for contender in ("lite", "triton", "triton+reject"):
        record = run(SHORT, contender).record
        assert sum(record.outcomes.values()) == record.total > 900
        assert record.utility <= bound_of(SHORT)


def test_without_noise_nobody_admitted_is_late() -> None:
    record = run(SHORT, "lite", faults=Faults()).record
    assert record.outcomes[Outcome.LATE] == 0
    assert record.overdue_ns == []


def test_a_round_trip_costs_something_and_bars_are_kept_on_demand() -> None:
    near = run(SHORT, "lite", window_ns=(50 * MS, 100 * MS))
    far = run(SHORT, "lite", tuning=Tuning(rtt_ns=2 * MS))
    assert far.record.utility < near.record.utility
    assert near.record.bars
    assert all(bar.start_ns < 100 * MS < 50 * MS + bar.end_ns for bar in near.record.bars)
    assert not far.record.bars


def test_triton_is_tuned_for_each_workload() -> None:
    assert tuned("W3", 0.7, reject=False) != tuned("W3", 0.7, reject=True)
    assert all(b.timeout_ns is None for b in tuned("W3", 0.7, reject=False).values())


def test_names_are_rules_and_servers_studies_and_named_workloads() -> None:
    assert {"lite", "edf", "fcfs", "triton", "triton+reject", "lite+fair"} <= set(contenders())
    assert {"W1", "W14", "tight"} <= set(workload_names())


def test_fairness_helps_the_tenant_that_fares_worst() -> None:
    """A day's peak on ten models: what the worst gains is far more than what all together lose."""
    trace = Trace("W7", 0.85, seed=1, length=2500)
    plain, fair = (run(trace, name).record for name in ("lite", "lite+fair"))
    assert fair.worst_share > plain.worst_share + 0.05
    assert fair.utility > 0.95 * plain.utility


def test_lite_beats_tuned_triton_where_it_matters() -> None:
    """A floor under every change: utility as a share of the clairvoyant bound, one short trace."""
    trace = Trace("W5", 1.0, seed=1, length=1500)
    lite, triton = (run(trace, name).record for name in ("lite", "triton+reject"))
    assert lite.utility / bound_of(trace) > 0.8
    assert lite.utility > 1.08 * triton.utility
    assert lite.miss_ratio < 0.006
