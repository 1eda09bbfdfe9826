"""Triton's gRPC port on libnghttp2, inside the event loop: the default. Rule: it only listens and
stops.

What a connection does is in `grpc_h2_connection`, what a method does in `grpc_methods` and
`grpc_stream`, the same as behind `grpc_server`.
"""

import asyncio

from tritonsched.backend.base import GrpcCalls
from tritonsched.frontend.door import MakeContext, listen
from tritonsched.frontend.gate import Gate
from tritonsched.frontend.grpc_h2_call import Shared
from tritonsched.frontend.grpc_h2_connection import Connection
from tritonsched.frontend.service import InferService

STOP_GRACE_S = 5.0  # for answers that are being written when the queue is empty


class H2GrpcServer:
    """Serves `service` and forwards the rest to `upstream`.

    request_bytes_max: a larger message is refused with RESOURCE_EXHAUSTED before it is whole.
    """

    def __init__(
        self,
        service: InferService,
        upstream: GrpcCalls,
        *,
        host: str,
        port: int,
        request_bytes_max: int,
        gate: Gate | None = None,
        tls: MakeContext | None = None,
    ) -> None:
        self.gate = Gate() if gate is None else gate
        self._shared = Shared(service, upstream, request_bytes_max, self.gate)
        self._tls = tls
        self._host = host
        self._wanted_port = port
        self.port = 0
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen. Raises StartupError if the port is taken."""
        self._server = await listen(
            lambda: Connection(self._shared),
            self.gate,
            host=self._host,
            port=self._wanted_port,
            name="gRPC",
            tls=self._tls,
        )
        self.port = int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Stop listening, let calls finish within the grace, then close."""
        if self._server is None:
            return
        self._server.close()
        await self.gate.drain(STOP_GRACE_S)
        self._shared.streams.close()
