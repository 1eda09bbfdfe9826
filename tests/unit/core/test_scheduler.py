"""The façade, as tables of times: what is decided when, and what a driver may rely on."""

import pytest

from tests.helpers import (
    MS,
    S,
    Step,
    Table,
    cancel,
    dispatch,
    done,
    expire,
    reject,
    request,
    server,
    submit,
)
from tritonsched.core.batch import Completion, Reject
from tritonsched.core.request import RejectReason, Request
from tritonsched.core.state import AWAY_RETRY_NS
from tritonsched.core.tuning import Tuning
from tritonsched.core.variant import ServerState, Variant

AWAY = RejectReason.TRITON_UNAVAILABLE
JIT = Tuning(rtt_ns=MS, guard_ns=MS)


class _Idle:
    """A rule that never runs anything: what waits is left to the scheduler."""

    name = "idle"
    keeps_deadlines = True

    def choose(self, *_: object, **__: object) -> None:
        return None


def outcomes(table: Table) -> dict[str, int]:
    return {outcome.value: n for (_, outcome), n in table.ledger.outcomes.items() if n}


# -- just in time -----------------------------------------------------------------------------


def test_the_next_batch_is_sent_a_round_trip_and_a_guard_before_the_end() -> None:
    """The first one starts a round trip after it was sent, and runs 6 ms."""
    table = Table(tuning=JIT)
    table.at(0, submit(request(1)))
    table.expect(0, dispatch(request(1)))
    table.at(1 * MS, submit(request(2)))
    table.expect_nothing(4 * MS)
    table.expect(5 * MS, dispatch(request(2)))
    table.at(6 * MS, submit(request(3)))
    table.expect_nothing(7 * MS)
    table.at(7 * MS, done(1))
    table.expect(11 * MS, dispatch(request(3)))


def test_a_batch_that_is_let_go_frees_its_device_and_teaches_nothing() -> None:
    """It is running until it comes back, and then it is served."""
    table = Table(tuning=JIT)
    table.at(0, submit(request(1)))
    table.at(2 * MS, submit(request(2)))
    table.expect(0, dispatch(request(1)))
    before = table.scheduler._profiles["m", "gpu"].exec_ns(1)
    table.at(3 * MS, lambda t: t.scheduler.let_go(t.batches[1].id, t.now))
    table.expect(3 * MS, dispatch(request(2)))
    assert [batch.id for batch in table.scheduler.running()] == [1, 2]
    assert table.batches[2].expected_start_ns == 4 * MS
    table.at(50 * MS, done(1))
    assert table.scheduler._profiles["m", "gpu"].exec_ns(1) == before
    assert outcomes(table) == {"served": 1}


def test_a_batch_that_arrives_early_moves_the_next_ones_end() -> None:
    table = Table(tuning=JIT)
    table.at(0, submit(request(1)))
    table.at(5 * MS, submit(request(2)))
    assert table.batches[2].expected_start_ns == 7 * MS
    table.at(6 * MS, done(1), submit(request(3)))
    exec_ns = table.scheduler._profiles["m", "gpu"].exec_ns(1)
    assert exec_ns < 6 * MS  # it has learnt from the early one
    assert table.scheduler.next_wakeup() == 6 * MS + exec_ns - JIT.lead_ns


def test_a_failed_batch_moves_it_too_but_teaches_nothing() -> None:
    table = Table(tuning=JIT)
    table.at(0, submit(request(1, alone=True)))
    table.at(5 * MS, submit(request(2)))
    before = table.scheduler.safe_ns("m", "gpu", 1)
    table.at(5_500_000, done(1, ok=False), submit(request(3)))
    assert table.scheduler.safe_ns("m", "gpu", 1) == before
    assert table.scheduler.next_wakeup() == 10 * MS  # batch 2 cannot start before 6 ms
    assert outcomes(table) == {"failed": 1}


def test_devices_work_side_by_side() -> None:
    table = Table(models={"m": (1, ("a", "b"))})
    made = [request(n) for n in (1, 2, 3)]
    table.at(0, submit(*made))
    table.expect(0, dispatch(made[0], device="a"), dispatch(made[1], device="b"))
    table.at(6 * MS, done(2))
    table.expect(6 * MS, dispatch(made[2], device="b"))  # idle; "a" is only about to be


