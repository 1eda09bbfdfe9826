"""What the sidecar holds now: calls accepted and not yet answered, and their bytes, by tenant.

Rule: taken once and given back once a call; the bound on bytes is the caller's to keep.
"""

import asyncio


class Held:
    """calls, size_bytes: now."""

    __slots__ = ("_bytes_of", "_none", "calls", "size_bytes")

    def __init__(self) -> None:
        self.calls = 0
        self.size_bytes = 0
        self._bytes_of: dict[str, int] = {}
        self._none = asyncio.Event()
        self._none.set()

    def bytes_of(self, tenant: str) -> int:
        """Bytes of that tenant's calls."""
        return self._bytes_of.get(tenant, 0)

    def take(self, size: int, tenant: str = "") -> None:
        """One more call, of `size` bytes."""
        self.calls += 1
        self.size_bytes += size
        self._bytes_of[tenant] = self._bytes_of.get(tenant, 0) + size
        if self.calls == 1:
            self._none.clear()

    def give_back(self, size: int, tenant: str = "") -> None:
        """It is answered, or its client has left."""
        self.calls -= 1
        self.size_bytes -= size
        self._bytes_of[tenant] -= size
        if not self.calls:
            self._bytes_of.clear()  # of tenants that the policy file has no more
            self._none.set()

    async def none_left(self) -> None:
        """Wait until nothing is held."""
        await self._none.wait()
