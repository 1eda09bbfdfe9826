"""What came of every request: the one definition of goodput, live and simulated.

Observer is how anybody listens (metrics, recorder, reports); the scheduler does not know who does.
goodput: requests served by their deadline (without one: served at all). A request that failed and
is tried again alone has no outcome yet, so each request is counted exactly once.
"""

from collections import Counter, defaultdict
from typing import Protocol

from tritonsched.core.batch import Batch
from tritonsched.core.request import Outcome, Request


class Observer(Protocol):
    """Hooks of the scheduler; they must not raise and must not call back."""

    def on_submit(self, request: Request, now: int) -> None: ...

    def on_dispatch(self, batch: Batch, now: int) -> None: ...

    def on_complete(self, batch: Batch, *, measured_ns: int, now: int) -> None:
        """The batch was executed; measured_ns: execution time as the profile learnt it."""

    def on_outcome(self, request: Request, outcome: Outcome, reason: str, now: int) -> None:
        """The request left. reason: a RejectReason's value for `rejected`, else empty."""


class Worths:
    """What the answers of a batch are worth beside the best variant's, until they are there.

    Memory: O(requests that run on a lesser variant).
    """

    __slots__ = ("_less",)

    def __init__(self) -> None:
        self._less: dict[int, float] = {}

    def sent(self, batch: Batch) -> None:
        for request in batch.requests if batch.worth < 1.0 else ():
            self._less[request.id] = batch.worth

    def take(self, request: Request) -> float:
        """The request has left; what its answer counts."""
        return self._less.pop(request.id, 1.0) if self._less else 1.0


class Ledger:
    """Counts of outcomes by class, and the utility they earned. Memory: O(classes)."""

    def __init__(self) -> None:
        self._worths = Worths()
        self.outcomes: Counter[tuple[str, Outcome]] = Counter()
        self.reasons: Counter[tuple[str, str]] = Counter()
        self.submitted: Counter[str] = Counter()
        self.utility: defaultdict[str, float] = defaultdict(float)
        self.batches = 0
        self.rows = 0

    def on_submit(self, request: Request, now: int) -> None:
        self.submitted[request.slo] += 1

    def on_dispatch(self, batch: Batch, now: int) -> None:
        self.batches += 1
        self.rows += batch.rows
        self._worths.sent(batch)

    def on_complete(self, batch: Batch, *, measured_ns: int, now: int) -> None:
        """Nothing to count: outcomes follow one by one."""

    def on_outcome(self, request: Request, outcome: Outcome, reason: str, now: int) -> None:
        self.outcomes[request.slo, outcome] += 1
        if reason:
            self.reasons[request.slo, reason] += 1
        worth = self._worths.take(request)
        if outcome in (Outcome.SERVED, Outcome.LATE):
            self.utility[request.slo] += worth * request.earned_at(now)

    def total(self, outcome: Outcome) -> int:
        """Requests of all classes that left this way."""
        return sum(n for (_, kind), n in self.outcomes.items() if kind is outcome)

    @property
    def miss_ratio(self) -> float:
        """Late or expired, of all that were neither refused nor cancelled; 0 if there were none."""
        missed = self.total(Outcome.LATE) + self.total(Outcome.EXPIRED)
        admitted = missed + self.total(Outcome.SERVED) + self.total(Outcome.FAILED)
        return missed / admitted if admitted else 0.0

    @property
    def rows_mean(self) -> float:
        """Mean rows of a dispatched batch; 0 if there was none."""
        return self.rows / self.batches if self.batches else 0.0
