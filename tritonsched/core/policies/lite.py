"""One-step regret: earliest deadline while everything fits, else the batch worth its time.

A. If every queue fits one batch of the best variant and, in order of deadlines, all of them can be
   in time at full worth: send the first one whole. Nothing is lost, so the order is right.
B. Otherwise something will be. Of each queue take the densest batch (utility per time) of each
   variant; its score is what it earns less what its delay costs the best batches of the other
   queues, per time.
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
    """Pure Python; the look-ahead falls back on it. State: choices since the overdue had their
    turn, by device.
    """

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
    for queue in queues:
        if queue.size > 1 and (queue.alone or queue.rows > view.rows_cap(queue.model, device)):
            return None
    ready_ns = start_ns + view.tuning.reply_ns
    in_turn = sorted(queues, key=_due)
    for queue in in_turn:
        ready_ns += view.safe_ns(queue.model, device, queue.rows)
        if ready_ns > queue.full_until_ns:
            return None
    queue = in_turn[0]
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
    head = queue.head
    return (head.due_ns, head.id)


def _least_regret(
    queues: Sequence[RequestQueue], view: SchedulerView, device: str, start_ns: int
) -> Choice | None:
    """Step B."""
    offers = [_offers(queue, view, device, start_ns) for queue in queues]
    ready_ns = start_ns + view.tuning.reply_ns
    losses = [_Loss(max(found, key=_density), ready_ns) for found in offers if found]
    candidates = [candidate for found in offers for candidate in found]
    if not candidates:
        return None
    return max(candidates, key=lambda c: (_score(c, losses), -c.requests[0].due_ns)).choice


def _offers(
    queue: RequestQueue, view: SchedulerView, device: str, start_ns: int
) -> list[Candidate]:
    """The densest batch of each variant."""
    ways = view.variants(queue.model, device)
    found = (densest(queue, view, device, start_ns, way) for way in ways)
    return [candidate for candidate in found if candidate is not None]


def _density(candidate: Candidate) -> float:
    return candidate.density


class _Loss:
    """What a batch loses by waiting: of a step the weights of those that it makes late; of shaped
    worth what falls meanwhile.
    """

    __slots__ = ("_candidate", "_end_ns", "_waits", "queue")

    def __init__(self, candidate: Candidate, ready_ns: int) -> None:
        self.queue = candidate.queue
        self._candidate = candidate
        self._end_ns = ready_ns + candidate.safe_ns
        self._waits = sorted((r.deadline_ns - self._end_ns, r.weight) for r in candidate.requests)

    def by(self, delay_ns: int) -> float:
        if self.queue.shaped:
            end_ns, requests = self._end_ns, self._candidate.requests
            return sum(r.utility_at(end_ns) - r.utility_at(end_ns + delay_ns) for r in requests)
        loss = 0.0
        for wait_ns, weight in self._waits:
            if wait_ns >= delay_ns:
                break
            loss += weight
        return loss


def _score(chosen: Candidate, losses: Sequence[_Loss]) -> float:
    """Utility per time of running `chosen` now, less what the others lose by waiting for it."""
    lost = sum(loss.by(chosen.safe_ns) for loss in losses if loss.queue is not chosen.queue)
    return (chosen.utility - lost) / chosen.safe_ns
