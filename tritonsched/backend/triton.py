"""Triton itself: merged batches through shared memory, lone calls as they came.

Rule: an answer is checked (outputs, rows, bytes) before anybody sees it, and a piece of shared
memory is given back only when Triton is known to be done with it. When a connection breaks with a
batch out, that is not known: the pieces are left out of use until Triton is connected anew, when
the old process is gone or has answered everything (QUARANTINE).
"""

import contextlib
from collections.abc import Iterable
from typing import Any, Literal

from tritonclient.grpc import service_pb2 as pb

from tritonsched.backend.catalogue import ModelInfo, model_info
from tritonsched.backend.shared_memory import Lease, SharedMemoryPool
from tritonsched.backend.upstream_grpc import SERVICE, GrpcUpstream
from tritonsched.backend.upstream_http import HttpUpstream
from tritonsched.errors import BackendError, MalformedAnswer, TritonUnavailable
from tritonsched.tensors import (
    BatchCall,
    BatchInput,
    BatchReply,
    InferCall,
    RawReply,
    Tensor,
    Wire,
    byte_size,
)

Transport = Literal["auto", "system", "inline"]
ALIGN = 64
_LOOPBACK = ("127.", "localhost", "[::1]")
_REGION_GONE = "shared memory region"  # "Unable to find shared memory region: 'x'"


