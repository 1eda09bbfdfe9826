"""Requests and their classes. Rule: frozen values without payload; tensors stay with the driver.

Time is integer nanoseconds on the driver's monotonic clock.
"""

from dataclasses import dataclass
from enum import StrEnum

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
    DRAINING = "draining"
    TRITON_UNAVAILABLE = "triton-unavailable"


@dataclass(frozen=True, slots=True)
class SloClass:
    """A class of service from the policy file.

    relative_deadline_ns: from arrival; NEVER_NS means none.
    weight: what one request of the class is worth when not all can be served, > 0.
    """

    name: str
    relative_deadline_ns: int = NEVER_NS
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.relative_deadline_ns <= 0:
            raise ValueError(f"class {self.name!r}: relative deadline must be > 0 ns")
        if not self.weight > 0:
            raise ValueError(f"class {self.name!r}: weight must be > 0")


@dataclass(frozen=True, slots=True)
class Request:
    """One inference call as the scheduler sees it.

    id: unique among the requests that the scheduler holds.
    signature: interned number; equal numbers may share a batch.
    rows: leading dimension, >= 1.
    deadline_ns: absolute; NEVER_NS for none.
    alone: it must be a batch of its own (not mergeable, or the second try of a failed merge).
    retry: it is that second try: counted as submitted and accepted already.
    reservation: the stream it says it is a frame of; 0 for none.
    version: of the model, as the client named it; empty for the newest. Only observers read it.
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

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"request {self.id}: {self.rows} rows; at least 1 is needed")
        if not self.weight > 0:
            raise ValueError(f"request {self.id}: weight must be > 0")
        if self.retry and not self.alone:
            raise ValueError(f"request {self.id}: a retry is to be alone")

    @property
    def has_deadline(self) -> bool:
        return self.deadline_ns < NEVER_NS

    @property
    def due_ns(self) -> int:
        """The place in line: the deadline, or the arrival plus PATIENCE_NS without one."""
        return self.deadline_ns if self.has_deadline else self.arrival_ns + PATIENCE_NS

    def utility_at(self, finish_ns: int) -> float:
        """What finishing at `finish_ns` is worth: the weight in time, nothing after (a step)."""
        return self.weight if finish_ns <= self.deadline_ns else 0.0
