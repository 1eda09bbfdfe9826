"""A gRPC client that speaks HTTP/2 by hand, for what no library would say."""

import asyncio
import contextlib
from typing import Any

import ngh2
from tritonclient.grpc import service_pb2 as pb

from tritonsched.backend.upstream_grpc import SERVICE
from tritonsched.frontend.grpc_framing import framed

INFER = f"{SERVICE}ModelInfer"
REQUEST = pb.ModelInferRequest(model_name="m", id="x").SerializeToString()
CANCEL = int(ngh2.ErrorCode.CANCEL)


class Client:
    """HTTP/2 by hand: what is said and heard is a test's to choose."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.engine = ngh2.Connection(
            ngh2.Role.CLIENT, ngh2.Configuration(auto_window_update=False)
        )
        self.heard: list[ngh2.Event] = []

    def flush(self) -> None:
        self._writer.write(self.engine.data_to_send())

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    def open(self, method: str = INFER, *more: tuple[bytes, bytes], grpc: bool = True) -> int:
        """A call's headers; returns its stream."""
        kind = b"application/grpc" if grpc else b"text/plain"
        return self.engine.send_request(
            [
                (b":method", b"POST"), (b":scheme", b"http"), (b":path", method.encode()),
                (b":authority", b"x"), (b"content-type", kind), *more,
            ]
        )  # fmt: skip

    def call(self, *more: tuple[bytes, bytes], method: str = INFER, body: bytes = b"") -> int:
        """A whole call."""
        stream_id = self.open(method, *more)
        self.engine.send_data(stream_id, body or framed(REQUEST), end_stream=True)
        self.flush()
        return stream_id

    async def _hear(self) -> None:
        data = await self._reader.read(1 << 16)
        if not data:
            raise EOFError
        self.engine.receive_data(data)
        self.heard += self.engine.events()
        self.flush()

    async def until(self, kind: type[Any], stream_id: int | None = None) -> Any:
        """The first such event. Raises EOFError if the server closes before."""
        while True:
            for event in self.heard:
                if isinstance(event, kind) and stream_id in (
                    None, getattr(event, "stream_id", None),
                ):  # fmt: skip
                    return event
            await self._hear()

    async def status(self, stream_id: int) -> dict[bytes, bytes]:
        """The headers that end a call, and how its stream was closed."""
        closed = await self.until(ngh2.StreamClosed, stream_id)
        assert closed.error_code == 0
        last = [e for e in self.heard if getattr(e, "stream_id", None) == stream_id]
        headers = [e for e in last if hasattr(e, "headers")]
        return {bytes(name): bytes(value) for name, value in headers[-1].headers}

    async def closed(self) -> None:
        """The server has closed the connection."""
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                await self._hear()

    async def leave(self) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()
