"""Pools in GPUs' memory and their life with Triton: made, proven, registered, given up, freed.

Rule: CUDA shared memory is used where it has shown that it works, and nowhere else. At each
`connect` every GPU that a model runs on gets a pool: bytes go there and come back, Triton opens
the handle and shows it. Then the first batch decides: if it fails there and is well without, that
GPU goes without until the next `connect`, and so it does when one of our own copies fails.

A batch whose connection broke may still be executed, so its pool is retired by the next `connect`;
it is freed when Triton has closed it, not before (`cuda_memory`).
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from tritonsched.backend.control import Control
from tritonsched.backend.cuda import Cuda, device_number
from tritonsched.backend.cuda_clients import ClientMemories
from tritonsched.backend.cuda_memory import CudaPool
from tritonsched.backend.leases import LeasedMemory
from tritonsched.backend.shared_memory import is_region_name
from tritonsched.errors import BackendError, CudaFault, StartupError, TritonUnavailable

Transport = Literal["auto", "cuda", "system", "inline"]
POOL_BYTES = 64 * 1024 * 1024  # of each GPU, and as much page-locked memory of the host
RETIRED_MAX = 2  # pools that Triton does not close yet; beyond, no new one is made


class CudaRegions:
    """The pools of one backend.

    transport: cuda needs every GPU of a model to work; auto takes those that do; the others use
    none. byte_size: of each pool. load: gives CUDA, or raises CudaFault.
    clients: opens clients' memory on them. registrations: how often Triton was told. info: what
    became of it, for a person; empty if no model runs on a GPU.
    """

    def __init__(
        self, control: Control, transport: Transport, byte_size: int, load: Callable[[], Cuda]
    ) -> None:
        self._control = control
        self._transport = transport
        self._byte_size = byte_size
        self._load = load
        self._pools: dict[int, CudaPool] = {}
        self._given_up: dict[int, str] = {}
        self._trusted: set[int] = set()
        self._retired: list[CudaPool] = []
        self._freed: list[CudaPool] = []
        self._registering = asyncio.Lock()
        self.cuda: Cuda | None = None
        self.clients = ClientMemories(lambda: self.cuda if self._pools else None)
        self.registrations = 0

    @property
    def is_wanted(self) -> bool:
        """Whether GPUs are to be looked for at all."""
        return self._transport in ("auto", "cuda")

    @property
    def info(self) -> str:
        """`CUDA shared memory on gpu:0, 64 MiB each`, and what does not work."""
        words = []
        if self._pools:
            names = ", ".join(f"gpu:{device}" for device in sorted(self._pools))
            size = max(pool.byte_size for pool in self._pools.values())
            words.append(f"cuda shared memory on {names}, {size / 2**20:g} MiB each")
        for device, reason in sorted(self._given_up.items()):
            words.append(f"no CUDA shared memory on gpu:{device}: {reason}")
        return "; ".join(words)

    @property
    def in_use_bytes(self) -> int:
        """Device memory that batches hold, quarantined pieces included."""
        return sum(pool.in_use_bytes for pool in self._pools.values())

    def pool(self, label: str) -> CudaPool | None:
        """What batches of a scheduler's device may use now; None: they go another way."""
        device = device_number(label) if self._pools else None
        return None if device is None else self._pools.get(device)

    def is_trusted(self, pool: LeasedMemory) -> bool:
        """A batch came back well from there."""
        return isinstance(pool, CudaPool) and pool.device in self._trusted

    def trust(self, pool: LeasedMemory) -> None:
        """A batch came back well from there."""
        if isinstance(pool, CudaPool):
            self._trusted.add(pool.device)

    def give_up(self, pool: LeasedMemory, reason: str) -> None:
        """Nothing new goes there until the next `connect`. What is out stays valid."""
        if isinstance(pool, CudaPool) and self._pools.get(pool.device) is pool:
            del self._pools[pool.device]
            self._retired.append(pool)
            self._given_up[pool.device] = reason

    async def connect(self, labels: Iterable[str]) -> None:
        """Prepare the GPUs among the scheduler's devices for a Triton that has just come up.

        Raises TritonUnavailable; with transport cuda also StartupError, which names the fault.
        """
        devices = _devices_of(labels) if self.is_wanted else []
        self._given_up.clear()
        self._trusted.clear()
        async with self._registering:
            await self._forget_retired()
            for device in devices:
                await self._try(device)
            for device in set(self._pools) - set(devices):
                self._retire(device)
            await self._forget_retired()
            await self._forget_stale()
        if self._transport == "cuda" and (self._given_up or not self._pools):
            raise StartupError(f"transport cuda: {self.info or 'no model runs on a GPU'}")

    async def prepare(self, labels: Iterable[str]) -> None:
        """GPUs that were not seen at `connect`, if they can be used. Raises TritonUnavailable."""
        devices = _devices_of(labels) if self.is_wanted else []
        if any(device not in self._pools and device not in self._given_up for device in devices):
            async with self._registering:
                for device in devices:
                    if device not in self._pools and device not in self._given_up:
                        await self._try(device)

    async def register_again(self, seen: int) -> None:
        """Register, unless another batch has done so since registration number `seen`.

        A GPU that Triton refuses goes without. Raises TritonUnavailable.
        """
        async with self._registering:
            if self.registrations == seen:
                for pool in tuple(self._pools.values()):
                    try:
                        await self._register(pool)
                    except BackendError as error:
                        self.give_up(pool, str(error))

    async def close(self) -> None:
        """Free everything. Triton may be gone already."""
        await self.clients.closed()
        for device in tuple(self._pools):
            self._retire(device)
        with contextlib.suppress(TritonUnavailable):
            await self._forget_retired()
        for pool in tuple(self._retired):  # Triton is gone, or will not close it: we end anyway
            self._free(pool)
        await asyncio.gather(*(pool.closed() for pool in self._freed if not pool.has_answers))

    async def _try(self, device: int) -> None:
        """A pool there, or the reason why not. Raises TritonUnavailable."""
        try:
            await self._prepare(device)
        except BackendError as error:
            self._retire(device)
            self._given_up[device] = str(error)

    async def _prepare(self, device: int) -> None:
        """A proven and registered pool. Raises BackendError, TritonUnavailable."""
        if self.cuda is None:
            self.cuda = await asyncio.to_thread(self._load)
        pool = self._pools.get(device)
        if pool is not None and pool.quarantined:
            self._retire(device)
            pool = None
        if pool is None:
            if len(self._retired) >= RETIRED_MAX:
                raise CudaFault("Triton still holds pools of before; it closes them when it can")
            loop, size = asyncio.get_running_loop(), self._byte_size
            pool = await asyncio.to_thread(CudaPool, self.cuda, device, size, loop)
            self._pools[device] = pool
        await self._register(pool)

    def _retire(self, device: int) -> None:
        pool = self._pools.pop(device, None)
        if pool is not None:
            self._retired.append(pool)

    async def _register(self, pool: CudaPool) -> None:
        await self._control.register_cuda(
            name=pool.name, handle=pool.handle, device=pool.device, byte_size=pool.byte_size
        )
        self.registrations += 1

    async def _forget_retired(self) -> None:
        """Have Triton close retired pools, and free those that it has closed."""
        for pool in tuple(self._retired):
            with contextlib.suppress(BackendError):
                await self._control.unregister_cuda(pool.name)
        open_there = await self._open_there() if self._retired else set()
        for pool in tuple(self._retired):
            if pool.name not in open_there:
                self._free(pool)

    async def _forget_stale(self) -> None:
        """Have Triton close pools of sidecars that are gone: until then the GPU's memory is taken.

        Only once it has opened ours: then it is in our pid namespace, and so were they.
        """
        for name in await self._open_there() if self._pools else ():
            if is_region_name(name) and not _is_alive(name):
                with contextlib.suppress(BackendError):
                    await self._control.unregister_cuda(name)

    def _free(self, pool: CudaPool) -> None:
        """Triton has closed it. It is gone once its last answer was read, in a thread."""
        self._retired.remove(pool)
        self._freed = [other for other in self._freed if not other.is_gone]
        self._freed.append(pool)
        pool.close()

    async def _open_there(self) -> set[str]:
        try:
            return set(await self._control.cuda_status())
        except BackendError:  # a Triton without CUDA has nothing open
            return set()


def _is_alive(name: str) -> bool:
    """Whether the process that made a pool of this name still runs."""
    return Path("/proc", name.split("-")[1]).exists()


def _devices_of(labels: Iterable[str]) -> list[int]:
    return sorted({device for device in map(device_number, labels) if device is not None})
