"""A batch as a message and pieces of memory. Rule: who takes a piece says when it is free again.

Inputs are written into one piece, outputs have a piece to be written into; what finds no room or
has no size known beforehand travels in the message itself. On a GPU the pieces have two sides
(`cuda_memory`): what is written on the host side goes up in contiguous runs, and what a client
keeps on a GPU is moved from device to device.
"""

from collections.abc import Hashable, Iterable, Iterator
from functools import lru_cache
from itertools import accumulate
from typing import cast

from tritonsched.backend import wire
from tritonsched.backend.batch_call import (
    BatchCall,
    BatchInput,
    BatchOutput,
    DevicePlace,
    unreachable,
)
from tritonsched.backend.cuda_memory import CudaPool, Move, Run
from tritonsched.backend.leases import ALIGN, Lease, aligned
from tritonsched.backend.shared_memory import SharedMemoryPool
from tritonsched.errors import RegionFault
from tritonsched.tensors import Buffer

MARK_BYTES = 8  # an output that ends in these by chance: once in 2^64 batches
FORMS_MAX = 1024  # of batches, by their tensors' sizes
MESSAGES_MAX = 1024  # remembered: a batch of the same form often finds the same places free
Pool = SharedMemoryPool | CudaPool
Places = tuple[tuple[int, int], ...]


class Attempt:
    """One sending of a batch: the pieces of memory that its message points to.

    inputs_at, outputs_at: offset and bytes of each in the pool; empty if they are in the message.
    shared: where outputs will be written, by name; on a GPU, where they will be read. runs, moves:
    what goes up before the message is sent; back_runs, back_moves: what comes down after it was
    answered. is_known_done: Triton has answered. cuda: the pool, if it is a GPU's.
    """

    __slots__ = (
        "back_moves", "back_runs", "cuda", "inputs", "inputs_at", "is_known_done", "moves",
        "outputs", "outputs_at", "pool", "runs", "shared",
    )  # fmt: skip

    def __init__(self) -> None:
        self.pool: Pool | None = None
        self.inputs_at: Places = ()
        self.outputs_at: Places = ()
        self.inputs: Lease | None = None
        self.outputs: Lease | None = None
        self.shared: dict[str, memoryview] = {}
        self.runs: list[Run] = []
        self.moves: list[Move] = []
        self.back_runs: list[Run] = []
        self.back_moves: list[Move] = []
        self.is_known_done = False
        self.cuda: CudaPool | None = None

    def release_inputs(self) -> None:
        """Once: Triton is done with them."""
        if self.inputs is not None:
            self.inputs.release()

    def release_outputs(self) -> None:
        """Once, after reading: the views handed out end here."""
        for view in self.shared.values():
            view.release()
        if self.outputs is not None:
            self.outputs.release()


class Packer:
    """mark: what an output's place ends in beforehand.

    batches: by where their inputs went, `system`, `cuda` or `inline`. fallbacks: batches that found
    no room in a pool, for inputs or outputs.
    """

    def __init__(self, mark: bytes) -> None:
        self._mark = mark
        self._messages: dict[Hashable, bytes] = {}
        self.batches = {"system": 0, "cuda": 0, "inline": 0}
        self.fallbacks = 0

    def pack(self, call: BatchCall, pools: Iterable[Pool]) -> Attempt:
        """The batch in the first of these pools that has room, or in its message.

        Raises RegionFault if a client's memory on a GPU cannot be reached from there.
        """
        attempt = Attempt()
        for found in pools:
            if self._share_inputs(attempt, call, found):
                break
        else:
            self.batches["inline"] += 1
        wants_gpu = any(output.places for output in call.outputs)
        pool = attempt.cuda if wants_gpu else attempt.pool
        if pool is not None and self._share_outputs(attempt, call, pool):
            return attempt
        if wants_gpu:
            attempt.release_inputs()
            raise RegionFault("no room on the GPU for outputs that clients want there")
        return attempt

    def message(self, call: BatchCall, attempt: Attempt) -> bytes:
        """What Triton is sent. Raises RegionFault as `pack`, for what is in the message itself."""
        if not (attempt.inputs_at and attempt.outputs_at) or call.parameters:
            return _message(call, attempt)
        assert attempt.pool is not None
        forms = tuple([(each.name, each.datatype, each.shape) for each in call.inputs])
        names = tuple([each.name for each in call.outputs])
        places = (attempt.pool.name, attempt.inputs_at, attempt.outputs_at)
        key = (call.model, call.version, forms, names, places)
        message = self._messages.get(key)
        if message is None:
            if len(self._messages) >= MESSAGES_MAX:
                self._messages.clear()
            message = self._messages[key] = _message(call, attempt)
        return message

    def _share_inputs(self, attempt: Attempt, call: BatchCall, pool: Pool) -> bool:
        """Copy all inputs into one piece. False: one of them is empty, or there is no room."""
        sizes = [sum([len(part) for part in tensor.parts]) for tensor in call.inputs]
        starts, total = _room(tuple(sizes))
        lease = self._lease(pool, sizes, total, least=1)  # Triton takes no empty tensor there
        if lease is None:
            return False
        attempt.pool, attempt.inputs = pool, lease
        cuda = attempt.cuda = pool if isinstance(pool, CudaPool) else None
        self.batches["system" if cuda is None else "cuda"] += 1
        for tensor, start in zip(call.inputs, starts):
            if cuda is not None:
                _stage(attempt, tensor, lease, start, cuda)
            else:
                _copy(attempt, tensor, lease.view, start)
        attempt.inputs_at = _places(lease, starts, sizes)
        return True

    def _share_outputs(self, attempt: Attempt, call: BatchCall, pool: Pool) -> bool:
        """Room for all outputs in one piece. False: a size is unknown or tiny, or there is none."""
        sizes = [(output.row_bytes or 0) * call.rows for output in call.outputs]
        starts, total = _room(tuple(sizes))
        lease = self._lease(pool, sizes, total, least=MARK_BYTES)
        if lease is None:
            return False
        attempt.outputs = lease
        attempt.outputs_at = _places(lease, starts, sizes)
        for output, size, start in zip(call.outputs, sizes, starts):
            place = lease.view[start : start + size]
            place[-MARK_BYTES:] = self._mark
            attempt.shared[output.name] = place
            if attempt.cuda is not None:
                offset = lease.offset + start
                attempt.runs.append((offset + size - MARK_BYTES, MARK_BYTES))
                _plan_back(attempt, output, offset, size, attempt.cuda)
        return True

    def _lease(self, pool: Pool, sizes: list[int], total: int, *, least: int) -> Lease | None:
        """One piece for tensors of these sizes, if each is at least so large."""
        if not sizes or min(sizes) < least:
            return None
        lease = pool.lease(total)
        self.fallbacks += lease is None
        return lease


