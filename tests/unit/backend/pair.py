"""Two servers for tests of a fleet: played HTTP, and gRPC as Triton's stand-in has it."""

from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from tests.unit.backend.fake_triton import FakeGrpc
from tritonsched.backend.fleet import Fleet, Members
from tritonsched.backend.fleet_grpc import FleetGrpc
from tritonsched.backend.fleet_http import FleetHttp
from tritonsched.backend.triton import TritonBackend
from tritonsched.backend.upstream_http import HttpUpstream
from tritonsched.errors import TritonUnavailable
from tritonsched.tensors import Buffer, HttpReply

LEFT, RIGHT = "left", "right"


class PlayedHttp(HttpUpstream):
    """Answers by method and path; what is not listed is 404."""

    def __init__(self) -> None:
        super().__init__("127.0.0.1:1")
        self.answers: dict[tuple[str, str], Any] = {}
        self.asked: list[tuple[str, str]] = []
        self.is_up = True

    async def request(
        self, method: str, raw_path: str, headers: Iterable[tuple[str, str | bytes]], body: Buffer
    ) -> HttpReply:
        self.asked.append((method, raw_path))
        if not self.is_up:
            raise TritonUnavailable("nobody there")
        if raw_path == "/v2/models/echo/infer":
            return HttpReply(200, "OK", (), body)
        if (method, raw_path) not in self.answers:
            return HttpReply(
                404, "", (("Content-Length", "9"),), orjson.dumps({"error": f"no {raw_path}"})
            )
        told = orjson.dumps(self.answers[method, raw_path])
        return HttpReply(200, "OK", (("Content-Length", str(len(told))),), told)


@dataclass
class Pair:
    """Two servers, both up."""

    grpc: dict[str, FakeGrpc]
    http: dict[str, PlayedHttp]
    members: Members
    fleet: Fleet
    all_grpc: FleetGrpc
    all_http: FleetHttp
    said: list[str]


@asynccontextmanager
async def paired(tmp_path: Path) -> AsyncIterator[Pair]:
    async with AsyncExitStack() as stack:
        members = Members((LEFT, RIGHT))
        grpc = {name: FakeGrpc(tmp_path) for name in members.names}
        http = {name: PlayedHttp() for name in members.names}
        backends = {
            name: TritonBackend(
                http[name], grpc[name], transport="system", pool_bytes=1 << 16,
                shm_directory=tmp_path,
            )
            for name in members.names
        }  # fmt: skip
        said: list[str] = []
        fleet = Fleet(backends, members, say=said.append)
        stack.push_async_callback(fleet.close)
        for name in members.names:
            await fleet.connect(name)
        held = fleet.registrations
        yield Pair(
            grpc, http, members, fleet,
            FleetGrpc(grpc, members, held), FleetHttp(http, members, held), said,
        )  # fmt: skip
