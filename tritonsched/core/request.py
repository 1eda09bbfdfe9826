"""Requests and their classes. Rule: values without payload; tensors stay with the driver.

Time is integer nanoseconds on the driver's monotonic clock.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise

NEVER_NS = 1 << 62  # "no deadline": later than any time a monotonic clock will show
PATIENCE_NS = 1_000_000_000
"""Order of a request without a deadline: it queues as if it were due this long after its arrival.
It is never refused for time; the figure only decides who goes first. Source: DESIGN.md 7."""


class Outcome(StrEnum):
    """How a request left; also the label values of the metrics."""

    SERVED = "served"
    LATE = "late"
    REJECTED = "rejected"
    EXPIRED = "expired"
    FAILED = "failed"
    CANCELLED = "cancelled"


class RejectReason(StrEnum):
    """Why a request was refused; part of the public interface (`x-tritonsched-reason`)."""

    DEADLINE_UNREACHABLE = "deadline-unreachable"
    QUEUE_FULL = "queue-full"
    TENANT_QUEUE_FULL = "tenant-queue-full"
    TENANT_OVER_SHARE = "tenant-over-share"
    DRAINING = "draining"
    TRITON_UNAVAILABLE = "triton-unavailable"


FULL = frozenset(
    (RejectReason.QUEUE_FULL, RejectReason.TENANT_QUEUE_FULL, RejectReason.TENANT_OVER_SHARE)
)
"""There is no room: trying again makes sense when what waits now is served."""


@dataclass(frozen=True, slots=True)
class Utility:
    """How the worth of an answer falls with time (time-utility function; CIKM'17 section 2.2).

    points: (share of the time from arrival to deadline, value), linear between, both in [0, 1];
    shares rise, values do not. Before the first point its value holds, from the last one on, too;
    after the deadline the value is 0. A client that tightens its deadline tightens the shape.
    """

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        shares, values = zip(*self.points, strict=True) if self.points else ((), ())
        if not self.points or not all(0 <= number <= 1 for number in (*shares, *values)):
            raise ValueError("utility: at least one point, shares and values in [0, 1]")
        if any(a >= b for a, b in pairwise(shares)) or any(a < b for a, b in pairwise(values)):
            raise ValueError("utility: shares must rise and values must not")
        if not values[0] > 0:
            raise ValueError("utility: the first value must be > 0")

    @classmethod
    def linear(cls, soft_share: float) -> "Utility":
        """Full value up to that share of the time, then linear to 0 at the deadline."""
        return cls(((soft_share, 1.0), (1.0, 0.0)))

    @property
    def full_share(self) -> float:
        """Up to that share of the time nothing is lost."""
        full = self.points[0][1]
        return max(share for share, value in self.points if value == full)

    def value_at(self, share: float) -> float:
        """The value when that share of the time has gone."""
        start, value = self.points[0]
        for end, worth in self.points:
            if share < end:
                part = (share - start) / (end - start) if end > start else 0.0
                return value + max(0.0, part) * (worth - value)
            start, value = end, worth
        return value


@dataclass(frozen=True, slots=True)
class SloClass:
    """A class of service from the policy file.

    relative_deadline_ns: from arrival; NEVER_NS means none.
    weight: what one request of the class is worth when not all can be served, > 0.
    utility: how that falls with time; None: not at all before the deadline (a step).
    """

    name: str
    relative_deadline_ns: int = NEVER_NS
    weight: float = 1.0
    utility: Utility | None = None

    def __post_init__(self) -> None:
        if self.relative_deadline_ns <= 0:
            raise ValueError(f"class {self.name!r}: relative deadline must be > 0 ns")
        if not self.weight > 0:
            raise ValueError(f"class {self.name!r}: weight must be > 0")
        if self.utility is not None and self.relative_deadline_ns == NEVER_NS:
            raise ValueError(f"class {self.name!r}: a utility needs a deadline")


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who asks, from the policy file.

    weight: times what a request of its class is worth, > 0.
    share: of the places in a model's queue and of the bytes held that are its own, 0 to 1.
    queue_requests_max: its requests waiting for one model; 0: no bound but the model's.
    reservations_max: its streams at once; None: no bound but everybody's.
    merges_own: its requests share batches among themselves alone.
    """

    name: str
    weight: float = 1.0
    share: float = 0.0
    queue_requests_max: int = 0
    reservations_max: int | None = None
    merges_own: bool = False

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"tenant {self.name!r}: weight must be > 0")
        if not 0 <= self.share <= 1:
            raise ValueError(f"tenant {self.name!r}: share must be from 0 to 1")

    def part_of(self, whole: int) -> int:
        """Its own of so many places or bytes, rounded down: the parts never exceed the whole."""
        return int(self.share * whole + 1e-9)  # 0.29 * 100 is 28.999…


