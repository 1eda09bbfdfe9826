"""Clockwork's strategies: which model, which size."""

from tests.helpers import MS, Table, dispatch, reject, request, submit
from tests.unit.core.policies.scene import TWO, burst, busy_until


def test_the_model_whose_batch_must_start_first_goes_before_the_one_due_first() -> None:
    """Eight due at 40 ms must start by 27 ms, one due at 34 ms by 28 ms."""
    table = Table("clockwork", models=TWO)
    many, one = burst(range(1, 9), 40), request(9, deadline=34 * MS, model="n")
    table.at(0, submit(*many, one))
    table.expect(0, dispatch(*many))
    table.expect(13 * MS, dispatch(one))


def test_the_largest_size_that_enough_wait_for_passes_over_the_heads() -> None:
    table = busy_until(23, "clockwork")
    head, others = request(1, deadline=31 * MS), burst(range(2, 10), 50)
    table.at(1 * MS, submit(head))
    table.at(20 * MS, submit(*others))
    table.expect(23 * MS, dispatch(*others), reject(head))


def test_between_two_sizes_a_batch_is_filled_as_far_as_its_head_allows() -> None:
    table = busy_until(20, "clockwork")
    head, others = request(1, deadline=30 * MS), burst(range(2, 8), 50)
    table.at(1 * MS, submit(head, *others))
    table.expect(20 * MS, dispatch(head, *others[:4]))  # 5 rows: 10 ms; there is none of 8


def test_a_wide_request_is_timed_by_its_rows() -> None:
    table = Table("clockwork")
    wide, narrow = request(1, deadline=11 * MS, rows=6), request(2, deadline=40 * MS)
    table.at(0, submit(wide, narrow))
    table.expect(0, dispatch(wide))
