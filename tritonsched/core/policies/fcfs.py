"""First come, first served: the oldest request's model, in arrival order, up to the row cap.

What Triton's own dynamic batcher does within a priority; the baseline of every report. It ignores
deadlines, so members may be sent that will be late.
"""

from tritonsched.core.batching import BatchWindow, prefix
from tritonsched.core.policy import Choice, Hold, SchedulerView
from tritonsched.core.queues import RequestQueue
from tritonsched.core.request import Request


def _age(request: Request) -> tuple[int, int]:
    return (request.arrival_ns, request.id)


class Fcfs:
    """Oldest first; O(n log n) in the chosen queue."""

    name = "fcfs"
    keeps_deadlines = False

    def choose(
        self,
        view: SchedulerView,
        device: str,
        *,
        start_ns: int,
        now: int,
    ) -> Choice | Hold | None:
        opens: list[int] = []
        best: tuple[tuple[int, int], RequestQueue] | None = None
        for queue in view.queues(device):
            window = BatchWindow(queue, view, device)
            if window.is_open(now):
                opens.append(window.closes_ns)
                continue
            age = min(map(_age, queue))
            if best is None or age < best[0]:
                best = (age, queue)
        if best is None:
            return Hold(min(opens)) if opens else None
        queue = best[1]
        cap = 1 if queue.alone else view.rows_cap(queue.model, device)
        return Choice(queue, prefix(sorted(queue, key=_age), cap))
