"""Reservations in the scheduler, one rule a test. Rule: a table of times; the test of a proposal is
run by hand, as a driver runs it beside its loop.
"""

from dataclasses import replace

import pytest

from tests.helpers import EXACT, MS, exact
from tritonsched.core.batch import Batch, Completion, Decision, Dispatch, Grant, Refuse, Reject
from tritonsched.core.desk import ASKED_MAX, ATTEMPTS_MAX, CUT_NS
from tritonsched.core.latency import LatencyProfile
from tritonsched.core.policies import POLICIES
from tritonsched.core.request import NEVER_NS, RejectReason, Request
from tritonsched.core.reservation import RefusalReason, Reservation
from tritonsched.core.scheduler import Scheduler
from tritonsched.core.variant import ServerState, Variant

TIMES = {rows: (4 + rows) * MS for rows in range(1, 9)}  # 5 ms alone
STREAM = Reservation(
    id=1, model="m", period_ns=100 * MS, relative_deadline_ns=40 * MS, frames=5, start_ns=1000 * MS
)


class Desk:
    """A scheduler with two models on one device, and its driver's part."""

    def __init__(self, rule: str = "lite") -> None:
        self.scheduler = Scheduler(POLICIES[rule](), tuning=EXACT)
        for model in ("m", "n"):
            self.scheduler.set_variant(Variant(model, 8, ("gpu0",)), 0)
            self.scheduler.set_profile(model, "gpu0", exact(TIMES))
        self.running: list[Batch] = []

    def decide(self, ms: float) -> list[Decision]:
        decisions = self.scheduler.decide(round(ms * MS))
        self.running += [d.batch for d in decisions if isinstance(d, Dispatch)]
        return decisions

    def done(self, ms: float) -> list[Decision]:
        self.scheduler.complete(Completion(self.running.pop(0).id), round(ms * MS))
        return self.decide(ms)

    def ask(self, *streams: Reservation, ms: float = 0) -> list[Decision]:
        for stream in streams:
            self.scheduler.reserve(stream, round(ms * MS))
        return self.judged(ms)

    def judged(self, ms: float) -> list[Decision]:
        found: list[Decision] = self.decide(ms)
        while (proposal := self.scheduler.proposal(round(ms * MS))) is not None:
            self.scheduler.judge(proposal.run(), round(ms * MS))
            found += self.decide(ms)
        return found

    def submit(self, number: int, ms: float, *, due: float = 0, **fields: object) -> None:
        deadline = round(due * MS) if due else NEVER_NS
        request = Request(number, "m", "c", 0, 1, round(ms * MS), deadline)
        self.scheduler.submit(replace(request, **fields), round(ms * MS))  # type: ignore[arg-type]

    def frame(self, number: int, ms: float, **fields: object) -> None:
        self.submit(number, ms, due=ms + 40, **{"reservation": 1, **fields})


def members(decisions: list[Decision]) -> list[tuple[int, ...]]:
    return [tuple(r.id for r in d.batch.requests) for d in decisions if isinstance(d, Dispatch)]


def reasons(decisions: list[Decision]) -> list[tuple[int, RefusalReason]]:
    return [(d.reservation.id, d.reason) for d in decisions if isinstance(d, Refuse)]


def test_an_operator_sees_what_is_granted_and_what_runs() -> None:
    desk = Desk()
    assert (desk.scheduler.reservations(), desk.scheduler.running()) == ((), ())
    desk.ask(STREAM)
    ((granted, device),) = desk.scheduler.reservations()
    assert (granted.id, device) == (STREAM.id, "gpu0")
    desk.submit(1, 1)
    desk.decide(1)
    assert [batch.id for batch in desk.scheduler.running()] == [1]
    desk.done(6)
    assert desk.scheduler.running() == ()
    desk.scheduler.release(STREAM.id, 6 * MS)
    assert desk.scheduler.reservations() == ()


def test_a_stream_that_fits_is_granted_with_its_plan_and_decisions_go_on_meanwhile() -> None:
    desk = Desk()
    desk.scheduler.reserve(STREAM, 0)
    assert desk.decide(0) == []
    proposal = desk.scheduler.proposal(0)
    assert proposal is not None
    assert desk.scheduler.proposal(0) is None
    desk.submit(9, 1, due=50)
    assert members(desk.decide(1)) == [(9,)]
    desk.scheduler.judge(proposal.run(), 2 * MS)
    (granted,) = desk.decide(2)
    assert isinstance(granted, Grant)
    assert granted.reservation == STREAM
    assert [batch.frames for batch in granted.plan] == [((1, k),) for k in range(5)]


