"""The small leaves: when a device is free, what is counted, who is refused at the door."""

from collections.abc import Sequence

import pytest

from tests.helpers import MS, request
from tritonsched.core.admission import is_hopeless, refusal
from tritonsched.core.batch import Batch, Completion
from tritonsched.core.devices import DeviceState
from tritonsched.core.ledger import Ledger
from tritonsched.core.observers import Audience, Observer
from tritonsched.core.request import Outcome, RejectReason, Request
from tritonsched.core.variant import ServerState


def batch(number: int, *, sent: int, start: int, exec_ns: int = 10 * MS) -> Batch:
    return Batch(number, "m", "gpu", (request(number),), 1, sent, start, exec_ns)


def test_an_idle_device_can_start_a_round_trip_from_now() -> None:
    device = DeviceState("gpu")
    assert device.has_room(5 * MS, 0)
    assert device.available_ns(5 * MS, MS) == 6 * MS


def test_a_busy_device_has_room_when_its_batch_ends_within_the_lead() -> None:
    device = DeviceState("gpu")
    device.start(batch(1, sent=0, start=MS), proven=True)
    assert not device.has_room(10 * MS - 1, MS)
    assert device.has_room(10 * MS, MS)
    assert device.available_ns(9 * MS, MS) == 11 * MS
    assert device.available_ns(12 * MS, MS) == 13 * MS  # it overruns


def test_at_most_one_batch_is_sent_ahead() -> None:
    device = DeviceState("gpu")
    device.start(batch(1, sent=0, start=MS), proven=True)
    device.start(batch(2, sent=10 * MS, start=11 * MS), proven=True)
    assert not device.has_room(30 * MS, MS)


def test_nothing_is_sent_ahead_on_a_guess() -> None:
    device = DeviceState("gpu")
    device.start(batch(1, sent=0, start=MS, exec_ns=0), proven=False)
    assert not device.has_room(50 * MS, MS)


def test_a_batch_sent_ahead_is_timed_from_the_end_of_the_one_before() -> None:
    device = DeviceState("gpu")
    first, second = batch(1, sent=0, start=MS), batch(2, sent=10 * MS, start=11 * MS)
    device.start(first, proven=True)
    device.start(second, proven=True)
    assert device.finish(first, Completion(first.id), 12 * MS, MS) == 11 * MS
    assert device.finish(second, Completion(second.id), 20 * MS, MS) == 8 * MS
    assert device.batches == []


def test_a_batch_that_came_late_is_timed_from_its_own_arrival() -> None:
    device = DeviceState("gpu")
    first, second = batch(1, sent=0, start=MS), batch(2, sent=10 * MS, start=11 * MS)
    device.start(first, proven=True)
    device.start(second, proven=True)
    device.finish(first, Completion(first.id), 9 * MS, MS)
    assert device.finish(second, Completion(second.id), 20 * MS, MS) == 9 * MS


def test_time_without_a_message_is_not_the_batchs() -> None:
    """Sent 3 ms after its dispatch: the device idled, the batch was no slower for it."""
    device = DeviceState("gpu")
    first, second = batch(1, sent=0, start=MS), batch(2, sent=10 * MS, start=11 * MS)
    device.start(first, proven=True)
    device.start(second, proven=True)
    device.finish(first, Completion(1), 12 * MS, MS)
    late = Completion(2, sent_ns=13 * MS, returned_ns=20 * MS)
    assert device.finish(second, late, 25 * MS, MS) == 6 * MS


def test_an_answer_that_overtakes_leaves_the_first_ones_start_alone() -> None:
    device = DeviceState("gpu")
    first, second = batch(1, sent=0, start=MS), batch(2, sent=10 * MS, start=11 * MS)
    device.start(first, proven=True)
    device.start(second, proven=True)
    assert device.finish(second, Completion(second.id), 12 * MS, MS) == MS
    assert device.finish(first, Completion(first.id), 14 * MS, MS) == 13 * MS


def test_a_predicted_end_follows_what_was_learnt_and_is_never_past() -> None:
    device = DeviceState("gpu")
    first, second = batch(1, sent=0, start=MS), batch(2, sent=10 * MS, start=11 * MS)
    device.predict(lambda _: 99, 0)
    assert device.predicted_end_ns == 0  # nothing runs, nothing to predict
    device.start(first, proven=True)
    device.start(second, proven=True)
    device.predict(lambda _: 4 * MS, 3 * MS)
    assert device.predicted_end_ns == 9 * MS
    device.predict(lambda _: 4 * MS, 20 * MS)
    assert device.predicted_end_ns == 24 * MS


