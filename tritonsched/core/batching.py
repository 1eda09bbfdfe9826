"""Forming a batch from one queue. Rule: pure leaves; they read a queue and return its members.

`in_time` is the one definition of "fits": start + safe execution + reply <= deadline.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice

from tritonsched.core.policy import Choice, SchedulerView
from tritonsched.core.queues import RequestQueue
from tritonsched.core.request import Request
from tritonsched.core.variant import Way

MISFITS_MAX = 64  # members passed over for their rows before a batch is called full


@dataclass(frozen=True, slots=True)
class Candidate:
    """A batch that could run. utility: what its answers are worth then; safe_ns: promised
    execution, >= 1; variant: of a model that has some.
    """

    queue: RequestQueue
    requests: tuple[Request, ...]
    utility: float
    safe_ns: int
    variant: str = ""

    @property
    def choice(self) -> Choice:
        return Choice(self.queue, self.requests, self.variant)

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


def behind(queue: RequestQueue, passed: int) -> Iterator[Request]:
    """Members in due order, without the first `passed` of those that have a deadline."""
    number = count(1)
    return (r for r in queue if not r.has_deadline or next(number) > passed)


def finish_ns(model: str, view: SchedulerView, device: str, start_ns: int, rows: int) -> int:
    """When answers of a batch of `rows` started at `start_ns` are written, at the safe quantile."""
    return start_ns + view.safe_ns(model, device, rows) + view.tuning.reply_ns


def head_batch(
    queue: RequestQueue, view: SchedulerView, device: str, start_ns: int, variant: str = ""
) -> tuple[Request, ...]:
    """The largest prefix that still keeps its first deadline: the slack rule of Clockwork and EDF.

    Empty if the head cannot be in time on this device even by itself.
    """
    model = variant or queue.model
    taken = prefix(queue, 1 if queue.alone else view.rows_cap(model, device))
    # In due order the first member with a deadline has the earliest one.
    timed = next((k for k, request in enumerate(taken) if request.has_deadline), len(taken))
    rows = rows_of(taken)
    for size in range(len(taken), 0, -1):
        end_ns = finish_ns(model, view, device, start_ns, rows)
        if size <= timed or end_ns <= taken[timed].deadline_ns:
            return taken[:size]
        rows -= taken[size - 1].rows
    return ()


def densest(
    queue: RequestQueue,
    view: SchedulerView,
    device: str,
    start_ns: int,
    way: Way | None = None,
) -> Candidate | None:
    """The batch of the queue with the most utility per time; None if nobody can be in time.

    way: the variant to run it; by default the model's own. Walks sizes downwards; members that a
    size would make late are skipped at that size, so the walk ends at the first size that skips
    nobody, and jumps to the next size that saves one more and could, filled with the most valuable
    members, beat the best one so far. Where worth falls before the deadline a smaller batch may be
    denser though nobody is skipped: then half the size is looked at, too, and so on.
    Source: scheduling study 5, step B ("dens").
    """
    way = way or Way(queue.model)
    former = _Former(queue, view, device, start_ns, way)
    if queue.alone:
        return former.first_alone()
    cap = view.rows_cap(way.model, device)
    target = min(max(cap, queue.head.rows), queue.rows)  # a head over the cap may go by itself
    best: Candidate | None = None
    density = 0.0
    while target >= 1:
        end_ns = former.finish_ns(target)
        taken = filled(queue, end_ns, target)
        if target > cap:
            taken = prefix(taken, cap)
        found = former.candidate(taken)
        if found is not None and found.density > density:
            best, density = found, found.density
        missed_ns = queue.last_missed_ns(end_ns)
        if missed_ns is None:
            if not queue.shaped:
                break
            target //= 2
            continue
        target -= 1
        while target and not former.is_promising(target, missed_ns, density):
            target -= 1
    return best


def head_candidate(
    queue: RequestQueue,
    view: SchedulerView,
    device: str,
    start_ns: int,
    way: Way | None = None,
) -> Candidate | None:
    """The batch of `head_batch` with its worth; None if the head cannot be in time."""
    way = way or Way(queue.model)
    taken = head_batch(queue, view, device, start_ns, way.model)
    return _Former(queue, view, device, start_ns, way).candidate(taken)


class _Former:
    """One queue, one device, one way to run it, one start."""

    __slots__ = ("_device", "_queue", "_ready_ns", "_view", "_way")

    def __init__(
        self, queue: RequestQueue, view: SchedulerView, device: str, start_ns: int, way: Way
    ) -> None:
        self._queue = queue
        self._view = view
        self._device = device
        self._ready_ns = start_ns + view.tuning.reply_ns
        self._way = way

    def safe_ns(self, rows: int) -> int:
        return self._view.safe_ns(self._way.model, self._device, rows)

    def finish_ns(self, rows: int) -> int:
        return self._ready_ns + self.safe_ns(rows)

    def is_promising(self, rows: int, missed_ns: int, density: float) -> bool:
        """Would one more be in time, and could the batch be denser than that?"""
        safe = self.safe_ns(rows)
        most = self._queue.weight_max * self._way.worth * rows
        return self._ready_ns + safe <= missed_ns and most > density * safe

    def first_alone(self) -> Candidate | None:
        for request in self._queue:
            if self.finish_ns(request.rows) <= request.deadline_ns:
                return self.candidate((request,))
        return None

    def candidate(self, taken: tuple[Request, ...]) -> Candidate | None:
        if not taken:
            return None
        safe = self.safe_ns(rows_of(taken))
        if self._queue.shaped:
            end_ns = self._ready_ns + safe
            utility = sum(request.utility_at(end_ns) for request in taken)
        else:
            utility = sum(request.weight for request in taken)
        variant = "" if self._way.model == self._queue.model else self._way.model
        return Candidate(self._queue, taken, utility * self._way.worth, max(1, safe), variant)


def filled(queue: RequestQueue, end_ns: int, rows_max: int) -> tuple[Request, ...]:
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
