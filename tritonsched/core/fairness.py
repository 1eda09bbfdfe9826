"""Tenants: what is guaranteed to each when there is no room for all, and who is served too seldom.

Rule: it counts and compares, and decides nothing; the names are the policy file's, so it is
bounded.

Places. A tenant below its share of a model's queue is never refused for the load of others: when
the queue is full, the newest request of the tenant that is furthest above its share gives way to it
(longest queue drop, with shares for equal parts). The newest has waited least, so the least is
lost. Parts add up to the whole at most, so a full queue with somebody below has somebody above.

Weights. weight x (1 + strength x max(0, target - share) / target); the share is the moving mean of
on-time outcomes, 1 % a request (scheduling study 4.12), the plain mean of fewer than a hundred: who
is new has not been on time all the time. The weight is the one at arrival, in STEPS
steps, because a queue keeps a lane a weight. What a tenant loses by its own bounds, by failures or
while nobody is served is not counted: it says nothing of how it fares beside others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tritonsched.core.observers import Observer
from tritonsched.core.queues import QueueSet
from tritonsched.core.request import Outcome, RejectReason, Request, Tenant
from tritonsched.core.tuning import Tuning

HEARD_MAX = 100  # outcomes in the share of those on time
GAIN = 1 / HEARD_MAX
STEPS = 8  # of the boost; 4 to 32 agree within noise (python -m tests.bench.fairness --steps 32)
_UNHEARD = (1.0, 0)
_NOT_COUNTED = frozenset((Outcome.FAILED, Outcome.CANCELLED))
_NOT_THE_LOAD = frozenset(
    (
        RejectReason.TENANT_OVER_SHARE.value,
        RejectReason.TENANT_QUEUE_FULL.value,
        RejectReason.DRAINING.value,
        RejectReason.TRITON_UNAVAILABLE.value,
    )
)


@dataclass(frozen=True, slots=True)
class Fairness:
    """Who is served on time less often than `target`, 0 to 1, is worth up to 1 + strength times
    as much. strength 0: nobody is.
    """

    target: float = 0.5
    strength: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.target <= 1:
            raise ValueError("fairness: target must be above 0 and at most 1")
        if not self.strength >= 0:
            raise ValueError("fairness: strength must be >= 0")

    def boost(self, on_time_share: float, steps: int = STEPS) -> float:
        """What to multiply the weight by."""
        lacks = max(0.0, self.target - on_time_share) / self.target
        return 1.0 + self.strength * round(lacks * steps) / steps


class Tenants(Observer):
    """What each may have and how it fares; an Observer of the scheduler, its first."""

    def __init__(self) -> None:
        self.fairness = Fairness()
        self.rules: Mapping[str, Tenant] = {}
        self._on_time: dict[str, tuple[float, int]] = {}  # mean, and of how many, HEARD_MAX at most
        self._has_shares = False

    def adopt(self, rules: Mapping[str, Tenant], fairness: Fairness) -> None:
        """Rules from now on, by name; what is known of tenants that are gone is forgotten.

        Raises ValueError if the shares add up to more than the whole.
        """
        if sum(rule.share for rule in rules.values()) > 1 + 1e-9:
            raise ValueError("tenants: the shares add up to more than 1")
        self.rules, self.fairness = rules, fairness
        self._has_shares = any(rule.share for rule in rules.values())
        if rules:
            self._on_time = {name: x for name, x in self._on_time.items() if name in rules}

    # -- how they fare ------------------------------------------------------------------------

    def on_time_share(self, name: str) -> float:
        """Moving mean of its requests that were served in time; 1 before the first."""
        return self._on_time.get(name, _UNHEARD)[0]

    def boost(self, name: str) -> float:
        """What the weight of its next request is multiplied by."""
        return self.fairness.boost(self.on_time_share(name))

    def weighed(self, request: Request) -> Request:
        """The request as it is to be chosen. A second try keeps its weight."""
        if not self.fairness.strength or request.retry:
            return request
        boost = self.boost(request.tenant)
        if boost == 1.0:
            return request
        return replace(request, weight=request.weight * boost, boost=boost)

    def on_outcomes(
        self, requests: Sequence[Request], outcome: Outcome, reason: str, now: int
    ) -> None:
        if outcome in _NOT_COUNTED or reason in _NOT_THE_LOAD:
            return
        value, on_time = float(outcome is Outcome.SERVED), self._on_time
        for request in requests:
            share, heard = on_time.get(request.tenant, _UNHEARD)
            gain = GAIN
            if heard < HEARD_MAX:
                heard += 1
                gain = 1 / heard
            on_time[request.tenant] = (share + gain * (value - share), heard)

    # -- places in a queue --------------------------------------------------------------------

    def refusal(self, request: Request, queues: QueueSet, tuning: Tuning) -> RejectReason | None:
        """Why there is no place for it in its model's queue; None if there is one, or `make_room`
        will find one.
        """
        rule = self.rules.get(request.tenant) if self.rules else None
        if rule is not None and rule.queue_requests_max:
            mine = queues.tenants_of(request.model).get(request.tenant, ())
            if len(mine) >= rule.queue_requests_max:
                return RejectReason.TENANT_QUEUE_FULL
        places = tuning.queue_requests_max
        if queues.requests_of(request.model) < places or self._excess(request, queues, places) < 0:
            return None
        return RejectReason.TENANT_OVER_SHARE if self._has_shares else RejectReason.QUEUE_FULL

    def make_room(self, request: Request, queues: QueueSet, tuning: Tuning) -> tuple[Request, ...]:
        """Take out who gives way to a request that may wait: nobody, unless the queue is full."""
        places = tuning.queue_requests_max
        if queues.requests_of(request.model) < places:
            return ()
        waiting = queues.tenants_of(request.model)
        newest = [waiting[name][next(reversed(waiting[name]))] for name in sorted(waiting)]
        gone = max(newest, key=lambda one: self._excess(one, queues, places))
        queues.pop(gone.id)
        return (gone,)

    def _excess(self, request: Request, queues: QueueSet, places: int) -> int:
        """Places that its tenant has beyond those that are guaranteed to it; negative below."""
        rule = self.rules.get(request.tenant)
        waiting = queues.tenants_of(request.model).get(request.tenant, ())
        return len(waiting) - (rule.part_of(places) if rule else 0)
