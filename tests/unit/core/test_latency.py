"""The latency profile: reading a table, learning one, drift, outliers, cold starts."""

import math
import random

from hypothesis import given
from hypothesis import strategies as st

from tritonsched.core.latency import (
    FINE_ROWS,
    PROVEN_SAMPLES,
    STALE_NS,
    WARM_SAMPLES,
    LatencyProfile,
    cell_of,
)
from tritonsched.core.speed import DeviceSpeed

MS = 1_000_000


def affine(rows: int) -> int:
    return 5 * MS + rows * 600_000


def taught(times: dict[int, int], *, each: int = PROVEN_SAMPLES) -> LatencyProfile:
    """A profile that measured each of the sizes `each` times."""
    profile = LatencyProfile()
    for rows, exec_ns in times.items():
        for _ in range(each):
            profile.observe(rows=rows, exec_ns=exec_ns, now=0)
    return profile


def is_near(value: float, expected: float, share: float = 0.01) -> bool:
    return abs(value - expected) <= share * expected


def test_an_empty_profile_promises_nothing_and_refuses_nothing() -> None:
    profile = LatencyProfile()
    assert (profile.exec_ns(4), profile.safe_ns(4), profile.rows_known) == (0, 0, 0)
    assert not profile.is_proven
    assert profile.is_stale(0)