class TritonBackend:
    """One Triton server behind its two ports; a `Backend`.

    transport: system needs shared memory and fails without; inline never uses it; auto takes it if
    Triton is on this host. pool_bytes: size of the region, None for the default.
    """

    def __init__(
        self,
        http: HttpUpstream,
        grpc: GrpcUpstream,
        *,
        transport: Transport = "auto",
        pool_bytes: int | None = None,
    ) -> None:
        self._http = http
        self._grpc = grpc
        self._transport = transport
        self._pool: SharedMemoryPool | None = None
        self._is_registered = False
        self._quarantine: list[Lease] = []
        self.batches_shm = 0
        self.batches_inline = 0
        self.fallbacks = 0
        self.malformed = 0
        self.transport_info = "inline (not connected yet)"
        local = http.address.startswith(_LOOPBACK) and grpc.address.startswith(_LOOPBACK)
        if transport == "system" or (transport == "auto" and local):
            self._pool = SharedMemoryPool(pool_bytes)

    # -- connection ---------------------------------------------------------------------------

    async def connect(self) -> None:
        """Prepare a Triton that has just come up. Raises TritonUnavailable, or BackendError if
        shared memory was demanded and cannot be had.
        """
        self._is_registered = False
        if self._pool is None:
            self.transport_info = "inline (gRPC bytes)"
            return
        try:
            await self._register(self._pool)
        except BackendError as error:
            if self._transport == "system":
                raise
            self.transport_info = f"inline (no shared memory: {error})"
            return
        quarantined, self._quarantine = self._quarantine, []
        for lease in quarantined:
            lease.release()
        self.transport_info = f"system shared memory, {self._pool.byte_size >> 20} MiB"

    async def _register(self, pool: SharedMemoryPool) -> None:
        await self._forget_stale(pool)
        request = pb.SystemSharedMemoryRegisterRequest(
            name=pool.name, key=pool.key, offset=0, byte_size=pool.byte_size
        )
        await self._control("SystemSharedMemoryRegister", request)
        if pool.name not in await self.regions():
            raise BackendError("Triton does not show the region it has registered")
        self._is_registered = True

    async def _forget_stale(self, pool: SharedMemoryPool) -> None:
        """Unregister our own name, and names of sidecars whose region is gone."""
        for name in await self.regions():
            stale = name.startswith("tritonsched-") and not (pool.path.parent / name).exists()
            if stale or name == pool.name:
                request = pb.SystemSharedMemoryUnregisterRequest(name=name)
                with contextlib.suppress(BackendError):
                    await self._control("SystemSharedMemoryUnregister", request)

    async def regions(self) -> list[str]:
        """Names of the system shared-memory regions that Triton knows."""
        reply = await self._control(
            "SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest()
        )
        return sorted(pb.SystemSharedMemoryStatusResponse.FromString(reply).regions)

    async def _control(self, method: str, request: Any) -> bytes:
        """A call of our own. Raises BackendError with Triton's text, or TritonUnavailable."""
        reply = await self._grpc.unary(SERVICE + method, request.SerializeToString())
        if reply.code != "OK":
            raise BackendError(reply.details, grpc_code_name=reply.code)
        return bytes(reply.message)

    async def ready(self) -> bool:
        """Triton is up and says it can serve. Never raises."""
        try:
            reply = await self._control("ServerReady", pb.ServerReadyRequest())
        except (BackendError, TritonUnavailable):
            return False
        return bool(pb.ServerReadyResponse.FromString(reply).ready)

    async def rtt_ns(self, clock: Any, samples: int = 20) -> int:
        """Median round trip of an empty call, in ns. clock: monotonic nanoseconds."""
        times = []
        for _ in range(samples):
            start_ns = clock()
            await self._control("ServerLive", pb.ServerLiveRequest())
            times.append(clock() - start_ns)
        return int(sorted(times)[samples // 2])

    async def close(self) -> None:
        """Unregister and remove the region. Triton may be gone already."""
        if self._pool is not None:
            if self._is_registered:
                request = pb.SystemSharedMemoryUnregisterRequest(name=self._pool.name)
                with contextlib.suppress(BackendError, TritonUnavailable):
                    await self._control("SystemSharedMemoryUnregister", request)
            self._pool.close()
            self._pool = None

    # -- models and lone calls ------------------------------------------------------------------

    async def model_info(self, model: str, version: str) -> ModelInfo | None:
        """What Triton says of the model; None if it does not serve it. Raises TritonUnavailable."""
        request = pb.ModelConfigRequest(name=model, version=version)
        try:
            reply = await self._control("ModelConfig", request)
        except BackendError:
            return None
        return model_info(pb.ModelConfigResponse.FromString(reply).config, version)

    async def forward(self, call: InferCall) -> RawReply:
        """One call's original bytes over its own protocol. Raises TritonUnavailable."""
        if call.wire is Wire.HTTP:
            return await self._http.request("POST", call.path, call.headers, call.raw)
        return await self._grpc.unary(SERVICE + "ModelInfer", call.raw, call.headers)

    # -- merged batches -------------------------------------------------------------------------

    async def infer(self, call: BatchCall) -> BatchReply:
        """Execute a merged batch. Raises BackendError, MalformedAnswer, TritonUnavailable."""
        try:
            return await self._infer(call)
        except MalformedAnswer:
            self.malformed += 1
            raise
        except BackendError as error:
            if not (self._is_registered and _REGION_GONE in str(error).lower()):
                raise
        assert self._pool is not None
        await self._register(self._pool)  # a client has unregistered all regions, ours among them
        return await self._infer(call)

    async def _infer(self, call: BatchCall) -> BatchReply:
        leases: list[Lease] = []
        request = pb.ModelInferRequest(model_name=call.model, model_version=call.version)
        for key, value in call.parameters.items():
            _set_parameter(request.parameters[key], value)
        try:
            outputs = self._add_tensors(request, call, leases)
            response = pb.ModelInferResponse.FromString(await self._control("ModelInfer", request))
            tensors = _read(response, call, outputs)
        except TritonUnavailable:
            self._quarantine += leases
            raise
        except BaseException:
            _release(leases)
            raise
        return BatchReply(
            response.model_name,
            response.model_version,
            tensors,
            release=lambda: _release_after(tensors, leases),
        )

    def _add_tensors(
        self, request: Any, call: BatchCall, leases: list[Lease]
    ) -> dict[str, memoryview]:
        """Fill in inputs and outputs; returns where outputs in shared memory will be, by name."""
        pool = self._pool if self._is_registered else None
        inputs = pool.lease(sum(map(_input_bytes, call.inputs))) if pool else None
        if pool is None or inputs is None:
            self.fallbacks += pool is not None
            self.batches_inline += 1
            for tensor in call.inputs:
                _add_input(request, tensor)
                request.raw_input_contents.append(b"".join(tensor.parts))
            for output in call.outputs:
                request.outputs.add(name=output.name)
            return {}
        leases.append(inputs)
        self.batches_shm += 1
        offset = 0
        for tensor in call.inputs:
            size = _copy(tensor, inputs.view[offset:])
            _point(_add_input(request, tensor), pool.name, inputs.offset + offset, size)
            offset += _input_bytes(tensor)
        return self._add_outputs(request, call, pool, leases)

    def _add_outputs(
        self, request: Any, call: BatchCall, pool: SharedMemoryPool, leases: list[Lease]
    ) -> dict[str, memoryview]:
        views: dict[str, memoryview] = {}
        for output in call.outputs:
            asked = request.outputs.add(name=output.name)
            size = (output.row_bytes or 0) * call.rows
            lease = pool.lease(size) if size else None
            if lease is not None:
                leases.append(lease)
                _point(asked, pool.name, lease.offset, size)
                views[output.name] = lease.view
        return views


def _set_parameter(parameter: Any, value: bool | float | str) -> None:
    match value:
        case bool():
            parameter.bool_param = value
        case int():
            parameter.int64_param = value
        case float():
            parameter.double_param = value
        case str():
            parameter.string_param = value


def _add_input(request: Any, tensor: BatchInput) -> Any:
    return request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)


def _point(tensor: Any, region: str, offset: int, size: int) -> None:
    """Say where in shared memory the tensor is."""
    tensor.parameters["shared_memory_region"].string_param = region
    tensor.parameters["shared_memory_byte_size"].int64_param = size
    tensor.parameters["shared_memory_offset"].int64_param = offset


def _input_bytes(tensor: BatchInput) -> int:
    """Bytes of an input with the room that keeps the next one aligned."""
    return -(-sum(map(len, tensor.parts)) // ALIGN) * ALIGN


def _copy(tensor: BatchInput, target: memoryview) -> int:
    position = 0
    for part in tensor.parts:
        target[position : position + len(part)] = part
        position += len(part)
    return position


def _read(response: Any, call: BatchCall, views: dict[str, memoryview]) -> tuple[Tensor, ...]:
    """The answer's outputs, checked. Raises MalformedAnswer."""
    asked = {output.name for output in call.outputs}
    answered = [output.name for output in response.outputs]
    if len(answered) != len(asked) or set(answered) != asked:
        raise MalformedAnswer(f"outputs {sorted(answered)} where {sorted(asked)} were asked for")
    raw = list(response.raw_output_contents)
    tensors = []
    for index, output in enumerate(response.outputs):
        shape = tuple(output.shape)
        in_shm = "shared_memory_region" in output.parameters
        data: memoryview | bytes
        if in_shm:
            data = views[output.name]
            told = output.parameters["shared_memory_byte_size"].int64_param
            if told != len(data):
                raise MalformedAnswer(
                    f"output '{output.name}': {told} bytes where {len(data)} were expected"
                )
        elif index < len(raw):
            data = raw[index]
        else:
            raise MalformedAnswer(f"output '{output.name}' has no contents")
        size = byte_size(output.datatype, shape)
        if size is not None and size != len(data):
            raise MalformedAnswer(
                f"output '{output.name}': {len(data)} bytes for shape {list(shape)}"
            )
        if not shape or shape[0] != call.rows:
            raise MalformedAnswer(
                f"output '{output.name}': shape {list(shape)} for {call.rows} rows"
            )
        tensors.append(Tensor(output.name, output.datatype, shape, data))
    return tuple(tensors)


def _release(leases: Iterable[Lease]) -> None:
    for lease in leases:
        lease.release()


def _release_after(tensors: tuple[Tensor, ...], leases: list[Lease]) -> None:
    """Give the pieces back; the tensors' views die with them."""
    del tensors
    _release(leases)