def test_the_ledger_counts_each_outcome_once_and_earns_only_what_is_in_time() -> None:
    ledger = Ledger()
    made = [request(n, deadline=10, weight=2.0) for n in range(4)]
    for one in made:
        ledger.on_submit(one, 0)
    ledger.on_dispatch(batch(1, sent=0, start=0), 0)
    ledger.on_complete(batch(1, sent=0, start=0), measured_ns=3, now=10)
    ledger.on_outcomes((made[0],), Outcome.SERVED, "", 10)
    ledger.on_outcomes((made[1],), Outcome.LATE, "", 11)
    ledger.on_outcomes((made[2],), Outcome.REJECTED, "queue-full", 0)
    ledger.on_outcomes((made[3],), Outcome.FAILED, "", 9)
    assert ledger.total(Outcome.SERVED) == ledger.outcomes["c", Outcome.SERVED] == 1
    assert ledger.utility["c"] == 2.0
    assert ledger.reasons["c", "queue-full"] == 1
    assert ledger.submitted["c"] == 4
    assert ledger.miss_ratio == pytest.approx(1 / 3)
    assert ledger.rows_mean == 1.0


def test_an_empty_ledger_divides_by_nothing() -> None:
    assert (Ledger().miss_ratio, Ledger().rows_mean) == (0.0, 0.0)
    assert (Ledger().miss_ratio_of("a"), Ledger().on_time_share_of("a")) == (0.0, None)


def test_the_ledger_tells_tenants_apart() -> None:
    ledger = Ledger()
    for number, (tenant, outcome) in enumerate(
        [("a", Outcome.SERVED), ("a", Outcome.LATE), ("a", Outcome.REJECTED),
         ("a", Outcome.CANCELLED), ("a", Outcome.SERVED), ("b", Outcome.CANCELLED)]
    ):  # fmt: skip
        ledger.on_outcomes((request(number, tenant=tenant),), outcome, "", 0)
    assert (ledger.on_time_share_of("a"), ledger.on_time_share_of("b")) == (0.5, None)
    assert ledger.miss_ratio_of("a") == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, None),
        ({"server": ServerState.AWAY}, RejectReason.TRITON_UNAVAILABLE),
        ({"server": ServerState.DRAINING}, RejectReason.DRAINING),
        ({"full": RejectReason.TENANT_OVER_SHARE}, RejectReason.TENANT_OVER_SHARE),
        ({"earliest_finish_ns": 101}, RejectReason.DEADLINE_UNREACHABLE),
        ({"earliest_finish_ns": 101, "full": RejectReason.QUEUE_FULL}, RejectReason.QUEUE_FULL),
    ],
)
def test_who_is_refused_at_the_door(fields: dict[str, object], reason: RejectReason | None) -> None:
    given: dict[str, object] = {
        "full": None,
        "earliest_finish_ns": 100,
        "server": ServerState.READY,
    }
    made = request(1, deadline=100)
    assert refusal(made, **(given | fields)) is reason  # type: ignore[arg-type]  # checked above


def test_a_second_try_is_taken_while_draining() -> None:
    again = Request(1, "m", "c", 0, 1, 0, alone=True, retry=True)
    for full in (None, RejectReason.QUEUE_FULL):
        found = refusal(again, full=full, earliest_finish_ns=0, server=ServerState.DRAINING)
        assert found is full


def test_without_a_deadline_nothing_is_hopeless() -> None:
    assert not is_hopeless(request(1), 1 << 63)
    assert is_hopeless(request(1, deadline=5), 6)
    assert not is_hopeless(request(1, deadline=5), 5)


class Leaver(Observer):
    """Hears who leaves, and nothing else."""

    def __init__(self) -> None:
        self.left: list[int] = []

    def on_outcomes(
        self, requests: Sequence[Request], outcome: Outcome, reason: str, now: int
    ) -> None:
        self.left += [one.id for one in requests]


class Counter(Leaver):
    """What it does not define itself, but the class before it does, is heard, too."""

    def on_submit(self, request: Request, now: int) -> None:
        self.left.append(-request.id)


def test_who_listens_is_called_for_what_it_defines_and_nothing_else() -> None:
    first, second = Leaver(), Counter()
    audience = Audience((first,))
    audience.join(second)
    assert audience.submit == [second.on_submit]
    assert audience.outcomes == [first.on_outcomes, second.on_outcomes]
    assert (audience.dispatch, audience.complete) == ([], [])
