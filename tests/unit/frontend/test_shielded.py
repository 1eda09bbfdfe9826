"""Control calls that the shield or the guard refuses, on both protocols: Triton hears none."""

import json
from typing import Any

import pytest
from tritonclient.grpc import service_pb2 as pb

from tests.unit.frontend.services import Service
from tritonsched.backend.upstream_grpc import SERVICE
from tritonsched.errors import GuardedName, Shielded, TritonschedError
from tritonsched.frontend.forward import forward_http
from tritonsched.frontend.grpc_methods import GrpcMethods
from tritonsched.tensors import Buffer, GrpcReply, HttpReply

POOL = "tritonsched-12-0123abcd"
LONG = "file:1/" + "x" * 256
REGION = "/v2/systemsharedmemory/region"
CUDA = "/v2/cudasharedmemory/region"
LOAD = "/v2/repository/models/m/load"


class Triton:
    """Hears what goes on; status: what it knows of system regions."""

    def __init__(self, *status: str) -> None:
        self.heard: list[tuple[str, bytes]] = []
        self._status = status

    async def request(self, method: str, path: str, _headers: Any, body: Buffer) -> HttpReply:
        self.heard.append((f"{method} {path}", bytes(body)))
        listed = [{"name": name} for name in self._status]
        return HttpReply(200, "OK", (), json.dumps(listed).encode())

    async def unary(self, method: str, message: Buffer, _metadata: Any = ()) -> GrpcReply:
        name = method.removeprefix(SERVICE)
        self.heard.append((name, bytes(message)))
        answer = pb.SystemSharedMemoryStatusResponse()
        for region in self._status:
            answer.regions[region].name = region
        code = "NOT_FOUND" if b"unknown-" in bytes(message) else "OK"
        details = f"no '{getattr(_request(name, message), 'name', '')}'" if code != "OK" else ""
        return GrpcReply(code, details, answer.SerializeToString())


def _request(name: str, message: Buffer) -> Any:
    return getattr(pb, f"{name}Request").FromString(bytes(message))


async def over_http(
    service: Service, triton: Triton, path: str, body: bytes = b"", method: str = "POST"
) -> HttpReply:
    upstream: Any = triton
    return await forward_http(
        service, upstream, method=method, raw_path=path, headers=(), body=body
    )


async def over_grpc(service: Service, triton: Triton, name: str, message: Any) -> GrpcReply:
    upstream: Any = triton
    raw = message if isinstance(message, bytes) else message.SerializeToString()
    return await GrpcMethods(service, upstream).unary(
        f"{SERVICE}{name}", raw, (), remaining_ns=None
    )


def load(*names: str) -> Any:
    request = pb.RepositoryModelLoadRequest(model_name="m")
    for name in names:
        request.parameters[name].bytes_param = b"x"
    return request


def body_of(*names: str) -> bytes:
    return json.dumps({"parameters": dict.fromkeys(names, "AA==")}).encode()


def system(key: str, offset: int = 0) -> Any:
    return pb.SystemSharedMemoryRegisterRequest(name="a", key=key, offset=offset, byte_size=8)


HTTP: list[tuple[type[TritonschedError], str, bytes]] = [
    (Shielded, LOAD, body_of("file:1/model.py", LONG)),
    (Shielded, "/v2/repository/r/models/m/load?x", body_of(LONG)),
    (Shielded, "/v2/repository/index", b'{"ready":' + b"[" * 20_000),
    (Shielded, f"{REGION}/a/register", b'{"key":"/a","offset":4096,"byte_size":8}'),
    (GuardedName, f"{REGION}/a/register", b'{"key":"/%b","byte_size":8}' % POOL.encode()),
    (GuardedName, f"{REGION}/{POOL}/register", b'{"key":"/a","byte_size":8}'),
    (GuardedName, f"{REGION}/{POOL}/unregister", b""),
    (GuardedName, f"{CUDA}/{POOL}/register", b"{}"),
    (GuardedName, f"{CUDA}/{POOL}/unregister", b""),
]
GRPC: list[tuple[str, str, Any]] = [
    ("shielded", "RepositoryModelLoad", load("file:1/model.py", LONG)),
    ("shielded", "SystemSharedMemoryRegister", system("/a", 4096)),
    ("guarded-name", "SystemSharedMemoryRegister", system(f"//{POOL}")),
    *(
        ("guarded-name", name, getattr(pb, f"{name}Request")(name=POOL))
        for name in (
            "SystemSharedMemoryUnregister",
            "CudaSharedMemoryRegister",
            "CudaSharedMemoryUnregister",
        )
    ),
]


