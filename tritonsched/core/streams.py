"""Guaranteed streams while they run: who they are, the plan of each device, the frames that wait.

Rule: a device with a plan follows it. A planned batch starts at its planned time or later, in the
planned order, with those of its frames that are here; best effort runs in between, but only what
at its promised time ends before the next batch's latest start, or rides along in a planned batch
of its own kind. So the streams' deadlines rest on promised times alone, whatever else is sent.

A frame is guaranteed if it names its reservation, is like the others, and came when one was
expected; everything else a stream sends is best effort, like any other request.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from tritonsched.core.gap import GapView, riders
from tritonsched.core.planning import FrameKey, PlannedBatch, latest_starts
from tritonsched.core.policy import Choice, Hold, Policy, SchedulerView
from tritonsched.core.proposal import DevicePlan
from tritonsched.core.queues import RequestQueue
from tritonsched.core.request import NEVER_NS, Request
from tritonsched.core.reservation import Reservation

STREAMS_MAX = 1024  # granted at one time
GUARD_SHARE = 2.0
"""Best effort before a planned batch leaves room for an overrun by this share of its promised
time: promises hold for 99 % of batches, streams are to miss 0.05 %, and an overrun takes up to
three times as long. Measured: DESIGN.md 24."""


class Lane:
    """One device's plan. State: the place in it."""

    __slots__ = ("_batches", "_latest", "_next")

    def __init__(self, batches: Sequence[PlannedBatch] = ()) -> None:
        self._batches = tuple(batches)
        self._latest = latest_starts(self._batches)
        self._next = 0

    def ahead(self) -> Sequence[PlannedBatch]:
        """What has not started, in order."""
        return self._batches[self._next :]

    @property
    def next(self) -> PlannedBatch | None:
        return self._batches[self._next] if self._next < len(self._batches) else None

    def latest_ns(self) -> int:
        """The latest start of the next batch; NEVER_NS if there is none."""
        return self._latest[self._next] if self._next < len(self._latest) else NEVER_NS

    def advance(self) -> PlannedBatch:
        batch = self._batches[self._next]
        self._next += 1
        return batch


