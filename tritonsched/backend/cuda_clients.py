"""Clients' memory on GPUs, opened by their handles. Rule: opened once, closed with its last user.

A handle says nothing of how much memory there is, and a copy past its end is an error that ends a
process' use of CUDA. So CUDA is asked for the size, and a client that registered more is not
believed. Opening and closing may take milliseconds and happen in threads.
"""

import asyncio
import contextlib
from collections.abc import Callable

from tritonsched.backend.cuda import Cuda
from tritonsched.errors import CudaFault

Close = Callable[[int, int], None]


class ClientMemory:
    """`byte_size` bytes of a client's at `address` on device `device`; valid while it is held."""

    __slots__ = ("_close", "address", "byte_size", "device")

    def __init__(self, device: int, address: int, byte_size: int, close: Close) -> None:
        self.device = device
        self.address = address
        self.byte_size = byte_size
        self._close = close

    def __del__(self) -> None:
        self._close(self.device, self.address)


class ClientMemories:
    """cuda: the sidecar's CUDA, or None as long as it uses none."""

    def __init__(self, cuda: Callable[[], Cuda | None]) -> None:
        self._cuda = cuda
        self._closing: set[asyncio.Future[None]] = set()

    async def open(self, device: int, handle: bytes, byte_size: int) -> ClientMemory | None:
        """The memory, if it can be opened here and has as many bytes as the client says."""
        cuda, loop = self._cuda(), asyncio.get_running_loop()
        if cuda is None:
            return None
        try:
            address = await asyncio.to_thread(cuda.open_handle, device, handle)
        except CudaFault:  # Triton may have more luck: its requests go alone
            return None

        def close(device: int, address: int) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends
                loop.call_soon_threadsafe(self._close, cuda, device, address)

        memory = ClientMemory(device, address, byte_size, close)
        try:
            extent = await asyncio.to_thread(cuda.extent, device, address)
        except CudaFault:
            return None
        return memory if extent >= byte_size else None

    async def closed(self) -> None:
        """Wait until everything is closed that nobody uses any more."""
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        loop.call_soon(turn.set_result, None)
        await turn  # closings that were asked for have begun
        await asyncio.gather(*self._closing, return_exceptions=True)

    def _close(self, cuda: Cuda, device: int, address: int) -> None:
        done = asyncio.get_running_loop().run_in_executor(None, cuda.close_handle, device, address)
        self._closing.add(done)
        done.add_done_callback(self._closed)

    def _closed(self, done: "asyncio.Future[None]") -> None:
        self._closing.discard(done)
        if not done.cancelled():
            done.exception()  # heard: the driver closes it with the process
