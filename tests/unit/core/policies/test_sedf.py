"""Sequential EDF, as a table of times."""

from tests.helpers import MS, Table, dispatch, done, reject, request, submit
from tests.unit.core.policies.scene import TWO, burst


def test_the_one_due_first_of_all_models_goes_alone() -> None:
    table = Table("sedf", models=TWO)
    later, sooner = burst(range(1, 3), 90), request(3, deadline=40 * MS, model="n")
    table.at(0, submit(*later, sooner))
    table.expect(0, dispatch(sooner))
    table.expect(6 * MS, dispatch(later[0]))
    table.at(12 * MS, done(1), done(2))
    table.expect(12 * MS, dispatch(later[1]))


def test_what_one_batch_would_have_served_in_time_is_too_much_one_by_one() -> None:
    table = Table("sedf")
    made = burst(range(1, 5), 20)  # together: 9 ms
    table.at(0, submit(*made))
    table.expect(0, dispatch(made[0]))
    table.at(6 * MS, done(1))
    table.expect(6 * MS, dispatch(made[1]))
    table.at(12 * MS, done(2))
    table.expect(12 * MS, dispatch(made[2]), reject(made[3]))
