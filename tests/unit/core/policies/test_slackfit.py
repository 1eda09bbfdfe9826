"""SlackFit: which variant and which batch fill the head's slack."""

import pytest

from tests.helpers import MS, Table, dispatch, exact, request, submit
from tests.unit.core.policies.scene import TWO, burst
from tritonsched.core.request import Request
from tritonsched.core.variant import Family, Variant

GOOD = {rows: (40 + 20 * rows) * MS // 10 for rows in range(1, 9)}  # 6 ms alone, 20 ms for eight
FAST = {rows: (38 + 10 * rows) * MS // 10 for rows in range(1, 9)}  # 4.8 ms alone, 11.8 for eight


def sent(requests: list[Request]) -> tuple[str, int]:
    """Variant and members of the first batch of `c`, which two models serve."""
    table = Table("slackfit", models={})
    for name, points, accuracy in (("fast", FAST, 0.6), ("good", GOOD, 0.8)):
        table.scheduler.set_variant(Variant(name, 8, ("gpu",), accuracy), 0)
        table.scheduler.set_profile(name, "gpu", exact(points))
    table.scheduler.set_family(Family("c", ("fast", "good")), 0)
    table.at(0, submit(*requests))
    batch = table.batches[1]
    return batch.model, len(batch.requests)


@pytest.mark.parametrize(
    ("waiting", "slack_ms", "variant", "taken"),
    [
        (8, 24, "good", 8),  # time enough for the accurate one
        (8, 12, "fast", 8),  # 12 ms are four of the accurate one or all eight: one bucket
        (2, 12, "good", 2),  # a few fill no bucket but the slow one's
        (8, 5.9, "fast", 2),  # the accurate one would be late even alone
    ],
)
def test_slack_picks_the_bucket_and_the_bucket_its_largest_batch(
    waiting: int, slack_ms: float, variant: str, taken: int
) -> None:
    assert sent(burst(range(waiting), slack_ms, model="c")) == (variant, taken)


def test_without_variants_it_is_the_largest_batch_that_keeps_the_head() -> None:
    table = Table("slackfit", models=TWO)
    urgent = burst(range(1, 4), 7, model="n")
    later = request(4, deadline=90 * MS)
    table.at(0, submit(later, *urgent))
    assert [r.id for r in table.batches[1].requests] == [1, 2]
    table.at(7 * MS)
    assert [r.id for r in table.batches[2].requests] == [4]
    assert table.ledger.reasons == {("c", "deadline-unreachable"): 1}


def test_nothing_waits_to_fill_a_batch() -> None:
    table = Table("slackfit")
    table.at(3 * MS, submit(request(1, deadline=90 * MS)))
    table.expect(3 * MS, dispatch(request(1)))