def test_a_guaranteed_batch_starts_at_its_planned_time_and_not_before() -> None:
    desk = Desk()
    (granted,) = desk.ask(STREAM)
    assert isinstance(granted, Grant)
    start_ns = granted.plan[0].start_ns
    assert start_ns > STREAM.start_ns
    desk.frame(1, 1000)
    assert desk.decide(1000) == []
    assert desk.scheduler.next_wakeup() == start_ns
    assert members(desk.decide(start_ns / MS)) == [(1,)]


def test_best_effort_runs_in_the_gap_and_waits_where_there_is_none() -> None:
    desk = Desk()
    desk.ask(STREAM)
    desk.frame(1, 1000)
    desk.submit(2, 1000, due=1300)
    assert members(desk.decide(1000)) == [(2,)]  # 10 of the 35 ms before the latest start
    assert members(desk.done(1005)) == []
    desk.submit(3, 1014, due=1300, model="n")
    assert members(desk.decide(1014)) == [(3,)]
    assert members(desk.done(1030)) == [(1,)]  # an overrun: late, and still in time
    desk.submit(4, 1030.5, due=1300, model="n")
    assert members(desk.done(1035)) == [(4,)]


def test_who_is_of_the_same_kind_rides_along_if_the_batch_still_is_in_time() -> None:
    desk = Desk()
    desk.ask(STREAM)
    desk.frame(1, 1000)
    desk.submit(7, 1000, due=1025)
    desk.submit(8, 1000, model="n")
    assert members(desk.decide(1000)) == [(7,)]
    desk.submit(2, 1004, due=1100)
    desk.submit(3, 1004, due=1100, signature=1)
    desk.submit(4, 1004, due=1100, alone=True)
    desk.decide(1004)
    planned = desk.done(1020)
    assert members(planned) == [(1, 2)]


def test_only_the_declared_frames_are_guaranteed() -> None:
    desk = Desk()
    desk.ask(STREAM)
    streams = desk.scheduler._streams
    desk.frame(1, 1000)
    desk.frame(2, 1000)  # a second one at the same time
    desk.frame(3, 1000, model="n")
    desk.frame(4, 1000, rows=2)
    desk.frame(5, 1000, alone=True)
    desk.frame(6, 1000, arrival_ns=1050 * MS)
    desk.frame(7, 1000, reservation=5)
    desk.frame(8, 1000, arrival_ns=1100 * MS)  # its deadline is tighter than the stream's
    desk.decide(1000)
    assert list(streams._places) == [1]
    assert streams.waiting("gpu0")


def test_a_client_that_leaves_takes_its_frame_out_of_the_plan() -> None:
    desk = Desk()
    (granted,) = desk.ask(STREAM)
    assert isinstance(granted, Grant)
    desk.frame(1, 1000)
    desk.decide(1000)
    desk.scheduler.cancel(1, 1001 * MS)
    assert desk.decide(granted.plan[0].start_ns / MS) == []


def test_a_frame_that_an_overrun_left_no_time_for_is_refused() -> None:
    desk = Desk()
    desk.ask(STREAM)
    desk.submit(9, 1000, model="n")
    desk.frame(1, 1000)
    assert members(desk.decide(1000)) == [(9,)]
    (refused,) = desk.done(1037)
    assert isinstance(refused, Reject)
    assert (refused.request.id, refused.reason) == (1, RejectReason.DEADLINE_UNREACHABLE)


def test_frames_are_refused_when_nothing_serves_them() -> None:
    desk = Desk()
    desk.ask(STREAM)
    desk.frame(1, 1000)
    desk.decide(1000)
    desk.scheduler.set_server(ServerState.AWAY, 1001 * MS)
    (refused,) = desk.decide(1001)
    assert isinstance(refused, Reject)
    assert refused.reason is RejectReason.TRITON_UNAVAILABLE


def test_a_stream_that_does_not_fit_is_told_what_would() -> None:
    desk = Desk()
    tight = replace(STREAM, relative_deadline_ns=4 * MS)
    often = replace(STREAM, id=2, period_ns=MS, relative_deadline_ns=9 * MS, frames=2000)
    refusals = desk.ask(tight, often)
    assert reasons(refusals) == [(1, RefusalReason.UNSCHEDULABLE), (2, RefusalReason.UNSCHEDULABLE)]
    first, second = (d.nearest for d in refusals if isinstance(d, Refuse))
    assert first is not None
    assert second is not None
    assert first.period_ns is None
    assert first.relative_deadline_ns is not None
    assert 5 * MS <= first.relative_deadline_ns < 6 * MS
    near = replace(tight, relative_deadline_ns=first.relative_deadline_ns)
    assert isinstance(desk.ask(near)[0], Grant)


def test_a_cheaper_model_is_named_when_it_would_fit() -> None:
    desk = Desk()
    desk.scheduler.reserve(replace(STREAM, relative_deadline_ns=4 * MS), 0)
    asked = desk.scheduler.proposal(0)
    assert asked is not None
    (device,) = asked.devices
    device = replace(device, caps={"m": 8, "n": 1}, safe_ns={**device.safe_ns, "n": [0, MS]})
    verdict = replace(asked, devices=(device,), others=("m", "n")).run()
    assert verdict.nearest.model == "n"


