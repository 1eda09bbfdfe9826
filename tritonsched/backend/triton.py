"""Triton itself: merged batches through shared memory, lone calls as they came.

Rule: an answer is checked (outputs, rows, bytes) before anybody sees it, and a piece of shared
memory is used again only when Triton is known to be done with it: when it has answered. A batch
whose connection broke may still be executed, so its pieces are put aside (quarantine, bounded by
the pool), and `connect` then makes a new region instead of reusing the old one.

A client can make Triton forget all regions with one call. So "Unable to find shared memory region"
means: register again, try once more (observed on Triton 2.51).
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tritonclient.grpc import service_pb2 as pb

from tritonsched.backend import wire
from tritonsched.backend.catalogue import ModelInfo, model_info
from tritonsched.backend.shared_memory import (
    ALIGN,
    SHM,
    Lease,
    SharedMemoryPool,
    aligned,
    is_region_name,
)
from tritonsched.backend.upstream_grpc import SERVICE, GrpcUpstream
from tritonsched.backend.upstream_http import HttpUpstream
from tritonsched.errors import BackendError, MalformedAnswer, StartupError, TritonUnavailable
from tritonsched.tensors import (
    BatchCall,
    BatchInput,
    BatchReply,
    InferCall,
    RawReply,
    Wire,
)

Transport = Literal["auto", "system", "inline"]
RTT_SAMPLES = 20
_REGION_GONE = "unable to find shared memory region"
_STREAM_BROKE = "rst_stream"  # such a status is the connection's, not Triton's: it may go on


@dataclass(slots=True)
class _Attempt:
    """One sending of a batch: its message, and the pieces of shared memory that it points to.

    shared: where outputs will be written, by name. is_known_done: Triton has answered.
    """

    request: Any  # pb.ModelInferRequest has no stubs
    inputs: Lease | None = None
    outputs: Lease | None = None
    shared: dict[str, memoryview] = field(default_factory=dict)
    is_known_done: bool = False

    def release_inputs(self) -> None:
        if self.inputs is not None:
            self.inputs.release()
            self.inputs = None

    def release_outputs(self) -> None:
        """For the batch's reader, once; the views handed out end here."""
        for view in self.shared.values():
            view.release()
        if self.outputs is not None:
            self.outputs.release()


