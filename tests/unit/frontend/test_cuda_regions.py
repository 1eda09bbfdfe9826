"""Clients' CUDA regions on both wires: heard of by Triton first, remembered, and guarded."""

import base64
import json
from typing import Any

import pytest
from tritonclient.grpc import service_pb2 as pb

from tests.unit.frontend.services import Service
from tests.unit.frontend.test_shielded import CUDA, POOL, Triton, over_grpc, over_http
from tritonsched.proxy.client_regions import ClientRegions
from tritonsched.tensors import GrpcReply, HttpReply

HANDLE = bytes(range(64))
PATH = "/v2/cudasharedmemory"


class Remembering(ClientRegions):
    """Notes what it is told."""

    def __init__(self) -> None:
        super().__init__(is_local=lambda: True)
        self.told: list[Any] = []

    async def registered_cuda(self, name: str, handle: bytes, device: int, byte_size: int) -> None:
        self.told.append((name, handle, device, byte_size))

    def unregistered(self, name: str) -> None:
        self.told.append(name)

    def forget_all(self, *, cuda: bool) -> None:
        self.told.append(cuda)


class Refusing(Triton):
    """It has no GPU."""

    async def request(self, *call: Any) -> HttpReply:
        reply = await super().request(*call)
        return HttpReply(400, "Bad Request", (), reply.body)

    async def unary(self, *call: Any) -> GrpcReply:
        return GrpcReply("INVALID_ARGUMENT", "no", (await super().unary(*call)).message)


@pytest.fixture
def service() -> Service:
    made = Service()
    made.regions = Remembering()
    return made


def told(service: Service) -> list[Any]:
    assert isinstance(service.regions, Remembering)
    return service.regions.told


def body(**change: Any) -> bytes:
    plain = {
        "raw_handle": {"b64": base64.b64encode(HANDLE).decode()},
        "device_id": 1,
        "byte_size": 8,
    }
    return json.dumps(plain | change).encode()


def message() -> Any:
    return pb.CudaSharedMemoryRegisterRequest(
        name="mine", raw_handle=HANDLE, device_id=1, byte_size=8
    )


async def test_what_triton_has_opened_is_remembered(service: Service) -> None:
    triton = Triton()
    await over_grpc(service, triton, "CudaSharedMemoryRegister", message())
    assert told(service) == [("mine", HANDLE, 1, 8)]
    told(service).clear()
    await over_http(service, triton, f"{CUDA}/mine/register", body())
    assert told(service) == ["mine", ("mine", HANDLE, 1, 8)]
    assert triton.heard[0][1] == message().SerializeToString()
    assert triton.heard[1] == (f"POST {CUDA}/mine/register", body())


async def test_what_triton_refuses_is_not(service: Service) -> None:
    triton = Refusing()
    await over_grpc(service, triton, "CudaSharedMemoryRegister", message())
    await over_http(service, triton, f"{CUDA}/mine/register", body())
    await over_grpc(
        service,
        triton,
        "CudaSharedMemoryUnregister",
        pb.CudaSharedMemoryUnregisterRequest(name="mine"),
    )
    await over_http(service, triton, f"{CUDA}/mine/unregister")
    assert told(service) == []


@pytest.mark.parametrize(
    "odd",
    [
        {"raw_handle": "AAAA"},
        {"raw_handle": {"b64": "not base 64"}},
        {"raw_handle": {"b64": 5}},
        {"raw_handle": {"b64": "AAAA", "b65": "AAAA"}},
        {"raw_handle": {}},
        {"device_id": "0"},
        {"byte_size": None},
    ],
)
async def test_what_cannot_be_read_plainly_is_not_remembered(
    service: Service, odd: dict[str, Any]
) -> None:
    """Triton may read it; its requests go alone then."""
    await over_http(service, Triton(), f"{CUDA}/mine/register", body(**odd))
    assert told(service) == ["mine"]


async def test_closing_forgets(service: Service) -> None:
    triton = Triton()
    request = pb.CudaSharedMemoryUnregisterRequest(name="mine")
    await over_grpc(service, triton, "CudaSharedMemoryUnregister", request)
    await over_http(service, triton, f"{CUDA}/mine/unregister")
    await over_grpc(service, triton, "CudaSharedMemoryUnregister", b"")
    await over_http(service, triton, f"{PATH}/unregister")
    assert told(service) == ["mine", "mine", True, True]


async def test_a_pool_is_hidden_and_survives_closing_all(service: Service) -> None:
    triton = Triton(POOL, "mine")
    reply = await over_grpc(service, triton, "CudaSharedMemoryStatus", b"")
    assert list(pb.CudaSharedMemoryStatusResponse.FromString(bytes(reply.message)).regions) == [
        "mine"
    ]
    seen = await over_http(service, triton, f"{PATH}/status", method="GET")
    assert [entry["name"] for entry in json.loads(bytes(seen.body))] == ["mine"]
    triton.heard.clear()
    await over_grpc(service, triton, "CudaSharedMemoryUnregister", b"")
    await over_http(service, triton, f"{PATH}/unregister")
    heard = [entry for entry in triton.heard if "nregister" in entry[0]]
    one = pb.CudaSharedMemoryUnregisterRequest(name="mine").SerializeToString()
    assert ("CudaSharedMemoryUnregister", one) in heard
    assert (f"POST {CUDA}/mine/unregister", b"") in heard
    assert all(POOL not in path and POOL.encode() not in sent for path, sent in heard)
    assert told(service) == ["mine", "mine"]
