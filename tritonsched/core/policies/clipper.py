"""Clipper's adaptive batching: the largest batch is found by additive increase and multiplicative
decrease.

Crankshaw et al., NSDI 2017, section 4.3.1: after a batch that took no longer than the latency
objective its model's largest batch grows by one; after one that did it shrinks by a tenth. Requests
go in order of arrival, a batch as soon as the model's container is free, nothing waits to fill it
(delayed batching is an option there, off here).

Changed for one machine: there every model has a container of its own, here models that share a
device take turns by the age of their oldest request. What a batch takes is not measured but read
from the model's learnt times when it is sent: those follow every batch, so both come to the same
sizes. The objective is the least relative deadline in the batch; only a batch as large as allowed
makes it grow. The original knows no deadline of a single request and drops nobody; here the
scheduler refuses those who would be late even alone and next, without which any overload is for
ever. drop_late: also pass over whom the batch would make late.
"""

from tritonsched.core.batching import finish_ns, prefix, rows_of
from tritonsched.core.policy import Choice, SchedulerView
from tritonsched.core.queues import RequestQueue
from tritonsched.core.request import NEVER_NS, Request

GROWTH = 1.0  # rows after a batch within the objective
BACK_OFF = 0.9  # after one beyond it
MODELS_MAX = 1024  # remembered; the longest unused is forgotten first


class Clipper:
    """Oldest first, up to a size that is felt out. State: that size by model and device."""

    name = "clipper"
    keeps_deadlines = False

    def __init__(self, *, drop_late: bool = False) -> None:
        self._drop_late = drop_late
        self._sizes: dict[tuple[str, str], float] = {}

    def choose(self, view: SchedulerView, device: str, *, start_ns: int, now: int) -> Choice | None:
        queues = sorted(view.queues(device), key=lambda queue: min(map(_age, queue)))
        for queue in queues:
            cap = 1 if queue.alone else view.rows_cap(queue.model, device)
            size = int(min(cap, self._sizes.get((queue.model, device), 1.0)))
            taken = self._taken(queue, view, device, start_ns, size)
            if taken:
                self._feel(queue, view, device, taken, cap)
                return Choice(queue, taken)
        return None

    def _taken(
        self, queue: RequestQueue, view: SchedulerView, device: str, start_ns: int, size: int
    ) -> tuple[Request, ...]:
        waiting = sorted(queue, key=_age)
        if self._drop_late:
            rows = max(size, queue.rows_widest)
            end_ns = finish_ns(queue.model, view, device, start_ns, rows)
            waiting = [request for request in waiting if request.deadline_ns >= end_ns]
        return prefix(waiting, size)

    def _feel(
        self,
        queue: RequestQueue,
        view: SchedulerView,
        device: str,
        taken: tuple[Request, ...],
        cap: int,
    ) -> None:
        """One step of the size, after this batch."""
        key, rows = (queue.model, device), rows_of(taken)
        size = self._sizes.pop(key, 1.0)  # the last one used is the last one forgotten
        if view.safe_ns(queue.model, device, rows) > min(map(_objective_ns, taken)):
            size = max(1.0, BACK_OFF * size)
        elif rows >= int(size):
            size = min(cap, size + GROWTH)
        self._sizes[key] = size
        if len(self._sizes) > MODELS_MAX:
            del self._sizes[next(iter(self._sizes))]


def _age(request: Request) -> tuple[int, int]:
    return (request.arrival_ns, request.id)


def _objective_ns(request: Request) -> int:
    """How long its answer may take, counted from its arrival."""
    return request.deadline_ns - request.arrival_ns if request.has_deadline else NEVER_NS
