"""Nexus' early drop: the window, its target, and the order of models."""

import pytest

from tests.helpers import MS, Line, Table, dispatch, reject, request, submit
from tests.unit.core.policies.scene import TWO, burst, busy_until


@pytest.mark.parametrize("policy", ["nexus", "edf"])
def test_the_window_slides_past_a_head_that_would_make_it_small(policy: str) -> None:
    """The head has 8 ms left, enough for a batch of three; eight others wait behind it."""
    table = busy_until(23, policy)
    head, others = request(1, deadline=31 * MS), burst(range(2, 10), 50)
    table.at(1 * MS, submit(head))
    table.at(20 * MS, submit(*others))
    sent: tuple[Line, ...] = (dispatch(*others), reject(head))
    if policy == "edf":
        sent = (dispatch(head, *others[:2]),)
    table.expect(23 * MS, *sent)


def test_a_short_queue_gives_a_short_window_and_keeps_its_head() -> None:
    table = busy_until(23, "nexus")
    waiting = [request(1, deadline=31 * MS), *burst(range(2, 4), 50)]
    table.at(1 * MS, submit(waiting[0]))
    table.at(20 * MS, submit(*waiting[1:]))
    table.expect(23 * MS, dispatch(*waiting))


def test_of_the_target_batch_two_fit_into_the_deadline() -> None:
    """20 ms: two of 5 rows, 10 ms each; a batch of all 8 would be in time, too."""
    table = Table("nexus")
    made = burst(range(1, 9), 20)
    table.at(0, submit(*made))
    table.expect(0, dispatch(*made[:5]))


def test_without_room_for_two_the_target_is_one() -> None:
    table = Table("nexus")
    made = burst(range(1, 3), 11)
    table.at(0, submit(*made))
    table.expect(0, dispatch(made[0]), reject(made[1]))


def test_the_window_due_first_goes_first() -> None:
    table = Table("nexus", models=TWO)
    later, sooner = burst(range(1, 4), 60), burst(range(4, 6), 40, model="n")
    table.at(0, submit(*later, *sooner))
    table.expect(0, dispatch(*sooner))
    table.expect(7 * MS, dispatch(*later))


def test_a_patient_head_stays_in_a_window_that_passes_over_the_urgent() -> None:
    """Without a deadline it queues by its age, and no window makes it late."""
    table = busy_until(930, "nexus")
    patient, urgent = request(1), request(2, deadline=int(937.5 * MS))
    others = burst(range(3, 11), 990)
    table.at(0, submit(patient))
    table.at(900 * MS, submit(urgent, *others))
    table.expect(930 * MS, dispatch(*others[:8]), reject(urgent))
