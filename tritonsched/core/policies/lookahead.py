"""Utility-density look-ahead: of a few batches, the one that leaves most to be collected.

A. Everything fits: deadline order, as in `lite`; so are the turns of those without a deadline.
B. Otherwise each queue offers, of each variant, its densest batch and the one that its head's
   slack allows; those
   with the highest density and the earliest latest start are kept, CANDIDATES_MAX at most.
C. Each is followed through the queues as they are (no arrivals are guessed): whenever a device is
   free, a base rule takes the next batch, once the queue that must start first, once the densest.
   Score: what the better of both collects up to the horizon, less a price for the time used.
A roll-out counts requests, each as wide as its queue's mean, and takes of every weight the earliest
that are in time; only the batch that is dispatched is formed exactly. Its work is bounded by
PICKS_MAX looks at a queue; beyond QUEUES_MAX queues that would be too short a look to be worth
more than the one step of `lite`, which then chooses. Other devices are not looked at.
Source: scheduling study 5 ("UDR"), steps A to D.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from tritonsched.core.batching import Candidate, densest, head_candidate
from tritonsched.core.policies.lite import Lite
from tritonsched.core.policy import Choice, SchedulerView
from tritonsched.core.queues import RequestQueue
from tritonsched.core.request import NEVER_NS, PATIENCE_NS

CANDIDATES_MAX = 8
STEPS_MAX = 12  # batches that a roll-out looks ahead
QUEUES_MAX = 8
PICKS_MAX = 1000  # looks at a queue in one decision; their cost is not measured yet
ROUNDS_MAX = 3  # sizes tried for one batch of a roll-out
PRICE_SHARE = 0.05  # of the usual density, for each nanosecond used
PRICE_GAIN = 0.05  # of the newest batch in the usual density
Spots = tuple[int, ...]


@dataclass(slots=True)
class _Pick:
    """A batch of a roll-out. latest_ns: when it must start. spots: the lanes after it."""

    utility: float
    safe_ns: int
    latest_ns: int
    spots: Spots


class _Line:
    """A queue as a roll-out sees it: lanes by falling weight, times by number of requests."""

    __slots__ = ("lanes", "reply_ns", "shaped", "times")

    def __init__(self, queue: RequestQueue, view: SchedulerView, device: str) -> None:
        self.lanes = queue.lanes()
        self.shaped = queue.shaped
        self.reply_ns = view.tuning.reply_ns
        width = max(1, round(queue.rows / queue.size))
        cap = 1 if queue.alone else max(1, view.rows_cap(queue.model, device) // width)
        self.times = [
            max(1, view.safe_ns(queue.model, device, count * width))
            for count in range(min(cap, queue.size) + 1)
        ]

    def start(self) -> Spots:
        return (0,) * len(self.lanes)

    def after(self, candidate: Candidate) -> Spots:
        """Where the lanes stand when the candidate is gone."""
        last: dict[tuple[float, bool], tuple[int, int]] = {}
        for request in candidate.requests:
            key = (request.weight, request.has_deadline)
            last[key] = max(last.get(key, (0, 0)), (request.due_ns, request.id + 1))
        return tuple(
            bisect_left(entries, last[weight, timed]) if (weight, timed) in last else 0
            for weight, timed, entries in self.lanes
        )

    def pick(self, spots: Spots, start_ns: int) -> _Pick | None:
        """The largest batch of those in time, the most valuable first; None if there are none."""
        left = sum(len(lane[2]) - spot for lane, spot in zip(self.lanes, spots, strict=True))
        count = min(left, len(self.times) - 1)
        found: _Pick | None = None
        for _ in range(ROUNDS_MAX):
            if not count:
                return None
            taken, pick = self._take(spots, count, start_ns, self.times[count])
            found = pick if taken else None
            if taken == count:
                break
            count = taken or count // 2
        return found

    def _take(self, spots: Spots, count: int, start_ns: int, safe_ns: int) -> tuple[int, _Pick]:
        end_ns = start_ns + safe_ns + self.reply_ns
        first_ns, utility, room = NEVER_NS, 0.0, count
        after: list[int] = []
        for (weight, timed, entries), spot in zip(self.lanes, spots, strict=True):
            index = bisect_left(entries, (end_ns,), spot) if timed else spot
            taken = min(room, len(entries) - index)
            if taken:
                room -= taken
                worth = weight
                if self.shaped:  # between the first one's and the last one's
                    ends = entries[index][2], entries[index + taken - 1][2]
                    worth = sum(request.utility_at(end_ns) for request in ends) / 2
                utility += worth * taken
                if timed:
                    first_ns = min(first_ns, entries[index][0])
                index += taken
            after.append(index if taken or timed else spot)
        taken = count - room
        length = self.times[taken] if taken else safe_ns
        return taken, _Pick(utility, length, first_ns - length, tuple(after))


class Lookahead(Lite):
    """The roll-out. State: that of `lite`, and the usual density of what was sent, by device."""

    name = "lookahead"

    def __init__(self) -> None:
        super().__init__()
        self._usual: dict[str, float] = {}

    def _weigh(
        self, queues: Sequence[RequestQueue], view: SchedulerView, device: str, start_ns: int
    ) -> Choice | None:
        """Steps B to D."""
        if len(queues) > QUEUES_MAX:
            return super()._weigh(queues, view, device, start_ns)
        candidates = _candidates(queues, view, device, start_ns)
        if not candidates:
            return None
        best = candidates[0]
        if len(candidates) > 1:
            price = PRICE_SHARE * self._usual.get(device, 0.0)
            ahead = _Ahead(
                queues, view, device, start_ns=start_ns, price=price, candidates=len(candidates)
            )
            best = max(candidates, key=lambda c: (ahead.score(c), c.density, -c.requests[0].due_ns))
        usual = self._usual.get(device, best.density)
        self._usual[device] = usual + PRICE_GAIN * (best.density - usual)
        return best.choice


def _candidates(
    queues: Sequence[RequestQueue], view: SchedulerView, device: str, start_ns: int
) -> list[Candidate]:
    """Step B: half of them the densest, half those that must start first."""
    found: list[Candidate] = []
    for queue in queues:
        for way in view.variants(queue.model, device):
            dense = densest(queue, view, device, start_ns, way)
            if dense is not None:
                found.append(dense)
                several = len(queues) > 1
                head = head_candidate(queue, view, device, start_ns, way) if several else None
                if head is not None and head.requests != dense.requests:
                    found.append(head)
    if len(found) <= CANDIDATES_MAX:
        return found
    by_density = sorted(found, key=lambda c: -c.density)[: CANDIDATES_MAX // 2]
    rest = [c for c in found if not any(c is kept for kept in by_density)]
    return by_density + sorted(rest, key=_latest_ns)[: CANDIDATES_MAX // 2]


def _latest_ns(candidate: Candidate) -> int:
    return min(request.deadline_ns for request in candidate.requests) - candidate.safe_ns


class _Ahead:
    """What is collected after each candidate."""

    def __init__(
        self,
        queues: Sequence[RequestQueue],
        view: SchedulerView,
        device: str,
        *,
        start_ns: int,
        price: float,
        candidates: int,
    ) -> None:
        self._queues = queues
        self._lines = [_Line(queue, view, device) for queue in queues]
        self._start_ns = start_ns
        self._price = price
        self._horizon_ns = start_ns + _horizon_ns(queues)
        self._steps = min(STEPS_MAX, PICKS_MAX // (2 * candidates * len(queues)))

    def score(self, candidate: Candidate) -> float:
        """Step C: the better of both base rules."""
        spots = [line.start() for line in self._lines]
        index = next(k for k, queue in enumerate(self._queues) if queue is candidate.queue)
        spots[index] = self._lines[index].after(candidate)
        first = self._worth(candidate.utility, candidate.safe_ns, self._start_ns)
        time_ns = self._start_ns + candidate.safe_ns
        return first + max(
            self._drain(list(spots), time_ns, by_density=False),
            self._drain(spots, time_ns, by_density=True),
        )

    def _drain(self, spots: list[Spots], time_ns: int, *, by_density: bool) -> float:
        total = 0.0
        for _ in range(self._steps):
            if time_ns >= self._horizon_ns:
                break
            best: _Pick | None = None
            chosen, rank = 0, 0.0
            for k, line in enumerate(self._lines):
                pick = line.pick(spots[k], time_ns)
                if pick is not None:
                    value = pick.utility / pick.safe_ns if by_density else -pick.latest_ns
                    if best is None or value > rank:
                        best, chosen, rank = pick, k, value
            if best is None:
                break
            total += self._worth(best.utility, best.safe_ns, time_ns)
            spots[chosen] = best.spots
            time_ns += best.safe_ns
        return total

    def _worth(self, utility: float, safe_ns: int, time_ns: int) -> float:
        """A batch that ends beyond the horizon counts for its part before it."""
        share = min(1.0, (self._horizon_ns - time_ns) / safe_ns)
        return share * (utility - self._price * safe_ns)


def _horizon_ns(queues: Sequence[RequestQueue]) -> int:
    """1.5 times the mean relative deadline of the heads, one second at most."""
    spans = [min(queue.head.due_ns - queue.head.arrival_ns, PATIENCE_NS) for queue in queues]
    return max(1, min(PATIENCE_NS, sum(spans) * 3 // (2 * len(spans))))
