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
_STATUS: Mapping[str, Any] = MappingProxyType(
    {STATUS: pb.SystemSharedMemoryStatusResponse, CUDA_STATUS: pb.CudaSharedMemoryStatusResponse}
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
    if method in _STATUS:
        if guard.is_hidden(request.name):
            return await _unknown(ask, method, request.name)
        return await _status(guard, ask, method, message)
    if method == REGISTER:
        return await _register(service, ask, request, message)
    guard.require_free(request.name)  # one table of names for both kinds of memory
    if method == CUDA_REGISTER:
        return await _register_cuda(service, ask, request, message)
    if not request.name:
        return await _unregister_all(service, ask, method, message)
    reply = await ask(method, message)
    if reply.code == "OK":
        service.regions.unregistered(request.name)
    return reply


async def _unknown(ask: Ask, method: str, name: str) -> GrpcReply:
    """What Triton says of a region that nobody has registered."""
    reply = await ask(method, _REQUESTS[method](name=_ALIAS).SerializeToString())
    details = reply.details.replace(_ALIAS, name)
    return GrpcReply(reply.code, details, b"", (), reply.trailing_metadata)


async def _status(guard: RegionGuard, ask: Ask, method: str, message: bytes) -> GrpcReply:
    reply = await ask(method, message)
    answer = _STATUS[method].FromString(bytes(reply.message))
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


async def _register_cuda(
    service: InferService, ask: Ask, request: Any, message: bytes
) -> GrpcReply:
    reply = await ask(CUDA_REGISTER, message)
    if reply.code == "OK":
        await service.regions.registered_cuda(
            request.name, request.raw_handle, request.device_id, request.byte_size
        )
    return reply


async def _unregister_all(
    service: InferService, ask: Ask, method: str, message: bytes
) -> GrpcReply:
    """One by one, if one of them is not the clients' to close."""
    is_cuda = method == CUDA_UNREGISTER
    about = CUDA_STATUS if is_cuda else STATUS
    status = await ask(about, b"")
    names = sorted(_STATUS[about].FromString(bytes(status.message)).regions)
    guard = service.shield.guard
    if not any(map(guard.is_hidden, names)):
        reply = await ask(method, message)
        if reply.code == "OK":
            service.regions.forget_all(cuda=is_cuda)
        return reply
    answer = GrpcReply("OK", "", b"")
    for name in names:
        if guard.is_hidden(name):
            continue
        reply = await ask(method, _REQUESTS[method](name=name).SerializeToString())
        if reply.code == "OK":
            service.regions.unregistered(name)
        else:
            answer = reply
    return answer
