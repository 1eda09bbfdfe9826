"""A GPU's memory, leased in pieces like shared memory. Rule: a piece has two sides of equal layout.

One is page-locked memory of this process, where inputs are written and outputs read; the other is
device memory that Triton has opened by its handle. A lease is a piece of both, at one offset. So a
batch costs one copy for each contiguous run of bytes, and what lies in a client's region on a GPU
is copied from device to device into its place, or out of it.

Uploads and downloads have a lane each: devices copy both ways at once. Memory is freed when
Triton has closed it, which the caller knows, and when no lease is out any more: freeing memory that
another process has open is undefined.
Source: CUDA runtime API, 6.10; Triton's cuda_shared_memory client, which copies and waits at once.
"""

import asyncio
import contextlib
import os
import secrets
from collections.abc import Iterable, Sequence
from functools import partial

from tritonsched.backend.cuda import GRAIN_BYTES, Cuda, Stream
from tritonsched.backend.cuda_lane import Lane, Told
from tritonsched.backend.leases import Lease, LeasedMemory, aligned
from tritonsched.errors import CudaFault

Run = tuple[int, int]
"""Offset and bytes of what is copied between both sides."""
Move = tuple[int, int, int]
"""Target address, source address, bytes: from device to device."""
_PROOF = bytes(range(251)) * 4  # of no power of two, so that a shifted copy shows


class CudaPool(LeasedMemory):
    """A region of device `device`, and which pieces of it are free.

    name: what it is called in Triton. handle: what Triton opens it by. quarantined: pieces that
    Triton may still use, though their batch is over.
    Blocks for milliseconds. Raises CudaFault: no memory, no handles, or copies that do not arrive.
    """

    def __init__(
        self, cuda: Cuda, device: int, byte_size: int, loop: asyncio.AbstractEventLoop
    ) -> None:
        size = aligned(byte_size, GRAIN_BYTES)
        self.device = device
        self.name = f"tritonsched-{os.getpid()}-{secrets.token_hex(4)}"
        self.quarantined = 0
        self._loop = loop
        self._is_closing = False
        self._ended = loop.create_future()
        with contextlib.ExitStack() as undo:
            self._address = cuda.allocate(device, size)
            undo.callback(cuda.free, device, self._address)
            host = cuda.allocate_host(device, size)
            undo.callback(cuda.free_host, host)
            self.handle = cuda.handle(device, self._address)
            lanes = []
            for way in ("up", "down"):
                lanes.append(Lane(cuda.stream(device), loop, f"cuda-{device}-{way}"))
                undo.callback(lanes[-1].end)
            self._up, self._down = lanes
            _prove(cuda, device, self._address, host.address, host.view)
            super().__init__(host.view)
            self._undo = undo.pop_all()
        self._host_address = host.address

    @property
    def has_answers(self) -> bool:
        """Pieces are out that somebody is reading or will read."""
        return self.leases > self.quarantined

    @property
    def is_gone(self) -> bool:
        """It has been freed."""
        return self._ended.done()

    def address(self, offset: int) -> int:
        """Where that offset lies on the device."""
        return self._address + offset

    def upload(self, runs: Sequence[Run], moves: Sequence[Move], told: Told) -> None:
        """Copy the runs to the device and move what is on devices; then `told` hears."""
        self._up.do(partial(self._begin_upload, runs, moves), told)

    def download(self, runs: Sequence[Run], moves: Sequence[Move], told: Told) -> None:
        """Copy the runs from the device and move what stays on devices; then `told` hears."""
        self._down.do(partial(self._begin_download, runs, moves), told)

    def _begin_upload(self, runs: Iterable[Run], moves: Iterable[Move], stream: Stream) -> None:
        for offset, size in runs:
            stream.copy(self._address + offset, self._host_address + offset, size)
        for move in moves:
            stream.copy(*move)

    def _begin_download(self, runs: Iterable[Run], moves: Iterable[Move], stream: Stream) -> None:
        for offset, size in runs:
            stream.copy(self._host_address + offset, self._address + offset, size)
        for move in moves:
            stream.copy(*move)

    def quarantine(self, lease: Lease) -> None:
        """Triton may still use this piece, and will not say when it has finished."""
        if lease.belongs_to(self):
            self.quarantined += 1

    def give_back(self, offset: int, byte_size: int) -> None:
        """See LeasedMemory."""
        super().give_back(offset, byte_size)
        self._end_if_idle()

    def close(self) -> None:
        """Free everything, once no lease is out. Triton must have closed the region, or be gone."""
        self._is_closing = True
        self._end_if_idle()

    async def closed(self) -> None:
        """Wait until it has been freed."""
        await asyncio.shield(self._ended)

    def _end_if_idle(self) -> None:
        if self._is_closing and not self.has_answers:
            undo, self._undo = self._undo, contextlib.ExitStack()
            self._is_closing = False
            _ = self._loop.run_in_executor(None, self._undo_all, undo)  # `closed` hears

    def _undo_all(self, undo: contextlib.ExitStack) -> None:
        with contextlib.suppress(CudaFault):  # the driver gives it back with the process
            undo.close()
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._told_freed)

    def _told_freed(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)


def _prove(cuda: Cuda, device: int, address: int, host: int, view: memoryview) -> None:
    """Bytes go to the device and come back as they were. Raises CudaFault."""
    stream = cuda.stream(device)
    try:
        view[: len(_PROOF)] = _PROOF
        stream.copy(address, host, len(_PROOF))
        stream.finish()
        view[: len(_PROOF)] = bytes(len(_PROOF))
        stream.copy(host, address, len(_PROOF))
        stream.finish()
    finally:
        stream.close()
    if view[: len(_PROOF)] != _PROOF:
        raise CudaFault(f"GPU {device} gave back other bytes than were copied to it")
