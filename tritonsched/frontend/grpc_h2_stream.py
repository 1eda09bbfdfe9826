"""A client's ModelStreamInfer on HTTP/2. Rule: whoever is slow is waited for, on both sides.

What a client sends is taken from its window when Triton's side takes it, so a client that is faster
than Triton waits at HTTP/2's own flow control, and no other call of its connection with it; what
is said to the client waits until most of what was said before has left.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol

from tritonsched.backend.upstream_grpc import Metadata
from tritonsched.frontend.grpc_framing import Cutter, framed

AHEAD_BYTES_MAX = 1 << 20  # messages read ahead; beyond, the client's window is not refilled
_MESSAGE_BYTES = 100  # what keeping a message costs beside its bytes: empty ones are bounded, too


class StreamConnection(Protocol):
    """What a stream needs of its connection."""

    def taken(self, stream_id: int, size_bytes: int) -> None: ...

    def begin(self, stream_id: int, metadata: Metadata) -> None: ...

    def say(self, stream_id: int, data: bytes) -> None: ...

    async def room(self, stream_id: int) -> None: ...


class H2Stream:
    """A `StreamClient`. begun: its headers are sent."""

    def __init__(self, connection: StreamConnection, stream_id: int, cutter: Cutter) -> None:
        self._connection = connection
        self._stream_id = stream_id
        self._cutter = cutter
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._ahead_bytes = 0
        self._owed_bytes = 0  # of its window
        self._is_over = False
        self.begun = False

    def feed(self, data: bytes) -> None:
        """A piece of what the client sends. Raises PayloadTooLarge, ClientError."""
        self._owed_bytes += len(data)
        for message in self._cutter.feed(data):
            self._ahead_bytes += len(message) + _MESSAGE_BYTES
            self._queue.put_nowait(message)
        self._refill()

    def half_close(self) -> None:
        """No more will come."""
        self._queue.put_nowait(None)

    def over(self) -> None:
        """The call has ended: what is still held of the connection's window is given back."""
        self._is_over = True
        self._refill()

    async def messages(self) -> AsyncIterator[bytes]:
        while (message := await self._queue.get()) is not None:
            self._ahead_bytes -= len(message) + _MESSAGE_BYTES
            self._refill()
            yield message

    def _refill(self) -> None:
        """Part of a message is let come in full: its size is bounded anyway."""
        if self._owed_bytes and (self._is_over or self._ahead_bytes <= AHEAD_BYTES_MAX):
            owed, self._owed_bytes = self._owed_bytes, 0
            self._connection.taken(self._stream_id, owed)

    async def begin(self, metadata: Metadata) -> None:
        self.begun = True
        self._connection.begin(self._stream_id, metadata)

    async def send(self, message: bytes) -> None:
        if not self.begun:
            await self.begin(())
        self._connection.say(self._stream_id, framed(message))
        await self._connection.room(self._stream_id)
