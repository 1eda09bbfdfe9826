"""Builders for tests of the core: a test is a table of times.

    table = Table()
    table.at(0, submit(a), submit(b))
    table.expect(0, dispatch(a, b))

`at` feeds inputs and decides, as a driver does; wake-ups on the way are kept. `expect` runs to its
time and states everything that was decided since the last `expect`, so a decision too early, too
late or too many fails. Times are exact unless a test says otherwise: no round trip, no margin.
"""

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tritonsched.core.batch import (
    Batch,
    Completion,
    Decision,
    Dispatch,
    Expire,
    Grant,
    Refuse,
    Reject,
)
from tritonsched.core.latency import LatencyProfile
from tritonsched.core.ledger import Ledger
from tritonsched.core.policies import POLICIES
from tritonsched.core.policy import Policy
from tritonsched.core.request import NEVER_NS, RejectReason, Request
from tritonsched.core.scheduler import Scheduler
from tritonsched.core.tuning import Tuning
from tritonsched.core.variant import ServerState, Variant

MS = 1_000_000
S = 1_000_000_000
EXACT = Tuning(rtt_ns=0, guard_ns=0)
AFFINE = {rows: 5 * MS + rows * MS for rows in range(1, 9)}  # 6 ms alone, 13 ms for eight

Step = Callable[["Table"], None]
Line = tuple[Any, ...]


def request(
    number: int,
    *,
    arrival: int = 0,
    deadline: int = NEVER_NS,
    rows: int = 1,
    weight: float = 1.0,
    model: str = "m",
    signature: int = 0,
    alone: bool = False,
    tenant: str = "",
) -> Request:
    """Request `number`; times in ns, the deadline absolute."""
    return Request(
        number, model, "c", signature, rows, arrival, deadline, weight, alone, tenant=tenant
    )


class OneDevice:
    """What a view of tests shares: one device, free at once, with times from `safe_ns`."""

    def devices(self) -> Sequence[str]:
        return ["gpu"]

    def free_ns(self, device: str) -> int:
        return 0

    def safe_ns(self, model: str, device: str, rows: int) -> int:
        raise NotImplementedError

    def safe_times(self, model: str, device: str, rows: int) -> "array[int]":
        return array("q", [self.safe_ns(model, device, count) for count in range(rows + 1)])


def exact(points: dict[int, int]) -> LatencyProfile:
    """A proven profile without a margin: promises are the table's own times."""
    profile = LatencyProfile(points)
    profile._margin_ns = 0.0
    return profile


class Table:
    """A scheduler, its ledger, and the decisions nobody has expected yet.

    models: name to (rows_max, devices). Every model has the profile `points` on every device, or
    none with points=None (a cold start).
    """

    def __init__(
        self,
        policy: str | Policy = "lite",
        *,
        models: Mapping[str, tuple[int, tuple[str, ...]]] | None = None,
        points: dict[int, int] | None = AFFINE,
        tuning: Tuning = EXACT,
    ) -> None:
        self.ledger = Ledger()
        rule = POLICIES[policy]() if isinstance(policy, str) else policy
        self.scheduler = Scheduler(rule, tuning=tuning, observers=(self.ledger,))
        self.batches: dict[int, Batch] = {}
        self.now = 0
        self._unseen: list[tuple[int, Line]] = []
        served = {"m": (8, ("gpu",))} if models is None else models
        for name, (rows_max, devices) in served.items():
            self.scheduler.set_variant(Variant(name, rows_max, devices), 0)
            for device in devices if points is not None else ():
                self.scheduler.set_profile(name, device, exact(points or {}))

    def at(self, time: int, *steps: Step) -> None:
        """Run to `time`, feed the inputs, decide."""
        self._run_to(time)
        for step in steps:
            step(self)
        self._decide()

    def expect(self, time: int, *lines: Line) -> None:
        """Run to `time`; exactly these were decided since the last `expect`, all at `time`."""
        self._run_to(time)
        if self.scheduler.next_wakeup() == time:
            self._decide()
        seen, self._unseen = self._unseen, []
        assert seen == [(time, line) for line in lines]

    def expect_nothing(self, time: int) -> None:
        """Nothing was decided since the last `expect`, nor is until `time`."""
        self.expect(time)

    def _run_to(self, time: int) -> None:
        while (wakeup := self.scheduler.next_wakeup()) is not None and wakeup < time:
            self.now = wakeup
            self._decide()
        self.now = time

    def _decide(self) -> None:
        for decision in self.scheduler.decide(self.now):
            if isinstance(decision, Dispatch):
                self.batches[decision.batch.id] = decision.batch
            self._unseen.append((self.now, line_of(decision)))


def line_of(decision: Decision) -> Line:
    """A decision as `dispatch`, `reject` and `expire` below spell it."""
    match decision:
        case Dispatch(batch):
            return ("dispatch", batch.device, *(r.id for r in batch.requests))
        case Reject(refused, reason, _):
            return ("reject", refused.id, reason)
        case Expire(expired):
            return ("expire", expired.id)
        case Grant(granted):
            return ("grant", granted.id)
        case Refuse(unfit, why):
            return ("refuse", unfit.id, why)


# -- inputs -----------------------------------------------------------------------------------


def submit(*requests: Request) -> Step:
    """They arrive now, whatever their builder said."""

    def step(table: Table) -> None:
        for made in requests:
            table.scheduler.submit(replace(made, arrival_ns=table.now), table.now)

    return step


def done(batch_id: int, *, ok: bool = True, retried: bool = False) -> Step:
    """The batch came back; batches are numbered from 1 in order of dispatch."""
    completion = Completion(batch_id, ok=ok, retried=retried)
    return lambda table: table.scheduler.complete(completion, table.now)


def cancel(request_id: int) -> Step:
    return lambda table: table.scheduler.cancel(request_id, table.now)


def server(state: ServerState, name: str = "") -> Step:
    return lambda table: table.scheduler.set_server(state, table.now, name)


# -- decisions --------------------------------------------------------------------------------


def dispatch(*requests: Request, device: str = "gpu") -> Line:
    return ("dispatch", device, *(made.id for made in requests))


def reject(refused: Request, reason: RejectReason = RejectReason.DEADLINE_UNREACHABLE) -> Line:
    return ("reject", refused.id, reason)


def expire(expired: Request) -> Line:
    return ("expire", expired.id)