def test_an_idle_device_goes_before_one_that_is_nearly_done() -> None:
    table = Table(models={"m": (1, ("a", "b")), "n": (1, ("a",))}, tuning=JIT)
    table.at(0, submit(request(1, model="n")))
    table.expect(0, dispatch(request(1, model="n"), device="a"))
    table.at(5 * MS, submit(request(2)))
    table.expect(5 * MS, dispatch(request(2), device="b"))


# -- refusing ---------------------------------------------------------------------------------


def test_what_cannot_be_in_time_is_refused_on_arrival() -> None:
    table = Table()
    hopeless = request(1, deadline=5 * MS)
    table.scheduler._profiles["m", "gpu"].observe(rows=1, exec_ns=6 * MS, now=0)
    table.at(0, submit(hopeless))
    table.expect(0, reject(hopeless))


def test_what_turns_hopeless_by_waiting_is_refused_at_that_very_moment() -> None:
    """A device that idles for another model's sake: it can start 6 ms of work until 14 ms."""
    table = Table(_Idle())
    waiting, patient = request(1, deadline=20 * MS), request(2)
    table.at(0, submit(waiting, patient))
    table.expect_nothing(14 * MS)
    table.expect(14 * MS + 1, reject(waiting))


def test_one_with_a_deadline_behind_one_without_is_refused_in_time() -> None:
    """The head of the queue has no deadline; the scheduler looks past it."""
    table = Table(_Idle())
    patient = request(1)
    table.at(0, submit(patient))
    behind = request(2, deadline=S + 100 * MS)
    table.at(S, submit(behind))
    table.expect_nothing(S + 94 * MS)
    table.expect(S + 94 * MS + 1, reject(behind))


def test_a_wide_one_behind_a_narrow_one_is_refused_in_time() -> None:
    """Eight rows take 13 ms, one takes 6: the later deadline is lost first."""
    table = Table(_Idle())
    narrow, wide = request(1, deadline=30 * MS), request(2, deadline=31 * MS, rows=8)
    table.at(0, submit(narrow, wide))
    table.expect(18 * MS + 1, reject(wide))
    table.expect(24 * MS + 1, reject(narrow))


def test_what_a_dispatch_makes_hopeless_is_refused_with_it() -> None:
    table = Table()
    made = [request(n, deadline=14 * MS) for n in range(1, 10)]
    table.at(0, submit(*made))
    table.expect(0, dispatch(*made[:8]), reject(made[8]))


def test_a_deadline_that_passed_unseen_expires() -> None:
    """Only if the driver comes late; hopeless is normally seen before."""
    table = Table(_Idle())
    made = request(1, deadline=20 * MS)
    table.scheduler.submit(made, 0)
    table.scheduler.decide(0)
    table.now = 25 * MS
    table._decide()
    table.expect(25 * MS, expire(made))
    assert outcomes(table) == {"expired": 1}


def test_a_full_queue_refuses_with_the_time_to_serve_it() -> None:
    table = Table(tuning=Tuning(rtt_ns=0, guard_ns=0, queue_requests_max=9))
    table.at(0, submit(request(1)))
    table.expect(0, dispatch(request(1)))
    for number in range(2, 11):
        table.at(0, submit(request(number)))
    table.scheduler.submit(request(11), 0)
    (decision,) = table.scheduler.decide(0)
    assert isinstance(decision, Reject)
    assert decision.reason is RejectReason.QUEUE_FULL
    assert decision.retry_after_ns == 2 * 13 * MS
    assert table.scheduler.queued() == {"m": 9}


def test_old_news_is_no_reason_to_refuse_an_idle_device() -> None:
    """The profile says 6 ms but was not confirmed for a second: one is let through to look."""
    table = Table()
    first, second = request(1, deadline=S + 3 * MS), request(2, deadline=S + 3 * MS)
    table.at(S, submit(first, second))
    table.expect(S, dispatch(first), reject(second))
    assert table.batches[1].probe
    table.at(S + 2 * MS, done(1))
    third = request(3, deadline=S + 5 * MS)
    table.at(S + 3 * MS, submit(third))
    table.expect(S + 3 * MS, reject(third))
    assert outcomes(table) == {"served": 1, "rejected": 2}


