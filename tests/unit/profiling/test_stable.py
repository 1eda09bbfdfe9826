"""When a batch size has been measured often enough, and what is said of it."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from tritonsched.profiling.stable import (
    POINT_NS_MAX,
    RUNS_MAX,
    RUNS_MIN,
    WARM_RUNS,
    Samples,
    quantile,
)

MS = 1_000_000


def runs_of(times_ns: list[int]) -> Samples:
    """As many of them as are asked for, again and again."""
    samples = Samples()
    number = 0
    while not samples.is_done:
        samples.add(times_ns[number % len(times_ns)])
        number += 1
    return samples


def test_equal_times_are_measured_as_often_as_is_the_least() -> None:
    assert len(runs_of([5 * MS])) == RUNS_MIN


def test_times_that_never_settle_end_at_the_most() -> None:
    rng = random.Random(1)
    samples = Samples()
    base = 5000.0
    while not samples.is_done:
        base *= 1.02
        samples.add(int(base * rng.uniform(1, 2)))
    assert len(samples) == RUNS_MAX


def test_a_slow_model_ends_when_its_time_is_spent() -> None:
    """But never before the least number of runs."""
    slow = [POINT_NS_MAX // 50 * (1 + k % 7) for k in range(1000)]
    assert RUNS_MIN <= len(runs_of(slow)) < 2 * RUNS_MIN


def test_the_first_runs_of_a_size_count_for_nothing() -> None:
    samples = Samples()
    for _ in range(WARM_RUNS):
        samples.add(900 * MS)
    samples.add(5 * MS)
    assert (samples.point(1).max_ms, samples.point(1).runs) == (5.0, 1)


def test_a_time_below_the_clocks_noise_is_the_least_that_a_profile_takes() -> None:
    """A batch faster than the empty round trip that is taken off."""
    samples = Samples()
    for _ in range(WARM_RUNS + 1):
        samples.add(-5)
    assert samples.point(4).p50_ms == 0.001


@settings(max_examples=40)
@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=300), st.sampled_from([0.5, 0.9, 0.99]))
def test_a_quantile_is_the_least_that_covers_its_share(values: list[int], share: float) -> None:
    ordered = sorted(values)
    found = quantile(ordered, share)
    covered = sum(value <= found for value in values)
    below = sum(value < found for value in values)
    assert covered >= share * len(values) - 1e-9
    assert below < share * len(values)
