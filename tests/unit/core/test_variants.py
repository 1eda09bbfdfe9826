"""A model with variants: who serves it, by which rule, and what the answers are worth."""

from dataclasses import replace

import pytest

from tests.helpers import MS, Table, dispatch, done, exact, request, server, submit
from tritonsched.core.batch import Dispatch
from tritonsched.core.policies import POLICIES
from tritonsched.core.request import RejectReason, Request, Utility
from tritonsched.core.variant import Family, ServerState, Variant, Way

GOOD, FAST = "good", "fast"


def table(policy: str = "lite", *, family: str = "c", rows_max: int = 8) -> Table:
    """`c` is served by `good` (10 ms a batch, accuracy 0.8) and `fast` (2 ms, 0.6)."""
    made = Table(policy, models={})
    for name, ms, accuracy in ((FAST, 2, 0.6), (GOOD, 10, 0.8)):
        made.scheduler.set_variant(Variant(name, rows_max, ("gpu",), accuracy), 0)
        made.scheduler.set_profile(name, "gpu", exact({1: ms * MS, rows_max: ms * MS}))
    made.scheduler.set_family(Family(family, (FAST, GOOD)), 0)
    return made


def asked(number: int, ms: float | None = None, **more: object) -> Request:
    made = request(number, model="c", deadline=int(ms * MS)) if ms else request(number, model="c")
    return replace(made, **more)  # type: ignore[arg-type]


def sent(made: Table) -> list[tuple[str, float, tuple[int, ...]]]:
    """Triton model, worth and members of each batch so far."""
    batches = made.batches.values()
    return [(b.model, round(b.worth, 3), tuple(r.id for r in b.requests)) for b in batches]


@pytest.mark.parametrize("policy", ["lite", "lookahead"])
def test_the_most_accurate_runs_while_there_is_time_and_a_faster_one_where_there_is_not(
    policy: str,
) -> None:
    made = table(policy)
    made.at(0, submit(asked(1, 50)))
    made.at(10 * MS, done(1), submit(asked(2, 15)))
    assert sent(made) == [(GOOD, 1.0, (1,)), (FAST, 0.75, (2,))]


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_rule_serves_a_model_with_variants(policy: str) -> None:
    made = table(policy)
    for number in range(1, 4):
        made.at(number * 600 * MS, submit(asked(number, number * 600 + 500)))
        made._run_to((number * 600 + 550) * MS)
        for batch in tuple(made.scheduler.running()):
            made.at(made.now, done(batch.id))
    assert {r for _, _, members in sent(made) for r in members} == {1, 2, 3}
    assert {model for model, _, _ in sent(made)} <= {GOOD, FAST}


def test_a_request_is_hopeless_only_if_the_fastest_variant_is_too_late() -> None:
    made = table()
    made.at(0, submit(asked(1, 50)))
    made.at(10 * MS, done(1), submit(asked(2, 15)))
    made.at(12 * MS, done(2), submit(asked(3, 13.9), asked(4, 14)))
    assert [reason for _, reason in made.ledger.reasons] == ["deadline-unreachable"]
    assert sent(made)[2:] == [(FAST, 0.75, (4,))]


def test_who_asks_for_a_variant_gets_that_one_and_shares_no_batch_with_the_others() -> None:
    made = table()
    made.at(0, submit(asked(1, 50), request(2, model=FAST, deadline=60 * MS)))
    assert made.scheduler.queued() == {"c": 0, FAST: 1, GOOD: 0}
    made.at(10 * MS, done(1))
    assert sent(made) == [(GOOD, 1.0, (1,)), (FAST, 1.0, (2,))]


def test_a_variant_that_goes_is_replaced_by_the_next_best_and_comes_back() -> None:
    made = table()
    assert made.scheduler.variants("c", "gpu") == (Way(GOOD), Way(FAST, 0.6 / 0.8))
    made.at(0, lambda t: t.scheduler.drop_model(GOOD, t.now))
    assert made.scheduler.variants("c", "gpu") == (Way(FAST),)  # now the best there is
    made.at(1 * MS, submit(asked(1, 50)))
    made.scheduler.set_variant(Variant(GOOD, 8, ("gpu",), 0.8), 3 * MS)
    made.scheduler.set_profile(GOOD, "gpu", exact({1: 10 * MS, 8: 10 * MS}))
    made.at(3 * MS, done(1), submit(asked(2, 50)))
    assert sent(made) == [(FAST, 1.0, (1,)), (GOOD, 1.0, (2,))]


