"""Triton's HTTP port. Rule: routed on the raw path, like Triton; nothing is decoded, nothing added.

Only `POST /v2/models/M[/versions/V]/infer` is ours; everything else is forwarded. A client that
leaves cancels its handler, and with it what is queued; Triton itself would execute the work all
the same.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace

from tritonsched.backend.upstream_http import HttpCalls
from tritonsched.errors import TritonschedError
from tritonsched.frontend.door import MakeContext, listen
from tritonsched.frontend.forward import forward_http, generates
from tritonsched.frontend.gate import Gate
from tritonsched.frontend.generate import Generation, generate_call
from tritonsched.frontend.http_codec import decode, encode
from tritonsched.frontend.http_heads import KnownHeads
from tritonsched.frontend.http_message import HttpRequest, Reply, StreamReply
from tritonsched.frontend.http_protocol import HttpProtocol
from tritonsched.frontend.service import InferService
from tritonsched.frontend.status import EXPLAIN, http_reply
from tritonsched.tensors import Answer, Cancel, GrpcReply, HttpReply, InferCall, MergedReply

STOP_GRACE_S = 5.0  # for answers that are being written when the queue is empty
_INFER = re.compile(r"^/v2/models/([^/?]+)(?:/versions/([0-9]+))?/infer(?:\?.*)?$")
_METHOD_NOT_ALLOWED = HttpReply(
    405, "Not Allowed", (("Content-Type", "application/json"),), b'{"error":"Method Not Allowed"}'
)


class HttpServer:
    """Serves `service` and forwards the rest to `upstream`.

    request_bytes_max: a larger body is refused with 413 before it is buffered whole.
    """

    def __init__(
        self,
        service: InferService,
        upstream: HttpCalls,
        *,
        host: str,
        port: int,
        request_bytes_max: int,
        gate: Gate | None = None,
        tls: MakeContext | None = None,
    ) -> None:
        self.gate = Gate() if gate is None else gate
        self._tls = tls
        self._heads = KnownHeads()
        self._service = service
        self._upstream = upstream
        self._host = host
        self._wanted_port = port
        self._request_bytes_max = request_bytes_max
        self._handling: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def start(self) -> None:
        """Listen. Raises StartupError if the port is taken."""
        self._server = await listen(
            lambda: HttpProtocol(self._begin, self.gate, self._heads, self._request_bytes_max),
            self.gate,
            host=self._host,
            port=self._wanted_port,
            name="HTTP",
            tls=self._tls,
        )
        self.port = int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Stop listening, let handlers finish within the grace, then close."""
        if self._server is None:
            return
        self._server.close()
        await self.gate.drain(STOP_GRACE_S)

    def _begin(self, request: HttpRequest, done: Callable[[Reply], None]) -> Cancel:
        if request.method == "POST":
            raw_path = _raw_path(request.target)
            infer = _INFER.match(raw_path)
            if infer is not None:
                return self._infer(request, raw_path, infer, done)
        task = asyncio.get_running_loop().create_task(self._told(request, done))
        self._handling.add(task)
        task.add_done_callback(self._handling.discard)
        return task.cancel

    def _infer(
        self,
        request: HttpRequest,
        raw_path: str,
        infer: re.Match[str],
        done: Callable[[Reply], None],
    ) -> Cancel:
        call = decode(
            model=infer.group(1),
            version=infer.group(2) or "",
            path=raw_path,
            headers=request.headers,
            body=request.body,
            received_ns=request.received_ns,
        )

        def answered(outcome: Answer | TritonschedError) -> None:
            done(as_http(outcome, call))

        return self._service.submit(call, answered)

    async def _told(self, request: HttpRequest, done: Callable[[Reply], None]) -> None:
        try:
            reply = await self._answer(request)
        except Exception as error:  # the boundary: whatever it is becomes an answer
            reply = http_reply(error)
        done(reply)

    async def _answer(self, request: HttpRequest) -> Reply:
        if request.method == "HEAD":  # Triton answers HEAD with a body, which no client can parse
            return replace(_METHOD_NOT_ALLOWED, body=b"")
        raw_path = _raw_path(request.target)
        if request.method == "POST" and (model := generates(raw_path)) is not None:
            return await self._stream(request, raw_path, generate_call(request, raw_path, *model))
        return await forward_http(
            self._service,
            self._upstream,
            method=request.method,
            raw_path=raw_path,
            headers=request.headers,
            body=request.body,
        )

    async def _stream(self, request: HttpRequest, raw_path: str, call: InferCall) -> Reply:
        """Pass an answer on as it comes, at the client's speed; one of known length whole."""
        generation = Generation(self._upstream, request, raw_path)
        reply = await generation.open(self._service, call)
        stack = generation.stack
        stack.callback(self._service.open_stream(_nothing))
        if reply.length is not None:
            async with stack:
                body = b"".join([chunk async for chunk in reply.chunks])
                return HttpReply(reply.status, reply.reason, reply.headers, body)

        async def chunks() -> AsyncGenerator[bytes]:
            async with stack:
                yield b""  # begun: closed now, it closes the stack
                async for chunk in reply.chunks:
                    yield chunk

        begun = chunks()
        await anext(begun)
        return StreamReply(reply.status, reply.reason, reply.headers, begun)


def _nothing() -> None:
    """A stream of one request takes no more of them: there is nothing to close."""


def _raw_path(target: str) -> str:
    """The path of a request target; an absolute one (RFC 9112 3.2.2) loses scheme and host."""
    if target.startswith("/"):
        return target
    _, _, rest = target.partition("://")
    return "/" + rest.partition("/")[2]


def as_http(outcome: Answer | TritonschedError, call: InferCall) -> HttpReply:
    """Any answer, or error, as HTTP."""
    try:
        reply = _reply(outcome, call)
    except Exception as error:  # the boundary: whatever it is becomes an answer
        return http_reply(error)
    if reply.explain is None:
        return reply
    return replace(reply, headers=(*reply.headers, (EXPLAIN, reply.explain.header_value())))


def _reply(outcome: Answer | TritonschedError, call: InferCall) -> HttpReply:
    match outcome:
        case MergedReply():
            headers, body = encode(outcome, call)
            return HttpReply(200, "OK", tuple(headers), body, explain=outcome.explain)
        case HttpReply():
            return outcome
        case GrpcReply():
            raise TritonschedError("a gRPC answer for an HTTP call")
        case TritonschedError():
            return http_reply(outcome)
