"""An HttpServer on loopback, the service behind it, and the Triton it forwards to."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from tests.unit.frontend.http_client import Reply, connected
from tests.unit.frontend.services import Service, merged
from tests.unit.frontend.wires import HOST, RawHttp, fixed, raw_http
from tritonsched.backend.upstream_http import HttpUpstream
from tritonsched.frontend.http_server import HttpServer
from tritonsched.tensors import Answer, InferCall

INFER = "/v2/models/m/infer"
LIMIT = 1000
TRITON = fixed("200 OK", "X-From: triton", body=b"theirs")
SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
STREAM = "/v2/models/m/generate_stream"


class Events:
    """Triton's side of a stream: each event is sent when it is let through; `b""` ends it."""

    def __init__(self, *events: bytes, breaks_off: bool = False) -> None:
        self.events = events
        self.breaks_off = breaks_off
        self.more = asyncio.Semaphore(0)
        self.ended = asyncio.Event()

    async def __call__(self, _request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(SSE)
        for event in self.events:
            await self.more.acquire()
            writer.write(b"%x\r\n%b\r\n" % (len(event), event))
            await writer.drain()
        await self.more.acquire()
        if self.breaks_off:
            writer.close()
        else:
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        self.ended.set()


class Gate:
    """A service whose answers wait to be let through."""

    def __init__(self) -> None:
        self.reached = asyncio.Semaphore(0)
        self.open = asyncio.Semaphore(0)
        self.left = asyncio.Event()

    async def __call__(self, _call: InferCall) -> Answer:
        self.reached.release()
        try:
            await self.open.acquire()
        except asyncio.CancelledError:
            self.left.set()
            raise
        return merged()


class Setup:
    """A server on a free port, the service behind it, the Triton it forwards to."""

    def __init__(self, server: HttpServer, service: Service, triton: RawHttp) -> None:
        self.server = server
        self.service = service
        self.triton = triton

    async def ask(self, method: str, path: str, *headers: str, body: bytes = b"") -> Reply:
        async with connected(self.server.port) as client:
            client.ask(method, path, *headers, body=body)
            return await client.reply()


@contextlib.asynccontextmanager
async def serving(
    service: Service | None = None,
    triton: Callable[..., Awaitable[None]] = TRITON,
    address: str = "",
) -> AsyncIterator[Setup]:
    service = service or Service()
    async with raw_http(triton) as there:
        upstream = HttpUpstream(address or there.address)
        await upstream.start()
        server = HttpServer(service, upstream, host=HOST, port=0, request_bytes_max=LIMIT)
        await server.start()
        try:
            yield Setup(server, service, there)
        finally:
            await server.stop()
            await upstream.close()
