"""Batch forming, checked against every possible batch where there are few enough."""

import random
from collections.abc import Sequence
from itertools import combinations

import pytest

from tests.helpers import MS, OneDevice, request
from tritonsched.core.batching import (
    MISFITS_MAX,
    BatchWindow,
    Candidate,
    densest,
    head_batch,
    prefix,
)
from tritonsched.core.queues import RequestQueue
from tritonsched.core.request import Request
from tritonsched.core.tuning import Tuning
from tritonsched.core.variant import Way


class View(OneDevice):
    """A policy's view with times of a + b * rows."""

    def __init__(
        self, *queues: RequestQueue, cap: int = 8, tuning: Tuning | None = None, base: int = 5 * MS
    ) -> None:
        self.tuning = tuning or Tuning(rtt_ns=0, guard_ns=0)
        self._queues = queues
        self._cap = cap
        self._base = base

    def queues(self, device: str) -> Sequence[RequestQueue]:
        return self._queues

    def variants(self, model: str, device: str) -> Sequence[Way]:
        return (Way(model),)

    def safe_ns(self, model: str, device: str, rows: int) -> int:
        return self._base + rows * MS

    def rows_cap(self, model: str, device: str) -> int:
        return self._cap


def queue_of(*requests: Request, alone: bool = False) -> RequestQueue:
    queue = RequestQueue("m", 0, alone=alone)
    for made in requests:
        queue.push(made)
    return queue


def best_density(queue: RequestQueue, view: View, start: int) -> float:
    """Over every subset of the queue that fits and is in time for all its members."""
    best = 0.0
    members = list(queue)
    for size in range(1, len(members) + 1):
        for chosen in combinations(members, size):
            rows = sum(r.rows for r in chosen)
            safe = view.safe_ns("m", "gpu", rows)
            in_time = all(start + safe <= r.deadline_ns for r in chosen)
            if in_time and (rows <= view.rows_cap("m", "gpu") or size == 1):
                best = max(best, sum(r.weight for r in chosen) / safe)
    return best


def random_queue(dice: random.Random, *, rows_max: int, weights: Sequence[float]) -> RequestQueue:
    return queue_of(
        *(
            request(
                number,
                deadline=dice.randint(4, 14) * MS,
                rows=dice.randint(1, rows_max),
                weight=dice.choice(weights),
            )
            for number in range(dice.randint(1, 6))
        )
    )


@pytest.mark.parametrize("seed", range(300))
def test_the_densest_batch_of_equals_is_the_best_of_all_batches(seed: int) -> None:
    """Same rows and weights: no subset of up to six requests earns more per time."""
    queue = random_queue(random.Random(seed), rows_max=1, weights=[1.0])
    view = View(queue, cap=random.Random(seed).randint(1, 6))
    found = densest(queue, view, "gpu", 0)
    assert (found.density if found else 0.0) == pytest.approx(best_density(queue, view, 0))


@pytest.mark.parametrize("seed", range(300))
def test_the_densest_batch_is_in_time_for_all_and_near_the_best(seed: int) -> None:
    """Mixed rows make it a knapsack, mixed weights a trade: never late, and never below half."""
    dice = random.Random(1000 + seed)
    queue = random_queue(dice, rows_max=3, weights=[1.0, 2.0, 4.0])
    view = View(queue, cap=dice.randint(3, 8))
    found = densest(queue, view, "gpu", 0)
    best = best_density(queue, view, 0)
    if found is None:
        assert best == 0.0
        return
    rows = sum(r.rows for r in found.requests)
    assert rows <= 8
    assert all(view.safe_ns("m", "gpu", rows) <= r.deadline_ns for r in found.requests)
    assert found.utility == sum(r.weight for r in found.requests)
    assert found.density >= best / 2


def test_densest_gives_up_a_head_that_would_shrink_the_batch() -> None:
    """The trap of plain EDF: the head leaves room for one row, the rest for eight."""
    tight = request(1, deadline=6 * MS)
    loose = [request(number, deadline=50 * MS) for number in range(2, 10)]
    queue = queue_of(tight, *loose)
    found = densest(queue, View(queue), "gpu", 0)
    assert found is not None
    assert found.requests == tuple(loose)
    assert head_batch(queue, View(queue), "gpu", 0) == (tight,)


def test_densest_of_the_lone_is_the_first_one_in_time() -> None:
    late, good = request(1, deadline=5 * MS), request(2, deadline=6 * MS)
    queue = queue_of(late, good, request(3, deadline=7 * MS), alone=True)
    found = densest(queue, View(queue), "gpu", 0)
    assert found is not None
    assert found.requests == (good,)
    assert densest(queue_of(late, alone=True), View(), "gpu", 0) is None


