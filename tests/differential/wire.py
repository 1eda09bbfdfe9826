"""How a case is asked and what comes back. Rule: bytes out, everything a client can see in; no
library that repairs, adds or hides in between.
"""

import asyncio
import contextlib
import re
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

PROBE = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
PATIENCE_S = 60.0  # for one answer; a wait that long is a failure, never an outcome
SERVICE = "/inference.GRPCInferenceService/"
CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_metadata_size", 1 << 20),
    ("grpc.absolute_max_metadata_size", 1 << 20),
)
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class HttpReply:
    """One answer. start: the status line. headers: in lower case and sorted."""

    start: str
    headers: tuple[tuple[str, str], ...]
    body: bytes = b""

    @property
    def is_final(self) -> bool:
        return not self.start.split(" ")[1].startswith("1")

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key == name), "")


@dataclass(frozen=True, slots=True)
class HttpOutcome:
    """What a connection brought. is_open: it served another request afterwards."""

    replies: tuple[HttpReply, ...]
    is_open: bool


@dataclass(frozen=True, slots=True)
class HttpAsk:
    """Steps: bytes to send; each but the first waits for an answer, interim ones included.

    replies: final answers to expect. libevhtp reads the second of two pipelined requests only when
    more bytes come, so probes are sent until they are there. half_close: with the last step.
    """

    steps: tuple[bytes, ...]
    replies: int = 1
    half_close: bool = False


@dataclass(frozen=True, slots=True)
class GrpcOutcome:
    """What a call brought. metadata: initial and trailing, without the transport's own."""

    code: str
    details: str
    messages: tuple[bytes, ...]
    metadata: tuple[tuple[tuple[str, str | bytes], ...], ...] = ()


@dataclass(frozen=True, slots=True)
class GrpcAsk:
    """method: without the service unless it starts with a slash. messages: more than one only on a
    stream.
    """

    method: str
    messages: tuple[bytes, ...]
    metadata: tuple[tuple[str, str | bytes], ...] = ()
    compression: grpc.Compression = grpc.Compression.NoCompression

    @property
    def path(self) -> str:
        return self.method if self.method.startswith("/") else SERVICE + self.method

    @property
    def is_stream(self) -> bool:
        return self.method == "ModelStreamInfer"


# -- HTTP -------------------------------------------------------------------------------------


async def ask_http(address: str, ask: HttpAsk) -> HttpOutcome:
    """Raises TimeoutError if an answer does not come."""
    async with asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_connection(*address.split(":"))
        try:
            return await _converse(reader, writer, ask)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


async def _converse(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ask: HttpAsk
) -> HttpOutcome:
    replies: list[HttpReply] = []
    try:
        for step in ask.steps:
            writer.write(step)
            if ask.half_close and step is ask.steps[-1]:
                writer.write_eof()
            replies.append(await _reply(reader))
        while not replies[-1].is_final:
            replies.append(await _reply(reader))
        while sum(reply.is_final for reply in replies) < ask.replies:
            writer.write(PROBE)
            replies.append(await _reply(reader))
    except (EOFError, ConnectionError):
        return HttpOutcome(tuple(replies), is_open=False)
    is_open = not ask.half_close and await _serves_on(reader, writer)
    return HttpOutcome(tuple(replies), is_open)


async def _serves_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    try:
        writer.write(PROBE)
        await _reply(reader)
    except (EOFError, ConnectionError):
        return False
    return True


async def _reply(reader: asyncio.StreamReader) -> HttpReply:
    head = (await reader.readuntil(b"\r\n\r\n"))[:-4]
    lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines[1:])
    headers = tuple(sorted((name.lower(), value.strip()) for name, _, value in pairs))
    if _CHUNKED.search(head):
        return HttpReply(lines[0], headers, await _chunks(reader))
    length = _LENGTH.search(head)
    body = await reader.readexactly(int(length[1])) if length else b""
    return HttpReply(lines[0], headers, body)


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)
    return body


# -- gRPC -------------------------------------------------------------------------------------


def channel(address: str) -> grpc.aio.Channel:
    """A connection of its own."""
    return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)


async def ask_grpc(opened: grpc.aio.Channel, ask: GrpcAsk) -> GrpcOutcome:
    """Raises TimeoutError if no answer comes."""
    async with asyncio.timeout(PATIENCE_S):
        return await _call(opened, ask)


async def _call(opened: grpc.aio.Channel, ask: GrpcAsk) -> GrpcOutcome:
    messages: list[bytes] = []
    how: dict[str, Any] = {"metadata": ask.metadata, "compression": ask.compression}
    call: Any
    if ask.is_stream:
        call = opened.stream_stream(ask.path, None, None)(**how)
    else:
        call = opened.unary_unary(ask.path, None, None)(ask.messages[0], **how)
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # see code() below
        if ask.is_stream:
            for message in ask.messages:
                await call.write(message)
            await call.done_writing()
            while answer := await call.read():  # its end is false
                messages.append(answer)
        else:
            messages.append(await call)
    code = await call.code()
    seen = (_own(await call.initial_metadata()), _own(await call.trailing_metadata()))
    return GrpcOutcome(code.name, await call.details() or "", tuple(messages), seen)


def _own(metadata: Any) -> tuple[tuple[str, str | bytes], ...]:
    pairs = [(str(key), value) for key, value in metadata or ()]
    return tuple(sorted((key, value) for key, value in pairs if not key.startswith("grpc-")))
