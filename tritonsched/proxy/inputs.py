"""What the driver passes on to the scheduler. Rule: told at once, decided by the next pump."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

from tritonsched.core.reservation import Reservation
from tritonsched.core.scheduler import Scheduler
from tritonsched.core.tuning import Tuning
from tritonsched.core.variant import Family, ServerState, Variant


class Inputs(ABC):
    """The scheduler's inputs but requests and batches, at the driver's clock."""

    def __init__(self, scheduler: Scheduler, clock: Callable[[], int]) -> None:
        self._scheduler = scheduler
        self._clock = clock

    @abstractmethod
    def _wake(self) -> None:
        """Decide soon."""

    def reserve(self, reservation: Reservation) -> None:
        """A stream asks for a guarantee; `on_reserved` hears the answer."""
        self._scheduler.reserve(reservation, self._clock())
        self._wake()

    def release(self, reservation_id: int) -> None:
        """The stream ends."""
        self._scheduler.release(reservation_id, self._clock())
        self._wake()

    def set_variant(self, variant: Variant) -> None:
        self._scheduler.set_variant(variant, self._clock())

    def set_family(self, family: Family) -> None:
        self._scheduler.set_family(family, self._clock())

    def drop_family(self, model: str) -> None:
        self._scheduler.drop_family(model, self._clock())
        self._wake()

    def set_server(self, state: ServerState, server: str = "") -> None:
        self._scheduler.set_server(state, self._clock(), server)
        self._wake()

    def set_distances(self, far_ns: Mapping[str, int]) -> None:
        self._scheduler.set_distances(far_ns, self._clock())
        self._wake()

    def retune(self, tuning: Tuning) -> None:
        self._scheduler.retune(tuning, self._clock())
        self._wake()