def test_between_sizes_time_is_linear_below_flat_and_beyond_proportional() -> None:
    profile = LatencyProfile({4: 10 * MS, 8: 14 * MS})
    assert [profile.exec_ns(rows) // MS for rows in (1, 4, 6, 8, 16)] == [10, 10, 12, 14, 28]
    assert profile.is_proven
    assert profile.rows_known == 8


def test_a_promise_is_the_expected_time_and_a_margin() -> None:
    profile = LatencyProfile({1: 10 * MS})
    assert profile.margin_ns(1) > 0
    assert profile.safe_ns(1) == 10 * MS + profile.margin_ns(1) == profile.safe_ns(1)


def test_promises_begin_with_the_eighth_batch() -> None:
    profile = LatencyProfile()
    for number in range(PROVEN_SAMPLES):
        assert (profile.is_proven, profile.safe_ns(1)) == (False, 0), number
        profile.observe(rows=1, exec_ns=7 * MS, now=0)
    assert profile.is_proven
    assert profile.safe_ns(1) >= 7 * MS


def test_large_sizes_share_cells_and_small_ones_do_not() -> None:
    assert [cell_of(rows) for rows in (1, 63, FINE_ROWS)] == [1, 63, FINE_ROWS]
    assert cell_of(65) == cell_of(68) == 68
    assert cell_of(1000) == 1024
    assert len({cell_of(rows) for rows in range(1, 4097)}) <= FINE_ROWS + 6 * 17
    assert all(cell_of(rows) >= rows for rows in range(1, 4097))


def test_a_slow_first_call_is_forgotten_with_the_second() -> None:
    profile = LatencyProfile()
    for exec_ns in (200 * MS, 7 * MS, 7 * MS):
        profile.observe(rows=1, exec_ns=exec_ns, now=0)
    assert profile.exec_ns(1) == 7 * MS


def test_a_slow_first_call_of_a_larger_size_does_not_rule_the_size_out() -> None:
    """Autotuning makes the first call of each size slow; it counts as proportional at most."""
    profile = taught({16: affine(16)})
    profile.observe(rows=32, exec_ns=20 * affine(32), now=0)
    assert profile.exec_ns(32) <= 2 * affine(16)
    for _ in range(WARM_SAMPLES):
        profile.observe(rows=32, exec_ns=affine(32), now=0)
    assert is_near(profile.exec_ns(32), affine(32), 0.02)


def test_a_small_batch_is_never_expected_to_take_longer_than_a_large_one() -> None:
    """The very first call has one row; without this its slowness would refuse everybody."""
    profile = LatencyProfile()
    profile.observe(rows=1, exec_ns=20 * affine(1), now=0)
    for rows in (2, 4, 8, 16):
        profile.observe(rows=rows, exec_ns=affine(rows), now=0)
    assert profile.exec_ns(1) <= profile.exec_ns(2) == affine(2)


def test_times_are_monotone_whatever_was_measured() -> None:
    dice = random.Random(3)
    profile = LatencyProfile()
    for _ in range(300):
        rows = dice.randint(1, 40)
        profile.observe(rows=rows, exec_ns=dice.randint(1, 50) * MS, now=0)
        times = [profile.exec_ns(size) for size in range(1, 60)]
        assert times == sorted(times)


def test_throttling_is_followed_within_fifteen_batches() -> None:
    dice = random.Random(1)
    profile = taught({rows: affine(rows) for rows in range(1, 33)})
    for _ in range(15):
        rows = dice.randint(1, 32)
        profile.observe(rows=rows, exec_ns=affine(rows) * 10 // 6, now=0)
    assert is_near(profile.exec_ns(20), affine(20) * 10 / 6, 0.05)


def test_one_overrun_moves_the_expectation_by_less_than_a_fifth() -> None:
    profile = taught({16: affine(16)}, each=50)
    profile.observe(rows=16, exec_ns=3 * affine(16), now=0)
    assert profile.exec_ns(16) < 1.2 * affine(16)


def test_three_far_off_in_a_row_are_a_new_speed_and_so_is_the_way_back() -> None:
    profile = taught({16: affine(16)}, each=50)
    for _ in range(3):
        profile.observe(rows=16, exec_ns=20 * affine(16), now=0)
    assert is_near(profile.exec_ns(16), 20 * affine(16), 0.02)
    for _ in range(3):
        profile.observe(rows=16, exec_ns=affine(16), now=0)
    assert is_near(profile.exec_ns(16), affine(16), 0.02)


def test_two_far_off_on_different_sides_are_not() -> None:
    profile = taught({16: affine(16)}, each=50)
    for factor in (5, 5, 0.1, 5, 5):
        profile.observe(rows=16, exec_ns=round(factor * affine(16)), now=0)
    assert profile.exec_ns(16) < 2 * affine(16)


def test_the_margin_covers_the_quantile_of_what_is_measured() -> None:
    dice = random.Random(7)
    profile = taught({8: affine(8)})
    late = 0
    for number in range(4000):
        exec_ns = round(affine(8) * dice.lognormvariate(0.0, 0.03))
        late += number >= 1000 and exec_ns > profile.safe_ns(8)
        profile.observe(rows=8, exec_ns=exec_ns, now=0)
    assert 0.002 < late / 3000 < 0.03
    assert 0.03 < profile.margin_ns(8) / affine(8) < 0.2


def test_jitter_of_the_host_is_no_multiple_of_the_batch() -> None:
    """Two milliseconds of jitter learnt on small batches are two, not eight, for a large one."""
    dice = random.Random(7)
    profile = taught({1: affine(1), 32: affine(32)})
    for _ in range(2000):
        profile.observe(rows=1, exec_ns=affine(1) + dice.randrange(2 * MS), now=0)
    assert 0.5 * MS < profile.margin_ns(32) < 2 * MS


def test_no_promise_is_longer_than_three_times_the_expected_time() -> None:
    profile = taught({1: affine(1), 32: affine(32)})
    for number in range(100):
        profile.observe(rows=32, exec_ns=affine(32) * (1 if number % 3 else 9), now=0)
    assert profile.safe_ns(1) <= 3 * profile.exec_ns(1)


def test_extrapolated_times_are_no_evidence_of_drift() -> None:
    """A size beyond the trusted ones fills its cell and leaves the scale alone."""
    profile = taught({1: affine(1)}, each=20)
    before = profile.exec_ns(1)
    profile.observe(rows=2, exec_ns=affine(2), now=0)
    assert profile.exec_ns(1) == before


def test_a_size_measured_for_the_first_time_fills_its_cell() -> None:
    profile = taught({1: affine(1), 32: affine(32)}, each=20)
    profile.observe(rows=16, exec_ns=11 * MS, now=0)
    assert is_near(profile.exec_ns(16), 11 * MS, 0.1)


def test_a_profile_is_stale_a_second_after_its_last_measurement() -> None:
    profile = taught({1: affine(1)})
    assert not profile.is_stale(STALE_NS - 1)
    assert profile.is_stale(STALE_NS)


def test_a_time_of_nothing_counts_as_a_microsecond() -> None:
    profile = taught({1: 0}, each=20)
    assert profile.exec_ns(1) == 1_000


def test_the_devices_new_speed_is_read_without_an_observation_of_ones_own() -> None:
    speed = DeviceSpeed()
    profile = LatencyProfile({1: 6 * MS})
    profile.join(speed)
    assert profile.exec_ns(1) == 6 * MS
    for _ in range(3):
        speed.observe(math.log(2), "another")
    assert profile.exec_ns(1) == 12 * MS


def test_a_size_is_known_when_it_was_measured_three_times() -> None:
    profile = taught({1: 6 * MS})
    profile.observe(rows=2, exec_ns=7 * MS, now=0)
    assert (profile.knows(1), profile.knows(2), profile.knows(3)) == (True, False, False)


def test_a_measured_margin_is_promised_from_the_first_batch_and_then_learnt_on() -> None:
    profile = LatencyProfile({1: 6 * MS}, margin_ns=2 * MS)
    assert profile.safe_ns(1) == 8 * MS
    for _ in range(50):
        profile.observe(rows=1, exec_ns=9 * MS, now=0)
    assert is_near(profile.exec_ns(1), 9 * MS, 0.02)
    assert profile.safe_ns(1) >= profile.exec_ns(1) + 2 * MS


def test_promises_of_many_sizes_are_those_of_each() -> None:
    """Whatever was learnt meanwhile; nothing is promised while unproven."""
    assert list(LatencyProfile().safe_times(2)) == [0, 0, 0]
    profile = LatencyProfile({1: 6 * MS, 8: 13 * MS, 32: 40 * MS})
    for rows in (3, 32, 1, 40, 8, 32):
        times = profile.safe_times(rows)
        assert [*times[: rows + 1]] == [profile.safe_ns(many) for many in range(rows + 1)]
        profile.observe(rows=rows, exec_ns=(9 + rows) * MS, now=rows)


@given(
    st.dictionaries(st.integers(1, 100), st.integers(1_000, 50_000_000), max_size=6),
    st.lists(st.tuples(st.integers(1, 90), st.integers(1, 80_000_000)), max_size=60),
)
def test_a_table_that_moved_cell_by_cell_is_the_one_made_anew(
    table: dict[int, int], seen: list[tuple[int, int]]
) -> None:
    profile = LatencyProfile(table)
    for now, (rows, exec_ns) in enumerate(seen):
        profile.observe(rows=rows, exec_ns=exec_ns, now=now)
        moved = list(profile._smooth)
        profile._smoothen()
        assert profile._smooth == moved
        assert profile._bases_to(rows + 5)[: rows + 6] == [
            profile._interpolate(many) for many in range(rows + 6)
        ]
