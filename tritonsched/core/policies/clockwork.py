"""Clockwork's strategies: for each model and batch size the request that must start first.

Gujarati et al., OSDI 2020, and the controller's code: a request waits in a line for every batch
size of its model and leaves the line of a size as soon as that size could not keep its deadline any
more. So each size has a head of its own and a latest start, that head's deadline less the time of
the size. The model whose strategy must start first goes next, with the largest size that enough
requests wait for; heads that this size would make late are passed over.

Changed: sizes double up to the largest batch instead of being those that a compiler was run for,
and a batch is filled up between them while its head allows. Not modelled: placement and loading of
models on many GPUs, work sent ahead beyond one batch, the fixed 5 ms by which the original aims
before the deadline (promised times have a margin of their own). The original drops whom it has
passed over; here they may still come into a smaller batch, until the scheduler refuses who would be
late even alone and next.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tritonsched.core.batching import prefix, rows_of
from tritonsched.core.policy import Choice, SchedulerView
from tritonsched.core.queues import RequestQueue
from tritonsched.core.request import Request


@dataclass(frozen=True, slots=True)
class Strategy:
    """A batch size and who waits in its line. latest_ns: after it the head would be late."""

    latest_ns: int
    waiting: Sequence[Request]


class Clockwork:
    """The model of the strategy that must start first."""

    name = "clockwork"
    keeps_deadlines = True

    def choose(self, view: SchedulerView, device: str, *, start_ns: int, now: int) -> Choice | None:
        ready_ns = start_ns + view.tuning.reply_ns
        urgent: tuple[int, int] | None = None
        best: tuple[RequestQueue, Strategy] | None = None
        for queue in view.queues(device):
            found = [*_strategies(queue, view, device, ready_ns)]
            order = min(((one.latest_ns, one.waiting[0].id) for one in found), default=None)
            if order is not None and (urgent is None or order < urgent):
                urgent, best = order, (queue, found[-1])
        if best is None:
            return None
        queue, largest = best
        return Choice(queue, _filled(queue, largest.waiting, view, device, ready_ns))


def _strategies(
    queue: RequestQueue, view: SchedulerView, device: str, ready_ns: int
) -> Iterator[Strategy]:
    """The possible sizes, smallest first: each has members enough whose deadlines it keeps."""
    waiting = list(queue)
    cap = 1 if queue.alone else view.rows_cap(queue.model, device)
    times = {rows: view.safe_ns(queue.model, device, rows) for rows in {r.rows for r in waiting}}
    size = 1
    while size <= cap:
        safe = view.safe_ns(queue.model, device, size)
        waiting = [r for r in waiting if ready_ns + max(safe, times[r.rows]) <= r.deadline_ns]
        if not waiting or (size > 1 and rows_of(waiting) < size):
            return
        yield Strategy(waiting[0].due_ns - max(safe, times[waiting[0].rows]), waiting)
        size *= 2


def _filled(
    queue: RequestQueue,
    waiting: Sequence[Request],
    view: SchedulerView,
    device: str,
    ready_ns: int,
) -> tuple[Request, ...]:
    """From the head of the line on, as many as keep all their deadlines."""
    taken = prefix(waiting, 1 if queue.alone else view.rows_cap(queue.model, device))
    first_ns = min(request.deadline_ns for request in taken)
    while len(taken) > 1:
        if ready_ns + view.safe_ns(queue.model, device, rows_of(taken)) <= first_ns:
            break
        taken = taken[:-1]
    return taken
