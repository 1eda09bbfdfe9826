"""When Triton may have begun to count anew, ask it. Rule: asks, and changes nothing but tallies."""

from collections.abc import Awaitable, Callable, Mapping

from tritonsched.errors import BackendError, TritonschedError
from tritonsched.proxy.tallies import Count, Key, Tallies

Ask = Callable[[], Awaitable[Mapping[Key, Count]]]
"""Triton's counts of all versions. Raises TritonUnavailable or BackendError."""


class Recount:
    """Keeps `tallies` in step with the counters that Triton has."""

    def __init__(self, tallies: Tallies, ask: Ask) -> None:
        self.tallies = tallies
        self._ask = ask

    async def look(self) -> None:
        """A model was loaded or unloaded, or is about to be. Never raises: it is looked again
        whenever statistics are asked for.
        """
        if not self.tallies.may_begin_anew:
            return
        mark = self.tallies.mark()
        try:
            counts = await self._ask()
        except TritonschedError:
            return
        self.tallies.compare(mark, counts)

    async def reconnected(self) -> None:
        """Triton answers again; nothing was under way for a while. Raises TritonUnavailable."""
        mark = self.tallies.mark(late_max=0)
        try:
            counts = await self._ask()
        except BackendError:  # it was built without statistics
            counts = {}
        self.tallies.reconnected(mark, counts)
