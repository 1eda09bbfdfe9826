"""The heuristic of QoS-aware scheduling of heterogeneous servers (Fang et al., CIKM 2017).

For a free device G the smallest batch size B of the profiled ones (section 3.2; powers of two here)
with
    B >= [a D(B, G) R + (1 - a) N] b x_G
R: arrivals a second over the last 5 s; N: requests that wait; D: execution time of B on G with the
most accurate variant; x_G: G's part of the throughput at B = 8 of all devices that have asked;
a = b = 0.5. (The paper prints 0.5 for another letter; with b much below that it is unstable.) The
batch is filled from bins of 200 ms of deadlines, the first bin first, in a bin as they came.

The most accurate variant runs unless B > 8. As printed, from B = 8 on the variant of the largest
predicted quality would: that waits far too long, because the batch alone never pays for those
behind it, and its figures are not the paper's. With the cheapest variant above 8 they are, so
that is what ran in effect (`by_quality=True` is the rule as printed; `make study ARGS='--only
cikm'` shows both).

It never waits, refuses nobody and knows no second model: each queue has its own R and N, and the
one whose head is due first goes. Worth after the soft deadline falls (`classes.NAME.soft_ms`); the
scheduler refuses what is hopeless for the hard one, which is worth nothing there either.
"""

from collections import deque

from tritonsched.core.batching import prefix, rows_of
from tritonsched.core.policy import Choice, SchedulerView
from tritonsched.core.queues import RequestQueue
from tritonsched.core.request import Request
from tritonsched.core.variant import Way

ALPHA = BETA = 0.5
BIN_NS = 200_000_000
RATE_NS = 5_000_000_000  # arrivals are counted over that long
SIMPLE_ABOVE = 8  # rows; larger batches take a simpler model
SHARE_ROWS = 8  # devices share the work by their throughput at that size
ARRIVALS_MAX = 100_000  # counted a queue
QUEUES_MAX = 1024  # remembered; the longest unused is forgotten first

Key = tuple[str, int, bool]


class _Rate:
    """Arrivals of a queue, as far as they were seen waiting."""

    __slots__ = ("_last", "_times")

    def __init__(self) -> None:
        self._times: deque[int] = deque(maxlen=ARRIVALS_MAX)
        self._last = (-1, -1)

    def of(self, queue: RequestQueue, now: int) -> float:
        """A second."""
        new = sorted((r.arrival_ns, r.id) for r in queue if (r.arrival_ns, r.id) > self._last)
        self._times.extend(arrival_ns for arrival_ns, _ in new)
        if new:
            self._last = new[-1]
        while self._times and self._times[0] <= now - RATE_NS:
            self._times.popleft()
        return len(self._times) * 1e9 / RATE_NS


class Cikm:
    """State: arrivals by queue, throughput by device. by_quality: the model rule as printed."""

    name = "cikm"
    keeps_deadlines = False

    def __init__(
        self, *, alpha: float = ALPHA, beta: float = BETA, by_quality: bool = False
    ) -> None:
        self._alpha = alpha
        self._beta = beta
        self._by_quality = by_quality
        self._rates: dict[Key, _Rate] = {}
        self._throughput: dict[str, dict[str, float]] = {}

    def choose(self, view: SchedulerView, device: str, *, start_ns: int, now: int) -> Choice | None:
        queues = view.queues(device)
        if not queues:
            return None
        queue = min(queues, key=lambda queue: (queue.head.due_ns, queue.head.id))
        best, *simpler = view.variants(queue.model, device)
        rows = self._rows(queue, view, device, best, now)
        taken = prefix(binned(queue), rows)
        if not simpler:
            return Choice(queue, taken)
        if self._by_quality and rows >= SIMPLE_ABOVE:
            return Choice(queue, taken, _dearest(view, device, [best, *simpler], taken, start_ns))
        simple = rows > SIMPLE_ABOVE and not self._by_quality
        return Choice(queue, taken, simpler[-1].model if simple else best.model)

    def _rows(
        self, queue: RequestQueue, view: SchedulerView, device: str, way: Way, now: int
    ) -> int:
        """B; the largest size if none is large enough."""
        rate = self._rate_of(queue).of(queue, now)
        share = self._share(view, device, queue.model, way)
        cap = 1 if queue.alone else view.rows_cap(way.model, device)
        rows = 1
        while rows < cap:
            during = view.safe_ns(way.model, device, rows) * rate / 1e9
            waiting = self._alpha * during + (1 - self._alpha) * queue.rows
            if rows >= waiting * self._beta * share:
                break
            rows *= 2
        return min(rows, cap)

    def _rate_of(self, queue: RequestQueue) -> _Rate:
        key = (queue.model, queue.signature, queue.alone)
        rate = self._rates.pop(key, None) or _Rate()
        self._rates[key] = rate  # the last one used is the last one forgotten
        if len(self._rates) > QUEUES_MAX:
            del self._rates[next(iter(self._rates))]
        return rate

    def _share(self, view: SchedulerView, device: str, model: str, way: Way) -> float:
        """x_G; devices that have not asked yet do not count."""
        known = self._throughput.setdefault(model, {})
        known[device] = SHARE_ROWS / max(1, view.safe_ns(way.model, device, SHARE_ROWS))
        return known[device] / sum(known.values())


def _dearest(
    view: SchedulerView,
    device: str,
    ways: list[Way],
    taken: tuple[Request, ...],
    start_ns: int,
) -> str:
    """The variant whose answers to these requests are worth most when they are there."""
    rows = rows_of(taken)
    ready_ns = start_ns + view.tuning.reply_ns

    def quality(way: Way) -> float:
        end_ns = ready_ns + view.safe_ns(way.model, device, rows)
        return way.worth * sum(request.utility_at(end_ns) for request in taken)

    return max(ways, key=quality).model


def binned(queue: RequestQueue) -> list[Request]:
    """The members by bins of deadlines, first come first in each."""
    return sorted(queue, key=lambda r: (r.due_ns // BIN_NS, r.arrival_ns, r.id))
