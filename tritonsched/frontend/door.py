"""A listening port, plain or behind TLS. Rule: a server hears of a connection when it can be read.

TLS is put on after the connection was accepted, so the certificate in use is asked for at each one
(a changed one needs no new port), and one that never gets through its handshake is bounded in time
and counted like others.
"""

import asyncio
import ssl
from collections.abc import Callable
from typing import Protocol, cast

from tritonsched.errors import StartupError
from tritonsched.frontend.gate import HEAD_NS, TLS, Gate

BACKLOG = 1024
SHAKE_S = HEAD_NS / 1e9
SHUTDOWN_S = 5.0  # for the other end to say goodbye, too
MakeContext = Callable[[], ssl.SSLContext]


class Speaker(Protocol):
    """An asyncio.Protocol by its methods: a compiled class (mypyc) has no base that is not."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None: ...

    def connection_lost(self, exc: Exception | None) -> None: ...

    def data_received(self, data: bytes) -> None: ...


async def listen(
    make: Callable[[], Speaker],
    gate: Gate,
    *,
    host: str,
    port: int,
    name: str,
    tls: MakeContext | None = None,
) -> asyncio.Server:
    """Have `make` speak with whoever connects. name: of the port, and of its option.

    gate: of those who are not through their handshake yet. tls: the context for the next one.
    Raises StartupError if the port is taken.
    """

    def knock() -> asyncio.BaseProtocol:
        return _as_protocol(make()) if tls is None else Knock(make, gate, tls)

    loop = asyncio.get_running_loop()
    try:
        return await loop.create_server(knock, host, port, backlog=BACKLOG)
    except OSError as error:
        raise StartupError(
            f"{name} port {host}:{port}: {error.strerror}; choose another with "
            f"--{name.lower()}-port"
        ) from error


def _as_protocol(speaker: Speaker) -> asyncio.BaseProtocol:
    return cast("asyncio.BaseProtocol", speaker)


class Knock(asyncio.Protocol):
    """A connection until its TLS is there: what comes with the last of the handshake is kept."""

    is_idle = False  # it is about to speak
    held_bytes = 0

    def __init__(self, make: Callable[[], Speaker], gate: Gate, tls: MakeContext) -> None:
        self._make = make
        self._gate = gate
        self._tls = tls
        self._transport: asyncio.Transport | None = None
        self._shaking: asyncio.Task[None] | None = None
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if not self._gate.admit(self):
            self._transport.abort()
            return
        self._transport.pause_reading()  # until TLS reads
        self._shaking = asyncio.get_running_loop().create_task(self._shake(self._transport))

    def data_received(self, data: bytes) -> None:
        self._early.append(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._gate.leave(self)

    async def _shake(self, transport: asyncio.Transport) -> None:
        loop = asyncio.get_running_loop()
        try:
            made = await loop.start_tls(
                transport,
                self,
                self._tls(),
                server_side=True,
                ssl_handshake_timeout=SHAKE_S,
                ssl_shutdown_timeout=SHUTDOWN_S,
            )
        except OSError:  # ssl.SSLError, ConnectionError, TimeoutError: not ours to mend
            made = None
        finally:
            self._gate.leave(self)
        if made is None:
            self._gate.ended(TLS)
            transport.abort()
            return
        protocol = self._make()
        made.set_protocol(_as_protocol(protocol))
        protocol.connection_made(made)
        for data in self._early:
            protocol.data_received(data)

    # -- to the gate ------------------------------------------------------------------------------

    def fault(self, now_ns: int) -> str:
        """The handshake has its own clock."""
        return ""

    def leave_for(self, reason: str) -> None:
        self.abort()

    def close_when_idle(self) -> None:
        self.abort()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