@dataclass(slots=True, unsafe_hash=True)  # not frozen: that makes it four times as dear to make
class Request:
    """One inference call as the scheduler sees it. Nobody changes it; `replace` makes another.

    id: unique among the requests that the scheduler holds.
    signature: interned number; equal numbers may share a batch.
    rows: leading dimension, >= 1.
    deadline_ns: absolute; NEVER_NS for none.
    alone: it must be a batch of its own (not mergeable, or the second try of a failed merge).
    apart: it is a call of its own at Triton, beside those that share its batch: they have the
    device together (a sequence's, which Triton merges itself). Its signature is nobody else's.
    retry: it was sent before, and its merge failed or its server was lost: counted as submitted and
    accepted already.
    reservation: the stream it says it is a frame of; 0 for none.
    version: of the model, as the client named it; empty for the newest. Only observers read it.
    utility: how its worth falls with time; None: not at all before the deadline.
    tenant: who asks, one of the policy file's; empty where nobody is told apart.
    boost: what fairness multiplied `weight` by: it counts in choosing, never in what was earned.
    server: the one that must run it (it has the sequence's state); empty: any.
    patience_ns: what it can wait without a deadline before it goes first.
    due_ns: its place in line: the deadline, or without one the arrival plus the patience.
    """

    id: int
    model: str
    slo: str
    signature: int
    rows: int
    arrival_ns: int
    deadline_ns: int = NEVER_NS
    weight: float = 1.0
    alone: bool = False
    retry: bool = False
    reservation: int = 0
    version: str = ""
    utility: Utility | None = None
    tenant: str = ""
    boost: float = 1.0
    server: str = ""
    patience_ns: int = PATIENCE_NS
    apart: bool = False
    has_deadline: bool = field(init=False, repr=False, compare=False)
    due_ns: int = field(init=False, repr=False, compare=False)

    def __init__(  # noqa: PLR0917
        self,
        id: int,  # noqa: A002
        model: str,
        slo: str,
        signature: int,
        rows: int,
        arrival_ns: int,
        deadline_ns: int = NEVER_NS,
        weight: float = 1.0,
        alone: bool = False,
        retry: bool = False,
        reservation: int = 0,
        version: str = "",
        utility: Utility | None = None,
        tenant: str = "",
        boost: float = 1.0,
        server: str = "",
        patience_ns: int = PATIENCE_NS,
        apart: bool = False,
    ) -> None:
        self.id = id
        self.model = model
        self.slo = slo
        self.signature = signature
        self.rows = rows
        self.arrival_ns = arrival_ns
        self.deadline_ns = deadline_ns
        self.weight = weight
        self.alone = alone
        self.retry = retry
        self.reservation = reservation
        self.version = version
        self.utility = utility
        self.tenant = tenant
        self.boost = boost
        self.server = server
        self.patience_ns = patience_ns
        self.apart = apart
        if self.rows < 1:
            raise ValueError(f"request {self.id}: {self.rows} rows; at least 1 is needed")
        if not self.weight > 0:
            raise ValueError(f"request {self.id}: weight must be > 0")
        self.has_deadline = self.deadline_ns < NEVER_NS
        self.due_ns = self.deadline_ns if self.has_deadline else self.arrival_ns + self.patience_ns

    @property
    def full_until_ns(self) -> int:
        """Finishing by then loses nothing."""
        if self.utility is None or not self.has_deadline:
            return self.deadline_ns
        span_ns = self.deadline_ns - self.arrival_ns
        return self.arrival_ns + int(self.utility.full_share * span_ns)

    def utility_at(self, finish_ns: int) -> float:
        """What finishing at `finish_ns` is worth: the weight, less what the shape takes; after the
        deadline nothing.
        """
        if finish_ns > self.deadline_ns:
            return 0.0
        if self.utility is None or not self.has_deadline:
            return self.weight
        span_ns = max(1, self.deadline_ns - self.arrival_ns)
        return self.weight * self.utility.value_at((finish_ns - self.arrival_ns) / span_ns)

    def earned_at(self, finish_ns: int) -> float:
        """The same as it is counted: without the boost."""
        return self.utility_at(finish_ns) / self.boost
