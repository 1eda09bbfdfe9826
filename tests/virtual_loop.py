"""An asyncio loop whose time jumps to the next timer when everything waits. Rule: no test waits.

Time is kept in integer nanoseconds so that a driver on this loop sees exactly the times a
simulator does.
"""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
IDLE_TURNS_MAX = 1_000  # turns without timer or I/O before we call it a deadlock


class _JumpingSelector(selectors.SelectSelector):
    """Polls real I/O (the loop's self-pipe), and turns every wait into a jump."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ns = 0
        self.idle_turns = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if events:
            self.idle_turns = 0
        elif timeout is None:
            self.idle_turns += 1
            assert self.idle_turns < IDLE_TURNS_MAX, "everything waits and no timer is armed"
        elif timeout > 0:
            self.now_ns += max(1, round(timeout * 1e9))
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    """A selector loop on virtual time, which starts at 0."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)
        self._clock_resolution = 1e-10
        self._waiting: dict[int, list[asyncio.Future[None]]] = {}

    def time(self) -> float:
        return self._jumping.now_ns / 1e9

    def now_ns(self) -> int:
        """The virtual monotonic clock."""
        return self._jumping.now_ns

    async def until(self, at_ns: int) -> None:
        """Let virtual time reach `at_ns`. Of those who wait for one instant the first comes first,
        which the loop's own timers do not promise.
        """
        if at_ns > self.now_ns():
            reached: asyncio.Future[None] = self.create_future()
            self._waiting.setdefault(at_ns, []).append(reached)
            handle = self.call_at(at_ns / 1e9, self._reach, at_ns)
            try:
                await reached
            finally:
                handle.cancel()

    def _reach(self, at_ns: int) -> None:
        for reached in self._waiting.pop(at_ns, ()):
            if not reached.done():
                reached.set_result(None)

    async def pause(self, ns: int) -> None:
        """Let `ns` of virtual time pass; the sleeper that scripted backends are given."""
        await self.until(self.now_ns() + ns)


def run_virtual(main: Callable[[VirtualLoop], Coroutine[Any, Any, T]]) -> T:
    """Run `main(loop)` to its end on a fresh virtual loop."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, VirtualLoop)
        return runner.run(main(loop))
