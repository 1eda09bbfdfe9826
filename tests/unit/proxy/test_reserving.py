"""Reserved streams through the sidecar's door: asked for, kept, released; who waits is told."""

import asyncio
from typing import Any

import pytest

from tests.helpers import MS, S
from tests.unit.proxy.calls import ECHO, call, tensor
from tests.unit.proxy.scene import EXEC_NS, virtual
from tests.unit.proxy.test_service import Door
from tests.virtual_loop import VirtualLoop
from tritonsched.core.batch import Grant, Refuse
from tritonsched.core.proposal import Proposal, Verdict
from tritonsched.core.reservation import RefusalReason, Reservation
from tritonsched.errors import BadReservation, Draining, UnknownReservation
from tritonsched.proxy import driver as driving
from tritonsched.proxy import judging, reserving
from tritonsched.proxy.named import RESERVATION
from tritonsched.proxy.reserving import ANSWER_S_MAX, Entry, Reservations, State
from tritonsched.proxy.wish import Wish
from tritonsched.tensors import Answer

FRAME = Wish(
    model="echo",
    period_ms=20.0,
    relative_deadline_ms=40.0,
    frames=50,
    inputs=(("INPUT", "UINT8", (1, 2)),),
)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proposals without threads, which know no virtual time."""

    async def judged(proposal: Proposal) -> Verdict:
        return proposal.run()

    monkeypatch.setattr(driving, "judged", judged)


async def granted(door: Door, wish: Wish = FRAME) -> Entry:
    entry = await door.proxy.reserve(wish)
    assert isinstance(entry, Entry), entry
    return entry


@virtual
async def test_a_granted_streams_frames_are_kept_whatever_else_is_sent(loop: VirtualLoop) -> None:
    """More best effort than the device can take; each frame is in time, planned as it is."""
    door = Door(loop)
    entry = await granted(door)
    assert (entry.state, entry.device) == (State.GRANTED, ECHO.devices[0])
    ends: list[int] = []

    async def frame(number: int) -> None:
        await loop.until(entry.reservation.arrival_ns(number))
        await door.ask(call(reservation=entry.name))
        ends.append(loop.now_ns() - entry.reservation.arrival_ns(number))

    frames = [asyncio.ensure_future(frame(number)) for number in range(5)]
    others: list[asyncio.Task[Answer]] = []
    for number in range(5):
        await loop.until(entry.reservation.arrival_ns(number) - 2)
        others += [door.ask(call(tensor(rows=8))) for _ in range(3)]
    await asyncio.gather(*frames)
    assert len(ends) == 5
    assert max(ends) <= 40 * MS
    for other in others:
        other.cancel()


@virtual
async def test_a_frame_has_the_deadline_that_was_reserved(loop: VirtualLoop) -> None:
    """A frame of a stream that is over has its class', like any request."""
    door = Door(loop)
    entry = await granted(door)
    seen: list[tuple[int, int]] = []

    def submit(request: Any, now: int) -> None:
        seen.append((request.reservation, request.deadline_ns - now))

    door.scheduler.submit = submit  # type: ignore[method-assign]
    first = door.ask(call(reservation=entry.name))
    await door.settle()
    assert door.reservations.release(entry.name)
    second = door.ask(call(reservation=entry.name, slo="tight"))
    await door.settle()
    for task in (first, second):
        task.cancel()
    assert seen == [(entry.reservation.id, 40 * MS), (0, 20 * MS)]


@virtual
async def test_a_frame_may_name_its_stream_by_a_parameter(loop: VirtualLoop) -> None:
    """It has the form that was reserved all the same; a header goes before it."""
    door = Door(loop)
    entry = await granted(door)
    seen: list[tuple[int, int]] = []

    def submit(request: Any, now: int) -> None:
        seen.append((request.reservation, request.signature))

    door.scheduler.submit = submit  # type: ignore[method-assign]
    named = {RESERVATION: entry.name}
    tasks = [door.ask(call(parameters=named)), door.ask(call(reservation="9", parameters=named))]
    await door.settle()
    for task in tasks:
        task.cancel()
    form = entry.reservation.signature
    assert seen == [(entry.reservation.id, form), (0, form)]


@virtual
async def test_a_stream_that_does_not_fit_is_told_the_nearest_that_would(loop: VirtualLoop) -> None:
    door = Door(loop)
    wish = Wish(
        model="echo", period_ms=20.0, relative_deadline_ms=EXEC_NS / 2e6, frames=50, jitter_ms=0.0,
        inputs=FRAME.inputs,
    )  # fmt: skip
    refused = await door.proxy.reserve(wish)
    assert isinstance(refused, Refuse)
    assert refused.reason is RefusalReason.UNSCHEDULABLE
    assert refused.nearest is not None
    assert (refused.nearest.relative_deadline_ns or 0) > EXEC_NS
    assert door.reservations.listed() == ()


