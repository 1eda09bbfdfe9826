"""Nexus' early drop: a window of the target batch slides over the queue to the first request that
allows it.

Shen et al., SOSP 2019: a head with little time left would shrink every batch after it, so the
dispatcher drops requests until the first one whose deadline a whole window keeps. The target is the
largest batch of which two follow each other within the deadline, 2 l(b) <= SLO, for who just misses
a batch waits for all of it. A window is as short as the queue where that is shorter, and the device
never waits (work-conserving).

Changed for one machine: models of a device go in the order of their windows' deadlines. The paper
packs models onto GPUs by their rates, each with its turn and its part of a duty cycle (squishy bin
packing), which takes a forecast and many GPUs; turns without that packing would make a tight model
wait for the windows of all others. Who is passed over is not dropped by this rule: it may still
come into a shorter window, until the scheduler refuses it when it would be late even alone and
next.
"""

from bisect import bisect_right

from tritonsched.core.batching import behind, finish_ns, prefix
from tritonsched.core.policy import Choice, SchedulerView
from tritonsched.core.queues import RequestQueue
from tritonsched.core.request import Request


class Nexus:
    """The window that is due first."""

    name = "nexus"
    keeps_deadlines = True

    def choose(self, view: SchedulerView, device: str, *, start_ns: int, now: int) -> Choice | None:
        windows = (
            (queue, taken)
            for queue in view.queues(device)
            if (taken := window(queue, view, device, start_ns))
        )
        best = min(windows, key=lambda found: _due(found[1][0]), default=None)
        return Choice(*best) if best else None


def window(
    queue: RequestQueue, view: SchedulerView, device: str, start_ns: int
) -> tuple[Request, ...]:
    """The first target batch that is in time for all its members; empty if there is none."""
    rows_max = target(queue, view, device)
    passed, left = 0, queue.rows
    for request in queue.with_deadline():
        rows = max(request.rows, min(rows_max, left))
        if finish_ns(queue.model, view, device, start_ns, rows) <= request.deadline_ns:
            break
        passed += 1
        left -= request.rows
    return prefix(behind(queue, passed), rows_max)


def target(queue: RequestQueue, view: SchedulerView, device: str) -> int:
    """The largest batch, in rows, of which two fit into the tightest deadline; at least 1."""
    cap = 1 if queue.alone else view.rows_cap(queue.model, device)
    if not queue.deadlines:
        return cap
    slo_ns = min(r.deadline_ns - r.arrival_ns for r in queue.with_deadline())

    def two_ns(rows: int) -> int:
        return 2 * view.safe_ns(queue.model, device, rows)

    return max(1, bisect_right(range(1, cap + 1), slo_ns, key=two_ns))


def _due(request: Request) -> tuple[int, int]:
    return (request.due_ns, request.id)
