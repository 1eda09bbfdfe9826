"""Arrival processes: each has the rate, the spread and the shape that its name promises."""

import random
import statistics
from bisect import bisect_right
from itertools import accumulate, islice, pairwise, takewhile

import pytest

from tests.helpers import MS, S
from tritonsched.sim.arrivals import (
    Arrivals,
    bursts,
    constant,
    diurnal,
    gamma,
    mmpp,
    periodic,
    poisson,
    trace,
    varying,
    wandering,
    zipf,
)


def gaps(arrivals: Arrivals, count: int = 4000) -> list[int]:
    return list(islice(arrivals(random.Random(3)), count))


@pytest.mark.parametrize(
    ("arrivals", "cv"),
    [(poisson(200.0), 1.0), (gamma(200.0, cv=3.0), 3.0), (gamma(200.0, cv=0.2), 0.2)],
)
def test_random_arrivals_have_their_rate_and_their_spread(arrivals: Arrivals, cv: float) -> None:
    found = gaps(arrivals, 20_000)
    mean = statistics.fmean(found)
    assert mean == pytest.approx(S / 200, rel=0.1)
    assert statistics.pstdev(found) / mean == pytest.approx(cv, rel=0.1)


def test_constant_arrivals_are_equally_far_apart() -> None:
    assert set(gaps(constant(250.0))) == {4 * MS}


def test_a_camera_keeps_its_period_whatever_its_jitter() -> None:
    found = gaps(periodic(40 * MS, jitter_ns=5 * MS))
    times = [sum(found[: n + 1]) for n in range(200)]
    phase = min(at - n * 40 * MS for n, at in enumerate(times))
    assert 0 <= phase < 40 * MS
    assert all(0 <= at - n * 40 * MS - phase <= 5 * MS for n, at in enumerate(times))
    with pytest.raises(AssertionError, match="overtake"):
        periodic(MS, jitter_ns=MS)


def times(arrivals: Arrivals, seconds: float, seed: int = 3) -> list[int]:
    found = accumulate(arrivals(random.Random(seed)))
    return list(takewhile(lambda at: at < seconds * S, found))


@pytest.mark.parametrize(
    "arrivals",
    [
        diurnal(200.0, low=0.2, high=1.8, day_s=5.0),
        mmpp(200.0, factor=4.0, share=0.2, burst_s=0.2),
        wandering(200.0, step_s=0.05, spread=0.5, memory=0.5, spike=4.0, spike_share=0.02),
    ],
)
def test_rates_that_vary_have_the_mean_they_are_given(arrivals: Arrivals) -> None:
    assert len(times(arrivals, 100.0)) == pytest.approx(20_000, rel=0.08)


def test_a_day_has_its_noon_and_its_night() -> None:
    found = times(diurnal(1000.0, low=0.2, high=1.8, day_s=4.0), 4.0)
    noon = sum(0.75 * S < at < 1.25 * S for at in found)
    night = sum(2.75 * S < at < 3.25 * S for at in found)
    assert noon / night == pytest.approx(9, rel=0.35)


def test_bursts_of_a_two_state_process_are_as_dense_as_they_should_be() -> None:
    """In windows of a burst's length: the densest fifth has about four times the rate."""
    found = times(mmpp(500.0, factor=4.0, share=0.2, burst_s=1.0), 200.0)
    edges = [bisect_right(found, second * S // 2) for second in range(401)]
    counts = sorted(b - a for a, b in pairwise(edges))
    assert statistics.fmean(counts[-40:]) / statistics.fmean(counts[:200]) > 3
    assert statistics.pstdev(counts) > 3 * statistics.fmean(counts) ** 0.5


def test_a_rate_that_wanders_spikes() -> None:
    quiet = wandering(500.0, step_s=0.1, spread=0.0, memory=0.0, spike=1.0, spike_share=0.0)
    spiky = wandering(500.0, step_s=0.1, spread=0.5, memory=0.8, spike=4.0, spike_share=0.05)
    spreads = [statistics.pstdev(gaps(arrivals, 20_000)) * 500 / S for arrivals in (quiet, spiky)]
    assert spreads[0] == pytest.approx(1.0, abs=0.05)
    assert spreads[1] > 1.3


def test_a_varying_rate_of_nothing_sends_nothing() -> None:
    def half(now: float) -> float:
        return 100.0 if now < 1.0 else 0.0 if now < 2.0 else 100.0

    found = times(varying(half, rate_max=100.0), 3.0)
    assert 150 < len(found) < 250
    assert not [at for at in found if S <= at < 2 * S]


def test_a_trace_is_replayed_and_ends() -> None:
    assert times(trace([5, 5, 9]), 1.0) == [5, 5, 9]
    with pytest.raises(AssertionError, match="goes back"):
        gaps(trace([5, 4]))


def test_bursts_come_at_once_and_periodically() -> None:
    assert times(bursts(3, 120 * MS), 0.3) == [0] * 3 + [120 * MS] * 3 + [240 * MS] * 3


def test_shares_by_popularity_follow_zipf() -> None:
    shares = zipf(4, 1.0)
    assert sum(shares) == pytest.approx(1.0)
    assert [shares[0] / share for share in shares] == pytest.approx([1, 2, 3, 4])
