"""Sequential earliest deadline first: one request at a time, of all models the one due first.

DeepRT's baseline of that name (Yang et al., SEC 2021, section 6): it shows what batching is worth.
Optimal below the capacity of batches of one (Liu & Layland 1973, up to blocking: nothing is
preempted), helpless above it. Changed: on several devices, a request that this one would make late
is left to the others. Not modelled: the paper feeds it only streams that passed an admission test;
here what can no longer be in time is refused by the scheduler, so that under overload the rest is
served in time instead of everybody late.
"""

from tritonsched.core.batching import finish_ns
from tritonsched.core.policy import Choice, SchedulerView
from tritonsched.core.request import Request


class Sedf:
    """The head that is due first, alone."""

    name = "sedf"
    keeps_deadlines = True

    def choose(self, view: SchedulerView, device: str, *, start_ns: int, now: int) -> Choice | None:
        heads = ((queue, queue.head) for queue in view.queues(device))
        in_time = (
            (queue, head)
            for queue, head in heads
            if finish_ns(queue.model, view, device, start_ns, head.rows) <= head.deadline_ns
        )
        first = min(in_time, key=lambda found: _due(found[1]), default=None)
        return Choice(first[0], (first[1],)) if first else None


def _due(request: Request) -> tuple[int, int]:
    return (request.due_ns, request.id)
