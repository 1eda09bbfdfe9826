"""Triton itself: merged batches through shared memory, lone calls as they came.

Rule: an answer is checked before anybody sees it (`wire.Answers`), and shared memory is used
again only when Triton is known to be done with it (`region`). What does not fit into the pool,
has no size known beforehand, or goes to a Triton on another host travels in the message itself.
"""

import asyncio
import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from tritonsched.backend import wire
from tritonsched.backend.base import GrpcCalls
from tritonsched.backend.batch_call import BatchCall, BatchDone, BatchReply
from tritonsched.backend.catalogue import ModelInfo
from tritonsched.backend.control import RTT_SAMPLES, Control, Index
from tritonsched.backend.cuda import Cuda, load
from tritonsched.backend.cuda_region import POOL_BYTES, CudaRegions, Transport
from tritonsched.backend.packing import MARK_BYTES, Attempt, Packer, Pool
from tritonsched.backend.region import Region
from tritonsched.backend.shared_memory import SHM
from tritonsched.backend.upstream_grpc import SERVICE
from tritonsched.backend.upstream_http import HttpCalls
from tritonsched.errors import (
    BackendError,
    CudaFault,
    MalformedAnswer,
    TritonschedError,
    TritonUnavailable,
)
from tritonsched.tensors import GrpcReply, InferCall, Pieces, RawReply, Wire

_INFER = f"{SERVICE}ModelInfer"
_REGION_GONE = "unable to find shared memory region"
MODELS_MAX = 256  # asked for their devices at each connect, one by one
ENSEMBLE_DEPTH_MAX = 4  # of ensembles in ensembles that are looked into
_STREAM_BROKE = "rst_stream"  # a status the connection made, not Triton: it may go on executing


