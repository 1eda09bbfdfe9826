"""What a scheduling rule sees and says. Rule: a policy reads the view and returns a value.

It never removes a request, never dispatches, never reads a clock: the scheduler does what it says.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tritonsched.core.queues import RequestQueue
from tritonsched.core.request import Request
from tritonsched.core.tuning import Tuning
from tritonsched.core.variant import Way


class SchedulerView(Protocol):
    """The scheduler's state, read-only, at one instant."""

    @property
    def tuning(self) -> Tuning: ...

    def devices(self) -> Sequence[str]:
        """All devices, in order of announcement."""

    def free_ns(self, device: str) -> int:
        """When a batch sent now could start on that device, after what it has already."""

    def queues(self, device: str) -> Sequence[RequestQueue]:
        """Non-empty queues that this device can serve, in a stable order."""

    def variants(self, model: str, device: str) -> Sequence[Way]:
        """Ways to serve the model there, the most valuable first; none if it does not run there."""

    def safe_ns(self, model: str, device: str, rows: int) -> int:
        """Promised execution time; 0 while the profile is unproven. Of a model with variants: that
        of its default one; a variant's own by its name.
        """

    def safe_times(self, model: str, device: str, rows: int) -> "array[int]":
        """`safe_ns` of 0 to `rows` rows, or more, type code q; to be read only."""

    def rows_cap(self, model: str, device: str) -> int:
        """Most rows a batch of the model may have now, >= 1. Variants as with `safe_ns`."""


@dataclass(slots=True, unsafe_hash=True)  # as `Request`
class Choice:
    """Dispatch these members of one queue as one batch.

    variant: the Triton model to run it; empty for the queue's own, or its default variant.
    adapts: where none is named, a cheaper one is used while the category pays back an overrun
    (core/adaptation.py).
    """

    queue: RequestQueue
    requests: tuple[Request, ...]
    variant: str = ""
    adapts: bool = False

    def __init__(
        self,
        queue: RequestQueue,
        requests: tuple[Request, ...],
        variant: str = "",
        adapts: bool = False,
    ) -> None:
        self.queue = queue
        self.requests = requests
        self.variant = variant
        self.adapts = adapts

    @property
    def runs(self) -> str:
        """The model whose times count."""
        return self.variant or self.queue.model


@dataclass(frozen=True, slots=True)
class Hold:
    """Wait: ask again at `until_ns`, or at the next input."""

    until_ns: int


class Policy(Protocol):
    """A scheduling rule.

    keeps_deadlines: every member of a chosen batch is expected in time (invariant 8).
    """

    @property
    def name(self) -> str: ...

    @property
    def keeps_deadlines(self) -> bool: ...

    def choose(
        self, view: SchedulerView, device: str, *, start_ns: int, now: int
    ) -> Choice | Hold | None:
        """The next batch for `device`, which can start at `start_ns`; None if nothing should
        run.
        """
