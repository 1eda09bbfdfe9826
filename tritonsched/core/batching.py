"""Forming a batch from one queue. Rule: pure leaves; they read a queue and return its members.

`in_time` is the one definition of "fits": start + safe execution + reply <= deadline.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from tritonsched.core.policy import SchedulerView
from tritonsched.core.queues import RequestQueue
from tritonsched.core.request import Request

MISFITS_MAX = 64  # members passed over for their rows before a batch is called full


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
    """The largest prefix that still keeps its first deadline: the slack rule of Clockwork and EDF.

    Empty if the head cannot be in time on this device even by itself.
    """
    taken = prefix(queue, 1 if queue.alone else view.rows_cap(queue.model, device))
    # In due order the first member with a deadline has the earliest one.
    timed = next((k for k, request in enumerate(taken) if request.has_deadline), len(taken))
    rows = rows_of(taken)
    for size in range(len(taken), 0, -1):
        end_ns = finish_ns(queue, view, device, start_ns, rows)
        if size <= timed or end_ns <= taken[timed].deadline_ns:
            return taken[:size]
        rows -= taken[size - 1].rows
    return ()


def densest(
    queue: RequestQueue, view: SchedulerView, device: str, start_ns: int
) -> Candidate | None:
    """The batch of the queue with the most utility per time; None if nobody can be in time.

    Walks sizes downwards; members that a size would make late are skipped at that size, so the walk
    ends at the first size that skips nobody, and jumps to the next size that saves one more and
    could, filled with the most valuable members, beat the best one so far.
    Source: scheduling study 5, step B ("dens").
    """
    if queue.alone:
        return _first_alone(queue, view, device, start_ns)
    cap = view.rows_cap(queue.model, device)
    target = min(max(cap, queue.head.rows), queue.rows)  # a head over the cap may go by itself
    best: Candidate | None = None
    density = 0.0
    while target >= 1:
        end_ns = finish_ns(queue, view, device, start_ns, target)
        taken = _filled(queue, end_ns, target)
        if target > cap:
            taken = prefix(taken, cap)
        found = _candidate(queue, taken, view, device)
        if found is not None and found.density > density:
            best, density = found, found.density
        missed_ns = queue.last_missed_ns(end_ns)
        if missed_ns is None:
            break
        target -= 1
        while target and not (
            finish_ns(queue, view, device, start_ns, target) <= missed_ns
            and queue.weight_max * target > density * view.safe_ns(queue.model, device, target)
        ):
            target -= 1
    return best


def head_candidate(
    queue: RequestQueue, view: SchedulerView, device: str, start_ns: int
) -> Candidate | None:
    """The batch of `head_batch` with its worth; None if the head cannot be in time."""
    return _candidate(queue, head_batch(queue, view, device, start_ns), view, device)


def _first_alone(
    queue: RequestQueue, view: SchedulerView, device: str, start_ns: int
) -> Candidate | None:
    for request in queue:
        if finish_ns(queue, view, device, start_ns, request.rows) <= request.deadline_ns:
            return _candidate(queue, (request,), view, device)
    return None


def _candidate(
    queue: RequestQueue, taken: tuple[Request, ...], view: SchedulerView, device: str
) -> Candidate | None:
    if not taken:
        return None
    safe = max(1, view.safe_ns(queue.model, device, rows_of(taken)))
    return Candidate(queue, taken, sum(request.weight for request in taken), safe)


def _filled(queue: RequestQueue, end_ns: int, rows_max: int) -> tuple[Request, ...]:
    """Members that may finish at `end_ns`, best first, as many as fit into `rows_max`."""
    if queue.rows == queue.size:  # one row each: the first ones fit
        return tuple(islice(queue.in_time(end_ns, rows_max), rows_max))
    taken: list[Request] = []
    rows = misfits = 0
    for request in queue.in_time(end_ns, rows_max + MISFITS_MAX):
        if rows + request.rows <= rows_max:
            taken.append(request)
            rows += request.rows
            if rows == rows_max:
                break
        else:
            misfits += 1
            if misfits == MISFITS_MAX:
                break
    return tuple(taken)