@pytest.mark.parametrize(("error", "path", "body"), HTTP)
async def test_over_http_it_is_refused_and_with_all_switched_off_it_goes_on(
    error: type[TritonschedError], path: str, body: bytes
) -> None:
    service, triton = Service(), Triton()
    with pytest.raises(error):
        await over_http(service, triton, path, body)
    assert triton.heard == []
    service.shield.adopt(enabled=False, allow=[], guard_regions=False)
    await over_http(service, triton, path, body)
    assert triton.heard == [(f"POST {path}", body)]


@pytest.mark.parametrize(("reason", "name", "message"), GRPC)
async def test_over_grpc_it_is_refused_and_with_all_switched_off_it_goes_on(
    reason: str, name: str, message: Any
) -> None:
    service, triton = Service(), Triton()
    reply = await over_grpc(service, triton, name, message)
    assert reply.code == ("INTERNAL" if "Load" in name else "INVALID_ARGUMENT")
    assert ("x-tritonsched-reason", reason) in reply.trailing_metadata
    assert triton.heard == []
    service.shield.adopt(enabled=False, allow=[], guard_regions=False)
    assert (await over_grpc(service, triton, name, message)).code == "OK"
    assert triton.heard == [(name, message.SerializeToString())]


async def test_harmless_calls_go_on() -> None:
    service, triton = Service(), Triton()
    await over_http(service, triton, LOAD, body_of("file:1/model.py"))
    await over_http(service, triton, f"{REGION}/a/register", b'{"key":"/a","offset":0}')
    await over_http(service, triton, f"{CUDA}/a/register", b'{"offset":5}')
    await over_grpc(service, triton, "RepositoryModelLoad", load("file:1/model.py"))
    await over_grpc(service, triton, "RepositoryModelUnload", load(LONG))
    await over_grpc(service, triton, "CudaSharedMemoryRegister", b"\xff")
    cuda = pb.CudaSharedMemoryRegisterRequest(name="mine")
    await over_grpc(service, triton, "CudaSharedMemoryRegister", cuda)
    assert len(triton.heard) == 7


@pytest.mark.parametrize("kind", ["System", "Cuda"])
async def test_status_of_a_pool_is_that_of_an_unknown_region(kind: str) -> None:
    service, triton = Service(), Triton(POOL, "mine")
    request = getattr(pb, f"{kind}SharedMemoryStatusRequest")
    reply = await over_grpc(service, triton, f"{kind}SharedMemoryStatus", request(name=POOL))
    assert (reply.code, reply.details) == ("NOT_FOUND", f"no '{POOL}'")
    path = f"/v2/{kind.lower()}sharedmemory"
    await over_http(service, triton, f"{path}/region/{POOL}/status", method="GET")
    assert all(POOL not in heard for heard, _ in triton.heard)
    await over_grpc(service, triton, f"{kind}SharedMemoryStatus", request(name="mine"))
    assert triton.heard[-1][1] == request(name="mine").SerializeToString()


async def test_lists_hide_a_pool_and_closing_all_keeps_it_unless_unguarded() -> None:
    service, triton = Service(), Triton(POOL, "mine")
    name = "SystemSharedMemoryStatus"

    async def listed() -> tuple[list[str], list[str]]:
        reply = await over_grpc(service, triton, name, b"")
        seen = await over_http(service, triton, "/v2/systemsharedmemory/status", method="GET")
        regions = pb.SystemSharedMemoryStatusResponse.FromString(bytes(reply.message)).regions
        return sorted(regions), [entry["name"] for entry in json.loads(bytes(seen.body))]

    async def closed() -> list[tuple[str, bytes]]:
        triton.heard.clear()
        await over_grpc(service, triton, "SystemSharedMemoryUnregister", b"")
        await over_http(service, triton, "/v2/systemsharedmemory/unregister")
        return [(heard, body) for heard, body in triton.heard if "nregister" in heard]

    assert await listed() == (["mine"], ["mine"])
    heard = await closed()
    assert all(POOL not in path and POOL.encode() not in body for path, body in heard)
    assert (f"POST {REGION}/mine/unregister", b"") in heard
    service.shield.adopt(enabled=True, allow=[], guard_regions=False)
    assert await listed() == (["mine", POOL], [POOL, "mine"])
    assert await closed() == [
        ("SystemSharedMemoryUnregister", b""),
        ("POST /v2/systemsharedmemory/unregister", b""),
    ]