@virtual
async def test_a_stream_ends_by_itself_after_its_last_deadline(loop: VirtualLoop) -> None:
    door = Door(loop)
    entry = await granted(door)
    assert door.reservations.entry(entry.name) == entry
    await loop.until(entry.reservation.end_ns + MS)
    assert door.reservations.entry(entry.name) is None
    assert door.scheduler.reservations() == ()
    assert not door.reservations.release(entry.name)


@virtual
async def test_a_client_that_leaves_while_it_waits_keeps_nothing(loop: VirtualLoop) -> None:
    door = Door(loop)
    asking = asyncio.ensure_future(door.proxy.reserve(FRAME))
    await loop.pause(0)
    asking.cancel()
    await asyncio.wait({asking})
    await loop.pause(2 * S)
    assert (door.scheduler.reservations(), door.reservations.listed()) == ((), ())


@virtual
async def test_a_model_or_a_frame_that_cannot_be_planned_is_told(loop: VirtualLoop) -> None:
    door = Door(loop)
    nobody = Wish(model="nobody", period_ms=20.0, relative_deadline_ms=40.0, frames=5)
    with pytest.raises(UnknownReservation, match="does not serve model 'nobody'"):
        await door.proxy.reserve(nobody)
    other = Wish(
        model="echo", period_ms=20.0, relative_deadline_ms=40.0, frames=5,
        inputs=(("OTHER", "UINT8", (1, 2)),),
    )  # fmt: skip
    with pytest.raises(BadReservation, match="inputs-differ"):
        await door.proxy.reserve(other)
    door.proxy.drain()
    with pytest.raises(Draining):
        await door.proxy.reserve(FRAME)


# -- the table of those that are known --------------------------------------------------------


def table(loop: VirtualLoop) -> tuple[Reservations, list[int], list[int]]:
    """With what it has asked of the core and released there."""
    asked: list[int] = []
    released: list[int] = []
    made = Reservations(
        reserve=lambda wanted: asked.append(wanted.id), release=released.append, clock=loop.now_ns
    )
    return made, asked, released


def stream() -> Reservation:
    return Reservation(1, "m", period_ns=20 * MS, relative_deadline_ns=40 * MS, frames=5)


@virtual
async def test_who_is_not_answered_is_refused_in_the_end(loop: VirtualLoop) -> None:
    reservations, asked, released = table(loop)
    answer = await reservations.ask(stream())
    assert isinstance(answer, Refuse)
    assert answer.reason is RefusalReason.BUSY
    assert loop.now_ns() == pytest.approx(ANSWER_S_MAX * S, abs=10)
    assert asked == released == [1]


@virtual
async def test_no_more_are_known_than_the_bound(loop: VirtualLoop) -> None:
    reservations, asked, _ = table(loop)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reserving, "IDS_MAX", 0)
        answer = await reservations.ask(stream())
    assert isinstance(answer, Refuse)
    assert (answer.reason, asked) == (RefusalReason.TOO_MANY, [])


@virtual
async def test_a_stream_that_no_longer_fits_is_degraded_and_told(loop: VirtualLoop) -> None:
    door = Door(loop)
    entry = await granted(door)
    door.reservations.decided(Refuse(entry.reservation, RefusalReason.NO_LONGER_FITS))
    (now,) = door.reservations.listed("echo")
    assert now.state is State.DEGRADED
    assert door.reservations.of(entry.name) is None
    assert door.reservations.listed("other") == ()
    door.reservations.close()


async def test_a_proposal_that_breaks_is_a_refusal() -> None:
    proposal: Any = object()
    verdict = await judging.judged(proposal)
    assert (verdict.proposal, verdict.added) == (proposal, None)


class Ear:
    """Hears of reservations."""

    def __init__(self) -> None:
        self.said: list[tuple[str, int]] = []

    def on_reserve(self, wanted: Reservation, now: int) -> None:
        self.said.append(("reserve", wanted.id))

    def on_reserved(self, said: Grant | Refuse, now: int) -> None:
        self.said.append((type(said).__name__, said.reservation.id))

    def on_release(self, number: int, now: int) -> None:
        self.said.append(("release", number))


@virtual
async def test_who_listens_hears_all_of_it_and_a_stream_that_no_longer_fits_is_told(
    loop: VirtualLoop,
) -> None:
    ear, told = Ear(), list[str]()
    reservations: Reservations

    def reserve(wanted: Reservation) -> None:
        loop.call_soon(lambda: reservations.decided(Grant(wanted, "gpu0", ())))

    reservations = Reservations(
        reserve=reserve, release=lambda _: None, clock=loop.now_ns, heard=[ear], told=told.append
    )
    entry = await reservations.ask(stream())
    assert isinstance(entry, Entry)
    assert told == []
    reservations.decided(Refuse(entry.reservation, RefusalReason.NO_LONGER_FITS))
    assert told == [
        "reservation 1 of model 'm' is no longer kept (no-longer-fits): its frames are best effort"
    ]
    assert reservations.release(entry.name)
    assert ear.said == [("reserve", 1), ("Grant", 1), ("Refuse", 1), ("release", 1)]
