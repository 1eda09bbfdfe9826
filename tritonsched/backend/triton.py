"""Triton itself: merged batches through shared memory, lone calls as they came.

Rule: an answer is checked before anybody sees it (`wire.read_answer`), and shared memory is used
again only when Triton is known to be done with it (`region`). What does not fit into the pool,
has no size known beforehand, or goes to a Triton on another host travels in the message itself.
"""

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from tritonsched.backend import wire
from tritonsched.backend.base import GrpcCalls
from tritonsched.backend.catalogue import ModelInfo
from tritonsched.backend.control import RTT_SAMPLES, Control, Index
from tritonsched.backend.leases import ALIGN, Lease, aligned
from tritonsched.backend.region import Region, Transport
from tritonsched.backend.shared_memory import SHM, SharedMemoryPool
from tritonsched.backend.upstream_grpc import SERVICE
from tritonsched.backend.upstream_http import HttpUpstream
from tritonsched.errors import (
    BackendError,
    MalformedAnswer,
    TritonschedError,
    TritonUnavailable,
)
from tritonsched.tensors import (
    BatchCall,
    BatchDone,
    BatchInput,
    BatchReply,
    GrpcReply,
    InferCall,
    RawReply,
    Wire,
)

_INFER = f"{SERVICE}ModelInfer"
_REGION_GONE = "unable to find shared memory region"
ENSEMBLE_DEPTH_MAX = 4  # of ensembles in ensembles that are looked into
_MARK_BYTES = 8  # an output that ends in these by chance: once in 2^64 batches
_STREAM_BROKE = "rst_stream"  # a status the connection made, not Triton: it may go on executing


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

    def release_outputs(self) -> None:
        """Once, after reading: the views handed out end here."""
        for view in self.shared.values():
            view.release()
        if self.outputs is not None:
            self.outputs.release()


