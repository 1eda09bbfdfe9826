"""What the sidecar holds now: calls accepted and not yet answered, and their bytes.

Rule: taken once and given back once a call; the bound on bytes is the caller's to keep.
"""

import asyncio


class Held:
    """calls, size_bytes: now."""

    __slots__ = ("_none", "calls", "size_bytes")

    def __init__(self) -> None:
        self.calls = 0
        self.size_bytes = 0
        self._none = asyncio.Event()
        self._none.set()

    def take(self, size: int) -> None:
        """One more call, of `size` bytes."""
        self.calls += 1
        self.size_bytes += size
        if self.calls == 1:
            self._none.clear()

    def give_back(self, size: int) -> None:
        """It is answered, or its client has left."""
        self.calls -= 1
        self.size_bytes -= size
        if not self.calls:
            self._none.set()

    async def none_left(self) -> None:
        """Wait until nothing is held."""
        await self._none.wait()
