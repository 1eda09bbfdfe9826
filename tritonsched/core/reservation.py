"""Periodic streams with guaranteed deadlines. Rule: plain values and the arithmetic of their time.

DeepRT (Yang et al., SEC 2021) calls a Reservation a request: a camera that says beforehand how
often it sends a frame, how soon each answer is due, and how many frames there will be.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from math import lcm

MS = 1_000_000
FRAMES_MAX = 100_000  # of one reservation; a longer stream reserves again
HYPERPERIOD_MAX_NS = 60_000 * MS  # a longer least common multiple is cut off here

Category = tuple[str, int]
"""(model, signature): only frames of one category share a batch."""


class RefusalReason(StrEnum):
    """Why a reservation was refused, or taken back; part of the public interface."""

    UNSCHEDULABLE = "unschedulable"
    NOT_MEASURED = "not-measured"
    TOO_MANY = "too-many"
    TENANT_TOO_MANY = "tenant-too-many"
    BUSY = "busy"
    NO_LONGER_FITS = "no-longer-fits"
    TRITON_UNAVAILABLE = "triton-unavailable"


@dataclass(frozen=True, slots=True)
class Reservation:
    """A periodic stream.

    Frame k arrives at `start_ns + k * period_ns`, up to `jitter_ns` earlier or later, and is due
    `relative_deadline_ns` after it arrived. rows and signature: of every frame. weight: what it is
    worth when not all can be kept. Raises ValueError for numbers that describe no stream.
    """

    id: int
    model: str
    period_ns: int
    relative_deadline_ns: int
    frames: int
    start_ns: int = 0
    rows: int = 1
    signature: int = 0
    jitter_ns: int = 0
    tenant: str = ""
    weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("id", "period_ns", "relative_deadline_ns", "rows", "weight"):
            if not getattr(self, name) > 0:
                raise ValueError(f"reservation {self.id}: {name} must be > 0")
        if not 0 < self.frames <= FRAMES_MAX:
            raise ValueError(f"reservation {self.id}: frames must be 1 to {FRAMES_MAX}")
        if not 0 <= 2 * self.jitter_ns < min(self.period_ns, self.relative_deadline_ns):
            raise ValueError(
                f"reservation {self.id}: jitter_ns must be >= 0 and less than half of the period "
                f"and of the relative deadline"
            )

    @property
    def category(self) -> Category:
        return (self.model, self.signature)

    @property
    def end_ns(self) -> int:
        """When the last frame is due."""
        return self.arrival_ns(self.frames - 1) + self.relative_deadline_ns

    def arrival_ns(self, frame: int) -> int:
        """When the frame is expected."""
        return self.start_ns + frame * self.period_ns

    def frame_at(self, arrival_ns: int) -> int | None:
        """Which frame arrives at that time; None before the first, after the last, and between."""
        frame, late_ns = divmod(arrival_ns + self.jitter_ns - self.start_ns, self.period_ns)
        if 0 <= frame < self.frames and late_ns <= 2 * self.jitter_ns:
            return frame
        return None

    def from_time(self, now: int) -> "Reservation | None":
        """The same stream without the frames before `now`; None if there are no others."""
        gone = max(0, -((self.start_ns - now) // self.period_ns))
        if not gone:
            return self
        if gone >= self.frames:
            return None
        return replace(self, start_ns=self.arrival_ns(gone), frames=self.frames - gone)


def window_ns(reservations: Iterable[Reservation]) -> int:
    """DeepRT's window of a category: half of its least relative deadline; periods play no role.

    Theorem 1: between a frame's arrival and its deadline there are then at least two joints; the
    first closes its batch and the second is the batch's deadline.
    """
    return max(1, min(r.relative_deadline_ns - 2 * r.jitter_ns for r in reservations) // 2)


def hyperperiod_ns(reservations: Iterable[Reservation]) -> int:
    """After which arrivals repeat: the least common multiple of the periods, rounded to 1 ms."""
    found = lcm(*(max(1, round(r.period_ns / MS)) for r in reservations)) * MS
    return min(found, HYPERPERIOD_MAX_NS)
