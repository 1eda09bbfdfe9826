"""What a server needs of the sidecar. Rule: frontends know this and nothing else of it."""

from collections.abc import Callable
from typing import Protocol

from tritonsched.core.batch import Refuse
from tritonsched.errors import TritonschedError
from tritonsched.proxy.client_regions import ClientRegions
from tritonsched.proxy.families import Families
from tritonsched.proxy.reserving import Entry, Reservations
from tritonsched.proxy.shield import Shield
from tritonsched.proxy.tallies import Tallies
from tritonsched.proxy.wish import Wish
from tritonsched.tensors import Answer, Cancel, Done, InferCall, Send


class InferService(Protocol):
    """`proxy.service.Proxy` to a server. regions: what clients have registered. tallies: what
    Triton's statistics lack. shield: what is not let through to it. families: models with variants.
    """

    families: Families
    regions: ClientRegions
    reservations: Reservations
    tallies: Tallies
    shield: Shield

    def submit(self, call: InferCall, done: Done, send: Send | None = None) -> Cancel:
        """Have one call answered; `done` hears how it ended, once, maybe before this returns.

        send: does it when it is its turn; by default it is merged or forwarded.
        """

    def hopeless(self, call: InferCall) -> TritonschedError | None:
        """Why a call whose tensors are still on their way is refused already, which is counted;
        None: submit it when they have come.
        """

    def is_decoupled(self, call: InferCall) -> bool | None:
        """Whether the model answers any number of times; None while nothing is known of it."""

    def open_stream(self, close: Callable[[], None]) -> Callable[[], None]:
        """A stream is open until what this returns is called; `close`: the sidecar drains."""

    async def infer(self, call: InferCall) -> Answer:
        """Answer one call. Raises a leaf of TritonschedError. If the caller is cancelled (the
        client left), queued work is dropped.
        """

    async def reserve(self, wish: Wish) -> Entry | Refuse:
        """Ask for a periodic stream. Raises BadReservation, UnknownReservation."""

    async def invalidate(self, model: str) -> None:
        """Triton is about to load or unload the model, or just did."""

    @property
    def is_ready(self) -> bool:
        """The sidecar can serve; ANDed with Triton's own word."""