@lru_cache(maxsize=FORMS_MAX)
def _room(sizes: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """Where tensors of these sizes begin in their piece, each at a multiple of 64; bytes of all."""
    *starts, total = accumulate([aligned(size, ALIGN) for size in sizes], initial=0)
    return tuple(starts), total


def _places(lease: Lease, starts: tuple[int, ...], sizes: list[int]) -> Places:
    base = lease.offset
    return tuple([(base + start, size) for start, size in zip(starts, sizes)])


def _message(call: BatchCall, attempt: Attempt) -> bytes:
    request = wire.new_request(call)
    region = "" if attempt.pool is None else attempt.pool.name
    if attempt.inputs_at:
        for tensor, (offset, size) in zip(call.inputs, attempt.inputs_at, strict=True):
            wire.add_input_shared(request, tensor, region=region, offset=offset, size=size)
    else:
        for tensor in call.inputs:
            wire.add_input_inline(request, tensor)
    if attempt.outputs_at:
        for output, (offset, size) in zip(call.outputs, attempt.outputs_at, strict=True):
            name = output.name
            wire.add_output_shared(request, name, region=region, offset=offset, size=size)
    else:
        for output in call.outputs:
            wire.add_output_inline(request, output.name)
    message: bytes = request.SerializeToString()
    return message


def _copy(attempt: Attempt, tensor: BatchInput, target: memoryview, position: int) -> None:
    try:
        for part in cast("tuple[Buffer, ...]", tensor.parts):
            end = position + len(part)
            target[position:end] = part
            position = end
    except TypeError as error:
        attempt.release_inputs()
        raise unreachable() from error


def _stage(
    attempt: Attempt, tensor: BatchInput, lease: Lease, position: int, pool: CudaPool
) -> None:
    """Parts on the host are written and go up in runs; parts on a GPU are moved there."""
    for part in tensor.parts:
        offset, size = lease.offset + position, len(part)
        if isinstance(part, DevicePlace):
            attempt.moves.append((pool.address(offset), part.address, size))
        else:
            lease.view[position : position + size] = part
            _extend(attempt.runs, offset, size)
        position += size


def _extend(runs: list[Run], offset: int, size: int) -> None:
    """One more run, or the last one longer: a gap of alignment is copied along."""
    if runs and 0 <= offset - sum(runs[-1]) < ALIGN:
        start = runs[-1][0]
        runs[-1] = (start, offset + size - start)
    elif size:
        runs.append((offset, size))


def _plan_back(
    attempt: Attempt, output: BatchOutput, offset: int, size: int, pool: CudaPool
) -> None:
    """What stays on the GPU does not come down, but for the mark."""
    for start, place in output.places:
        attempt.back_moves.append((place.address, pool.address(offset + start), len(place)))
    first, last = _wanted(output, size)
    _extend(attempt.back_runs, offset + first, last - first)


def _wanted(output: BatchOutput, size: int) -> tuple[int, int]:
    """The bytes that somebody reads on the host, in one run, with the mark."""
    taken = sorted((start, start + len(place)) for start, place in output.places)
    first = next(_gaps(taken, size), size)
    return min(first, size - MARK_BYTES), size


def _gaps(taken: list[tuple[int, int]], size: int) -> Iterator[int]:
    """Where bytes begin that no place takes."""
    position = 0
    for start, end in taken:
        if start > position:
            yield position
        position = end
    if position < size:
        yield position
