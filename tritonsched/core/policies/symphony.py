"""Symphony's deferred batching: a batch starts as late as its head allows, so that it may grow.

Chen et al., "Symphony: Optimized DNN Model Serving using Deferred Batch Scheduling", 2023: the
candidate of a model is the largest batch that keeps its head's deadline d. With b rows it may start
from d - l(b + 1), until when one more could still join, to d - l(b), its latest start. A full batch
may start at once. Of the candidates whose time has come the one with the earliest latest start goes
first; if there is none, the device waits for the first.

Changed for one machine: the original keeps a part of a cluster busy with large batches and hands
back the rest; one GPU that waits is lost time, which is what this rule shows. The event loop's
guard is taken off the start: where times do not grow with rows, the two bounds are one moment.
Requests without a deadline have nothing to wait for, and what was never measured knows no latest
start: both start at once. Not modelled: the matching of models and GPUs by a central scheduler.
Who would be late even alone and next is refused by the scheduler, as the original drops it.
"""

from dataclasses import dataclass

from tritonsched.core.batching import head_batch, rows_of
from tritonsched.core.policy import Choice, Hold, SchedulerView
from tritonsched.core.queues import RequestQueue
from tritonsched.core.request import NEVER_NS, Request


@dataclass(frozen=True, slots=True)
class Deferred:
    """A candidate: it may start from `opens_ns` on and must by `latest_ns`."""

    opens_ns: int
    latest_ns: int
    queue: RequestQueue
    requests: tuple[Request, ...]


class Symphony:
    """The batch that can wait no longer."""

    name = "symphony"
    keeps_deadlines = True

    def choose(
        self, view: SchedulerView, device: str, *, start_ns: int, now: int
    ) -> Choice | Hold | None:
        found = [
            _deferred(queue, taken, view, device)
            for queue in view.queues(device)
            if (taken := head_batch(queue, view, device, start_ns))
        ]
        ready = [candidate for candidate in found if candidate.opens_ns <= start_ns]
        if ready:
            best = min(ready, key=lambda one: (one.latest_ns, one.requests[0].id))
            return Choice(best.queue, best.requests)
        if found:
            return Hold(min(one.opens_ns for one in found) - view.tuning.rtt_ns)
        return None


def _deferred(
    queue: RequestQueue, taken: tuple[Request, ...], view: SchedulerView, device: str
) -> Deferred:
    """When the candidate may start, and when it must."""
    rows, tuning = rows_of(taken), view.tuning
    latest_ns = taken[0].due_ns - tuning.reply_ns - view.safe_ns(queue.model, device, rows)
    first_ns = min(request.deadline_ns for request in taken)
    full = queue.alone or rows >= view.rows_cap(queue.model, device)
    more_ns = view.safe_ns(queue.model, device, rows + 1)
    if full or first_ns == NEVER_NS or more_ns == 0:
        return Deferred(0, latest_ns, queue, taken)
    opens_ns = first_ns - tuning.reply_ns - tuning.guard_ns - more_ns
    return Deferred(opens_ns, latest_ns, queue, taken)
