"""Every Triton that is served from: connections, backend, health. Rule: one is used as it is, with
nothing between; several are joined (`backend/fleet`), each with its own connections, shared memory
and watch.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from tritonsched.backend.base import GrpcCalls
from tritonsched.backend.fleet import Fleet, Members
from tritonsched.backend.fleet_grpc import FleetGrpc
from tritonsched.backend.fleet_http import FleetHttp
from tritonsched.backend.shared_memory import default_bytes
from tritonsched.backend.triton import TritonBackend
from tritonsched.backend.upstream_h2 import H2Upstream
from tritonsched.backend.upstream_http import HttpCalls, HttpUpstream
from tritonsched.config.schema import PolicyFile
from tritonsched.core.variant import ServerState
from tritonsched.options import Address
from tritonsched.proxy.health import Health, RepositoryWatch

Connect = Callable[[str], Awaitable[None]]
"""Prepares the server of that name, which has just come up. May raise TritonschedError."""
Tell = Callable[[ServerState, str], None]


class Upstreams:
    """servers: by name, in the file's order; a single one may be called anything.

    http, grpc: what clients ask Triton itself. backend: executes. rtts_ns: round trips, by server.
    """

    http: HttpCalls
    grpc: GrpcCalls
    backend: TritonBackend | Fleet

    def __init__(
        self, servers: Mapping[str, Address], policy: PolicyFile, say: Callable[[str], None]
    ) -> None:
        self.addresses = dict(servers) if len(servers) > 1 else {"": next(iter(servers.values()))}
        self.members = Members(tuple(self.addresses))
        self.backends: dict[str, TritonBackend] = {}
        https: dict[str, HttpUpstream] = {}
        grpcs: dict[str, H2Upstream] = {}
        for name, address in self.addresses.items():
            https[name], grpcs[name] = HttpUpstream(address.http), H2Upstream(address.grpc)
        self._https, self._grpcs = https, grpcs
        self._policy, self._say = policy, say
        self._healths: dict[str, Health] = {}
        self.rtts_ns: dict[str, int] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """One empty name where there is one server."""
        return self.members.names

    @property
    def is_fleet(self) -> bool:
        return len(self.names) > 1

    async def start(self, stack: contextlib.AsyncExitStack) -> None:
        """Make and open everything; what is to be closed is left to the stack. Raises
        StartupError.
        """
        for http, grpc in zip(self._https.values(), self._grpcs.values(), strict=True):
            await http.start()
            stack.push_async_callback(http.close)
            await grpc.start()
            stack.push_async_callback(grpc.close)
        transport = self._policy.transport
        for name, address in self.addresses.items():
            self.backends[name] = TritonBackend(
                self._https[name],
                self._grpcs[name],
                transport=address.transport or transport.mode,  # type: ignore[arg-type]  # schema
                pool_bytes=self._pool_bytes(),
                cuda_pool_bytes=transport.cuda_pool_bytes,
            )
            stack.push_async_callback(self.backends[name].close)
        self._join()

    def _pool_bytes(self) -> int | None:
        """Each server has a pool of its own; together they take no more than one would."""
        given = self._policy.transport.pool_bytes
        if given is not None or not self.is_fleet:
            return given
        return default_bytes() // len(self.names)

    def _join(self) -> None:
        if not self.is_fleet:
            self.http, self.grpc = self._https[""], self._grpcs[""]
            self.backend = self.backends[""]
            return
        fleet = Fleet(self.backends, self.members, say=self._say)
        self.http = FleetHttp(self._https, self.members, fleet.registrations)
        self.grpc = FleetGrpc(self._grpcs, self.members, fleet.registrations)
        self.backend = fleet

    async def connect(self, server: str) -> TritonBackend:
        """Prepare a Triton that has just come up. Raises as `TritonBackend.connect`."""
        if isinstance(self.backend, Fleet):
            await self.backend.connect(server)
        else:
            await self.backend.connect()
        return self.backends[server]

    # -- health ---------------------------------------------------------------------------------

    def watch(self, *, connect: Connect, tell: Tell, changed: Callable[[], None]) -> None:
        """How each server is will be watched by `run`. changed: hears of another repository."""

        def told(server: str, state: ServerState) -> None:
            if state is ServerState.AWAY:
                self.members.put(server, up=False)
            tell(state, server)

        for name, backend in self.backends.items():
            watch = RepositoryWatch(backend.repository_index, changed=changed)
            self._healths[name] = Health(
                ready=backend.ready,
                connect=partial(connect, name),
                tell=partial(told, name),
                look=watch.look,
                say=self._say,
            )

    async def run(self) -> None:
        """Watch until `stop`."""
        await asyncio.gather(*(health.run() for health in self._healths.values()))

    @property
    def is_up(self) -> bool:
        """Some server answers and is connected."""
        return any(health.is_up for health in self._healths.values())

    def is_server_up(self, server: str) -> bool:
        """That one does."""
        return self._healths[server].is_up

    def lost(self, server: str | None = None) -> None:
        """A call broke: the server (None: each) is away until it answers again."""
        for name in self.names if server is None else (server,):
            self._healths[name].lost()

    async def wait_up(self) -> None:
        """Until some server is up."""
        waiting = [asyncio.ensure_future(health.wait_up()) for health in self._healths.values()]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()

    def stop(self) -> None:
        for health in self._healths.values():
            health.stop()

    # -- in words -------------------------------------------------------------------------------

    def notices(self) -> tuple[str, ...]:
        """Of several servers, those that do not answer."""
        away = [name for name in self.names if self.is_fleet and not self.is_server_up(name)]
        return tuple(f"server '{name}' does not answer; others serve" for name in away)

    def states(self) -> list[dict[str, str]]:
        """For an operator: one entry a server."""
        return [
            {
                "server": name,
                "state": "up" if self.is_server_up(name) else "away",
                "http": address.http,
                "grpc": address.grpc,
                "version": self.backends[name].version,
                "transport": self.backends[name].transport_info,
            }
            for name, address in self.addresses.items()
        ]

    def metrics_addresses(self) -> dict[str, str]:
        """Whose own metrics join ours, by server."""
        named = {name: address.metrics for name, address in self.addresses.items()}
        return {name: metrics for name, metrics in named.items() if metrics is not None}
