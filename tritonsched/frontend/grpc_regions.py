"""Shared-memory calls over gRPC. Rule: as over HTTP (`http_regions`): Triton answers each, the
sidecar remembers, hides and guards.
"""

import secrets
from collections.abc import Awaitable, Callable

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as pb

from tritonsched.backend.upstream_grpc import SERVICE
from tritonsched.frontend.service import InferService
from tritonsched.proxy.region_guard import is_hidden, require_free
from tritonsched.tensors import GrpcReply

Ask = Callable[[str, bytes], Awaitable[GrpcReply]]
"""Method, message: asks Triton with the client's own metadata."""

STATUS = f"{SERVICE}SystemSharedMemoryStatus"
REGISTER = f"{SERVICE}SystemSharedMemoryRegister"
UNREGISTER = f"{SERVICE}SystemSharedMemoryUnregister"
CALLS = frozenset({STATUS, REGISTER, UNREGISTER})
_ALIAS = f"unknown-{secrets.token_hex(8)}"  # a name that nobody has registered


async def region_call(service: InferService, ask: Ask, method: str, message: bytes) -> GrpcReply:
    """The answer to a call of CALLS. Raises GuardedName."""
    try:
        if method == STATUS:
            return await _status(ask, message)
        if method == REGISTER:
            return await _register(service, ask, message)
        return await _unregister(service, ask, message)
    except DecodeError:
        return await ask(method, message)  # Triton's to refuse


async def _status(ask: Ask, message: bytes) -> GrpcReply:
    name = pb.SystemSharedMemoryStatusRequest.FromString(message).name
    if is_hidden(name):
        alias = pb.SystemSharedMemoryStatusRequest(name=_ALIAS).SerializeToString()
        reply = await ask(STATUS, alias)
        details = reply.details.replace(_ALIAS, name)
        return GrpcReply(reply.code, details, b"", (), reply.trailing_metadata)
    reply = await ask(STATUS, message)
    answer = pb.SystemSharedMemoryStatusResponse.FromString(bytes(reply.message))
    hidden = [key for key in answer.regions if is_hidden(key)]
    if not hidden:
        return reply
    for key in hidden:
        del answer.regions[key]
    shown = answer.SerializeToString()
    return GrpcReply("OK", "", shown, reply.initial_metadata, reply.trailing_metadata)


async def _register(service: InferService, ask: Ask, message: bytes) -> GrpcReply:
    request = pb.SystemSharedMemoryRegisterRequest.FromString(message)
    require_free(request.name, request.key)
    reply = await ask(REGISTER, message)
    if reply.code == "OK":
        service.regions.registered(request.name, request.key, request.offset, request.byte_size)
    return reply


async def _unregister(service: InferService, ask: Ask, message: bytes) -> GrpcReply:
    name = pb.SystemSharedMemoryUnregisterRequest.FromString(message).name
    require_free(name)
    if not name:
        return await _unregister_all(service, ask, message)
    reply = await ask(UNREGISTER, message)
    if reply.code == "OK":
        service.regions.unregistered(name)
    return reply


async def _unregister_all(service: InferService, ask: Ask, message: bytes) -> GrpcReply:
    status = await ask(STATUS, b"")
    names = sorted(pb.SystemSharedMemoryStatusResponse.FromString(bytes(status.message)).regions)
    if not any(map(is_hidden, names)):
        reply = await ask(UNREGISTER, message)
        if reply.code == "OK":
            service.regions.forget()
        return reply
    answer = GrpcReply("OK", "", b"")
    for name in names:
        if is_hidden(name):
            continue
        one = pb.SystemSharedMemoryUnregisterRequest(name=name).SerializeToString()
        reply = await ask(UNREGISTER, one)
        if reply.code == "OK":
            service.regions.unregistered(name)
        else:
            answer = reply
    return answer
