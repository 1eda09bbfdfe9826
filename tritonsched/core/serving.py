"""Who serves which model, and when an answer could be there at the earliest. Rule: it reads devices
and profiles and changes neither; every "too late" of the scheduler is computed here.
"""

from collections.abc import Iterable, Iterator
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

    def earliest_finish_ns(
        self, model: str, rows: int, tuning: Tuning, now: int, server: str = ""
    ) -> int:
        """When its answer would be written if it ran alone and next, on its best device."""
        idle_ns = now + tuning.rtt_ns
        first = NEVER_NS
        for device, profile, _, _ in self.places(model, server):
            start_ns = idle_ns + device.far_ns
            if device.batches and device.predicted_end_ns > start_ns:
                start_ns = device.predicted_end_ns
            first = min(first, start_ns + profile.safe_ns(rows))
        return first + tuning.reply_ns

    def hopeless(self, queue: RequestQueue, tuning: Tuning, now: int) -> list[Request]:
        """Members that would be late even alone and next. Reads no further than the first one whom
        even the widest member's time would leave in time.
        """
        if not queue.deadlines:
            return []
        model, server = queue.model, queue.server
        widest_ns = self.earliest_finish_ns(model, queue.rows_widest, tuning, now, server)
        if queue.first_deadline_ns >= widest_ns:
            return []
        found: list[Request] = []
        for request in queue.with_deadline():
            if request.deadline_ns >= widest_ns:
                break
            finish_ns = self.earliest_finish_ns(model, request.rows, tuning, now, server)
            if is_hopeless(request, finish_ns):
                found.append(request)
        return found

    def hopeless_at(self, queue: RequestQueue, tuning: Tuning) -> int:
        """When the first member with a deadline turns hopeless just by waiting; else NEVER_NS."""
        if not queue.deadlines:
            return NEVER_NS
        fixed_ns = tuning.reply_ns + tuning.rtt_ns - 1
        widest_ns = self._least_safe_ns(queue.model, queue.rows_widest, queue.server)
        if queue.rows_widest == 1:
            return queue.first_deadline_ns - fixed_ns - widest_ns
        first = NEVER_NS
        for request in queue.with_deadline():
            if first <= request.deadline_ns - fixed_ns - widest_ns:
                break
            safe_ns = widest_ns
            if request.rows != queue.rows_widest:
                safe_ns = self._least_safe_ns(queue.model, request.rows, queue.server)
            first = min(first, request.deadline_ns - fixed_ns - safe_ns)
        return first

    def turns_hopeless_ns(self, request: Request, tuning: Tuning) -> int:
        """The same for one request."""
        if not request.has_deadline:
            return NEVER_NS
        safe_ns = self._least_safe_ns(request.model, request.rows, request.server)
        return request.deadline_ns - tuning.reply_ns - tuning.rtt_ns + 1 - safe_ns

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

    def _least_safe_ns(self, model: str, rows: int, server: str) -> int:
        """On its best device, if that is idle; the way to its server included."""
        places = self.places(model, server)
        if len(places) == 1:
            return places[0].device.far_ns + places[0].profile.safe_ns(rows)
        return min(place.device.far_ns + place.profile.safe_ns(rows) for place in places)


def _up(places: tuple[Place, ...]) -> tuple[Place, ...]:
    return tuple(place for place in places if place.device.is_up)
