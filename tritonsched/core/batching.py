"""Forming a batch from one queue. Rule: pure leaves; they read a queue and return its members.

`in_time` is the one definition of "fits": start + safe execution + reply <= deadline.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from tritonsched.core.policy import SchedulerView
from tritonsched.core.queues import RequestQueue
from tritonsched.core.request import Request


@dataclass(frozen=True, slots=True)
class Candidate:
    """A batch that could run. utility: sum of weights; safe_ns: promised execution, >= 1."""

    queue: RequestQueue
    requests: tuple[Request, ...]
    utility: float
    safe_ns: int

    @property
    def density(self) -> float:
        """Utility per nanosecond of the device."""
        return self.utility / self.safe_ns


class BatchWindow:
    """From the first waiting request to the latest safe start (DeepRT section 3.2, relaxed).

    The window closes `window_ns` after the oldest arrival, at the head's latest safe start, or at
    once when the batch is full.
    """

    __slots__ = ("closes_ns",)

    def __init__(self, queue: RequestQueue, view: SchedulerView, device: str) -> None:
        cap = 1 if queue.alone else view.rows_cap(queue.model, device)
        if queue.rows >= cap:
            self.closes_ns = 0
            return
        safe_ns = view.safe_ns(queue.model, device, queue.rows)
        oldest_ns = min(request.arrival_ns for request in queue)
        latest_ns = queue.first_deadline_ns - safe_ns - view.tuning.reply_ns - view.tuning.rtt_ns
        self.closes_ns = min(oldest_ns + view.tuning.window_ns, latest_ns)

    def is_open(self, now: int) -> bool:
        return now < self.closes_ns


def prefix(requests: Iterable[Request], rows_max: int) -> tuple[Request, ...]:
    """The leading requests whose rows fit into `rows_max`; always at least the first."""
    taken: list[Request] = []
    rows = 0
    for request in requests:
        if taken and rows + request.rows > rows_max:
            break
        taken.append(request)
        rows += request.rows
        if rows >= rows_max:
            break
    return tuple(taken)


def rows_of(requests: Iterable[Request]) -> int:
    return sum(request.rows for request in requests)


def finish_ns(
    queue: RequestQueue, view: SchedulerView, device: str, start_ns: int, rows: int
) -> int:
    """When answers of a batch of `rows` started at `start_ns` are written, at the safe quantile."""
    return start_ns + view.safe_ns(queue.model, device, rows) + view.tuning.reply_ns


def head_batch(
    queue: RequestQueue, view: SchedulerView, device: str, start_ns: int
) -> tuple[Request, ...]:
    """The largest prefix that still keeps the head's deadline: the slack rule of Clockwork and EDF.

    Empty if the head cannot be in time on this device even by itself.
    """
    taken = prefix(queue, 1 if queue.alone else view.rows_cap(queue.model, device))
    while taken:
        if finish_ns(queue, view, device, start_ns, rows_of(taken)) <= queue.first_deadline_ns:
            break
        taken = taken[:-1]
    return taken


def densest(
    queue: RequestQueue, view: SchedulerView, device: str, start_ns: int
) -> Candidate | None:
    """The batch of the queue with the most utility per time; None if nobody can be in time.

    Walks sizes downwards; heads that a size would make late are skipped at that size, so the walk
    ends at the first size that skips nobody, and jumps to the next size that saves one more head.
    Source: scheduling study 5, step B ("dens").
    """
    if queue.alone:
        return _first_alone(queue, view, device, start_ns)
    target = min(max(view.rows_cap(queue.model, device), queue.head.rows), queue.rows)
    best: Candidate | None = None
    while target >= 1:
        end = finish_ns(queue, view, device, start_ns, target)
        taken, skipped = _in_time(queue, end, target)
        if taken:
            found = _candidate(queue, taken, view, device)
            if best is None or found.density > best.density:
                best = found
        if skipped is None:
            break
        target -= 1
        while target and finish_ns(queue, view, device, start_ns, target) > skipped.deadline_ns:
            target -= 1
    return best


def _first_alone(
    queue: RequestQueue, view: SchedulerView, device: str, start_ns: int
) -> Candidate | None:
    for request in queue:
        if finish_ns(queue, view, device, start_ns, request.rows) <= request.deadline_ns:
            return _candidate(queue, (request,), view, device)
    return None


def _candidate(
    queue: RequestQueue, taken: tuple[Request, ...], view: SchedulerView, device: str
) -> Candidate:
    safe = max(1, view.safe_ns(queue.model, device, rows_of(taken)))
    return Candidate(queue, taken, sum(request.weight for request in taken), safe)


def _in_time(
    queue: RequestQueue, end_ns: int, rows_max: int
) -> tuple[tuple[Request, ...], Request | None]:
    """Members that may finish at `end_ns`, best first, and the last one that had to be skipped."""
    order: Iterable[Request] = queue
    if not queue.has_one_weight:
        order = sorted(queue, key=lambda r: (-r.weight, r.due_ns, r.id))
    taken: list[Request] = []
    rows = 0
    skipped: Request | None = None
    for request in order:
        if request.deadline_ns < end_ns:
            if skipped is None or request.deadline_ns > skipped.deadline_ns:
                skipped = request
        elif rows + request.rows <= rows_max:
            taken.append(request)
            rows += request.rows
            if rows >= rows_max:
                break
    return tuple(taken), skipped
