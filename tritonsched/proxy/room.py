"""Is there room for a call's bytes? Rule: what is held cannot be taken back, so a tenant that has
less than its share is let in all the same, beyond the bound.

So at most bytes_max x (1 + the sum of the shares) are held, and one call that is larger than all of
it when nothing else is.
"""

from tritonsched.errors import MemoryFull, Overloaded, TenantOverShare
from tritonsched.proxy.held import Held
from tritonsched.proxy.intake import Intake
from tritonsched.tensors import InferCall

RETRY_NS = 100_000_000


class Room:
    """bytes_max: of requests that may be held at once."""

    def __init__(self, held: Held, intake: Intake, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self._held = held
        self._intake = intake

    def is_plenty(self, size: int) -> bool:
        """Whoever asks, so much more can be held."""
        return self._held.size_bytes + size <= self.bytes_max

    def refused(self, call: InferCall) -> Overloaded | None:
        """Why the call cannot be held now; None if it can."""
        held, size = self._held.size_bytes, len(call.raw)
        if not held or self.is_plenty(size):
            return None
        tenant = self._intake.tenant(call)
        if self._held.bytes_of(tenant.name) + size <= tenant.part_of(self.bytes_max):
            return None
        text = f"{held} bytes of requests are in flight"
        if self._intake.has_shares:
            text += f", and tenant '{tenant.name}' has its share"
            return TenantOverShare(f"{text}; try again later", retry_after_ns=RETRY_NS)
        return MemoryFull(f"{text}; try again later", retry_after_ns=RETRY_NS)
