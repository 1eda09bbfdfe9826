"""Best effort beside a plan. Rule: what it lets through has room at its promised time.

A policy knows nothing of plans: it sees the queues through a GapView, which bounds rows so that a
batch ends in the gap, and hides what cannot end there at all. Requests of the same kind as a
planned batch may ride along in it: they cost only the further rows.
"""

from array import array
from collections.abc import Sequence
from itertools import islice

from tritonsched.core.policy import Choice, SchedulerView
from tritonsched.core.queues import RequestQueue
from tritonsched.core.request import NEVER_NS, Request
from tritonsched.core.tuning import Tuning
from tritonsched.core.variant import Way

RIDERS_MAX = 64  # requests looked at for a ride


class GapView:
    """The scheduler's state, for batches that take at most `room_ns`; guard: promised times count
    so many times.
    """

    __slots__ = ("_room_ns", "_view")

    def __init__(self, view: SchedulerView, room_ns: int, guard: float) -> None:
        self._view = view
        self._room_ns = int(room_ns / guard)

    @property
    def tuning(self) -> Tuning:
        return self._view.tuning

    def devices(self) -> Sequence[str]:
        return self._view.devices()

    def free_ns(self, device: str) -> int:
        return self._view.free_ns(device)

    def queues(self, device: str) -> Sequence[RequestQueue]:
        """Those whose widest member fits the gap by itself."""
        return [
            queue
            for queue in self._view.queues(device)
            if any(
                self._view.safe_ns(way.model, device, queue.rows_widest) <= self._room_ns
                for way in self._view.variants(queue.model, device)
            )
        ]

    def variants(self, model: str, device: str) -> Sequence[Way]:
        return self._view.variants(model, device)

    def safe_ns(self, model: str, device: str, rows: int) -> int:
        return self._view.safe_ns(model, device, rows)

    def safe_times(self, model: str, device: str, rows: int) -> "array[int]":
        return self._view.safe_times(model, device, rows)

    def rows_cap(self, model: str, device: str) -> int:
        """The largest batch that fits the gap, at least 1. Promised times grow with rows."""
        low, high = 1, self._view.rows_cap(model, device)
        while low < high:
            middle = (low + high + 1) // 2
            if self._view.safe_ns(model, device, middle) <= self._room_ns:
                low = middle
            else:
                high = middle - 1
        return low

    def has_room(self, choice: Choice, device: str) -> bool:
        """Does the batch fit the gap? What was never measured fits none."""
        rows = sum(request.rows for request in choice.requests)
        safe = self._view.safe_ns(choice.runs, device, rows)
        return 0 < safe <= self._room_ns


def riders(
    view: SchedulerView,
    device: str,
    kept: tuple[Request, ...],
    *,
    start_ns: int,
    limit_ns: int,
) -> tuple[RequestQueue | None, tuple[Request, ...]]:
    """Who may join the batch of `kept`: of its kind, in time, and the batch takes no longer than
    `limit_ns` with them. The queue they come from; None without one.
    """
    model, signature = kept[0].model, kept[0].signature
    rows = sum(request.rows for request in kept)
    cap = view.rows_cap(model, device)
    ready_ns = start_ns + view.tuning.reply_ns
    for queue in view.queues(device):
        if queue.model == model and queue.signature == signature and not queue.alone:
            more: list[Request] = []
            first_ns = NEVER_NS
            for request in islice(queue, RIDERS_MAX):
                safe = view.safe_ns(model, device, rows + request.rows)
                due_ns = min(first_ns, request.deadline_ns)
                if rows + request.rows > cap or safe > limit_ns or ready_ns + safe > due_ns:
                    break
                more.append(request)
                rows += request.rows
                first_ns = due_ns
            return queue, tuple(more)
    return None, ()
