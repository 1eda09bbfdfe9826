"""Shared-memory calls over gRPC. Rule: as over HTTP (`http_regions`): Triton answers each, the
sidecar remembers, hides and guards.
"""

import secrets
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as pb

from tritonsched.backend.upstream_grpc import SERVICE
from tritonsched.frontend.service import InferService
from tritonsched.proxy.region_guard import RegionGuard
from tritonsched.proxy.shield import Register
from tritonsched.tensors import GrpcReply

Ask = Callable[[str, bytes], Awaitable[GrpcReply]]
"""Method, message: asks Triton with the client's own metadata."""

STATUS = f"{SERVICE}SystemSharedMemoryStatus"
REGISTER = f"{SERVICE}SystemSharedMemoryRegister"
UNREGISTER = f"{SERVICE}SystemSharedMemoryUnregister"
CUDA_STATUS = f"{SERVICE}CudaSharedMemoryStatus"
CUDA_REGISTER = f"{SERVICE}CudaSharedMemoryRegister"
CUDA_UNREGISTER = f"{SERVICE}CudaSharedMemoryUnregister"
_REQUESTS: Mapping[str, Any] = MappingProxyType(
    {
        STATUS: pb.SystemSharedMemoryStatusRequest,
        REGISTER: pb.SystemSharedMemoryRegisterRequest,
        UNREGISTER: pb.SystemSharedMemoryUnregisterRequest,
        CUDA_STATUS: pb.CudaSharedMemoryStatusRequest,
        CUDA_REGISTER: pb.CudaSharedMemoryRegisterRequest,
        CUDA_UNREGISTER: pb.CudaSharedMemoryUnregisterRequest,
    }
)
CALLS = frozenset(_REQUESTS)
_ALIAS = f"unknown-{secrets.token_hex(8)}"  # a name that nobody has registered


async def region_call(service: InferService, ask: Ask, method: str, message: bytes) -> GrpcReply:
    """The answer to a call of CALLS. Raises GuardedName, Shielded."""
    try:
        request = _REQUESTS[method].FromString(message)
    except DecodeError:
        return await ask(method, message)  # Triton's to refuse
    guard = service.shield.guard
    if method in (STATUS, CUDA_STATUS):
        if guard.is_hidden(request.name):
            return await _unknown(ask, method, request.name)
        return await (_status(guard, ask, message) if method == STATUS else ask(method, message))
    if method == REGISTER:
        return await _register(service, ask, request, message)
    guard.require_free(request.name)  # one table of names for both kinds of memory
    if method == UNREGISTER:
        return await _unregister(service, ask, request.name, message)
    return await ask(method, message)


async def _unknown(ask: Ask, method: str, name: str) -> GrpcReply:
    """What Triton says of a region that nobody has registered."""
    reply = await ask(method, _REQUESTS[method](name=_ALIAS).SerializeToString())
    details = reply.details.replace(_ALIAS, name)
    return GrpcReply(reply.code, details, b"", (), reply.trailing_metadata)


async def _status(guard: RegionGuard, ask: Ask, message: bytes) -> GrpcReply:
    reply = await ask(STATUS, message)
    answer = pb.SystemSharedMemoryStatusResponse.FromString(bytes(reply.message))
    hidden = [key for key in answer.regions if guard.is_hidden(key)]
    if not hidden:
        return reply
    for key in hidden:
        del answer.regions[key]
    shown = answer.SerializeToString()
    return GrpcReply("OK", "", shown, reply.initial_metadata, reply.trailing_metadata)


async def _register(service: InferService, ask: Ask, request: Any, message: bytes) -> GrpcReply:
    service.shield.guard.require_free(request.name, request.key)
    service.shield.require(Register(request.name, (request.offset,)))
    reply = await ask(REGISTER, message)
    if reply.code == "OK":
        service.regions.registered(request.name, request.key, request.offset, request.byte_size)
    return reply


async def _unregister(service: InferService, ask: Ask, name: str, message: bytes) -> GrpcReply:
    if not name:
        return await _unregister_all(service, ask, message)
    reply = await ask(UNREGISTER, message)
    if reply.code == "OK":
        service.regions.unregistered(name)
    return reply


async def _unregister_all(service: InferService, ask: Ask, message: bytes) -> GrpcReply:
    status = await ask(STATUS, b"")
    names = sorted(pb.SystemSharedMemoryStatusResponse.FromString(bytes(status.message)).regions)
    guard = service.shield.guard
    if not any(map(guard.is_hidden, names)):
        reply = await ask(UNREGISTER, message)
        if reply.code == "OK":
            service.regions.forget()
        return reply
    answer = GrpcReply("OK", "", b"")
    for name in names:
        if guard.is_hidden(name):
            continue
        one = pb.SystemSharedMemoryUnregisterRequest(name=name).SerializeToString()
        reply = await ask(UNREGISTER, one)
        if reply.code == "OK":
            service.regions.unregistered(name)
        else:
            answer = reply
    return answer
