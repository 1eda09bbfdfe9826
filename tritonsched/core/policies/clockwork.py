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

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from tritonsched.core.batching import behind, finish_ns, prefix, rows_of
from tritonsched.core.policy import Choice, SchedulerView
from tritonsched.core.queues import RequestQueue
from tritonsched.core.request import Request


@dataclass(frozen=True, slots=True)
class Strategy:
    """A batch size. latest_ns: after it the head of its line would be late. passed: members with a
    deadline that are not in its line any more.
    """

    latest_ns: int
    head_id: int
    passed: int

    @property
    def order(self) -> tuple[int, int]:
        """The most urgent first."""
        return (self.latest_ns, self.head_id)


class Clockwork:
    """The model of the strategy that must start first."""

    name = "clockwork"
    keeps_deadlines = True

    def choose(self, view: SchedulerView, device: str, *, start_ns: int, now: int) -> Choice | None:
        urgent: tuple[int, int] | None = None
        best: tuple[RequestQueue, Strategy] | None = None
        for queue in view.queues(device):
            found = [*_strategies(queue, view, device, start_ns)]
            first = min((strategy.order for strategy in found), default=None)
            if first is not None and (urgent is None or first < urgent):
                urgent, best = first, (queue, found[-1])
        return Choice(best[0], _filled(*best, view, device, start_ns)) if best else None


def _strategies(
    queue: RequestQueue, view: SchedulerView, device: str, start_ns: int
) -> Iterator[Strategy]:
    """The possible sizes, smallest first: each has members enough whose deadlines it keeps."""
    cap = 1 if queue.alone else view.rows_cap(queue.model, device)
    timed, patient = [*queue.with_deadline()], [*islice(queue.without_deadline(), 1)]
    passed, rows, size = 0, queue.rows, 1
    while size <= cap:
        for request in islice(timed, passed, None):
            wide = max(size, request.rows)
            if finish_ns(queue.model, view, device, start_ns, wide) <= request.deadline_ns:
                break
            passed += 1
            rows -= request.rows
        head = min([*timed[passed : passed + 1], *patient], key=_due, default=None)
        if head is None or (size > 1 and rows < size):
            return
        safe = view.safe_ns(queue.model, device, max(size, head.rows))
        yield Strategy(head.due_ns - safe, head.id, passed)
        size *= 2


def _due(request: Request) -> tuple[int, int]:
    return (request.due_ns, request.id)


def _filled(
    queue: RequestQueue, strategy: Strategy, view: SchedulerView, device: str, start_ns: int
) -> tuple[Request, ...]:
    """From the head of the line on, as many as keep all their deadlines."""
    cap = 1 if queue.alone else view.rows_cap(queue.model, device)
    taken = prefix(behind(queue, strategy.passed), cap)
    first_ns = min(request.deadline_ns for request in taken)
    while len(taken) > 1:
        if finish_ns(queue.model, view, device, start_ns, rows_of(taken)) <= first_ns:
            break
        taken = taken[:-1]
    return taken