def test_nobody_is_refused_for_a_batch_whose_time_is_a_guess() -> None:
    """One row of a new model took 300 ms, once: 32 rows may take 9.6 s, or no time at all."""
    table = Table()
    table.scheduler.set_variant(Variant("new", 32, ("gpu",)), 0)
    table.at(0, submit(request(1, model="new")))
    table.expect(0, dispatch(request(1, model="new")))
    table.at(300 * MS, done(1))
    wide = request(2, model="new", rows=32)
    table.at(S, submit(wide))
    table.expect(S, dispatch(wide))
    assert table.batches[2].expected_end_ns == 10_600 * MS
    made = request(3, deadline=S + 100 * MS)
    table.at(S + 1, submit(made))
    table.expect_nothing(S + 1)
    table.at(S + 50 * MS, done(2))
    table.expect(S + 50 * MS, dispatch(made))


def test_no_probe_is_sent_for_what_a_round_trip_alone_makes_late() -> None:
    table = Table(tuning=JIT, points=None)
    made = request(1, deadline=MS - 1)
    table.at(0, submit(made))
    table.expect(0, reject(made))


def test_a_busy_device_is_not_probed() -> None:
    table = Table()
    table.at(S, submit(request(1)))
    table.expect(S, dispatch(request(1)))
    late = request(2, deadline=S + 9 * MS)
    table.at(S + 1, submit(late))
    table.expect(S + 1, reject(late))


# -- leaving ----------------------------------------------------------------------------------


def test_a_queued_request_whose_client_leaves_is_gone() -> None:
    table = Table()
    made = [request(n) for n in (1, 2, 3)]
    table.at(0, submit(made[0]))
    table.at(1 * MS, submit(made[1], made[2]))
    table.at(2 * MS, cancel(2))
    table.at(6 * MS, done(1))
    assert outcomes(table) == {"cancelled": 1, "served": 1}
    assert [r.id for r in table.batches[2].requests] == [3]


def test_a_client_that_leaves_in_the_moment_of_its_arrival_is_gone() -> None:
    table = Table()
    table.at(0, submit(request(1), request(2)), cancel(1))
    table.expect(0, dispatch(request(2)))
    assert outcomes(table) == {"cancelled": 1}


def test_a_dispatched_one_whose_client_leaves_counts_when_its_batch_is_back() -> None:
    table = Table()
    table.at(0, submit(request(1), request(2)))
    table.at(1 * MS, cancel(1))
    assert outcomes(table) == {}
    table.at(7 * MS, done(1))
    assert outcomes(table) == {"cancelled": 1, "served": 1}


def test_cancelling_a_stranger_is_harmless() -> None:
    table = Table()
    table.at(0, cancel(77))
    table.at(0, submit(request(1)))
    table.at(6 * MS, done(1), cancel(1))
    assert outcomes(table) == {"served": 1}


def test_a_batch_taken_apart_is_counted_once_and_its_members_go_alone() -> None:
    table = Table()
    made = [request(n) for n in (1, 2)]
    table.at(0, submit(*made))
    table.at(7 * MS, done(1, ok=False, retried=True), *map(_again, made))
    assert [r.id for r in table.batches[2].requests] == [1]
    table.at(13 * MS, done(2))
    table.at(19 * MS, done(3, ok=False))
    assert outcomes(table) == {"served": 1, "failed": 1}
    assert table.ledger.submitted["c"] == 2


def test_one_that_left_a_batch_that_is_taken_apart_is_counted_too() -> None:
    table = Table()
    made = [request(n) for n in (1, 2)]
    table.at(0, submit(*made))
    table.at(1 * MS, cancel(1))
    table.at(7 * MS, done(1, ok=False, retried=True), _again(made[1]))
    table.at(13 * MS, done(2))
    assert outcomes(table) == {"cancelled": 1, "served": 1}


def _again(made: Request) -> Step:
    retry = Request(made.id, made.model, made.slo, 0, made.rows, 0, alone=True, retry=True)
    return submit(retry)


