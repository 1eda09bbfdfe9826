"""Triton's HTTP port. Rule: routed on the raw path, like Triton; nothing is decoded, nothing added.

Only `POST /v2/models/M[/versions/V]/infer` is ours; everything else is forwarded. aiohttp's
low-level server is used, because its router normalises paths. A client that leaves cancels its
handler, and with it what is queued; Triton itself would execute the work all the same.
"""

import re
import time

from aiohttp import web
from multidict import CIMultiDict

from tritonsched.backend.upstream_http import HttpUpstream
from tritonsched.errors import PayloadTooLarge, StartupError, TritonschedError
from tritonsched.frontend.forward import forward_http, is_stream
from tritonsched.frontend.http_codec import decode, encode
from tritonsched.frontend.service import InferService
from tritonsched.frontend.status import EXPLAIN, http_reply
from tritonsched.tensors import Answer, GrpcReply, HttpReply, InferCall, MergedReply

HEADER_BYTES_MAX = 16 * 1024
STOP_GRACE_S = 5.0  # for answers that are being written when the queue is empty
KEEPALIVE_S = 3600.0  # Triton never idles a connection out; pooled clients would see resets
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
        upstream: HttpUpstream,
        *,
        host: str,
        port: int,
        request_bytes_max: int,
    ) -> None:
        self._service = service
        self._upstream = upstream
        self._host = host
        self._port = port
        self._request_bytes_max = request_bytes_max
        self._server = web.Server(
            self._handle,
            access_log=None,
            auto_decompress=False,
            handler_cancellation=True,
            keepalive_timeout=KEEPALIVE_S,
            max_line_size=HEADER_BYTES_MAX,
            max_field_size=HEADER_BYTES_MAX,
        )
        self._runner = web.ServerRunner(self._server, shutdown_timeout=STOP_GRACE_S)

    @property
    def port(self) -> int:
        """The port really bound."""
        return int(self._runner.addresses[0][1])

    async def start(self) -> None:
        """Listen. Raises StartupError if the port is taken."""
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port, backlog=1024).start()
        except OSError as error:
            raise StartupError(
                f"HTTP port {self._host}:{self._port}: {error.strerror}; choose another with "
                "--http-port"
            ) from error

    async def stop(self) -> None:
        """Stop listening, let handlers finish within the grace, then close."""
        await self._runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        received_ns = time.monotonic_ns()
        try:
            return await self._answer(request, received_ns)
        except (ConnectionError, TimeoutError):
            raise
        except Exception as error:  # the boundary: whatever it is becomes an answer
            return _response(http_reply(error))

    async def _answer(self, request: web.BaseRequest, received_ns: int) -> web.StreamResponse:
        if request.method == "HEAD":  # Triton answers HEAD with a body, which no client can parse
            return _response(_METHOD_NOT_ALLOWED)
        body = await self._body(request)
        raw_path = _raw_path(request.raw_path)
        headers = tuple((str(name), value) for name, value in request.headers.items())
        infer = _INFER.match(raw_path)
        if infer is not None and request.method == "POST":
            call = decode(
                model=infer.group(1),
                version=infer.group(2) or "",
                path=raw_path,
                headers=headers,
                body=body,
                received_ns=received_ns,
            )
            return _response(as_http(await self._service.infer(call), call))
        if is_stream(raw_path) and request.method == "POST":
            return await self._stream(request, raw_path, headers, body)
        return _response(
            await forward_http(
                self._service,
                self._upstream,
                method=request.method,
                raw_path=raw_path,
                headers=headers,
                body=body,
            )
        )

    async def _body(self, request: web.BaseRequest) -> bytes:
        """The whole body, undecoded. Raises PayloadTooLarge without having kept more than the
        bound.
        """
        limit = self._request_bytes_max
        size = 0
        chunks: list[bytes] = []
        if (request.content_length or 0) <= limit:
            async for chunk in request.content.iter_any():
                size += len(chunk)
                if size > limit:
                    break
                chunks.append(chunk)
            else:
                return chunks[0] if len(chunks) == 1 else b"".join(chunks)
        raise PayloadTooLarge(f"the body exceeds {limit} bytes; raise limits.request_mib_max")

    async def _stream(
        self,
        request: web.BaseRequest,
        raw_path: str,
        headers: tuple[tuple[str, str], ...],
        body: bytes,
    ) -> web.StreamResponse:
        """Pass an answer on as it comes, at the client's speed."""
        async with self._upstream.stream(request.method, raw_path, headers, body) as reply:
            response = web.StreamResponse(
                status=reply.status, reason=reply.reason, headers=CIMultiDict(reply.headers)
            )
            response.enable_chunked_encoding()
            await response.prepare(request)
            async for chunk in reply.chunks:
                await response.write(chunk)
            await response.write_eof()
            return response


def _raw_path(target: str) -> str:
    """The path of a request target; an absolute one (RFC 9112 3.2.2) loses scheme and host."""
    if target.startswith("/"):
        return target
    _, _, rest = target.partition("://")
    return "/" + rest.partition("/")[2]


def as_http(answer: Answer, call: InferCall) -> HttpReply:
    """Any answer as an HTTP one."""
    match answer:
        case MergedReply():
            headers, body = encode(answer, call)
            return HttpReply(200, "OK", tuple(headers), body, explain=answer.explain)
        case HttpReply():
            return answer
        case GrpcReply():
            raise TritonschedError("a gRPC answer for an HTTP call")


def _response(reply: HttpReply) -> web.Response:
    headers = CIMultiDict(reply.headers)
    if reply.explain is not None:
        headers[EXPLAIN] = reply.explain.header_value()
    return web.Response(
        status=reply.status, reason=reply.reason or None, headers=headers, body=bytes(reply.body)
    )
