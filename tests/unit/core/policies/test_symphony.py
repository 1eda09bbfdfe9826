"""Symphony's deferral: when a batch starts, and what that costs on one device."""

from tests.helpers import MS, Table, dispatch, done, reject, request, submit
from tests.unit.core.policies.scene import TWO, burst, busy_until
from tritonsched.core.tuning import Tuning


def test_a_batch_waits_until_one_more_could_no_longer_join() -> None:
    """Due at 20 ms: two would have to start by 13 ms, three by 12 ms."""
    table = Table("symphony")
    table.at(0, submit(request(1, deadline=20 * MS)))
    table.expect(13 * MS, dispatch(request(1)))
    joined = Table("symphony")
    made = burst(range(1, 3), 20)
    joined.at(0, submit(made[0]))
    joined.at(5 * MS, submit(made[1]))
    joined.expect(12 * MS, dispatch(*made))


def test_a_full_batch_starts_at_once() -> None:
    table = Table("symphony")
    made = burst(range(1, 9), 90)
    table.at(0, submit(*made))
    table.expect(0, dispatch(*made))


def test_round_trip_and_guard_are_taken_off_the_start() -> None:
    table = Table("symphony", tuning=Tuning(rtt_ns=1 * MS, guard_ns=MS // 2))
    table.at(0, submit(request(1, deadline=20 * MS)))
    table.expect(int(11.5 * MS), dispatch(request(1)))


def test_two_models_that_wait_for_the_same_moment_cost_one_of_them() -> None:
    """Eagerly both would be in time: 6 and 12 ms."""
    table = Table("symphony", models=TWO)
    first, second = request(1, deadline=19 * MS, model="n"), request(2, deadline=20 * MS)
    table.at(0, submit(first, second))
    table.expect(12 * MS, dispatch(first), reject(second))


def test_of_those_that_can_wait_no_longer_the_latest_start_decides() -> None:
    """Seven due at 35.2 ms must start by 23.2 ms, two due at 31 ms by 24 ms."""
    table = busy_until(23, "symphony")
    many, few = burst(range(1, 8), 35.2), burst(range(8, 10), 31, model="n")
    table.at(1 * MS, submit(*many, *few))
    table.expect(23 * MS, dispatch(*many), *map(reject, few))


def test_what_is_not_measured_well_enough_does_not_wait() -> None:
    table = Table("symphony", points=None)
    table.at(0, submit(request(1)))
    table.at(6 * MS, done(1))
    table.at(10 * MS, submit(request(2, deadline=90 * MS)))
    assert [batch.dispatch_ns for batch in table.batches.values()] == [0, 10 * MS]
