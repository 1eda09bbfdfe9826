"""Watching Triton. Rule: a lost batch is news at once; otherwise ask now and then.

While Triton is away, new requests are refused with 503 and a hint, and it is asked often, so that
service resumes by itself; connecting anew (shared memory, caches) comes before the first request.
One model that is loading or broken is no reason to refuse the others' requests (DESIGN.md 18).
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable

from tritonsched.core.variant import ServerState
from tritonsched.errors import TritonschedError, TritonUnavailable

ASK_READY_S = 1.0
ASK_AWAY_S = 0.1


class Health:
    """One task that knows whether Triton serves.

    ready: asks Triton; never raises. connect: prepares a (new) Triton; may raise TritonschedError,
    then it is tried again. tell: hears each change of state. look: after each answer of a Triton
    that is up; never raises. say: tells a person why a Triton that answers is not served from.
    """

    def __init__(
        self,
        *,
        ready: Callable[[], Awaitable[bool]],
        connect: Callable[[], Awaitable[None]],
        tell: Callable[[ServerState], None],
        look: Callable[[], Awaitable[None]] | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._ready = ready
        self._say = say
        self._said = ""
        self._connect = connect
        self._tell = tell
        self._look_further = look
        self._lost = asyncio.Event()
        self._up = asyncio.Event()
        self._stopped = False

    @property
    def is_up(self) -> bool:
        """Triton answers and is connected."""
        return self._up.is_set()

    def lost(self) -> None:
        """A call broke: treat Triton as away until it answers again."""
        self._set(up=False)
        self._lost.set()

    async def wait_up(self) -> None:
        await self._up.wait()

    async def run(self) -> None:
        """Watch until `stop`."""
        while not self._stopped:
            self._lost.clear()
            await self._look()
            try:
                async with asyncio.timeout(ASK_READY_S if self.is_up else ASK_AWAY_S):
                    await self._lost.wait()
            except TimeoutError:
                continue

    def stop(self) -> None:
        self._stopped = True
        self._lost.set()

    async def _look(self) -> None:
        up = await self._ready()
        if up and not self.is_up:
            try:
                await self._connect()
            except TritonschedError as error:
                up = False
                self._tell_why(error)
        if not self._stopped:
            self._set(up=up)
        if up and self._look_further is not None:
            await self._look_further()

    def _tell_why(self, error: TritonschedError) -> None:
        """It answers and cannot be used; once, though it is tried again and again."""
        if not isinstance(error, TritonUnavailable) and str(error) != self._said:
            self._said = str(error)
            self._say(f"Triton answers, but cannot be served from: {error}")

    def _set(self, *, up: bool) -> None:
        if up == self.is_up:
            return
        if up:
            self._up.set()
        else:
            self._up.clear()
        self._tell(ServerState.READY if up else ServerState.AWAY)


class RepositoryWatch:
    """Notices what others load into Triton or unload from it, past the sidecar.

    index: what Triton has, or None if it does not tell. changed: hears that it is another one.
    """

    def __init__(
        self, index: Callable[[], Awaitable[Hashable | None]], changed: Callable[[], None]
    ) -> None:
        self._index = index
        self._changed = changed
        self._seen: Hashable | None = None

    async def look(self) -> None:
        """Ask, and compare with the last time."""
        index = await self._index()
        if index is None or index == self._seen:
            return
        is_first, self._seen = self._seen is None, index
        if not is_first:
            self._changed()
