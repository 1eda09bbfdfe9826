"""The clients' ports: limits, TLS and what is counted of their connections. Rule: one place knows
both protocols' servers; what they serve is given.
"""

import resource
import sys
from collections.abc import Callable

from tritonsched.backend.base import GrpcCalls
from tritonsched.backend.upstream_http import HttpCalls
from tritonsched.errors import StartupError
from tritonsched.frontend.gate import Gate, Limits
from tritonsched.frontend.grpc_h2_server import H2GrpcServer
from tritonsched.frontend.grpc_server import GrpcServer
from tritonsched.frontend.http_server import HttpServer
from tritonsched.frontend.service import InferService
from tritonsched.frontend.tls import H2, HTTP1, Tls
from tritonsched.metrics import Metrics
from tritonsched.options import GrpcFrontend, ServeOptions

FILES_KEPT = 256  # open files for everything but clients' connections
GRPC, HTTP = "grpc", "http"


class Ports:
    """Raises StartupError if TLS's files cannot be used. say: tells the operator one line."""

    def __init__(
        self, options: ServeOptions, metrics: Metrics, *, say: Callable[[str], None]
    ) -> None:
        self._options = options
        self._metrics = metrics
        self._say = say
        self._tls = None if options.tls is None else Tls(options.tls)
        self._connections_max = self._open_files() - FILES_KEPT  # of both ports
        self._gates = {name: self._gate(name) for name in (HTTP, GRPC)}

    def http(self, service: InferService, upstream: HttpCalls) -> HttpServer:
        options = self._options
        return HttpServer(
            service,
            upstream,
            host=options.host,
            port=options.http_port,
            request_bytes_max=options.policy.limits.request_bytes_max,
            gate=self._gates[HTTP],
            tls=None if self._tls is None else self._tls.context(HTTP1),
        )

    def grpc(self, service: InferService, upstream: GrpcCalls) -> H2GrpcServer | GrpcServer:
        options = self._options
        limit = options.policy.limits.request_bytes_max
        if options.grpc_frontend is GrpcFrontend.GRPCIO:
            tls = None if self._tls is None else self._tls.grpcio()
            return GrpcServer(
                service,
                upstream,
                host=options.host,
                port=options.grpc_port,
                request_bytes_max=limit,
                connections_max=options.policy.limits.connections_max,
                tls=tls,
            )
        return H2GrpcServer(
            service,
            upstream,
            host=options.host,
            port=options.grpc_port,
            request_bytes_max=limit,
            gate=self._gates[GRPC],
            tls=None if self._tls is None else self._tls.context(H2),
        )

    def connections(self) -> dict[str, int]:
        """How many there are, by port; those of gRPC's own library are not known."""
        return {name: len(gate) for name, gate in self._gates.items()}

    def reload_tls(self) -> None:
        """The certificate may have changed. Connections that run keep theirs."""
        if self._tls is None:
            return
        try:
            self._tls.reload()
        except StartupError as error:
            self._say(f"certificate refused, the old one stays: {error}")
        else:
            self._say("certificate read again")

    def _gate(self, name: str) -> Gate:
        given = self._options.policy.limits
        return Gate(
            Limits(given.connections_max, given.held_bytes_max),
            ended=lambda reason: self._metrics.connection_ended(name, reason),
            has_room=lambda: sum(self.connections().values()) < self._connections_max,
        )

    def _open_files(self) -> int:
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if files == resource.RLIM_INFINITY:
            return sys.maxsize
        wanted = self._options.policy.limits.connections_max
        if files - FILES_KEPT < wanted:
            self._say(
                f"{files} open files allow {files - FILES_KEPT} connections, not "
                f"limits.connections_max {wanted}; raise ulimit -n"
            )
        return files
