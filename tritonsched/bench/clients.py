"""Sending one request and learning how it ended. Rule: bodies are ready; a send allocates next to
nothing.

No request is ever cancelled, and none has a client-side deadline unless asked for (`--deadline-as
grpc`): Triton 2.51 can crash on either (server issues 7368, 8034), and a late answer must be seen
to be counted.
"""

import asyncio
from typing import Any, Protocol, cast

import aiohttp
import grpc
import grpc.aio
import httptools
from google.protobuf import json_format
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc import service_pb2 as pb

from tritonsched.backend.catalogue import ModelInfo, model_info
from tritonsched.backend.upstream_grpc import OPTIONS, SERVICE
from tritonsched.bench.payload import Inputs, Wording, grpc_message, http_body
from tritonsched.bench.plan import LoadClass

REASON = "x-tritonsched-reason"
REASON_BYTES = REASON.encode()
OK = "ok"
GAVE_UP = "gave-up"  # the client's own deadline passed first
# How Triton words the refusals of its queue policy, and what we call them.
TRITON_REFUSALS = {
    "Request timeout expired": "triton-timeout",
    "Exceeds maximum queue size": "triton-queue-full",
}
ERROR_BYTES_MAX = 1024  # of an error's body, enough for its text
CHANNELS = 2  # one connection's flow control is a bottleneck for images; more cost CPU


class TargetError(Exception):
    """The target does not answer, or not as a Triton does."""


class Client(Protocol):
    """One protocol's way to the target."""

    async def model(self, name: str) -> ModelInfo:
        """What the target says of the model. Raises TargetError."""

    def prepare(
        self, model: str, classes: tuple[LoadClass, ...], payloads: list[Inputs], wording: Wording
    ) -> None:
        """Build every body that will be sent."""

    async def send(self, load_class: int, payload: int) -> str:
        """`ok`, `gave-up`, a refusal's reason, or the status of another failure. Never raises."""

    async def close(self) -> None: ...