class TritonBackend:
    """One Triton server behind its two ports; a `Backend`. Call `connect` when it has come up.

    transport, pool_bytes: see `Region`. shm_directory: where POSIX shared memory is.
    version: Triton's own, as `2.51.0`; empty until it has told.
    batches_shm, batches_inline: batches by where their inputs went. fallbacks: batches that found
    no room in the pool, for inputs or outputs. malformed: answers refused.
    Raises StartupError if shared memory is asked for and there is no such room.
    """

    def __init__(
        self,
        http: HttpUpstream,
        grpc: GrpcCalls,
        *,
        transport: Transport = "auto",
        pool_bytes: int | None = None,
        shm_directory: Path = SHM,
    ) -> None:
        self._http = http
        self._grpc = grpc
        self._control = Control(grpc)
        self.region = Region(self._control, transport, pool_bytes, shm_directory)
        self._repeats: set[asyncio.Task[None]] = set()
        self._mark = secrets.token_bytes(_MARK_BYTES)
        self.version = ""
        self.batches_shm = 0
        self.batches_inline = 0
        self.fallbacks = 0
        self.malformed = 0

    @property
    def transport_info(self) -> str:
        """How batches travel, for a person; the first word is `system` or `inline`."""
        return self.region.info

    # -- the server -----------------------------------------------------------------------------

    async def connect(self) -> None:
        """Prepare a Triton that has just come up.

        Raises TritonUnavailable; with transport system also BackendError or StartupError.
        """
        self.version = await self._server_version()
        await self.region.connect()

    async def _server_version(self) -> str:
        try:
            return await self._control.server_version()
        except BackendError:  # it does not tell: every rule of the shield holds
            return ""

    async def ready(self) -> bool:
        """Triton is up; single models may be loading or broken. Never raises."""
        try:
            return await self._control.is_live()
        except (BackendError, TritonUnavailable):
            return False

    async def repository_index(self) -> Index | None:
        """The repository's models and their states; None if Triton does not tell. Never raises."""
        try:
            return await self._control.repository_index()
        except (BackendError, TritonUnavailable):
            return None

    async def request_counts(self) -> dict[tuple[str, str], tuple[int, int]]:
        """See Control. Raises TritonUnavailable or BackendError."""
        return await self._control.request_counts()

    async def rtt_ns(self, clock: Callable[[], int], samples: int = RTT_SAMPLES) -> int:
        """Median round trip of an empty call, in ns. clock: monotonic nanoseconds.

        Raises TritonUnavailable, BackendError.
        """
        return await self._control.rtt_ns(clock, samples)

    async def region_status(self) -> dict[str, int]:
        """The system shared-memory regions that Triton knows: bytes by name."""
        return await self._control.region_status()

    async def model_info(self, model: str, version: str) -> ModelInfo | None:
        """What Triton says of the model; None if it does not serve it. Raises TritonUnavailable."""
        try:
            info = await self._control.model_info(model, version)
        except BackendError:
            return None
        return replace(info, devices=await self._devices_of_steps(info)) if info.steps else info

    async def _devices_of_steps(
        self, ensemble: ModelInfo, depth: int = ENSEMBLE_DEPTH_MAX
    ) -> tuple[str, ...]:
        """What an ensemble occupies: the devices of its last step on a GPU, else of its last one.

        It runs on several, one after the other; the scheduler knows one, so the dearest it is.
        """
        found = ensemble.devices
        for step in ensemble.steps if depth else ():
            try:
                info = await self._control.model_info(step, "")
            except BackendError:
                continue  # Triton will say so
            devices = await self._devices_of_steps(info, depth - 1) if info.steps else info.devices
            if not devices[0].startswith("cpu:") or found[0].startswith("cpu:"):
                found = devices
        return found

    async def close(self) -> None:
        """Unregister and remove the region. Triton may be gone already."""
        await self.region.close()

    # -- inference ------------------------------------------------------------------------------

    async def forward(self, call: InferCall) -> RawReply:
        """One call's original bytes over its own protocol. Raises TritonUnavailable."""
        if call.wire is Wire.HTTP:
            return await self._http.request("POST", call.path, call.headers, call.raw)
        return await self._grpc.unary(_INFER, call.raw, call.headers)

    def send(self, call: BatchCall, done: BatchDone) -> None:
        """Execute a merged batch: inputs are copied and the message is written before this
        returns. Errors: BackendError, MalformedAnswer, TritonUnavailable.
        """
        self._send(call, partial(self._ended, call, self.region.registrations, done))

    def _ended(
        self, call: BatchCall, seen: int, done: BatchDone, outcome: BatchReply | TritonschedError
    ) -> None:
        """If Triton has forgotten the region, once more."""
        if isinstance(outcome, MalformedAnswer):
            self.malformed += 1
        elif isinstance(outcome, BackendError) and _REGION_GONE in str(outcome).lower():
            task = asyncio.get_running_loop().create_task(self._again(call, seen, done))
            self._repeats.add(task)
            task.add_done_callback(self._repeats.discard)
            return
        done(outcome)

    async def _again(self, call: BatchCall, seen: int, done: BatchDone) -> None:
        try:
            await self.region.register_again(seen)
        except TritonUnavailable as error:
            done(error)
        else:
            self._send(call, done)

    def _send(self, call: BatchCall, done: BatchDone) -> None:
        attempt = self._prepare(call)
        message = attempt.request.SerializeToString()
        self._grpc.send(_INFER, message, partial(self._answered, call, attempt, done))

    def _answered(
        self,
        call: BatchCall,
        attempt: _Attempt,
        done: BatchDone,
        reply: GrpcReply | TritonUnavailable,
    ) -> None:
        try:
            outcome: BatchReply | TritonschedError = self._read(call, attempt, reply)
        except TritonschedError as error:
            self._settle(attempt)
            outcome = error
        except Exception as error:  # a mistake of ours must not leave its members waiting
            self._settle(attempt)
            outcome = TritonschedError(f"internal error: {error!r}")
        done(outcome)

    def _read(
        self, call: BatchCall, attempt: _Attempt, reply: GrpcReply | TritonUnavailable
    ) -> BatchReply:
        """The checked answer. Raises BackendError, MalformedAnswer, TritonUnavailable."""
        if isinstance(reply, TritonUnavailable):
            raise reply
        attempt.is_known_done = reply.code == "OK" or _STREAM_BROKE not in reply.details.lower()
        if reply.code != "OK":
            raise BackendError(reply.details, grpc_code_name=reply.code)
        response = wire.parse(pb.ModelInferResponse, reply.message)
        tensors = wire.read_answer(response, call, attempt.shared, self._mark)
        attempt.release_inputs()
        return BatchReply(
            response.model_name, response.model_version, tensors, attempt.release_outputs
        )

    def _settle(self, attempt: _Attempt) -> None:
        """An attempt failed: its pieces are free again only if Triton has answered."""
        if attempt.is_known_done:
            attempt.release_inputs()
            attempt.release_outputs()
            return
        for lease in (attempt.inputs, attempt.outputs):
            if lease is not None:
                self.region.quarantine(lease)

    def _prepare(self, call: BatchCall) -> _Attempt:
        attempt = _Attempt(wire.new_request(call))
        pool = self.region.pool
        if pool is not None and self._share_inputs(attempt, call, pool):
            self.batches_shm += 1
            if self._share_outputs(attempt, call, pool):
                return attempt
        else:
            self.batches_inline += 1
            for tensor in call.inputs:
                wire.add_input_inline(attempt.request, tensor)
        for output in call.outputs:
            wire.add_output_inline(attempt.request, output.name)
        return attempt

    def _share_inputs(self, attempt: _Attempt, call: BatchCall, pool: SharedMemoryPool) -> bool:
        """Copy all inputs into one piece. False: one of them is empty, or there is no room."""
        sizes = [sum(map(len, tensor.parts)) for tensor in call.inputs]
        lease = self._lease(pool, sizes, least=1)  # Triton takes no empty tensor there
        if lease is None:
            return False
        attempt.inputs = lease
        for tensor, size, start in zip(call.inputs, sizes, _starts(sizes), strict=True):
            _copy(tensor, lease.view, start)
            wire.add_input_shared(
                attempt.request, tensor, region=pool.name, offset=lease.offset + start, size=size
            )
        return True

    def _share_outputs(self, attempt: _Attempt, call: BatchCall, pool: SharedMemoryPool) -> bool:
        """Room for all outputs in one piece. False: a size is unknown or tiny, or there is none."""
        sizes = [(output.row_bytes or 0) * call.rows for output in call.outputs]
        lease = self._lease(pool, sizes, least=_MARK_BYTES)
        if lease is None:
            return False
        attempt.outputs = lease
        for output, size, start in zip(call.outputs, sizes, _starts(sizes), strict=True):
            place = lease.view[start : start + size]
            place[-_MARK_BYTES:] = self._mark
            attempt.shared[output.name] = place
            offset = lease.offset + start
            wire.add_output_shared(
                attempt.request, output.name, region=pool.name, offset=offset, size=size
            )
        return True

    def _lease(self, pool: SharedMemoryPool, sizes: list[int], *, least: int) -> Lease | None:
        """One piece for tensors of these sizes, if each is at least so large."""
        if not sizes or min(sizes) < least:
            return None
        lease = pool.lease(sum(aligned(size, ALIGN) for size in sizes))
        self.fallbacks += lease is None
        return lease


def _starts(sizes: list[int]) -> list[int]:
    """Where tensors of these sizes begin in their piece, each at a multiple of 64."""
    starts = [0]
    for size in sizes[:-1]:
        starts.append(starts[-1] + aligned(size, ALIGN))
    return starts


def _copy(tensor: BatchInput, target: memoryview, position: int) -> None:
    for part in tensor.parts:
        target[position : position + len(part)] = part
        position += len(part)
