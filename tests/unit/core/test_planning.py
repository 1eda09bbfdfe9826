"""Plans of guaranteed streams. Rule: each frame once, in time, once it is here, in fixed order."""

import random

from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import MS
from tritonsched.core.planning import (
    Arrivals,
    PlannedBatch,
    arrivals,
    latest_starts,
    plan,
    simulate,
)
from tritonsched.core.reservation import Reservation

CAPS = {("m", 0): 8, ("n", 0): 4}


def cost(model: str, rows: int) -> int:
    return (2 + rows) * MS if model == "m" else (5 + 2 * rows) * MS


def streams(seed: int, count: int) -> list[Reservation]:
    dice = random.Random(seed)
    return [
        Reservation(
            id=number,
            model=dice.choice("mn"),
            period_ns=dice.randint(15, 90) * MS,
            relative_deadline_ns=dice.randint(15, 150) * MS,
            frames=dice.randint(1, 30),
            start_ns=dice.randint(0, 60) * MS,
            rows=dice.choice([1, 1, 2]),
            jitter_ns=dice.choice([0, 2 * MS]),
        )
        for number in range(1, count + 1)
    ]


def coming(given_streams: list[Reservation]) -> Arrivals:
    return arrivals(given_streams, lead_ns=MS, reply_ns=MS // 2)


seeds = st.integers(min_value=0, max_value=1 << 30)


@given(seeds, st.integers(min_value=1, max_value=7))
def test_a_plan_serves_every_frame_once_after_it_is_here_and_before_it_is_due(
    seed: int, count: int
) -> None:
    frames = {frame.key: (category, frame) for _, category, frame in coming(streams(seed, count))}
    batches = plan(coming(streams(seed, count)), cost, caps=CAPS, free_ns=0)
    for batch in batches or ():
        end_ns = batch.start_ns + batch.cost_ns
        members = [frames.pop(key) for key in batch.frames]
        assert {category for category, _ in members} == {batch.category}
        assert sum(frame.rows for _, frame in members) == batch.rows <= CAPS[batch.category]
        assert batch.cost_ns == cost(batch.category[0], batch.rows)
        assert batch.due_ns == min(frame.due_ns for _, frame in members)
        assert all(f.release_ns <= batch.start_ns and end_ns <= f.due_ns for _, f in members)
    assert batches is None or not frames
    for before, after in zip(batches or (), (batches or ())[1:], strict=False):
        assert before.start_ns + before.cost_ns <= after.start_ns


@given(seeds, st.data())
def test_a_plan_pushed_to_its_latest_starts_still_is_in_time_and_no_further(
    seed: int, data: st.DataObject
) -> None:
    batches = plan(coming(streams(seed, 4)), cost, caps=CAPS, free_ns=0)
    if not batches:
        return
    latest = latest_starts(batches)
    assert all(batch.start_ns <= last for batch, last in zip(batches, latest, strict=True))
    first = data.draw(st.integers(min_value=0, max_value=len(batches) - 1))
    assert _all_in_time(batches, first, latest[first])
    assert not _all_in_time(batches, first, latest[first] + 1)


def _all_in_time(batches: list[PlannedBatch], first: int, t: int) -> bool:
    for batch in batches[first:]:
        t += batch.cost_ns
        if t > batch.due_ns:
            return False
    return True


def test_both_kinds_of_random_sets_occur() -> None:
    found = [plan(coming(streams(seed, 11)), cost, caps=CAPS, free_ns=0) for seed in range(60)]
    assert 5 < sum(batches is None for batches in found) < 55


def test_holding_fills_batches_and_eagerness_finishes_early() -> None:
    cameras = [
        Reservation(id=n, model="m", period_ns=100 * MS, relative_deadline_ns=80 * MS, frames=1,
                    start_ns=n * 5 * MS)
        for n in range(1, 5)
    ]  # fmt: skip
    held = simulate(coming(cameras), cost, caps=CAPS, free_ns=0, hold=0.5)
    eager = simulate(coming(cameras), cost, caps=CAPS, free_ns=0, hold=0.0)
    assert held is not None
    assert eager is not None
    assert [len(batch.frames) for batch in held] == [4]
    assert [len(batch.frames) for batch in eager] == [1, 1, 1, 1]
    assert eager[0].start_ns < held[0].start_ns


def test_what_is_planned_already_or_long_due_is_left_out() -> None:
    camera = Reservation(id=1, model="m", period_ns=50 * MS, relative_deadline_ns=40 * MS, frames=5)
    left = arrivals([camera], lead_ns=0, reply_ns=0, skip=frozenset({(1, 2)}), from_ns=60 * MS)
    assert [frame.key for _, _, frame in left] == [(1, 1), (1, 3), (1, 4)]
    assert plan([], cost, caps={}, free_ns=0) == []
