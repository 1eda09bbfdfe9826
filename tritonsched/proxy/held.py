"""What the sidecar holds now: calls accepted and not yet answered, and their bytes, by tenant.

Rule: taken once and given back once a call; the bound on bytes is the caller's to keep.
"""

import asyncio
from collections import defaultdict


class Held:
    """calls, size_bytes: now."""

    __slots__ = ("_bytes_of", "_none", "calls", "size_bytes")

    def __init__(self) -> None:
        self.calls = 0
        self.size_bytes = 0
        self._bytes_of: defaultdict[str, int] = defaultdict(int)
        self._none: asyncio.Event | None = None  # while somebody waits for it

    def bytes_of(self, tenant: str) -> int:
        """Bytes of that tenant's calls."""
        return self._bytes_of.get(tenant, 0)

    def take(self, size: int, tenant: str = "") -> None:
        """One more call, of `size` bytes."""
        self.calls += 1
        self.size_bytes += size
        self._bytes_of[tenant] += size

    def give_back(self, size: int, tenant: str = "") -> None:
        """It is answered, or its client has left."""
        self.calls -= 1
        self.size_bytes -= size
        self._bytes_of[tenant] -= size
        if not self.calls:
            self._bytes_of.clear()  # of tenants that the policy file has no more
            if self._none is not None:
                self._none.set()
                self._none = None

    async def none_left(self) -> None:
        """Wait until nothing is held."""
        if self.calls:
            self._none = self._none or asyncio.Event()
            await self._none.wait()
