"""What a periodic stream is. Rule: its arithmetic is checked against counting."""

import pytest

from tests.helpers import MS
from tritonsched.core.reservation import (
    HYPERPERIOD_MAX_NS,
    Reservation,
    hyperperiod_ns,
    window_ns,
)


def camera(**changes: int) -> Reservation:
    fields = {"id": 1, "period_ns": 40 * MS, "relative_deadline_ns": 100 * MS, "frames": 5}
    return Reservation(model="m", **(fields | changes))  # type: ignore[arg-type]


def test_a_frame_is_known_by_its_arrival_within_the_jitter() -> None:
    stream = camera(start_ns=1000 * MS, jitter_ns=2 * MS)
    assert [stream.frame_at((1000 + ms) * MS) for ms in (-3, -2, 0, 2, 3, 38, 42, 160, 200)] == [
        None, 0, 0, 0, None, 1, 1, 4, None,
    ]  # fmt: skip


def test_what_is_over_is_cut_off_and_the_phase_stays() -> None:
    stream = camera(start_ns=1000 * MS)
    assert stream.from_time(1000 * MS) is stream
    later = stream.from_time(1001 * MS)
    assert later is not None
    assert (later.start_ns, later.frames) == (1040 * MS, 4)
    assert later.end_ns == stream.end_ns == 1260 * MS
    assert stream.from_time(1161 * MS) is None


def test_the_window_is_half_of_the_least_deadline_and_periods_play_no_role() -> None:
    assert window_ns([camera(), camera(relative_deadline_ns=60 * MS, period_ns=MS)]) == 30 * MS


def test_the_hyperperiod_is_the_common_multiple_of_rounded_periods_and_bounded() -> None:
    assert hyperperiod_ns([camera(period_ns=33_400_000), camera(period_ns=66 * MS)]) == 66 * MS
    odd = [camera(period_ns=period * MS) for period in (101, 103, 107)]
    assert hyperperiod_ns(odd) == HYPERPERIOD_MAX_NS


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"id": 0}, "id"),
        ({"period_ns": 0}, "period_ns"),
        ({"relative_deadline_ns": -1}, "relative_deadline_ns"),
        ({"rows": 0}, "rows"),
        ({"frames": 0}, "frames"),
        ({"jitter_ns": 20 * MS}, "jitter_ns"),
    ],
)
def test_numbers_that_describe_no_stream_are_refused_by_name(
    changes: dict[str, int], word: str
) -> None:
    with pytest.raises(ValueError, match=word):
        camera(**changes)