class TritonBackend:
    """One Triton server behind its two ports; a `Backend`. Call `connect` when it has come up.

    transport: system needs shared memory; inline never uses it; auto uses it if Triton can open
    our region, so if it is on this host. pool_bytes: size of the region, None for the default.
    shm_directory: where POSIX shared memory is.
    Raises StartupError if transport is system, or pool_bytes is given, and there is no such room.
    """

    def __init__(
        self,
        http: HttpUpstream,
        grpc: GrpcUpstream,
        *,
        transport: Transport = "auto",
        pool_bytes: int | None = None,
        shm_directory: Path = SHM,
    ) -> None:
        self._http = http
        self._grpc = grpc
        self._transport = transport
        self._pool_bytes = pool_bytes
        self._shm_directory = shm_directory
        self._pool: SharedMemoryPool | None = None
        self._registering = asyncio.Lock()
        self._registrations = 0
        self._is_registered = False
        self._quarantine: list[_Attempt] = []
        self._retired: set[str] = set()
        self.batches_shm = 0
        self.batches_inline = 0
        self.fallbacks = 0
        self.malformed = 0
        self.transport_info = "inline (not connected yet)"
        if transport == "system" or (transport == "auto" and pool_bytes is not None):
            self._pool = self._new_pool()

    def _new_pool(self) -> SharedMemoryPool:
        return SharedMemoryPool(self._pool_bytes, directory=self._shm_directory)

    @property
    def quarantined(self) -> int:
        """Batches whose pieces of shared memory are out of use because their connection broke."""
        return len(self._quarantine)

    @property
    def in_use_bytes(self) -> int:
        """Shared memory that batches hold now."""
        return self._pool.in_use_bytes if self._pool else 0

    # -- connection ---------------------------------------------------------------------------

    async def connect(self) -> None:
        """Prepare a Triton that has just come up.

        Raises TritonUnavailable; with transport system also BackendError or StartupError.
        """
        self._is_registered = False
        if self._transport == "inline":
            self.transport_info = "inline (gRPC bytes)"
            return
        try:
            pool = await self._usable_pool()
            async with self._registering:
                await self._register(pool)
        except (BackendError, StartupError) as error:
            if self._transport == "system":
                raise
            self._retire_pool()
            self.transport_info = f"inline (no shared memory: {error})"
            return
        self.transport_info = f"system shared memory, {pool.byte_size / 2**20:g} MiB"
        await self._forget_stale(pool)

    async def _usable_pool(self) -> SharedMemoryPool:
        """The region, or a new one if batches of unknown fate may still use the old one."""
        if self._quarantine:
            self._retire_pool()
        if self._pool is None:
            self._pool = await asyncio.to_thread(self._new_pool)  # up to 0.1 s of zeroing
        return self._pool

    def _retire_pool(self) -> None:
        self._quarantine.clear()
        if self._pool is not None:
            self._retired.add(self._pool.name)
            self._pool.close()
            self._pool = None

    async def _register(self, pool: SharedMemoryPool) -> None:
        """Have Triton open the region: at offset 0, as 2.51 reads elsewhere with any other."""
        self._is_registered = False
        request = pb.SystemSharedMemoryRegisterRequest(
            name=pool.name, key=pool.key, offset=0, byte_size=pool.byte_size
        )
        try:
            await self._control("SystemSharedMemoryRegister", request)
        except BackendError as error:
            if error.grpc_code_name != "ALREADY_EXISTS":
                raise
        if (await self.region_status()).get(pool.name) != pool.byte_size:
            raise BackendError("Triton does not show the region that it has registered")
        self._registrations += 1
        self._is_registered = True

    async def _forget_stale(self, pool: SharedMemoryPool) -> None:
        """Unregister our older regions, and those of sidecars that are gone.

        Only once Triton has opened our region: before, it might have another host's /dev/shm.
        Triton 2.51 refuses while a batch uses the region; then the next `connect` tries again.
        """
        for name in await self.region_status():
            gone = is_region_name(name) and not (pool.path.parent / name).exists()
            if name in self._retired or gone:
                await self._unregister(name)
        self._retired.intersection_update(await self.region_status())

    async def _unregister(self, name: str) -> None:
        request = pb.SystemSharedMemoryUnregisterRequest(name=name)
        with contextlib.suppress(BackendError):
            await self._control("SystemSharedMemoryUnregister", request)

    async def region_status(self) -> dict[str, int]:
        """The system shared-memory regions that Triton knows: bytes by name."""
        reply = await self._control(
            "SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest()
        )
        regions = pb.SystemSharedMemoryStatusResponse.FromString(reply).regions
        return {name: int(region.byte_size) for name, region in sorted(regions.items())}

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

    async def rtt_ns(self, clock: Callable[[], int], samples: int = RTT_SAMPLES) -> int:
        """Median round trip of an empty call, in ns. clock: monotonic nanoseconds.

        Raises TritonUnavailable, BackendError.
        """
        times = []
        for _ in range(samples):
            start_ns = clock()
            await self._control("ServerLive", pb.ServerLiveRequest())
            times.append(clock() - start_ns)
        return sorted(times)[samples // 2]

    async def close(self) -> None:
        """Unregister and remove the region. Triton may be gone already."""
        if self._pool is not None:
            self._retire_pool()
        with contextlib.suppress(TritonUnavailable):
            for name in sorted(self._retired):
                await self._unregister(name)
        self._is_registered = False
        self._retired.clear()

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
        return await self._grpc.unary(f"{SERVICE}ModelInfer", call.raw, call.headers)

    # -- merged batches -------------------------------------------------------------------------

    async def infer(self, call: BatchCall) -> BatchReply:
        """Execute a merged batch. Raises BackendError, MalformedAnswer, TritonUnavailable."""
        seen = self._registrations
        try:
            return await self._infer(call)
        except MalformedAnswer:
            self.malformed += 1
            raise
        except BackendError as error:
            if _REGION_GONE not in str(error).lower():
                raise
        await self._register_again(seen)
        return await self._infer(call)

    async def _register_again(self, seen: int) -> None:
        """Register, unless another batch has done it since registration number `seen`."""
        async with self._registering:
            if self._pool is not None and self._registrations == seen:
                with contextlib.suppress(BackendError):  # then it goes inline
                    await self._register(self._pool)

    async def _infer(self, call: BatchCall) -> BatchReply:
        attempt = self._prepare(call)
        try:
            response = await self._send(attempt)
            tensors = wire.read_answer(response, call, attempt.shared)
        except BaseException:
            self._settle(attempt)
            raise
        attempt.release_inputs()
        return BatchReply(
            response.model_name, response.model_version, tensors, attempt.release_outputs
        )

    async def _send(self, attempt: _Attempt) -> Any:
        message = attempt.request.SerializeToString()
        reply = await self._grpc.unary(f"{SERVICE}ModelInfer", message)
        attempt.is_known_done = reply.code == "OK" or _STREAM_BROKE not in reply.details.lower()
        if reply.code != "OK":
            raise BackendError(reply.details, grpc_code_name=reply.code)
        return pb.ModelInferResponse.FromString(bytes(reply.message))

    def _settle(self, attempt: _Attempt) -> None:
        """An attempt failed: its pieces are free again only if Triton has answered."""
        if attempt.is_known_done:
            attempt.release_inputs()
            attempt.release_outputs()
        elif attempt.inputs is not None:
            self._quarantine.append(attempt)

    def _prepare(self, call: BatchCall) -> _Attempt:
        attempt = _Attempt(wire.new_request(call))
        pool = self._pool if self._is_registered else None
        if pool is None or not self._share_inputs(attempt, call, pool):
            self.batches_inline += 1
            for tensor in call.inputs:
                wire.add_input_inline(attempt.request, tensor)
            for output in call.outputs:
                wire.add_output_inline(attempt.request, output.name)
            return attempt
        self.batches_shm += 1
        if not self._share_outputs(attempt, call, pool):
            for output in call.outputs:
                wire.add_output_inline(attempt.request, output.name)
        return attempt

    def _share_inputs(self, attempt: _Attempt, call: BatchCall, pool: SharedMemoryPool) -> bool:
        """Copy all inputs into one piece, each at a multiple of 64. False: there is no room."""
        sizes = [sum(map(len, tensor.parts)) for tensor in call.inputs]
        if not sizes or min(sizes) == 0:
            return False
        lease = pool.lease(sum(aligned(size, ALIGN) for size in sizes))
        if lease is None:
            self.fallbacks += 1
            return False
        attempt.inputs = lease
        position = 0
        for tensor, size in zip(call.inputs, sizes, strict=True):
            _copy(tensor, lease.view, position)
            wire.add_input_shared(
                attempt.request,
                tensor,
                region=pool.name,
                offset=lease.offset + position,
                size=size,
            )
            position += aligned(size, ALIGN)
        return True

    def _share_outputs(self, attempt: _Attempt, call: BatchCall, pool: SharedMemoryPool) -> bool:
        """Point all outputs into one piece. False: of unknown size or empty, or there is no
        room.
        """
        sizes = [(output.row_bytes or 0) * call.rows for output in call.outputs]
        if not sizes or min(sizes) == 0:
            return False
        lease = pool.lease(sum(aligned(size, ALIGN) for size in sizes))
        if lease is None:
            self.fallbacks += 1
            return False
        attempt.outputs = lease
        position = 0
        for output, size in zip(call.outputs, sizes, strict=True):
            attempt.shared[output.name] = lease.view[position : position + size]
            wire.add_output_shared(
                attempt.request,
                output.name,
                region=pool.name,
                offset=lease.offset + position,
                size=size,
            )
            position += aligned(size, ALIGN)
        return True


def _copy(tensor: BatchInput, target: memoryview, position: int) -> None:
    for part in tensor.parts:
        target[position : position + len(part)] = part
        position += len(part)
