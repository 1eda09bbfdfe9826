"""What the scheduler tells of itself, and what it refuses of a driver."""

import pytest

from tests.helpers import MS, Table, exact, request, submit
from tritonsched.core.batch import Completion, Dispatch
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
