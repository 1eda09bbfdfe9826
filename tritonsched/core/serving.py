"""Who serves which model, and when an answer could be there at the earliest. Rule: it reads devices
and profiles and changes neither; every "too late" of the scheduler is computed here.
"""

from tritonsched.core.admission import is_hopeless
from tritonsched.core.devices import DeviceState
from tritonsched.core.latency import LatencyProfile
from tritonsched.core.queues import RequestQueue
from tritonsched.core.request import NEVER_NS, Request
from tritonsched.core.tuning import Tuning

Pairs = tuple[tuple[DeviceState, LatencyProfile], ...]


class Serving:
    """The devices of each model, with the model's times on them, looked up once."""

    __slots__ = ("_pairs",)

    def __init__(self) -> None:
        self._pairs: dict[str, Pairs] = {}

    def put(self, model: str, pairs: Pairs) -> None:
        """These serve the model from now on."""
        self._pairs[model] = pairs

    def drop(self, model: str) -> None:
        """Nobody serves the model."""
        self._pairs.pop(model, None)

    def pairs(self, model: str) -> Pairs:
        """The devices that serve it, with its times on them; none if nobody does."""
        return self._pairs.get(model, ())

    def devices(self) -> list[DeviceState]:
        """All devices that serve anything, in order of announcement."""
        found = {device.name: device for pairs in self._pairs.values() for device, _ in pairs}
        return list(found.values())

    def earliest_finish_ns(self, model: str, rows: int, tuning: Tuning, now: int) -> int:
        """When its answer would be written if it ran alone and next, on its best device."""
        idle_ns = now + tuning.rtt_ns
        first = NEVER_NS
        for device, profile in self._pairs[model]:
            start_ns = idle_ns
            if device.batches and device.predicted_end_ns > idle_ns:
                start_ns = device.predicted_end_ns
            first = min(first, start_ns + profile.safe_ns(rows))
        return first + tuning.reply_ns

    def hopeless(self, queue: RequestQueue, tuning: Tuning, now: int) -> list[Request]:
        """Members that would be late even alone and next. Reads no further than the first one whom
        even the widest member's time would leave in time.
        """
        if not queue.deadlines:
            return []
        widest_ns = self.earliest_finish_ns(queue.model, queue.rows_widest, tuning, now)
        if queue.first_deadline_ns >= widest_ns:
            return []
        found: list[Request] = []
        for request in queue.with_deadline():
            if request.deadline_ns >= widest_ns:
                break
            finish_ns = self.earliest_finish_ns(queue.model, request.rows, tuning, now)
            if is_hopeless(request, finish_ns):
                found.append(request)
        return found

    def hopeless_at(self, queue: RequestQueue, tuning: Tuning) -> int:
        """When the first member with a deadline turns hopeless just by waiting; else NEVER_NS."""
        if not queue.deadlines:
            return NEVER_NS
        fixed_ns = tuning.reply_ns + tuning.rtt_ns - 1
        widest_ns = self._least_safe_ns(queue.model, queue.rows_widest)
        if queue.rows_widest == 1:
            return queue.first_deadline_ns - fixed_ns - widest_ns
        first = NEVER_NS
        for request in queue.with_deadline():
            if first <= request.deadline_ns - fixed_ns - widest_ns:
                break
            safe_ns = widest_ns
            if request.rows != queue.rows_widest:
                safe_ns = self._least_safe_ns(queue.model, request.rows)
            first = min(first, request.deadline_ns - fixed_ns - safe_ns)
        return first

    def turns_hopeless_ns(self, request: Request, tuning: Tuning) -> int:
        """The same for one request."""
        if not request.has_deadline:
            return NEVER_NS
        safe_ns = self._least_safe_ns(request.model, request.rows)
        return request.deadline_ns - tuning.reply_ns - tuning.rtt_ns + 1 - safe_ns

    def probed(self, request: Request, tuning: Tuning, now: int) -> DeviceState | None:
        """An idle device on which a refusal would rest on old news: not measured for a while."""
        if request.deadline_ns < now + tuning.rtt_ns + tuning.reply_ns:
            return None
        for device, profile in self._pairs[request.model]:
            if not device.batches and profile.is_stale(now):
                return device
        return None

    def _least_safe_ns(self, model: str, rows: int) -> int:
        pairs = self._pairs[model]
        if len(pairs) == 1:
            return pairs[0][1].safe_ns(rows)
        return min(profile.safe_ns(rows) for _, profile in pairs)