class GrpcClient:
    """ModelInfer over grpc.aio with raw bytes."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._channels = [
            grpc.aio.insecure_channel(target, options=OPTIONS) for _ in range(CHANNELS)
        ]
        self._calls = [c.unary_unary(f"{SERVICE}ModelInfer", None, None) for c in self._channels]
        self._messages: list[list[bytes]] = []
        self._metadata: list[tuple[tuple[str, str], ...]] = []
        self._deadlines_s: list[float | None] = []
        self._next = 0

    async def model(self, name: str) -> ModelInfo:
        ask = self._channels[0].unary_unary(f"{SERVICE}ModelConfig", None, None)
        try:
            reply = await ask(pb.ModelConfigRequest(name=name).SerializeToString())
        except grpc.aio.AioRpcError as error:
            raise TargetError(f"{self._target}: {error.details()}") from error
        return model_info(pb.ModelConfigResponse.FromString(reply).config, "")

    def prepare(
        self, model: str, classes: tuple[LoadClass, ...], payloads: list[Inputs], wording: Wording
    ) -> None:
        self._messages = [
            [grpc_message(model, made, wording.parameters(each)) for made in payloads]
            for each in classes
        ]
        self._metadata = [wording.headers(each) for each in classes]
        self._deadlines_s = [wording.call_deadline_s(each) for each in classes]

    async def send(self, load_class: int, payload: int) -> str:
        self._next = (self._next + 1) % CHANNELS
        call = self._calls[self._next]
        try:
            await call(
                self._messages[load_class][payload],
                metadata=self._metadata[load_class],
                timeout=self._deadlines_s[load_class],
            )
        except grpc.aio.AioRpcError as error:
            return _grpc_status(error)
        return OK

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close(None)


def _grpc_status(error: grpc.aio.AioRpcError) -> str:
    trailers: Any = error.trailing_metadata()  # pairs, whatever the stubs say
    if REASON in (told := dict(trailers or ())):
        return str(told[REASON])
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return GAVE_UP
    return refusal_of(error.details() or "") or error.code().name.lower().replace("_", "-")


def refusal_of(text: str) -> str:
    """Our name of the refusal that Triton words so; empty if it is none."""
    return next((name for words, name in TRITON_REFUSALS.items() if words in text), "")


class HttpClient:
    """`infer` over HTTP/1.1 with binary tensors: prebuilt bytes, one request a connection at a
    time.

    No HTTP library on the hot path: its objects would cost more than what is measured.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._model = ""
        self._requests: list[list[bytes]] = []
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()

    async def model(self, name: str) -> ModelInfo:
        url = f"http://{self._target}/v2/models/{name}/config"
        try:
            async with aiohttp.ClientSession() as session, session.get(url) as reply:
                text = await reply.text()
                if reply.status != 200:
                    raise TargetError(f"{self._target}: {text[:200]}")
                config = json_format.Parse(
                    text, model_config_pb2.ModelConfig(), ignore_unknown_fields=True
                )
        except (aiohttp.ClientError, OSError, json_format.ParseError) as error:
            raise TargetError(f"{self._target}: {error}") from error
        return model_info(config, "")

    def prepare(
        self, model: str, classes: tuple[LoadClass, ...], payloads: list[Inputs], wording: Wording
    ) -> None:
        self._model = model
        self._requests = [
            [self._request(each, made, wording) for made in payloads] for each in classes
        ]

    def _request(self, load_class: LoadClass, made: Inputs, wording: Wording) -> bytes:
        length, body = http_body(made, wording.parameters(load_class))
        headers = [
            f"POST /v2/models/{self._model}/infer HTTP/1.1",
            f"Host: {self._target}",
            f"Inference-Header-Content-Length: {length}",
            f"Content-Length: {len(body)}",
            *(f"{name}: {value}" for name, value in wording.headers(load_class)),
        ]
        return "\r\n".join([*headers, "", ""]).encode() + body

    async def send(self, load_class: int, payload: int) -> str:
        try:
            connection = self._idle.pop() if self._idle else await self._connect()
            status, reason = await connection.exchange(self._requests[load_class][payload])
        except OSError:
            return "unavailable"
        if connection.is_open:
            self._idle.append(connection)
        else:
            self._open.discard(connection)
        return OK if status == 200 else reason or f"http-{status}"

    async def _connect(self) -> "_Connection":
        host, _, port = self._target.rpartition(":")
        _, connection = await asyncio.get_running_loop().create_connection(
            _Connection, host.strip("[]"), int(port)
        )
        self._open.add(connection)
        return connection

    async def close(self) -> None:
        for connection in self._open:
            connection.close()


class _Connection(asyncio.Protocol):
    """One keep-alive connection; answers are parsed by llhttp and only counted."""

    def __init__(self) -> None:
        self.is_open = True
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._answer: asyncio.Future[tuple[int, str]] | None = None
        self._reason = ""
        self._error = b""

    def exchange(self, request: bytes) -> asyncio.Future[tuple[int, str]]:
        """Send; the future is status and refusal reason. ConnectionError if the connection
        breaks.
        """
        self._answer = asyncio.get_running_loop().create_future()
        self._reason = ""
        self._error = b""
        if self._transport is None:
            self._answer.set_exception(ConnectionResetError())
        else:
            self._transport.write(request)
        return self._answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class is no subclass

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        self._transport = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionResetError())

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == REASON_BYTES:
            self._reason = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        if self._parser.get_status_code() != 200 and len(self._error) < ERROR_BYTES_MAX:
            self._error += body

    def on_message_complete(self) -> None:
        self.is_open = self._parser.should_keep_alive()
        reason = self._reason or refusal_of(self._error.decode("utf-8", "replace"))
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((self._parser.get_status_code(), reason))
        if not self.is_open:
            self.close()
