"""The look-ahead: what it sends where one step is not enough, and the bounds of its work."""

from collections.abc import Sequence

import pytest

from tests.helpers import EXACT, MS, Table, dispatch, request, submit
from tritonsched.core.batching import Candidate
from tritonsched.core.policies import lookahead
from tritonsched.core.policies.lookahead import (
    CANDIDATES_MAX,
    Lookahead,
    _Ahead,
    _candidates,
    _Line,
)
from tritonsched.core.policy import Choice
from tritonsched.core.queues import RequestQueue
from tritonsched.core.request import Request
from tritonsched.core.variant import Way

THREE = {"m": (8, ("gpu",)), "n": (8, ("gpu",)), "o": (8, ("gpu",))}


class View:
    """A policy's view with times of 5 ms + 1 ms a row, eight rows at most."""

    tuning = EXACT

    def __init__(self, *queues: RequestQueue) -> None:
        self._queues = queues

    def queues(self, device: str) -> Sequence[RequestQueue]:
        return self._queues

    def variants(self, model: str, device: str) -> Sequence[Way]:
        return (Way(model),)

    def safe_ns(self, model: str, device: str, rows: int) -> int:
        return 5 * MS + rows * MS

    def rows_cap(self, model: str, device: str) -> int:
        return 8


def queue_of(*members: Request, model: str = "m", alone: bool = False) -> RequestQueue:
    queue = RequestQueue(model, 0, alone=alone)
    for member in members:
        queue.push(member)
    return queue


def chosen(*queues: RequestQueue) -> Choice:
    choice = Lookahead().choose(View(*queues), "gpu", start_ns=0, now=0)
    assert isinstance(choice, Choice)
    return choice


def ahead(*queues: RequestQueue, candidates: int = 2, price: float = 0.0) -> _Ahead:
    return _Ahead(queues, View(*queues), "gpu", start_ns=0, price=price, candidates=candidates)


def test_while_everything_fits_the_earliest_deadline_goes_first() -> None:
    table = Table("lookahead", models=THREE)
    later, sooner = request(1, deadline=90 * MS), request(2, deadline=40 * MS, model="n")
    table.at(0, submit(later, sooner))
    table.expect(0, dispatch(sooner))


def test_a_small_urgent_batch_goes_before_a_dense_one_that_can_wait() -> None:
    """One row due at once, and more than fits a batch due late: both are had in this order."""
    urgent = queue_of(request(1, deadline=7 * MS))
    dense = queue_of(*(request(n, deadline=60 * MS, model="n") for n in range(2, 14)), model="n")
    assert chosen(urgent, dense).queue is urgent


def test_a_small_urgent_batch_is_given_up_if_it_costs_more_than_it_earns() -> None:
    urgent = queue_of(request(1, deadline=7 * MS))
    dense = queue_of(*(request(n, deadline=14 * MS, model="n") for n in range(2, 14)), model="n")
    assert chosen(urgent, dense).queue is dense


def test_one_queue_sends_its_densest_batch() -> None:
    queue = queue_of(*(request(n, deadline=14 * MS) for n in range(1, 12)))
    assert len(chosen(queue).requests) == 8


def test_nobody_in_time_is_no_batch() -> None:
    late = queue_of(*(request(n, deadline=5 * MS) for n in (1, 2)))
    assert Lookahead().choose(View(late), "gpu", start_ns=0, now=0) is None


def test_a_pick_takes_the_most_valuable_that_are_in_time() -> None:
    members = [request(n, deadline=n * 2 * MS, weight=1.0 + n % 2) for n in range(1, 13)]
    line = _Line(queue_of(*members), View(), "gpu")
    pick = line.pick(line.start(), 0)
    assert pick is not None
    # Eight rows end after 13 ms: six are in time. Six end after 11 ms: 14, 18, 22 weigh 2, and
    # of the others the earliest, 12, 16 and 20, make it full.
    assert (pick.utility, pick.safe_ns, pick.latest_ns) == (9.0, 11 * MS, 1 * MS)
    assert pick.spots == (6, 5)


