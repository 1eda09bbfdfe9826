"""Earliest deadline first, with the largest batch that keeps the head's deadline.

Liu & Layland 1973: EDF meets all deadlines up to utilisation 1 and promises nothing beyond. With
batching it is worse than that: near overload the head has little slack, batches shrink, capacity
falls and goodput goes to almost nothing at 1.3x load (performance study C2). Here as the baseline
that shows it.
"""

from tritonsched.core.batching import BatchWindow, head_batch
from tritonsched.core.policy import Choice, Hold, SchedulerView
from tritonsched.core.queues import RequestQueue


class Edf:
    """The queue whose head is due first."""

    name = "edf"
    keeps_deadlines = True

    def choose(
        self, view: SchedulerView, device: str, *, start_ns: int, now: int
    ) -> Choice | Hold | None:
        opens: list[int] = []
        best: Choice | None = None
        for queue in view.queues(device):
            window = BatchWindow(queue, view, device)
            if window.is_open(now):
                opens.append(window.closes_ns)
            elif best is None or _due(queue) < _due(best.queue):
                taken = head_batch(queue, view, device, start_ns)
                best = Choice(queue, taken) if taken else best
        return best or (Hold(min(opens)) if opens else None)


def _due(queue: RequestQueue) -> tuple[int, int]:
    return (queue.head.due_ns, queue.head.id)
