"""Triton's gRPC port on libnghttp2, inside the event loop: the default. Rule: it only listens and
stops.

What a connection does is in `grpc_h2_connection`, what a method does in `grpc_methods` and
`grpc_stream`, the same as behind `grpc_server`.
"""

import asyncio
import contextlib

from tritonsched.backend.base import GrpcCalls
from tritonsched.errors import StartupError
from tritonsched.frontend.grpc_h2_connection import Connection, Shared
from tritonsched.frontend.service import InferService

STOP_GRACE_S = 5.0  # for answers that are being written when the queue is empty
BACKLOG = 1024


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
    ) -> None:
        self._shared = Shared(service, upstream, request_bytes_max)
        self._host = host
        self._wanted_port = port
        self.port = 0
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen. Raises StartupError if the port is taken."""
        try:
            self._server = await asyncio.get_running_loop().create_server(
                lambda: Connection(self._shared), self._host, self._wanted_port, backlog=BACKLOG
            )
        except OSError as error:
            raise StartupError(
                f"gRPC port {self._host}:{self._wanted_port}: {error.strerror}; choose another "
                "with --grpc-port"
            ) from error
        self.port = int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Stop listening, let calls finish within the grace, then close."""
        if self._server is None:
            return
        self._server.close()
        connections = list(self._shared.connections)
        for connection in connections:
            connection.say_goodbye()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_GRACE_S):
                for connection in connections:
                    await connection.gone.wait()
        for connection in connections:
            connection.abort()
        self._shared.streams.close()
