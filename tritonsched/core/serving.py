"""Who serves which model, and when an answer could be there at the earliest. Rule: it reads devices
and profiles and changes neither; every "too late" of the scheduler is computed here.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from tritonsched.core.admission import is_hopeless
from tritonsched.core.devices import DeviceState
from tritonsched.core.latency import LatencyProfile
from tritonsched.core.queues import RequestQueue
from tritonsched.core.request import NEVER_NS, Request
from tritonsched.core.tuning import Tuning


class Place(NamedTuple):
    """A Triton model on a device, with its times there. worth: beside the best variant's."""

    device: DeviceState
    profile: LatencyProfile
    variant: str
    worth: float = 1.0


class Serving:
    """The places of each model that clients may ask for, looked up once: all, and those that are
    up. On each device the first one is the model's default there.
    """

    __slots__ = ("_all", "_places")

    def __init__(self) -> None:
        self._all: dict[str, tuple[Place, ...]] = {}
        self._places: dict[str, tuple[Place, ...]] = {}

    def __contains__(self, model: str) -> bool:
        return model in self._all

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def put(self, model: str, places: Iterable[Place]) -> None:
        """These serve the model from now on, at least one."""
        self._all[model] = tuple(places)
        self._places[model] = _up(self._all[model])

    def drop(self, model: str) -> None:
        """Nobody serves the model."""
        self._all.pop(model, None)
        self._places.pop(model, None)

    def refresh(self) -> None:
        """A server went away or came back."""
        self._places = {model: _up(places) for model, places in self._all.items()}

    def places(self, model: str, server: str = "") -> tuple[Place, ...]:
        """All that can run it now; none if none can. server: only those of this one."""
        places = self._places.get(model, ())
        return tuple(p for p in places if p.device.server == server) if server else places

    def pairs(self, model: str) -> list[tuple[DeviceState, LatencyProfile]]:
        """The devices that can run it now, each with the times of its default variant there."""
        found: dict[str, tuple[DeviceState, LatencyProfile]] = {}
        for place in self.places(model):
            found.setdefault(place.device.name, (place.device, place.profile))
        return list(found.values())

    def devices(self) -> list[DeviceState]:
        """All devices that serve anything, in order of announcement, up or not."""
        found = {p.device.name: p.device for places in self._all.values() for p in places}
        return list(found.values())

    def reach(
        self, model: str, rows: int, tuning: Tuning, now: int, server: str = ""
    ) -> tuple[int, int]:
        """For a request that ran alone and next, on its best device: (when its answer would be
        written, how long that would take if the device were idle); NEVER_NS if nothing serves it.
        A device whose batch may end at any time counts as idle: nobody is refused for a guess.
        """
        first = least = NEVER_NS
        rtt_ns = tuning.rtt_ns
        for device, profile, _, _ in self.places(model, server):
            safe_ns, far_ns = profile.safe_ns(rows), rtt_ns + device.far_ns
            start_ns = now + far_ns
            if device.batches and device.predicted_end_ns > start_ns and not device.is_learning:
                start_ns = device.predicted_end_ns
            if start_ns + safe_ns < first:
                first = start_ns + safe_ns
            if far_ns + safe_ns < least:
                least = far_ns + safe_ns
        if least == NEVER_NS:
            return NEVER_NS, NEVER_NS
        return first + tuning.reply_ns, least + tuning.reply_ns

    def prospects(
        self, queue: RequestQueue, tuning: Tuning, now: int
    ) -> tuple[Sequence[Request], int]:
        """(members that would be late even alone and next, when the first of the others will be
        just by waiting); NEVER_NS if no other has a deadline. All of them where nothing serves it.

        Reads no further than the first one whom even the widest member's time would leave in time
        for as long as another.
        """
        model, server = queue.model, queue.server
        finish_ns, least_ns = widest = self.reach(model, queue.rows_widest, tuning, now, server)
        if finish_ns == NEVER_NS:
            return tuple(queue), NEVER_NS
        first_ns = queue.first_deadline_ns
        if first_ns >= finish_ns and (queue.rows_widest == 1 or first_ns == NEVER_NS):
            return (), turns_hopeless_ns(first_ns, least_ns)
        doomed: list[Request] = []
        turns_ns = NEVER_NS
        for request in queue.with_deadline():
            at_widest_ns = turns_hopeless_ns(request.deadline_ns, least_ns)
            if request.deadline_ns >= finish_ns and turns_ns <= at_widest_ns:
                break
            own = widest
            if request.rows != queue.rows_widest:
                own = self.reach(model, request.rows, tuning, now, server)
            if is_hopeless(request, own[0]):
                doomed.append(request)
            else:
                turns_ns = min(turns_ns, turns_hopeless_ns(request.deadline_ns, own[1]))
        return doomed, turns_ns

    def probed(self, request: Request, tuning: Tuning, now: int) -> Place | None:
        """An idle device on which a refusal would rest on old news: not measured for a while. Of
        several the place that promised to be the fastest.
        """
        if request.deadline_ns < now + tuning.rtt_ns + tuning.reply_ns:
            return None
        stale = [
            place
            for place in self.places(request.model, request.server)
            if not place.device.batches and place.profile.is_stale(now)
        ]
        return min(stale, key=lambda place: place.profile.safe_ns(request.rows), default=None)


def turns_hopeless_ns(deadline_ns: int, least_ns: int) -> int:
    """When what takes so long at least is too late just by waiting; NEVER_NS without a deadline."""
    return deadline_ns - least_ns + 1 if deadline_ns < NEVER_NS else NEVER_NS


def _up(places: tuple[Place, ...]) -> tuple[Place, ...]:
    return tuple(place for place in places if place.device.is_up)
