"""Clipper's AIMD: how the size moves, and whom it takes."""

import pytest

from tests.helpers import MS, Line, Table, dispatch, reject, request, submit
from tests.unit.core.policies.scene import TWO, View, burst, queue_of
from tritonsched.core.policies import clipper
from tritonsched.core.policies.clipper import Clipper
from tritonsched.core.policy import Choice
from tritonsched.core.queues import RequestQueue


def affine(rows: int) -> int:
    return 5 * MS + rows * MS


def drained(policy: Clipper, queue: RequestQueue, batches: int) -> list[int]:
    """Rows of so many batches, one after the other."""
    sizes = []
    for _ in range(batches):
        choice = policy.choose(View(affine, queue), "gpu", start_ns=0, now=0)
        assert isinstance(choice, Choice)
        sizes.append(len(choice.requests))
        for request_ in choice.requests:
            queue.remove((request_,))
    return sizes


def test_the_size_grows_by_one_and_shrinks_by_a_tenth_where_the_objective_is() -> None:
    """12 ms are kept by 7 rows, not by 8: 8 → 7.2, 8.2 → 7.4, 8.4 → 7.5."""
    queue = queue_of(burst(range(100), 12))
    assert drained(Clipper(), queue, 12) == [1, 2, 3, 4, 5, 6, 7, 8, 7, 8, 7, 8]


def test_only_a_batch_as_large_as_allowed_makes_it_grow() -> None:
    policy = Clipper()
    assert drained(policy, queue_of(burst(range(6), 90)), 3) == [1, 2, 3]
    assert drained(policy, queue_of(burst(range(1), 90)), 1) == [1]
    assert drained(policy, queue_of(burst(range(9), 90)), 2) == [4, 5]


def test_the_oldest_request_goes_first_whatever_is_due() -> None:
    table = Table("clipper", models=TWO)
    old, urgent = request(1, deadline=90 * MS), request(2, deadline=20 * MS, model="n")
    table.at(0, submit(request(9)))
    table.expect(0, dispatch(request(9)))
    table.at(1 * MS, submit(old))
    table.at(2 * MS, submit(urgent))
    table.expect(6 * MS, dispatch(old))


@pytest.mark.parametrize("drop_late", [False, True])
def test_whom_the_batch_makes_late_is_sent_unless_told_otherwise(drop_late: bool) -> None:
    table = Table(Clipper(drop_late=drop_late))
    table.at(0, submit(request(1)))
    table.expect(0, dispatch(request(1)))
    head, others = request(2, deadline=int(12.5 * MS)), burst(range(3, 5), 90)
    table.at(1 * MS, submit(head, *others))
    sent: tuple[Line, ...] = (dispatch(head, others[0]),)
    if drop_late:
        sent = (dispatch(*others), reject(head))
    table.expect(6 * MS, *sent)


def test_when_everybody_would_be_late_nobody_is_sent() -> None:
    view = View(affine, queue_of(burst(range(3), 2)))
    assert Clipper(drop_late=True).choose(view, "gpu", start_ns=0, now=0) is None


def test_the_models_it_remembers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clipper, "MODELS_MAX", 1)
    policy = Clipper()
    assert drained(policy, queue_of(burst(range(9), 90)), 2) == [1, 2]
    assert drained(policy, queue_of(burst(range(1), 90, model="n")), 1) == [1]
    assert drained(policy, queue_of(burst(range(9), 90)), 1) == [1]