def test_an_answer_after_the_deadline_is_late() -> None:
    table = Table()
    table.at(0, submit(request(1, deadline=7 * MS)))
    table.at(8 * MS, done(1))
    assert outcomes(table) == {"late": 1}


def test_an_unknown_batch_is_our_own_mistake() -> None:
    with pytest.raises(KeyError):
        Table().scheduler.complete(Completion(9), 0)


# -- Triton comes and goes --------------------------------------------------------------------


def test_while_triton_is_away_everything_is_refused_with_a_hint() -> None:
    table = Table()
    made = [request(n) for n in (1, 2, 3)]
    table.at(0, submit(made[0]))
    table.expect(0, dispatch(made[0]))
    table.at(1 * MS, submit(made[1]))
    table.at(2 * MS, server(ServerState.AWAY))
    table.expect(2 * MS, reject(made[1], AWAY))
    table.at(3 * MS, submit(made[2]))
    table.expect(3 * MS, reject(made[2], AWAY))
    table.at(4 * MS, server(ServerState.READY), done(1, ok=False), submit(request(4)))
    table.expect(4 * MS, dispatch(request(4)))
    assert AWAY_RETRY_NS >= S


def test_draining_refuses_the_new_and_serves_the_old() -> None:
    table = Table()
    table.at(0, submit(request(1)))
    table.at(1 * MS, submit(request(2)))
    table.at(2 * MS, server(ServerState.DRAINING), submit(request(3)))
    assert outcomes(table) == {"rejected": 1}
    table.at(6 * MS, done(1))
    table.at(12 * MS, done(2))
    assert outcomes(table) == {"rejected": 1, "served": 2}


def test_a_model_that_is_gone_is_refused_and_its_batch_still_counts() -> None:
    table = Table()
    made = [request(n) for n in (1, 2, 3)]
    table.at(0, submit(made[0]))
    table.expect(0, dispatch(made[0]))
    table.at(1 * MS, submit(made[1]))
    table.scheduler.submit(made[2], 2 * MS)
    table.scheduler.drop_model("m", 2 * MS)
    assert table.scheduler.next_wakeup() is None
    table.at(2 * MS)
    table.expect(2 * MS, reject(made[2], AWAY), reject(made[1], AWAY))
    table.at(6 * MS, done(1))
    assert outcomes(table) == {"rejected": 2, "served": 1}
    table.scheduler.drop_model("m", 6 * MS)  # twice is harmless


def test_an_unannounced_model_is_our_own_mistake() -> None:
    with pytest.raises(KeyError, match="call set_variant first"):
        Table().scheduler.submit(request(1, model="x"), 0)


def test_a_model_that_moves_takes_its_queue_with_it_and_keeps_its_times() -> None:
    table = Table(models={"m": (8, ("a",)), "n": (8, ("b",))})
    table.at(0, submit(request(1)))
    table.at(1 * MS, submit(request(2)))
    table.scheduler.set_variant(Variant("m", 8, ("b",)), 2 * MS)
    table.at(2 * MS)
    assert table.batches[2].device == "b"
    table.scheduler.set_variant(Variant("m", 8, ("a",)), 3 * MS)
    assert table.scheduler.safe_ns("m", "a", 1) == 6 * MS


def test_a_hopeless_request_is_refused_while_it_arrives_and_counted_once() -> None:
    """One that may be in time leaves no trace until it is submitted."""
    table = Table()
    table.at(0, submit(request(1)))
    table.expect(0, dispatch(request(1)))
    late, fine = request(2, deadline=7 * MS), request(3, deadline=20 * MS)
    refused = table.scheduler.refuse(late, 1 * MS)
    assert refused == Reject(late, RejectReason.DEADLINE_UNREACHABLE)
    assert table.scheduler.refuse(fine, 1 * MS) is None
    assert table.ledger.submitted == {"c": 2}
    assert outcomes(table) == {"rejected": 1}


def test_old_news_refuse_nobody_who_still_arrives() -> None:
    """It may be sent to measure, and is waited for; as is what is refused for other reasons."""
    table = Table()
    late = request(1, deadline=5 * MS)
    assert table.scheduler.refuse(late, 0) is None
    table.at(0, server(ServerState.AWAY))
    assert table.scheduler.refuse(late, 0) is None
    assert outcomes(table) == {}
