"""What came of every request: the one definition of goodput, live and simulated.

goodput: requests served by their deadline (without one: served at all). A request that failed and
is tried again alone has no outcome yet, so each request is counted exactly once.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from mypy_extensions import mypyc_attr

from tritonsched.core.batch import Batch
from tritonsched.core.observers import Observer
from tritonsched.core.request import Outcome, Request


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


@mypyc_attr(allow_interpreted_subclasses=True)
class Ledger(Observer):
    """Counts of outcomes by class and by tenant, and the utility they earned. Memory: O(names)."""

    def __init__(self) -> None:
        self._worths = Worths()
        self.outcomes: Counter[tuple[str, Outcome]] = Counter()
        self.reasons: Counter[tuple[str, str]] = Counter()
        self.tenants: Counter[tuple[str, Outcome]] = Counter()
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

    def on_outcomes(
        self, requests: Sequence[Request], outcome: Outcome, reason: str, now: int
    ) -> None:
        is_answered = outcome in (Outcome.SERVED, Outcome.LATE)
        slos: dict[str, int] = {}
        tenants: dict[str, int] = {}
        for request in requests:
            slo, tenant = request.slo, request.tenant
            slos[slo] = slos.get(slo, 0) + 1  # a Counter costs ten times as much each time
            tenants[tenant] = tenants.get(tenant, 0) + 1
            worth = self._worths.take(request)
            if is_answered:
                self.utility[slo] += worth * request.earned_at(now)
        for slo, count in slos.items():
            self.outcomes[slo, outcome] += count
            if reason:
                self.reasons[slo, reason] += count
        for tenant, count in tenants.items():
            self.tenants[tenant, outcome] += count

    def total(self, outcome: Outcome) -> int:
        """Requests of all classes that left this way."""
        return sum(n for (_, kind), n in self.outcomes.items() if kind is outcome)

    @property
    def miss_ratio(self) -> float:
        """Late or expired, of all that were neither refused nor cancelled; 0 if there were none."""
        return _miss_ratio({outcome: self.total(outcome) for outcome in Outcome})

    def miss_ratio_of(self, tenant: str) -> float:
        """The same of one tenant's."""
        return _miss_ratio({outcome: self.tenants[tenant, outcome] for outcome in Outcome})

    def on_time_share_of(self, tenant: str) -> float | None:
        """Served in time, of the tenant's requests whose client stayed; None if there were none."""
        stayed = [self.tenants[tenant, kind] for kind in Outcome if kind is not Outcome.CANCELLED]
        return self.tenants[tenant, Outcome.SERVED] / sum(stayed) if any(stayed) else None

    @property
    def rows_mean(self) -> float:
        """Mean rows of a dispatched batch; 0 if there was none."""
        return self.rows / self.batches if self.batches else 0.0


def _miss_ratio(counts: Mapping[Outcome, int]) -> float:
    missed = counts[Outcome.LATE] + counts[Outcome.EXPIRED]
    admitted = missed + counts[Outcome.SERVED] + counts[Outcome.FAILED]
    return missed / admitted if admitted else 0.0