def test_without_any_variant_what_waits_is_refused() -> None:
    made = table()
    made.at(0, submit(asked(1), asked(2)))
    made.at(1 * MS, submit(asked(3)))
    made.at(2 * MS, *(lambda t, m=m: t.scheduler.drop_model(m, t.now) for m in (GOOD, FAST)))
    reasons = {reason for (_, reason) in made.ledger.reasons}
    assert reasons == {RejectReason.TRITON_UNAVAILABLE.value}
    with pytest.raises(KeyError, match="no variant"):
        made.scheduler.submit(asked(4), 3 * MS)


def test_a_family_may_bear_the_name_of_one_of_its_variants() -> None:
    """Clients that always asked for `good` get `fast` when nothing else is in time."""
    made = table(family=GOOD)
    ask = [replace(asked(n, ms), model=GOOD) for n, ms in ((1, 50), (2, 15))]
    made.at(0, submit(ask[0]))
    made.at(10 * MS, done(1), submit(ask[1]))
    assert sent(made) == [(GOOD, 1.0, (1,)), (FAST, 0.75, (2,))]
    made.at(20 * MS, done(2), lambda t: t.scheduler.drop_family(GOOD, t.now))
    made.at(20 * MS, submit(replace(ask[1], id=3, deadline_ns=25 * MS)))
    assert dict(made.ledger.reasons) == {("c", "deadline-unreachable"): 1}


def test_its_own_variant_is_the_default_even_if_another_is_better() -> None:
    made = table("fcfs", family=FAST)
    made.at(0, submit(request(1, model=FAST)))
    assert sent(made) == [(FAST, 0.75, (1,))]
    assert made.scheduler.safe_ns(FAST, "gpu", 1) == 2 * MS


def test_an_answer_of_a_lesser_variant_counts_less() -> None:
    made = table()
    made.at(0, submit(asked(1, 5)))
    made.at(2 * MS, done(1))
    made.at(2 * MS, submit(asked(2, 50)))
    made.at(12 * MS, done(2))
    assert made.ledger.utility["c"] == pytest.approx(0.75 + 1.0)


def test_a_probe_goes_to_the_variant_whose_times_are_old() -> None:
    made = table()
    made.at(5000 * MS, submit(asked(1, 5001)))
    assert sent(made) == [(FAST, 0.75, (1,))]
    assert made.batches[1].probe


def test_full_queues_say_when_to_come_again_by_the_default_variants_times() -> None:
    made = table()
    made.at(0, server(ServerState.READY), submit(asked(1)))
    made.scheduler.retune(replace(made.scheduler.tuning, queue_requests_max=1), 0)
    made.at(1 * MS, submit(asked(2)))
    refused = [d for d in _decided(made, 1 * MS, asked(3)) if not isinstance(d, Dispatch)]
    assert [getattr(d, "retry_after_ns", None) for d in refused] == [10 * MS]


def _decided(made: Table, now: int, more: Request) -> list[object]:
    made.scheduler.submit(more, now)
    return list(made.scheduler.decide(now))


# -- worth that falls before the deadline -----------------------------------------------------


def soft(number: int, ms: float) -> Request:
    return asked(number, ms, utility=Utility.linear(0.5))


def test_a_faster_variant_runs_when_the_better_one_would_lose_more_by_its_time() -> None:
    """Due at 12 ms, soft at 6: `good` ends at 10 and earns 1/3, `fast` earns 0.75."""
    made = table()
    made.at(0, submit(soft(1, 12)))
    assert sent(made) == [(FAST, 0.75, (1,))]


@pytest.mark.parametrize("policy", ["lite", "lookahead"])
def test_a_smaller_batch_may_earn_more_though_all_would_be_in_time(policy: str) -> None:
    """1 ms and 1 ms a row: eight end at 9 of 10 ms and earn 0.2 each; four end at 5, all of it."""
    made = Table(policy, points={rows: MS + rows * MS for rows in range(1, 9)})
    ask = [replace(request(n, deadline=10 * MS), utility=Utility.linear(0.5)) for n in range(1, 9)]
    made.at(0, submit(*ask))
    assert [len(batch.requests) for batch in made.batches.values()] == [4]


def test_what_falls_while_another_batch_runs_is_that_ones_price() -> None:
    """Both are in time in either order; `n` loses worth from 6 ms on, `m` nothing until 30."""
    made = Table("lite", models={"m": (8, ("gpu",)), "n": (8, ("gpu",))})
    falling = replace(request(2, model="n", deadline=31 * MS), utility=Utility.linear(0.2))
    made.at(0, submit(request(1, deadline=30 * MS), falling))
    made.expect(0, dispatch(falling))
