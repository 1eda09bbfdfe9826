"""Clients' ports as `serve` makes them: limits, what is counted, certificates read again."""

import resource
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.unit.frontend.services import Service
from tests.unit.frontend.wires import HOST
from tests.unit.test_sidecar import options
from tritonsched.backend.upstream_grpc import GrpcUpstream
from tritonsched.backend.upstream_http import HttpUpstream
from tritonsched.config.load import parse_policy
from tritonsched.errors import StartupError
from tritonsched.frontend.grpc_h2_server import H2GrpcServer
from tritonsched.frontend.grpc_server import GrpcServer
from tritonsched.metrics import Metrics
from tritonsched.options import GrpcFrontend, TlsFiles
from tritonsched.ports import FILES_KEPT, GRPC, HTTP, Ports
from tritonsched.serve import raise_open_files

NOWHERE = f"{HOST}:1"


def ports(said: list[str] | None = None, **fields: Any) -> Ports:
    say = (said if said is not None else []).append
    return Ports(options(**fields), Metrics(), say=say)


def limit_files(monkeypatch: pytest.MonkeyPatch, soft: int, hard: int) -> list[tuple[int, int]]:
    """Open files as if those were the limits; what is set."""
    made: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: made.append(limits))
    return made


class Somebody:
    """A busy connection."""

    is_idle = False
    held_bytes = 0

    def fault(self, now_ns: int) -> str:
        return ""

    def leave_for(self, reason: str) -> None:
        """It stays."""

    def close_when_idle(self) -> None:
        """It stays."""

    def abort(self) -> None:
        """It stays."""


async def test_connections_are_bounded_by_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    limit_files(monkeypatch, 1024, 1024)
    said: list[str] = []
    made = ports(said, policy=parse_policy("limits: {connections_max: 2, held_mib_max: 3}"))
    gate = made._gates[HTTP]
    assert [gate.admit(Somebody()) for _ in range(3)] == [True, True, False]
    assert (gate.limits.held_bytes_max, said) == (3 << 20, [])
    assert made._gates[GRPC].admit(Somebody())


async def test_connections_of_both_ports_are_bounded_by_open_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit_files(monkeypatch, FILES_KEPT + 3, FILES_KEPT + 3)
    said: list[str] = []
    made = ports(said, policy=parse_policy("limits: {connections_max: 100}"))
    assert said == [
        "259 open files allow 3 connections, not limits.connections_max 100; raise ulimit -n"
    ]
    order = (HTTP, GRPC, GRPC, HTTP, GRPC)
    assert [made._gates[name].admit(Somebody()) for name in order] == [True] * 3 + [False] * 2
    limit_files(monkeypatch, resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    assert ports(said)._connections_max > 1 << 40
    assert len(said) == 1


def test_a_process_takes_as_many_open_files_as_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    made = limit_files(monkeypatch, 1024, 4096)
    raise_open_files()
    assert made == [(4096, 4096)]
    made = limit_files(monkeypatch, 4096, 4096)
    raise_open_files()
    assert made == []


async def test_both_ports_count_what_they_end() -> None:
    metrics = Metrics()
    made = Ports(options(), metrics, say=lambda _: None)
    made._gates[HTTP].ended("slow-head")
    made._gates[GRPC].ended("flood")
    made._gates[GRPC].ended("flood")
    metrics.set_connections(made.connections())
    text = metrics.render().decode()
    assert 'tritonsched_connections_ended_total{port="http",reason="slow-head"} 1.0' in text
    assert 'tritonsched_connections_ended_total{port="grpc",reason="flood"} 2.0' in text
    assert 'tritonsched_connections{port="grpc"} 0.0' in text


@pytest.mark.parametrize(
    ("frontend", "kind"), [(GrpcFrontend.NGH2, H2GrpcServer), (GrpcFrontend.GRPCIO, GrpcServer)]
)
async def test_the_servers_are_those_that_were_asked_for(
    frontend: GrpcFrontend, kind: type[object]
) -> None:
    made = ports(grpc_frontend=frontend)
    assert isinstance(made.grpc(Service(), GrpcUpstream(NOWHERE)), kind)
    http = made.http(Service(), HttpUpstream(NOWHERE))
    assert http.gate is made._gates[HTTP]


def test_a_certificate_is_read_again_and_a_bad_one_is_told(tmp_path: Path) -> None:
    files = TlsFiles(tmp_path / "cert.pem", tmp_path / "key.pem")
    with pytest.raises(StartupError, match=r"cert\.pem.*No such file"):
        ports(tls=files)
    identity = trustme.CA().issue_cert(HOST)
    identity.private_key_pem.write_to_path(files.key)
    identity.cert_chain_pems[0].write_to_path(files.certificate)
    said: list[str] = []
    made = ports(said, tls=files, policy=parse_policy("limits: {connections_max: 1}"))
    made.reload_tls()
    files.key.unlink()
    made.reload_tls()
    ports().reload_tls()  # plain: nothing to say
    assert said[0] == "certificate read again"
    assert said[1].startswith("certificate refused, the old one stays: --tls-cert")
    assert len(said) == 2


@pytest.mark.parametrize("frontend", list(GrpcFrontend))
async def test_both_front_ends_take_a_certificate(tmp_path: Path, frontend: GrpcFrontend) -> None:
    files = TlsFiles(tmp_path / "cert.pem", tmp_path / "key.pem")
    identity = trustme.CA().issue_cert(HOST)
    identity.private_key_pem.write_to_path(files.key)
    identity.cert_chain_pems[0].write_to_path(files.certificate)
    made = ports(tls=files, grpc_frontend=frontend)
    server = made.grpc(Service(), GrpcUpstream(NOWHERE))
    await server.start()
    assert server.port
    await server.stop()
