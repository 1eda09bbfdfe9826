"""Triton's HTTP port: bytes there, bytes back. Rule: nothing is interpreted, nothing is added.

Traps met with aiohttp as a forwarder: it adds Accept-Encoding and decompresses answers but keeps
the header; it quotes paths again; it adds User-Agent and Content-Type. All of it is switched off
here.

Nothing that Triton was sent is cut off: a call is finished, and a stream read to its end within a
bound, whatever becomes of the caller.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

import aiohttp
from yarl import URL

from tritonsched.errors import TritonUnavailable
from tritonsched.tensors import Buffer, HttpReply

CONNECTIONS_MAX = 1024  # to Triton; more calls at once wait for one
FINISH_S = 10.0  # for running calls when we close; a Triton that hangs does not hold us for ever
STREAM_DRAIN_S = 30.0  # for Triton to finish a stream whose client has left
_AUTO_HEADERS = ("Accept", "Accept-Encoding", "User-Agent", "Content-Type")
_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "expect",
        "host",
        "content-length",
    }
)
"""RFC 9110 7.6.1, and what the two connections each say for themselves."""

Headers = tuple[tuple[str, str], ...]


def end_to_end(headers: Iterable[tuple[str, str | bytes]]) -> Headers:
    """Headers that go on to the other side, in order."""
    return tuple(
        (name, value if isinstance(value, str) else value.decode("latin-1"))
        for name, value in headers
        if name.lower() not in _HOP_BY_HOP
    )


def _alike(headers: Iterable[tuple[str, str | bytes]]) -> Headers:
    """The same, a name always spelt as at first: of `a` and `A` aiohttp sends the last alone."""
    spelt: dict[str, str] = {}
    return tuple((spelt.setdefault(k.lower(), k), value) for k, value in end_to_end(headers))


@dataclass(frozen=True, slots=True)
class HttpStream:
    """An answer whose body is still coming.

    chunks: as they arrive, with back-pressure. length: bytes of the body if Triton announced it.
    """

    status: int
    reason: str
    headers: Headers
    chunks: AsyncIterator[bytes]
    length: int | None


class HttpCalls(Protocol):
    """Triton's HTTP port: `HttpUpstream`, or several of them, `fleet_http.FleetHttp`."""

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def request(
        self, method: str, raw_path: str, headers: Iterable[tuple[str, str | bytes]], body: Buffer
    ) -> HttpReply:
        """One call, finished whatever its caller does. Raises TritonUnavailable."""

    def stream(
        self,
        method: str,
        raw_path: str,
        headers: Iterable[tuple[str, str | bytes]],
        body: Buffer,
        *,
        server: str = "",
    ) -> AbstractAsyncContextManager[HttpStream]:
        """One call whose answer is passed on as it comes. server: which of several is to answer.

        Raises TritonUnavailable.
        """


class HttpUpstream:
    """Connections to Triton's HTTP port. address: host:port."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._session: aiohttp.ClientSession | None = None
        self._running: set[asyncio.Task[HttpReply]] = set()
        self._drains: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Make the connection pool; connects at the first request."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=CONNECTIONS_MAX, use_dns_cache=True),
            auto_decompress=False,
            skip_auto_headers=_AUTO_HEADERS,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5.0),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def close(self) -> None:
        if self._running:
            await asyncio.wait(self._running, timeout=FINISH_S)
        for task in self._running:
            task.cancel()
        for drain in self._drains:
            drain.cancel()
        await asyncio.gather(*self._drains, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def request(
        self, method: str, raw_path: str, headers: Iterable[tuple[str, str | bytes]], body: Buffer
    ) -> HttpReply:
        """One call. It is finished even if the caller is cancelled: Triton is never cut off.

        Raises TritonUnavailable if there was no whole answer.
        """
        task = asyncio.ensure_future(self._request(method, raw_path, headers, body))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    @contextlib.asynccontextmanager
    async def stream(
        self,
        method: str,
        raw_path: str,
        headers: Iterable[tuple[str, str | bytes]],
        body: Buffer,
        *,
        server: str = "",  # there is one
    ) -> AsyncIterator[HttpStream]:
        """One call whose answer is passed on as it comes. What is not read of it is drained.

        Raises TritonUnavailable.
        """
        opening = asyncio.ensure_future(self._opened(method, raw_path, headers, body))
        try:
            with _faults(self.address):
                reply = await asyncio.shield(opening)
            yield HttpStream(
                reply.status,
                reply.reason or "",
                _headers(reply),
                _chunks(reply, self.address),
                reply.content_length,
            )
        finally:
            self._leave(opening)

    def _leave(self, opening: asyncio.Task[aiohttp.ClientResponse]) -> None:
        """Nobody reads the answer any more: drain it, then free its connection."""
        drain = asyncio.ensure_future(_drained(opening))
        self._drains.add(drain)

        def drained(_: asyncio.Task[None]) -> None:
            self._drains.discard(drain)
            opening.cancel()  # nothing, if it is done
            opening.add_done_callback(_let_go)

        drain.add_done_callback(drained)

    async def _opened(
        self, method: str, raw_path: str, headers: Iterable[tuple[str, str | bytes]], body: Buffer
    ) -> aiohttp.ClientResponse:
        return await self._open(method, raw_path, headers, body)

    def _open(
        self, method: str, raw_path: str, headers: Iterable[tuple[str, str | bytes]], body: Buffer
    ) -> "aiohttp.client._RequestContextManager":
        assert self._session is not None, "call start() first"
        path, _, query = raw_path.partition("?")  # by hand: to Triton '#' is part of the path
        url = URL.build(
            scheme="http", authority=self.address, path=path, query_string=query, encoded=True
        )
        return self._session.request(
            method, url, headers=_alike(headers), data=body or None, allow_redirects=False
        )

    async def _request(
        self, method: str, raw_path: str, headers: Iterable[tuple[str, str | bytes]], body: Buffer
    ) -> HttpReply:
        with _faults(self.address):
            async with self._open(method, raw_path, headers, body) as reply:
                content = await reply.read()
                return HttpReply(reply.status, reply.reason or "", _headers(reply), content)


def _headers(reply: aiohttp.ClientResponse) -> Headers:
    return end_to_end(reply.headers.items())


async def _chunks(reply: aiohttp.ClientResponse, address: str) -> AsyncIterator[bytes]:
    with _faults(address):
        async for chunk in reply.content.iter_any():
            yield chunk


async def _drained(opening: asyncio.Future[aiohttp.ClientResponse]) -> None:
    """Read an answer to its end, unread, within the bound."""
    with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
        async with asyncio.timeout(STREAM_DRAIN_S):
            reply = await asyncio.shield(opening)
            async for _ in reply.content.iter_any():
                pass


def _let_go(opening: asyncio.Future[aiohttp.ClientResponse]) -> None:
    """The connection is free for others, or closed if the answer is still coming."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


@contextlib.contextmanager
def _faults(address: str) -> Iterator[None]:
    try:
        yield
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        text = f"Triton's HTTP port {address} does not answer ({type(error).__name__})"
        raise TritonUnavailable(text, retry_after_ns=1_000_000_000) from error
