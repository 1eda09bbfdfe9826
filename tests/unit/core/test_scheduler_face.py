"""What the scheduler tells of itself, learns and refuses: what a driver may rely on."""

from dataclasses import replace

import pytest

from tests.helpers import EXACT, MS, S, Table, dispatch, done, exact, reject, request, submit
from tritonsched.core.batch import Completion, Dispatch
from tritonsched.core.latency import LatencyProfile
from tritonsched.core.policies import POLICIES
from tritonsched.core.request import Outcome
from tritonsched.core.scheduler import Scheduler
from tritonsched.core.tuning import Tuning
from tritonsched.core.variant import Variant

JIT = Tuning(rtt_ns=MS, guard_ns=MS)


def test_time_does_not_go_back() -> None:
    table = Table()
    table.at(5)
    with pytest.raises(AssertionError, match="time went back: 4 after 5"):
        table.scheduler.decide(4)


def test_a_scheduler_says_what_it_holds() -> None:
    table = Table()
    table.at(0, submit(request(1)))
    table.at(1, submit(request(2)))
    assert repr(table.scheduler) == "<scheduler lite ready: 1 queued, 1 batches running>"


def test_a_dispatch_names_when_it_is_expected_to_be_back() -> None:
    scheduler = Scheduler(POLICIES["lite"](), tuning=JIT)
    scheduler.set_variant(Variant("m", 8, ("gpu",)), 0)
    scheduler.set_profile("m", "gpu", exact({1: 6 * MS}))
    scheduler.submit(request(1), 0)
    (decision,) = scheduler.decide(0)
    assert isinstance(decision, Dispatch)
    assert decision.batch.expected_end_ns == 7 * MS
    assert not decision.batch.probe
    assert scheduler.queued() == {"m": 0}
    assert Outcome.SERVED.value == "served"


def test_the_time_of_an_answer_counts_for_the_device_and_of_the_replies_for_the_members() -> None:
    """Writing 32 replies takes a while: the device was free before, the last member is late."""
    table = Table(tuning=JIT)
    table.at(0, submit(request(1, deadline=8 * MS)))
    profile = table.scheduler._profiles["m", "gpu"]
    before_ns = profile.exec_ns(1)
    table.scheduler.complete(Completion(1, returned_ns=7 * MS), 9 * MS)
    assert profile.exec_ns(1) == before_ns
    assert table.ledger.total(Outcome.LATE) == 1


def test_a_models_times_are_measured_once_a_batch_or_a_profile_told_them() -> None:
    scheduler = Scheduler(POLICIES["edf"]())
    scheduler.set_variant(Variant("m", 8, ("gpu",)), 0)
    assert not scheduler.is_measured("m", "gpu")
    assert not scheduler.is_measured("n", "gpu")
    scheduler.set_profile("m", "gpu", exact({1: 6 * MS}))
    assert scheduler.is_measured("m", "gpu")
    scheduler.drop_model("m", 1)
    assert not scheduler.is_measured("m", "gpu")


# -- learning ---------------------------------------------------------------------------------


def test_an_unknown_model_is_learnt_by_doubling_and_never_refused_before() -> None:
    table = Table(points=None)
    made = [request(n, deadline=S) for n in range(1, 40)]
    table.at(0, submit(*made))
    sizes: list[int] = []
    while len(table.batches) > len(sizes):
        sizes.append(len(table.batches[len(table.batches)].requests))
        table.at(table.now + 5 * MS, done(len(sizes)))
    assert sizes == [1, 2, 4, 8, 8, 8, 8]
    assert all(batch.probe for batch in table.batches.values())
    assert table.ledger.total(Outcome.SERVED) == 39


def test_the_cap_is_the_smallest_of_model_tuning_and_what_is_known() -> None:
    scheduler = Scheduler(POLICIES["lite"](), tuning=Tuning(rows_cap=6))
    scheduler.set_profile("m", "gpu", LatencyProfile())
    scheduler.set_variant(Variant("m", 8, ("gpu",)), 0)
    assert scheduler.rows_cap("m", "gpu") == 1
    scheduler.set_profile("m", "gpu", exact({2: MS}))
    assert scheduler.rows_cap("m", "gpu") == 4
    scheduler.set_profile("m", "gpu", exact({8: MS}))
    assert scheduler.rows_cap("m", "gpu") == 6
    scheduler.retune(Tuning(), 0)
    assert scheduler.rows_cap("m", "gpu") == 8


def test_feedback_changes_what_is_promised_from_the_next_decision_on() -> None:
    table = Table()
    table.scheduler.retune(Tuning(rtt_ns=0, guard_ns=0, reply_ns=5 * MS), 0)
    table.scheduler._profiles["m", "gpu"].observe(rows=1, exec_ns=6 * MS, now=0)
    fits, misses = request(1, deadline=11 * MS), request(2, deadline=11 * MS - 1)
    table.at(0, submit(fits, misses))
    table.expect(0, dispatch(fits), reject(misses))  # the device does not wait for refusals


# -- what a driver may rely on ----------------------------------------------------------------


def test_nothing_to_do_means_no_wakeup() -> None:
    table = Table()
    assert table.scheduler.next_wakeup() is None
    table.at(0, submit(request(1)))
    assert table.scheduler.next_wakeup() is None


def test_deciding_twice_decides_nothing_more() -> None:
    table = Table()
    made = [request(n, deadline=14 * MS) for n in range(1, 20)]
    table.at(0, submit(*made))
    assert table.scheduler.decide(0) == []
    assert table.scheduler.decide(1) == []


def test_with_learning_off_times_stay_as_they_were_proven() -> None:
    for learning, expected_ns in ((False, 6 * MS), (True, 12 * MS)):
        table = Table(tuning=replace(EXACT, learning=learning))
        for number in range(1, 6):
            start = table.now
            table.at(start, submit(request(number)))
            table.at(start + 12 * MS, done(number))
        profile = table.scheduler._profiles["m", "gpu"]
        assert abs(profile.exec_ns(1) - expected_ns) <= 0.03 * expected_ns
