"""One-step regret: earliest deadline while everything fits, else the batch worth its time.

A. If every queue fits one batch and, in order of deadlines, all of them can be in time: send the
   first one whole. No value is lost, so the deadline order is right.
B. Otherwise something will be lost. For each queue take its densest batch (utility per time); its
   score is what it earns less what its delay costs the best batches of the other queues, per time.
Requests without a deadline lose nothing by waiting; so that they do not wait for ever behind
others that do, every STARVED_EVERY-th choice under B goes to the queue most overdue, if there is
one.
Source: scheduling study 5 ("lite"): 0.915 of a clairvoyant bound over 14 workloads, pure Python.
"""

from collections.abc import Sequence

from tritonsched.core.batching import Candidate, densest, prefix
from tritonsched.core.policy import Choice, Hold, SchedulerView
from tritonsched.core.queues import RequestQueue

STARVED_EVERY = 8  # an eighth of the choices at most goes to the overdue: it bounds what they cost


class Lite:
    """The default rule. State: choices since the overdue had their turn, by device."""

    name = "lite"
    keeps_deadlines = True

    def __init__(self) -> None:
        self._since_overdue: dict[str, int] = {}

    def choose(
        self, view: SchedulerView, device: str, *, start_ns: int, now: int
    ) -> Choice | Hold | None:
        queues = view.queues(device)
        if not queues:
            return None
        choice = _everything_fits(queues, view, device, start_ns)
        choice = choice or _all_patient(queues, view, device)
        return choice or self._lossy(queues, view, device, start_ns)

    def _lossy(
        self, queues: Sequence[RequestQueue], view: SchedulerView, device: str, start_ns: int
    ) -> Choice | None:
        """Step B, in its turn the most overdue queue. Only what is chosen counts as a turn."""
        since = self._since_overdue.get(device, 0) + 1
        choice = _overdue(queues, view, device, start_ns) if since >= STARVED_EVERY else None
        if choice is not None:
            since = 0
        else:
            choice = self._weigh(queues, view, device, start_ns)
        if choice is not None:
            self._since_overdue[device] = since
        return choice

    def _weigh(
        self, queues: Sequence[RequestQueue], view: SchedulerView, device: str, start_ns: int
    ) -> Choice | None:
        return _least_regret(queues, view, device, start_ns)


def _everything_fits(
    queues: Sequence[RequestQueue], view: SchedulerView, device: str, start_ns: int
) -> Choice | None:
    """Step A: the whole of the most urgent queue, if all queues can follow in time.

    Jackson 1955: among non-preemptive orders of jobs that are all there, earliest due date is late
    only if every order is. (Latest start first, as the study has it, misses some.)
    """
    plan: list[tuple[tuple[int, int], int, RequestQueue]] = []
    for queue in queues:
        if len(queue) > 1 and (queue.alone or queue.rows > view.rows_cap(queue.model, device)):
            return None
        safe = view.safe_ns(queue.model, device, queue.rows)
        plan.append((_due(queue), safe, queue))
    plan.sort()
    time_ns = start_ns
    for _, safe, queue in plan:
        time_ns += safe
        if time_ns + view.tuning.reply_ns > queue.first_deadline_ns:
            return None
    queue = plan[0][2]
    return Choice(queue, tuple(queue))


def _all_patient(queues: Sequence[RequestQueue], view: SchedulerView, device: str) -> Choice | None:
    """Nobody has a deadline: oldest first, like Triton, so that no model starves."""
    if any(queue.deadlines for queue in queues):
        return None
    return _patient(min(queues, key=_due), view, device)


def _patient(queue: RequestQueue, view: SchedulerView, device: str) -> Choice:
    cap = 1 if queue.alone else view.rows_cap(queue.model, device)
    return Choice(queue, prefix(queue.without_deadline(), cap))


def _overdue(
    queues: Sequence[RequestQueue], view: SchedulerView, device: str, start_ns: int
) -> Choice | None:
    late = [q for q in queues if not q.head.has_deadline and q.head.due_ns < start_ns]
    return _patient(min(late, key=_due), view, device) if late else None


def _due(queue: RequestQueue) -> tuple[int, int]:
    return (queue.head.due_ns, queue.head.id)


def _least_regret(
    queues: Sequence[RequestQueue], view: SchedulerView, device: str, start_ns: int
) -> Choice | None:
    """Step B."""
    found = (densest(queue, view, device, start_ns) for queue in queues)
    candidates = [candidate for candidate in found if candidate is not None]
    if not candidates:
        return None
    ready_ns = start_ns + view.tuning.reply_ns
    waits = [(candidate, _waits(candidate, ready_ns)) for candidate in candidates]
    best = max(
        candidates,
        key=lambda c: (_score(c, waits), -c.requests[0].due_ns),
    )
    return Choice(best.queue, best.requests)


def _waits(candidate: Candidate, ready_ns: int) -> list[tuple[int, float]]:
    """How long each member can wait before the batch makes it late, and what it is worth."""
    end_ns = ready_ns + candidate.safe_ns
    return sorted((r.deadline_ns - end_ns, r.weight) for r in candidate.requests)


def _score(chosen: Candidate, waits: Sequence[tuple[Candidate, list[tuple[int, float]]]]) -> float:
    """Utility per time of running `chosen` now, less what the others lose by waiting for it."""
    loss = 0.0
    for other, members in waits:
        if other is not chosen:
            for wait_ns, weight in members:
                if wait_ns >= chosen.safe_ns:
                    break
                loss += weight
    return (chosen.utility - loss) / chosen.safe_ns