def test_a_pick_shrinks_until_somebody_is_in_time_and_gives_up_in_the_end() -> None:
    few = _Line(queue_of(*(request(n, deadline=9 * MS) for n in range(1, 9))), View(), "gpu")
    pick = few.pick(few.start(), 0)
    assert pick is not None
    assert pick.utility == 4.0
    none = _Line(queue_of(*(request(n, deadline=5 * MS) for n in range(1, 9))), View(), "gpu")
    assert none.pick(none.start(), 0) is None
    assert _Line(queue_of(request(1, deadline=MS)), View(), "gpu").pick((0,), 0) is None


def test_those_without_a_deadline_are_always_in_time() -> None:
    line = _Line(queue_of(request(1), request(2, deadline=MS)), View(), "gpu")
    pick = line.pick(line.start(), 0)
    assert pick is not None
    assert pick.utility == 1.0


def test_the_lone_are_picked_one_by_one() -> None:
    queue = queue_of(*(request(n, deadline=90 * MS, alone=True) for n in (1, 2)), alone=True)
    line = _Line(queue, View(), "gpu")
    pick = line.pick(line.start(), 0)
    assert pick is not None
    assert pick.utility == 1.0


def test_lanes_stand_after_the_last_member_that_left() -> None:
    members = [request(n, deadline=n * 10 * MS, weight=1.0 + n % 2) for n in range(1, 9)]
    line = _Line(queue_of(*members), View(), "gpu")
    gone = Candidate(queue_of(), (members[2], members[0]), 4.0, 7 * MS)
    assert line.after(gone) == (2, 0)


def test_a_score_is_all_that_the_queues_still_give() -> None:
    first = queue_of(*(request(n, deadline=90 * MS) for n in range(1, 9)))
    second = queue_of(*(request(n, deadline=90 * MS, model="n") for n in range(9, 17)), model="n")
    batch = Candidate(first, tuple(first), 8.0, 13 * MS)
    assert ahead(first, second).score(batch) == 16.0


def test_a_price_is_taken_for_the_time_used() -> None:
    queue = queue_of(*(request(n, deadline=90 * MS) for n in range(1, 9)))
    batch = Candidate(queue, tuple(queue), 8.0, 13 * MS)
    assert ahead(queue, price=1 / MS).score(batch) == pytest.approx(8.0 - 13.0)


def test_what_ends_beyond_the_horizon_counts_for_its_part() -> None:
    queue = queue_of(request(1, deadline=8 * MS))
    batch = Candidate(queue, tuple(queue), 1.0, 24 * MS)
    assert ahead(queue).score(batch) == pytest.approx(0.5)


def test_of_many_candidates_the_densest_and_the_most_urgent_are_kept() -> None:
    queues = [
        queue_of(
            *(request(10 * k + n, deadline=(7 + 2 * n) * MS, model=f"m{k}") for n in range(8)),
            model=f"m{k}",
        )
        for k in range(8)
    ]
    found = _candidates(queues, View(*queues), "gpu", 0)
    assert len(found) == CANDIDATES_MAX
    assert len({id(one) for one in found}) == len(found)
    half = CANDIDATES_MAX // 2
    densities = [one.density for one in found]
    assert min(densities[:half]) >= max(densities[half:])


def test_the_work_of_a_decision_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0
    pick = _Line.pick

    def counted(line: _Line, spots: tuple[int, ...], start_ns: int) -> object:
        nonlocal looks
        looks += 1
        return pick(line, spots, start_ns)

    monkeypatch.setattr(_Line, "pick", counted)
    for models in (2, 5, 8, 9, 60):
        looks = 0
        queues = [
            queue_of(
                *(request(100 * k + n, deadline=2000 * MS, model=f"m{k}") for n in range(40)),
                model=f"m{k}",
            )
            for k in range(models)
        ]
        chosen(*queues)
        assert (looks > 0) == (models <= lookahead.QUEUES_MAX)
        assert looks <= lookahead.PICKS_MAX