def test_what_cannot_be_tested_is_refused_with_the_reason() -> None:
    desk = Desk()
    desk.scheduler.set_profile("n", "gpu0", LatencyProfile())
    unknown = replace(STREAM, id=2, model="x")
    unmeasured = replace(STREAM, id=3, model="n")
    wide = replace(STREAM, id=4, rows=9)
    over = replace(STREAM, id=5, frames=1, start_ns=0)
    assert reasons(desk.ask(unknown, unmeasured, wide, over)) == [
        (2, RefusalReason.TRITON_UNAVAILABLE),
        (3, RefusalReason.NOT_MEASURED),
        (4, RefusalReason.UNSCHEDULABLE),
        (5, RefusalReason.UNSCHEDULABLE),
    ]
    crowd = [replace(STREAM, id=10 + number, rows=9) for number in range(ASKED_MAX + 1)]
    assert reasons(desk.ask(*crowd))[0] == (10 + ASKED_MAX, RefusalReason.TOO_MANY)


def test_an_id_is_granted_once_until_it_is_released() -> None:
    desk = Desk()
    desk.ask(STREAM)
    with pytest.raises(ValueError, match="exists already"):
        desk.scheduler.reserve(STREAM, 0)
    desk.frame(1, 1000)
    desk.decide(1000)
    desk.scheduler.release(1, 1001 * MS)
    assert members(desk.decide(1001)) == [(1,)]  # best effort, at once
    desk.scheduler.release(1, 1001 * MS)
    assert isinstance(desk.ask(replace(STREAM, start_ns=2000 * MS), ms=1002)[0], Grant)


def test_what_is_released_before_its_answer_is_forgotten() -> None:
    desk = Desk()
    desk.scheduler.reserve(STREAM, 0)
    proposal = desk.scheduler.proposal(0)
    assert proposal is not None
    desk.scheduler.release(1, 0)
    desk.scheduler.judge(proposal.run(), 0)
    assert desk.decide(0) == []
    assert len(desk.scheduler._streams) == 0


def test_a_verdict_that_comes_after_its_cut_is_asked_for_again_and_in_the_end_given_up() -> None:
    desk = Desk()
    desk.scheduler.reserve(replace(STREAM, frames=100), 0)
    now, cuts = 0, []
    answers: list[Decision] = []
    for _ in range(ATTEMPTS_MAX):
        proposal = desk.scheduler.proposal(now)
        assert proposal is not None
        cuts.append(proposal.cut_ns - now)
        now = proposal.cut_ns + 1
        desk.scheduler.judge(proposal.run(), now)
        answers = desk.scheduler.decide(now)
    assert cuts == [CUT_NS * attempt for attempt in range(1, ATTEMPTS_MAX + 1)]
    assert reasons(answers) == [(1, RefusalReason.BUSY)]


def test_a_verdict_does_not_count_when_the_device_is_not_where_it_was() -> None:
    desk = Desk()
    early = replace(STREAM, start_ns=CUT_NS)
    desk.scheduler.reserve(early, 0)
    proposal = desk.scheduler.proposal(0)
    assert proposal is not None
    desk.submit(9, 1)
    desk.decide(1)
    desk.scheduler._devices["gpu0"].predicted_end_ns = 2 * CUT_NS
    desk.scheduler.judge(proposal.run(), 2 * MS)
    assert desk.decide(2) == []
    again = desk.scheduler.proposal(2 * MS)
    assert again is not None
    assert again.attempt == 2


def test_streams_are_added_beside_others_and_no_frame_is_planned_twice() -> None:
    desk = Desk()
    (first,) = desk.ask(replace(STREAM, frames=30))
    assert isinstance(first, Grant)
    other = replace(STREAM, id=2, start_ns=1030 * MS, frames=20)
    (second,) = desk.ask(other, ms=1010)
    assert isinstance(second, Grant)
    assert second.reservation.start_ns == 1530 * MS
    lane = desk.scheduler._streams._lanes["gpu0"]
    planned = [key for batch in lane.ahead() for key in batch.frames]
    assert len(planned) == len(set(planned)) == 30 + second.reservation.frames


def test_a_rule_that_holds_is_asked_again_in_time() -> None:
    desk = Desk("fcfs")
    desk.scheduler.retune(replace(EXACT, window_ns=8 * MS), 0)
    (granted,) = desk.ask(STREAM)
    assert isinstance(granted, Grant)
    desk.submit(1, 1000, due=2000)
    assert desk.decide(1000) == []
    assert desk.scheduler.next_wakeup() == 1008 * MS
    assert members(desk.decide(1008)) == [(1,)]
