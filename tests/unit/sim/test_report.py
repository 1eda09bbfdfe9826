"""Reports, and what the rules must come to: the floor under every change of the core."""

import json

import pytest

from tests.helpers import MS, S
from tritonsched.core.policies import POLICIES
from tritonsched.core.request import Outcome
from tritonsched.core.tuning import Tuning
from tritonsched.sim.report import Report, simulate
from tritonsched.sim.workload import TIGHT_PEAK_RATE, patient, tight
from tritonsched.sim.world import Faults

NOISE = Faults(jitter=0.03)  # overruns, too few to be fair in some seconds, have their own tests


def run(policy: str, load: float, *, faults: Faults = NOISE, seconds: int = 6) -> Report:
    return simulate(
        POLICIES[policy](), tight(load), duration_ns=seconds * S, seed=11, faults=faults
    )


def share_of_peak(report: Report) -> float:
    return report.goodput / TIGHT_PEAK_RATE


def test_a_report_counts_each_request_once() -> None:
    report = run("lite", 1.3, seconds=1)
    assert sum(sum(counts.values()) for counts in report.outcomes.values()) == report.submitted
    assert set(report.outcomes) == {"tight", "loose"}
    assert 0.5 < report.utilisation["gpu0"] <= 1.0
    assert 1.0 <= report.rows_mean <= 32.0
    assert report.goodput == report.utility  # all weights are 1


def test_a_report_is_a_plain_table_and_plain_values() -> None:
    report = run("edf", 0.5, seconds=1)
    lines = report.as_text().splitlines()
    assert lines[0].split() == ["class", *(outcome.value for outcome in Outcome)]
    assert [line.split()[0] for line in lines[1:3]] == ["loose", "tight"]
    assert lines[3].startswith("edf: ")
    assert json.loads(json.dumps(report.as_dict()))["submitted"] == report.submitted


def test_below_the_limit_everything_is_in_time() -> None:
    report = run("lite", 0.5)
    assert share_of_peak(report) > 0.98 * 0.5
    assert report.miss_ratio <= 0.005


@pytest.mark.parametrize(("load", "floor"), [(1.0, 0.83), (1.3, 0.93), (2.0, 0.93)])
def test_lite_keeps_the_device_useful_at_and_beyond_the_limit(load: float, floor: float) -> None:
    """Of 1322 rows a second; at the limit itself the 30 ms class keeps batches small."""
    report = run("lite", load)
    assert share_of_peak(report) >= floor
    assert report.miss_ratio <= 0.015


def test_plain_deadline_first_is_the_trap_that_lite_avoids() -> None:
    """Near overload the head has no slack, batches shrink, goodput goes to almost nothing."""
    assert share_of_peak(run("edf", 1.3)) < 0.5 < share_of_peak(run("lite", 1.3))


def test_a_slow_first_call_costs_no_more_than_the_learning() -> None:
    """20 times slower: the next half second is served."""
    report = run("lite", 0.6, faults=Faults(jitter=0.03, slow_first=20.0), seconds=3)
    assert share_of_peak(report) > 0.9 * 0.6


@pytest.mark.parametrize("factor", [1 / 0.6, 3.0, 20.0])
def test_throttling_is_survived_and_forgotten(factor: float) -> None:
    """While it lasts, and above all after it, the device is used for what it can do."""
    faults = Faults(jitter=0.03, throttles=((S, factor), (2 * S, 1.0)))
    report = run("lite", 0.6, faults=faults, seconds=5)
    assert share_of_peak(report) > 0.6 * (4 + 0.8 / factor) / 5 - 0.05


def test_without_deadlines_nobody_is_refused_and_batches_follow_the_load() -> None:
    report = simulate(
        POLICIES["lite"](),
        patient(1.3),
        duration_ns=2 * S,
        seed=3,
        tuning=Tuning(rtt_ns=MS // 2, queue_requests_max=100_000),
    )
    assert report.outcomes["default"]["served"] == report.submitted
    assert report.rows_mean > 25
