"""What a study remembers of a run, request by request. Rule: it listens as the Ledger does, and the
outcomes are the scheduler's own; what is drawn or averaged comes from here.

Memory: some 30 bytes a request, and 100 a batch if batches are kept.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tritonsched.core.batch import Batch
from tritonsched.core.ledger import Worths
from tritonsched.core.observers import Observer
from tritonsched.core.request import Outcome, Request


@dataclass(frozen=True, slots=True)
class Bar:
    """A batch on a device, as a Gantt chart shows it. in_time: of its requests, those that made
    it.
    """

    device: str
    model: str
    start_ns: int
    end_ns: int
    rows: int
    requests: int
    in_time: int


class Record(Observer):
    """Counts, latenesses and utility of one run. accuracy: of each model's answers, 1 if unnamed.

    overdue_ns: of late answers, after their deadline. latency_ns: of all answers.
    refusal: time from arrival to refusal, as a share of the relative deadline.
    used: time of each answer as a share of its relative deadline; above 1 is late.
    bars: batches that ran within `window_ns`, (from, until).
    """

    def __init__(
        self,
        *,
        accuracy: Mapping[str, float] | None = None,
        window_ns: tuple[int, int] = (0, 0),
    ) -> None:
        self._worths = Worths()
        self.utility = 0.0
        self.submitted: Counter[str] = Counter()
        self.outcomes: Counter[Outcome] = Counter()
        self.on_time: Counter[str] = Counter()
        self.overdue_ns: list[int] = []
        self.latency_ns: list[int] = []
        self.used: list[float] = []
        self.refusal: list[float] = []
        self.bars: list[Bar] = []
        self.rows: defaultdict[int, int] = defaultdict(int)
        self._accuracy = accuracy or {}
        self._window_ns = window_ns

    def on_submit(self, request: Request, now: int) -> None:
        self.submitted[request.slo] += 1

    def on_dispatch(self, batch: Batch, now: int) -> None:
        self.rows[batch.rows] += 1
        self._worths.sent(batch)

    def on_complete(self, batch: Batch, *, measured_ns: int, now: int) -> None:
        if now - measured_ns < self._window_ns[1] and now > self._window_ns[0]:
            in_time = sum(now <= request.deadline_ns for request in batch.requests)
            many = len(batch.requests)
            bar = Bar(batch.device, batch.model, now - measured_ns, now, batch.rows, many, in_time)
            self.bars.append(bar)

    def on_outcomes(
        self, requests: Sequence[Request], outcome: Outcome, reason: str, now: int
    ) -> None:
        self.outcomes[outcome] += len(requests)
        worths = [self._worths.take(request) for request in requests]
        if outcome in (Outcome.SERVED, Outcome.LATE):
            self._answered(requests, worths, now)
        if outcome is Outcome.SERVED:
            self.on_time.update([request.slo for request in requests])
        elif outcome is Outcome.LATE:
            self.overdue_ns += [now - request.deadline_ns for request in requests]
        elif outcome is Outcome.REJECTED:
            self.refusal += _shares(requests, now)

    def _answered(self, requests: Sequence[Request], worths: Sequence[float], now: int) -> None:
        self.latency_ns += [now - request.arrival_ns for request in requests]
        self.used += _shares(requests, now)
        for request, worth in zip(requests, worths, strict=True):
            accuracy = self._accuracy.get(request.model, 1.0)
            self.utility += worth * accuracy * request.earned_at(now)

    @property
    def total(self) -> int:
        return sum(self.submitted.values())

    @property
    def on_time_share(self) -> float:
        """Of all arrivals."""
        return self.outcomes[Outcome.SERVED] / max(1, self.total)

    @property
    def miss_ratio(self) -> float:
        """Late or never finished, of all that were not refused."""
        missed = self.outcomes[Outcome.LATE] + self.outcomes[Outcome.EXPIRED]
        return missed / max(1, self.total - self.outcomes[Outcome.REJECTED])

    @property
    def reject_ratio(self) -> float:
        """Refused, of all arrivals."""
        return self.outcomes[Outcome.REJECTED] / max(1, self.total)

    @property
    def worst_share(self) -> float:
        """The smallest on-time share of any class."""
        return min((self.on_time[name] / many for name, many in self.submitted.items()), default=0)

    @property
    def rows_mean(self) -> float:
        """Mean rows of a batch; 0 without one."""
        return sum(r * n for r, n in self.rows.items()) / max(1, sum(self.rows.values()))


def _shares(requests: Sequence[Request], now: int) -> list[float]:
    """Of their time that has passed, of those that have a deadline."""
    return [
        (now - request.arrival_ns) / (request.deadline_ns - request.arrival_ns)
        for request in requests
        if request.has_deadline
    ]