def test_densest_finds_nobody_when_nobody_can_be_in_time() -> None:
    queue = queue_of(request(1, deadline=5 * MS), request(2, deadline=4 * MS))
    assert densest(queue, View(queue), "gpu", 0) is None


def test_a_head_wider_than_the_cap_is_a_batch_all_the_same() -> None:
    wide = request(1, rows=12)
    queue = queue_of(wide)
    found = densest(queue, View(queue, cap=4), "gpu", 0)
    assert found is not None
    assert found.requests == (wide,)
    assert prefix(queue, 4) == (wide,)


def test_the_search_for_a_fitting_member_is_bounded() -> None:
    """One row is left and everybody has two: the queue is not read to its end."""
    first = request(0, rows=7, deadline=90 * MS)
    wide = [request(n, rows=2, deadline=91 * MS) for n in range(1, MISFITS_MAX + 2)]
    small = request(99, rows=1, deadline=92 * MS)
    for others, taken in ((wide[:-2], (first, small)), (wide, (first,))):
        queue = queue_of(first, *others, small)
        found = densest(queue, View(queue), "gpu", 0)
        assert found is not None
        assert found.requests == taken


def test_a_prefix_ends_before_the_first_that_does_not_fit() -> None:
    made = [request(1, rows=3), request(2, rows=3), request(3, rows=1)]
    assert prefix(made, 4) == (made[0],)
    assert prefix(made, 6) == tuple(made[:2])
    assert prefix(made, 99) == tuple(made)


def test_the_head_batch_is_the_largest_prefix_in_time_for_its_first_deadline() -> None:
    made = [request(n, deadline=(7 + n) * MS) for n in range(1, 6)]
    queue = queue_of(*made)
    assert head_batch(queue, View(queue), "gpu", 0) == tuple(made[:3])
    assert head_batch(queue, View(queue), "gpu", 3 * MS) == ()


def test_the_head_batch_of_the_lone_is_the_head() -> None:
    made = [request(1, deadline=50 * MS), request(2, deadline=50 * MS)]
    queue = queue_of(*made, alone=True)
    assert head_batch(queue, View(queue), "gpu", 0) == (made[0],)


def test_a_patient_head_goes_even_if_a_deadline_behind_it_is_lost() -> None:
    patient, timed = request(1), request(2, deadline=1_000 * MS + 1)
    queue = queue_of(patient, timed)
    assert head_batch(queue, View(queue), "gpu", 999 * MS) == (patient,)
    assert head_batch(queue, View(queue), "gpu", 0) == (patient, timed)


def test_a_window_closes_at_its_end_at_the_latest_start_or_when_full() -> None:
    tuning = Tuning(rtt_ns=MS, guard_ns=0, reply_ns=2 * MS, window_ns=10 * MS)
    view = View(tuning=tuning, cap=2)
    aged = queue_of(request(1, arrival=3 * MS, deadline=90 * MS))
    assert BatchWindow(aged, view, "gpu").closes_ns == 13 * MS
    urgent = queue_of(request(1, arrival=3 * MS, deadline=20 * MS))
    assert BatchWindow(urgent, view, "gpu").closes_ns == (20 - 6 - 2 - 1) * MS
    full = queue_of(request(1), request(2))
    assert BatchWindow(full, view, "gpu").closes_ns == 0
    assert BatchWindow(queue_of(request(1), alone=True), view, "gpu").closes_ns == 0
    assert BatchWindow(aged, view, "gpu").is_open(13 * MS - 1)
    assert not BatchWindow(aged, view, "gpu").is_open(13 * MS)


def test_density_is_utility_per_time() -> None:
    queue = queue_of(request(1))
    assert Candidate(queue, tuple(queue), utility=3.0, safe_ns=6).density == 0.5


def test_a_head_over_the_cap_that_is_skipped_does_not_lift_the_cap_for_others() -> None:
    """Found by the state machine: 7 rows stood at the head, and 1 + 3 + 3 others took their
    place.
    """
    queue = RequestQueue("m", 1, alone=False)
    queue.push(request(1, rows=7, deadline=6 * MS))
    for number, rows in ((2, 1), (3, 3), (4, 3)):
        queue.push(request(number, rows=rows, deadline=900 * MS))
    found = densest(queue, View(queue, cap=6), "gpu", 0)
    assert found is not None
    assert sum(r.rows for r in found.requests) <= 6
