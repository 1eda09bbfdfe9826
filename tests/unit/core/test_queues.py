"""Queues: order, lanes, counts, and removal from anywhere."""

import random

import pytest

from tests.helpers import request
from tritonsched.core.queues import QueueSet, RequestQueue
from tritonsched.core.request import NEVER_NS, PATIENCE_NS, Request


def queue_of(*requests: Request) -> RequestQueue:
    queue = RequestQueue("m", 0, alone=False)
    for made in requests:
        queue.push(made)
    return queue


def ids(requests: object) -> list[int]:
    return [made.id for made in requests]  # type: ignore[attr-defined]  # any iterable


def test_members_come_by_due_time_then_id_whatever_the_weight() -> None:
    queue = queue_of(
        request(3, deadline=50),
        request(1, deadline=50, weight=9.0),
        request(2, deadline=40),
        request(4),
    )
    assert ids(queue) == [2, 1, 3, 4]
    assert queue.head.id == 2


def test_without_a_deadline_one_waits_as_if_due_after_the_patience() -> None:
    late = request(1, deadline=PATIENCE_NS + 11)
    queue = queue_of(late, request(2, arrival=10), request(3, deadline=PATIENCE_NS + 9))
    assert ids(queue) == [3, 2, 1]
    assert ids(queue.with_deadline()) == [3, 1]
    assert ids(queue.without_deadline()) == [2]
    assert queue.first_deadline_ns == PATIENCE_NS + 9


def test_a_queue_of_the_patient_has_no_first_deadline() -> None:
    queue = queue_of(request(1))
    assert queue.first_deadline_ns == NEVER_NS
    assert ids(queue.with_deadline()) == []
    assert ids(queue_of(request(1, deadline=5)).without_deadline()) == []


def test_in_time_are_the_most_valuable_first_and_nobody_who_would_be_late() -> None:
    queue = queue_of(
        request(1, deadline=10),
        request(2, deadline=20),
        request(3, deadline=30),
        request(4, deadline=15, weight=2.0),
        request(5, deadline=25, weight=2.0),
        request(6, weight=2.0),
    )
    assert ids(queue.in_time(20, 9)) == [5, 6, 2, 3]
    assert queue.last_missed_ns(20) == 15
    assert queue.last_missed_ns(10) is None
    assert queue.last_missed_ns(31) == 30


def test_counts_follow_pushes_and_removals() -> None:
    first, second = request(1, rows=3, deadline=5), request(2, rows=2)
    queue = queue_of(first, second)
    assert (len(queue), queue.rows, queue.deadlines, queue.rows_widest) == (2, 5, 1, 3)
    queue.remove((first,))
    assert (len(queue), queue.rows, queue.deadlines) == (1, 2, 0)
    assert queue.weight_max == 1.0


def test_removing_a_stranger_is_our_own_mistake() -> None:
    queue = queue_of(request(1, deadline=5), request(3, deadline=7))
    with pytest.raises(AssertionError, match="2 is not in"):
        queue.remove((request(2, deadline=6),))


def test_a_queue_says_what_it_holds() -> None:
    assert repr(queue_of(request(1, rows=2))) == "<queue m signature 0: 1 requests, 2 rows>"
    assert "alone" in repr(RequestQueue("m", 0, alone=True))


def _some(plain: list[Request], dice: random.Random) -> list[Request]:
    """Of those in the queue a few, as a batch has them (the best of its rows), or in any order."""
    count = min(len(plain), dice.choice((1, 1, 2, 5)))
    if dice.random() < 0.5:
        return sorted(plain, key=lambda r: (-r.weight, not r.has_deadline, r.due_ns, r.id))[:count]
    return dice.sample(plain, count)


def test_a_random_history_leaves_what_a_plain_list_would() -> None:
    dice = random.Random(5)
    queue, plain = RequestQueue("m", 0, alone=False), list[Request]()
    for number in range(400):
        if plain and dice.random() < 0.45:
            gone = _some(plain, dice)
            queue.remove(gone)
            plain = [one for one in plain if one not in gone]
        else:
            deadline = dice.choice([NEVER_NS, dice.randrange(50)])
            made = request(
                number, deadline=deadline, weight=dice.choice([1.0, 2.0]), rows=dice.randint(1, 3)
            )
            plain.append(made)
            queue.push(made)
        ordered = sorted(plain, key=lambda r: (r.due_ns, r.id))
        assert list(queue) == ordered
        if dice.random() < 0.5:  # what is remembered is asked for at some times only
            assert ordered == [] or queue.head is ordered[0]
            timed = [r.deadline_ns for r in plain]
            assert queue.first_deadline_ns == min(timed, default=NEVER_NS)
        assert queue.rows == sum(r.rows for r in plain)
        end = dice.randrange(50)
        in_time = [r for r in ordered if r.deadline_ns >= end]
        assert list(queue.in_time(end, 99)) == sorted(in_time, key=lambda r: -r.weight)
        missed = [r.deadline_ns for r in plain if r.deadline_ns < end]
        assert queue.last_missed_ns(end) == max(missed, default=None)


def test_a_set_keeps_one_queue_a_model_and_signature_and_one_for_the_lone() -> None:
    queues = QueueSet()
    made = [
        request(1, signature=4),
        request(2, signature=5),
        request(3, signature=4),
        request(4, signature=4, alone=True),
        request(5, signature=9, alone=True),
        request(6, model="n"),
    ]
    for one in made:
        queues.push(one)
    assert [ids(queue) for queue in queues.of_model("m")] == [[1, 3], [2], [4, 5]]
    assert (queues.requests_of("m"), queues.requests_of("n"), len(queues)) == (5, 1, 6)
    assert [queue.model for queue in queues] == ["m", "m", "m", "n"]


def test_a_set_forgets_empty_queues() -> None:
    queues = QueueSet()
    made = request(1)
    queues.push(made)
    assert 1 in queues
    assert queues.pop(1) is made
    assert queues.pop(1) is None
    assert queues.pop(1) is None
    assert (queues.of_model("m"), queues.requests_of("m"), list(queues)) == ([], 0, [])


def test_the_same_id_twice_is_our_own_mistake() -> None:
    queues = QueueSet()
    queues.push(request(1))
    with pytest.raises(AssertionError, match="queued already"):
        queues.push(request(1, deadline=7))
