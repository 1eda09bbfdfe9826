"""A busy sidecar in virtual time, for tests of what is shown: many models, classes and devices.

Rule: a seed and a time make it; the same arguments, the same history.
"""

import random
from collections.abc import Iterator, Sequence
from heapq import heappop, heappush

from tritonsched.core.batch import Completion, Dispatch
from tritonsched.core.fairness import Fairness
from tritonsched.core.latency import LatencyProfile
from tritonsched.core.ledger import Ledger
from tritonsched.core.policies import POLICIES
from tritonsched.core.request import Request, SloClass, Tenant
from tritonsched.core.scheduler import Scheduler
from tritonsched.core.variant import Variant
from tritonsched.proxy.frame import Facts, Json, frame
from tritonsched.proxy.overview import Overview

MS = 1_000_000
S = 1_000_000_000
SECOND_ARRIVALS = 240


class Panorama:
    """A scheduler under load with its ledger and overview, one second at a time."""

    def __init__(
        self,
        models: list[str],
        classes: list[str],
        *,
        devices: int = 4,
        tenants: Sequence[Tenant] = (Tenant("default"),),
    ) -> None:
        self.random = random.Random(7)
        self.models = models
        self.classes = {
            name: SloClass(name, (40 + 20 * number) * MS, 1.0 + number)
            for number, name in enumerate(classes)
        }
        self.overview = Overview(is_watched=True)
        self.ledger = Ledger()
        self.scheduler = Scheduler(POLICIES["lite"](), observers=(self.ledger, self.overview))
        self.tenants = tenants
        self.scheduler.tenants.adopt({one.name: one for one in tenants}, Fairness())
        for number, model in enumerate(models):
            device = f"gpu{number % devices}"
            self.scheduler.set_variant(Variant(model, 8, (device,)), 0)
            table = {rows: (4 + number % 5) * MS + rows * MS for rows in range(1, 9)}
            self.scheduler.set_profile(model, device, LatencyProfile(table))
        self.now = 0
        self._ends: list[tuple[int, int]] = []
        self._request = 0

    def seconds(self, count: int, *, per_s: int = SECOND_ARRIVALS) -> None:
        """Let so many seconds go by, a sample at the end of each."""
        for _ in range(count):
            end_ns = self.now + S
            for arrival_ns in self._arrivals(end_ns, per_s):
                self._run_to(arrival_ns)
                self._submit()
                self._decide()
            self._run_to(end_ns)
            self.overview.sample(self.scheduler, self.ledger, self.now)

    def facts(self, **fields: object) -> Facts:
        """What the frame is told beside the scheduler."""
        made = {"at_ms": self.now // MS, "uptime_s": self.now / S, "version": "1.2.3"}
        return Facts(**{**made, "rule": "lite", "classes": self.classes, **fields})  # type: ignore[arg-type]

    def frame(self, **fields: object) -> Json:
        facts = self.facts(**fields)
        return dict(frame(self.overview, self.scheduler, self.ledger, facts, self.now))

    def _arrivals(self, end_ns: int, per_s: int) -> Iterator[int]:
        at_ns = self.now
        while (at_ns := at_ns + int(self.random.expovariate(per_s) * S)) < end_ns:
            yield at_ns

    def _submit(self) -> None:
        self._request += 1
        slo = self.random.choice(list(self.classes.values()))
        deadline_ns = self.now + slo.relative_deadline_ns
        model = self.random.choice(self.models)
        tenant = self.tenants[self._request % len(self.tenants)]
        weight = slo.weight * tenant.weight
        request = Request(
            self._request, model, slo.name, 0, 1, self.now, deadline_ns, weight, tenant=tenant.name
        )
        self.scheduler.submit(request, self.now)

    def _run_to(self, end_ns: int) -> None:
        while True:
            wakeup = self.scheduler.next_wakeup()
            times = [at for at in (wakeup, self._ends[0][0] if self._ends else None) if at]
            if not times or min(times) > end_ns:
                break
            self.now = max(self.now, min(times))
            while self._ends and self._ends[0][0] <= self.now:
                self.scheduler.complete(Completion(heappop(self._ends)[1]), self.now)
            self._decide()
        self.now = end_ns

    def _decide(self) -> None:
        for decision in self.scheduler.decide(self.now):
            if isinstance(decision, Dispatch):
                batch = decision.batch
                spent = batch.expected_ns * self.random.uniform(0.95, 1.08)
                heappush(self._ends, (int(batch.expected_start_ns + spent), batch.id))