class TritonBackend:
    """One Triton server behind its two ports; a `Backend`. Call `connect` when it has come up.

    transport, pool_bytes: see `Region`, `CudaRegions`. shm_directory: where POSIX shared memory is.
    cuda_pool_bytes: of each GPU's pool. cuda: gives CUDA when a model runs on a GPU.
    version: Triton's own, as `2.51.0`; empty until it has told. malformed: answers refused.
    Raises StartupError if shared memory is asked for and there is no such room.
    """

    def __init__(
        self,
        http: HttpCalls,
        grpc: GrpcCalls,
        *,
        transport: Transport = "auto",
        pool_bytes: int | None = None,
        shm_directory: Path = SHM,
        cuda_pool_bytes: int = POOL_BYTES,
        cuda: Callable[[], Cuda] = load,
    ) -> None:
        self._http = http
        self._grpc = grpc
        self._control = Control(grpc)
        system = "auto" if transport == "cuda" else transport
        self.region = Region(self._control, system, pool_bytes, shm_directory)
        self.cuda = CudaRegions(self._control, transport, cuda_pool_bytes, cuda)
        self._repeats: set[asyncio.Task[None]] = set()
        mark = secrets.token_bytes(MARK_BYTES)
        self._answers = wire.Answers(mark)
        self._packer = Packer(mark)
        self.version = ""
        self.malformed = 0

    @property
    def batches_shm(self) -> int:
        """Batches whose inputs went through system shared memory."""
        return self._packer.batches["system"]

    @property
    def batches_cuda(self) -> int:
        """Batches whose inputs went through a GPU's memory."""
        return self._packer.batches["cuda"]

    @property
    def batches_inline(self) -> int:
        """Batches whose inputs went in the message."""
        return self._packer.batches["inline"]

    @property
    def fallbacks(self) -> int:
        """Batches that found no room in a pool, for inputs or outputs."""
        return self._packer.fallbacks

    @property
    def transport_info(self) -> str:
        """How batches travel, for a person; the first word is `cuda`, `system` or `inline`."""
        words = (self.cuda.info, self.region.info)
        if not self.cuda.info.startswith("cuda"):
            words = words[::-1]
        return "; ".join(filter(None, words))

    def is_local(self) -> bool:
        """Triton has our /dev/shm."""
        return self.region.pool is not None

    @property
    def transport_word(self) -> Literal["cuda", "system", "inline"]:
        """The best way that is open: the first word of `transport_info`."""
        word = self.transport_info.partition(" ")[0]
        return "cuda" if word == "cuda" else "system" if word == "system" else "inline"

    # -- the server -----------------------------------------------------------------------------

    async def connect(self) -> None:
        """Prepare a Triton that has just come up.

        Raises TritonUnavailable; with transport system also BackendError or StartupError.
        """
        self.version = await self._server_version()
        await self.region.connect()
        await self.cuda.connect(await self._devices() if self.cuda.is_wanted else ())

    async def _devices(self) -> set[str]:
        """What the models that are ready run on."""
        names = {
            name for name, _, state in await self._control.repository_index() if state == "READY"
        }
        infos = [await self._info(name, "") for name in sorted(names)[:MODELS_MAX]]
        return {device for info in infos if info is not None for device in info.devices}

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
        info = await self._info(model, version)
        if info is not None:
            await self.cuda.prepare(info.devices)  # of a model that was loaded meanwhile
        return info

    async def _info(self, model: str, version: str) -> ModelInfo | None:
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
        """Unregister and remove the regions. Triton may be gone already."""
        await self.cuda.close()
        await self.region.close()

    # -- inference ------------------------------------------------------------------------------

    async def forward(self, call: InferCall) -> RawReply:
        """One call's original bytes over its own protocol. Raises TritonUnavailable."""
        raw = bytes(call.raw) if isinstance(call.raw, Pieces) else call.raw
        if call.wire is Wire.HTTP:
            return await self._http.request("POST", call.path, call.headers, raw)
        return await self._grpc.unary(_INFER, raw, call.headers)

    def send(self, call: BatchCall, done: BatchDone) -> None:
        """Execute a merged batch: inputs are copied and, unless they go to a GPU first, the message
        is written before this returns. Errors: BackendError, MalformedAnswer, TritonUnavailable.
        """
        seen = (self.region.registrations, self.cuda.registrations)
        self._send(call, partial(self._ended, call, seen, done))

    def _ended(
        self,
        call: BatchCall,
        seen: tuple[int, int],
        done: BatchDone,
        outcome: BatchReply | TritonschedError,
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

    async def _again(self, call: BatchCall, seen: tuple[int, int], done: BatchDone) -> None:
        try:
            await self.region.register_again(seen[0])
            await self.cuda.register_again(seen[1])
        except TritonUnavailable as error:
            done(error)
        else:
            self._resend(call, done)

    def _resend(self, call: BatchCall, done: BatchDone) -> None:
        """As `send`, from a callback: nobody is there to catch what it raises."""
        try:
            self._send(call, done)
        except TritonschedError as error:
            done(error)

    def _pools(self, call: BatchCall) -> Iterator[Pool]:
        """Where the batch may go, the best first."""
        for pool in (self.cuda.pool(call.device), self.region.pool):
            if pool is not None:
                yield pool

    def _send(self, call: BatchCall, done: BatchDone) -> None:
        """Raises RegionFault."""
        attempt = self._packer.pack(call, self._pools(call))
        if attempt.cuda is None:
            self._write(call, attempt, done)
        else:
            uploaded = partial(self._uploaded, call, attempt, done)
            attempt.cuda.upload(attempt.runs, attempt.moves, uploaded)

    def _uploaded(
        self, call: BatchCall, attempt: Attempt, done: BatchDone, fault: CudaFault | None
    ) -> None:
        """What did not go up goes another way: Triton has not heard of it yet."""
        if fault is None:
            self._write(call, attempt, done)
            return
        attempt.is_known_done = True
        self._settle(attempt)
        assert attempt.pool is not None
        self.cuda.give_up(attempt.pool, str(fault))
        self._resend(call, done)

    def _write(self, call: BatchCall, attempt: Attempt, done: BatchDone) -> None:
        message = self._packer.message(call, attempt)
        self._grpc.send(_INFER, message, partial(self._answered, call, attempt, done))

    def _answered(
        self,
        call: BatchCall,
        attempt: Attempt,
        done: BatchDone,
        reply: GrpcReply | TritonUnavailable,
    ) -> None:
        """What was answered on a GPU comes down first."""
        is_well = isinstance(reply, GrpcReply) and reply.code == "OK"
        if attempt.cuda is None or attempt.outputs is None or not is_well:
            self._tell(call, attempt, done, reply, None)
        else:
            told = partial(self._tell, call, attempt, done, reply)
            attempt.cuda.download(attempt.back_runs, attempt.back_moves, told)

    def _tell(
        self,
        call: BatchCall,
        attempt: Attempt,
        done: BatchDone,
        reply: GrpcReply | TritonUnavailable,
        fault: CudaFault | None,
    ) -> None:
        try:
            outcome: BatchReply | TritonschedError = self._read(call, attempt, reply, fault)
        except TritonschedError as error:
            self._settle(attempt)
            outcome = error
        except Exception as error:  # a mistake of ours must not leave its members waiting
            self._settle(attempt)
            outcome = TritonschedError(f"internal error: {error!r}")
        if attempt.pool is not None and attempt.cuda is not None:
            self._judge(call, attempt.pool, done, outcome)
        else:
            done(outcome)

    def _judge(
        self, call: BatchCall, pool: Pool, done: BatchDone, outcome: BatchReply | TritonschedError
    ) -> None:
        """A GPU's first batch: if it failed there and is well without, that GPU goes without."""
        if isinstance(outcome, BatchReply):
            self.cuda.trust(pool)
        elif isinstance(outcome, CudaFault):
            self.cuda.give_up(pool, str(outcome))
        elif self._is_doubtful(outcome, pool):
            fault = outcome

            def told(second: BatchReply | TritonschedError) -> None:
                if isinstance(second, BatchReply):
                    self.cuda.give_up(pool, f"the first batch failed there ({fault})")
                done(second)

            self._resend(replace(call, device=""), told)
            return
        done(outcome)

    def _is_doubtful(self, outcome: TritonschedError, pool: Pool) -> bool:
        """It may be the GPU's memory that failed it. That Triton forgot a region is no failure."""
        return (
            isinstance(outcome, BackendError)
            and not self.cuda.is_trusted(pool)
            and _REGION_GONE not in str(outcome).lower()
        )

    def _read(
        self,
        call: BatchCall,
        attempt: Attempt,
        reply: GrpcReply | TritonUnavailable,
        fault: CudaFault | None,
    ) -> BatchReply:
        """The checked answer. Raises BackendError, MalformedAnswer, TritonUnavailable."""
        if isinstance(reply, TritonUnavailable):
            raise reply
        attempt.is_known_done = reply.code == "OK" or _STREAM_BROKE not in reply.details.lower()
        if reply.code != "OK":
            raise BackendError(reply.details, grpc_code_name=reply.code)
        if fault is not None:
            raise fault
        model, version, tensors = self._answers.read(
            reply.message, call, attempt.shared, may_carry=not attempt.back_moves
        )
        attempt.release_inputs()
        return BatchReply(model, version, tensors, attempt.release_outputs)

    def _settle(self, attempt: Attempt) -> None:
        """An attempt failed: its pieces are free again only if Triton has answered."""
        if attempt.is_known_done:
            attempt.release_inputs()
            attempt.release_outputs()
            return
        holder = attempt.cuda or self.region
        for lease in (attempt.inputs, attempt.outputs):
            if lease is not None:
                holder.quarantine(lease)