class Streams:
    """All granted reservations. Memory: O(streams + frames planned)."""

    __slots__ = (
        "_away",
        "_device_of",
        "_expected",
        "_granted",
        "_here",
        "_lanes",
        "_places",
        "lost",
    )

    def __init__(self) -> None:
        self._granted: dict[int, Reservation] = {}
        self._device_of: dict[int, str] = {}
        self._lanes: dict[str, Lane] = {}
        self._expected: dict[str, set[FrameKey]] = {}  # planned and not started, by device
        self._here: dict[FrameKey, Request] = {}
        self._places: dict[int, tuple[FrameKey, str]] = {}  # key and device by request id
        self._away: frozenset[str] = frozenset()  # devices
        self.lost: list[Request] = []  # frames that an overrun left no time for; to be refused

    def __len__(self) -> int:
        return len(self._granted)

    def __iter__(self) -> Iterator[Reservation]:
        return iter(self._granted.values())

    @property
    def has_frames(self) -> bool:
        """Frames wait, or are to be refused."""
        return bool(self._here or self.lost)

    @property
    def has_plans(self) -> bool:
        """Some device follows a plan, or did."""
        return bool(self._lanes)

    def of_device(self, device: str) -> tuple[Reservation, ...]:
        """Its granted streams, oldest first."""
        return tuple(r for r in self._granted.values() if self._device_of[r.id] == device)

    def placed(self) -> tuple[tuple[Reservation, str], ...]:
        """All granted streams, oldest first, with their devices."""
        return tuple((r, self._device_of[r.id]) for r in self)

    # -- frames -------------------------------------------------------------------------------

    def take(self, request: Request) -> bool:
        """Is it a guaranteed frame? Then it is kept here until its batch."""
        reservation = self._granted.get(request.reservation)
        if reservation is None or request.rows > reservation.rows or request.alone:
            return False
        if (request.model, request.signature) != reservation.category:
            return False
        number = reservation.frame_at(request.arrival_ns)
        key = (reservation.id, -1 if number is None else number)
        device = self._device_of[reservation.id]
        if device in self._away or key in self._here or key not in self._expected[device]:
            return False
        if request.deadline_ns < request.arrival_ns + reservation.relative_deadline_ns:
            return False
        self._here[key] = request
        self._places[request.id] = (key, device)
        return True

    def pop(self, request_id: int) -> Request | None:
        """The frame's client left, or it was dispatched; None if it is not here."""
        place = self._places.pop(request_id, None)
        return None if place is None else self._here.pop(place[0])

    def away(self, devices: Collection[str]) -> list[Request]:
        """These devices cannot run anything now: returns the frames that waited for them. Their
        streams are best effort until they are back.
        """
        self._away = frozenset(devices)
        places = [key for key, device in self._places.values() if device in self._away]
        freed = [self._here[key] for key in places]
        for request in freed:
            self.pop(request.id)
        return freed

    def waiting(self, device: str) -> bool:
        """Is a frame here for it?"""
        return any(place == device for _, place in self._places.values())

    def pop_all(self, models: Callable[[str], bool]) -> list[Request]:
        """Every frame of these models, out of the plan's hands."""
        gone = [request for request in self._here.values() if models(request.model)]
        for request in gone:
            self.pop(request.id)
        return gone

    # -- plans --------------------------------------------------------------------------------

    def snapshot(
        self,
        device: str,
        *,
        free_ns: int,
        cut_ns: int,
        caps: Mapping[str, int],
        safe_ns: Mapping[str, Sequence[int]],
    ) -> DevicePlan:
        """The device as a proposal sees it: what starts before `cut_ns` stays."""
        later: set[FrameKey] = set()
        for batch in self._lanes.get(device, Lane()).ahead():
            if batch.start_ns < cut_ns:
                free_ns = max(free_ns, batch.start_ns) + batch.cost_ns
            else:
                later.update(batch.frames)
        granted = self.of_device(device)
        skip = {key for stream in granted for key in _under_way(stream, cut_ns)} - later
        return DevicePlan(device, free_ns, granted, frozenset(skip), caps, safe_ns)

    def merged(self, device: str, new: Sequence[PlannedBatch], cut_ns: int) -> Lane:
        """The old plan up to `cut_ns`, the new one from there on."""
        ahead = self._lanes.get(device, Lane()).ahead()
        return Lane([*(batch for batch in ahead if batch.start_ns < cut_ns), *new])

    def install(self, device: str, lane: Lane) -> None:
        """Follow this plan from now on."""
        self._lanes[device] = lane
        self._expected[device] = {key for batch in lane.ahead() for key in batch.frames}

    def grant(self, reservation: Reservation, device: str) -> None:
        self._granted[reservation.id] = reservation
        self._device_of[reservation.id] = device

    def release(self, reservation_id: int) -> list[Request]:
        """Forget the stream; its frames that wait become best effort. Its place in the plan stays
        empty.
        """
        self.demote(reservation_id)
        freed = [request for key, request in self._here.items() if key[0] == reservation_id]
        for request in freed:
            self.pop(request.id)
        return freed

    def demote(self, reservation_id: int) -> None:
        """From now on its frames are best effort; those that wait keep their place."""
        self._granted.pop(reservation_id, None)
        self._device_of.pop(reservation_id, None)

    # -- what runs next -----------------------------------------------------------------------

    def choose(
        self, policy: Policy, view: SchedulerView, device: str, *, start_ns: int, now: int
    ) -> Choice | Hold | None:
        """The planned batch if its time has come, else best effort that does not endanger it."""
        lane = self._lanes.get(device)
        while lane is not None and lane.next is not None:
            batch = lane.next
            if start_ns < batch.start_ns:
                gap = GapView(view, lane.latest_ns() - start_ns, 1.0 + GUARD_SHARE)
                choice = policy.choose(gap, device, start_ns=start_ns, now=now)
                return _between(choice, gap, device, batch.start_ns - view.tuning.rtt_ns)
            planned = self._planned(lane, view, device, start_ns)
            if planned is not None:
                return planned
        return policy.choose(view, device, start_ns=start_ns, now=now)

    def _planned(
        self, lane: Lane, view: SchedulerView, device: str, start_ns: int
    ) -> Choice | None:
        """Those of the next batch's frames that are here and can be in time, and riders."""
        batch = lane.advance()
        self._expected[device].difference_update(batch.frames)
        here = [self._here[key] for key in batch.frames if key in self._here]
        end_ns = start_ns + view.safe_ns(batch.category[0], device, batch.rows)
        end_ns += view.tuning.reply_ns
        kept = tuple(request for request in here if request.deadline_ns >= end_ns)
        for request in here:
            self.pop(request.id)
            if request.deadline_ns < end_ns:
                self.lost.append(request)
        if not kept:
            return None
        limit_ns = int((min(batch.due_ns, lane.latest_ns()) - start_ns) / (1.0 + GUARD_SHARE))
        queue, more = riders(view, device, kept, start_ns=start_ns, limit_ns=limit_ns)
        return Choice(queue or RequestQueue(*batch.category, alone=False), kept + more, adapts=True)


def _between(
    choice: Choice | Hold | None, gap: GapView, device: str, again_ns: int
) -> Choice | Hold:
    """Best effort if it ends before the plan needs the device; else wait for the planned start."""
    if isinstance(choice, Choice) and gap.has_room(choice, device):
        return choice
    return Hold(min(again_ns, choice.until_ns) if isinstance(choice, Hold) else again_ns)


def _under_way(stream: Reservation, cut_ns: int) -> Iterator[FrameKey]:
    """Frames that may be here by then and due after it, served or not."""
    first_ns = cut_ns - stream.relative_deadline_ns - stream.jitter_ns - stream.start_ns
    first = max(0, first_ns // stream.period_ns)
    last = (cut_ns + stream.jitter_ns - stream.start_ns) // stream.period_ns
    return ((stream.id, number) for number in range(first, min(stream.frames, last + 1)))
