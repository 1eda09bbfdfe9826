"""Triton's HTTP port: bytes there, bytes back. Rule: nothing is interpreted, nothing is added.

Traps met with aiohttp as a forwarder: it adds Accept-Encoding and decompresses answers but keeps
the header; it quotes paths again; it adds User-Agent and Content-Type. All of it is switched off
here.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass

import aiohttp
from yarl import URL

from tritonsched.errors import TritonUnavailable
from tritonsched.tensors import Buffer, HttpReply

CONNECTIONS_MAX = 1024  # to Triton; more calls at once wait for one
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


@dataclass(frozen=True, slots=True)
class HttpStream:
    """An answer whose body is still coming. chunks: as they arrive, with back-pressure."""

    status: int
    reason: str
    headers: Headers
    chunks: AsyncIterator[bytes]


class HttpUpstream:
    """Connections to Triton's HTTP port. address: host:port."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._session: aiohttp.ClientSession | None = None
        self._running: set[asyncio.Task[HttpReply]] = set()

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
            await asyncio.wait(self._running)
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
        self, method: str, raw_path: str, headers: Iterable[tuple[str, str | bytes]], body: Buffer
    ) -> AsyncIterator[HttpStream]:
        """One call whose answer is passed on as it comes. Raises TritonUnavailable."""
        with _faults(self.address):
            async with self._open(method, raw_path, headers, body) as reply:
                chunks = _chunks(reply, self.address)
                yield HttpStream(reply.status, reply.reason or "", _headers(reply), chunks)

    def _open(
        self, method: str, raw_path: str, headers: Iterable[tuple[str, str | bytes]], body: Buffer
    ) -> "aiohttp.client._RequestContextManager":
        assert self._session is not None, "call start() first"
        url = URL(f"http://{self.address}{raw_path}", encoded=True)
        return self._session.request(
            method, url, headers=end_to_end(headers), data=body, allow_redirects=False
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


@contextlib.contextmanager
def _faults(address: str) -> Iterator[None]:
    try:
        yield
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        text = f"Triton's HTTP port {address} does not answer ({type(error).__name__})"
        raise TritonUnavailable(text, retry_after_ns=1_000_000_000) from error
