"""The pool's life with Triton: made, registered, registered again, replaced, removed.

Rule: a piece of shared memory is used again only when Triton is known to be done with it. A batch
whose connection broke may still be executed, so its pieces are put aside (quarantine, bounded by
the pool), and the next `connect` makes a new region instead of reusing the old one.

A client can make Triton forget all regions with one call, so registering can be repeated at any
time (observed on Triton 2.51: "Unable to find shared memory region").
"""

import asyncio
import contextlib
from pathlib import Path
from typing import Literal

from tritonsched.backend.control import Control
from tritonsched.backend.leases import Lease
from tritonsched.backend.shared_memory import SharedMemoryPool, is_region_name
from tritonsched.errors import BackendError, StartupError, TritonUnavailable

SystemTransport = Literal["auto", "system", "inline"]


class Region:
    """The one region of a backend, and whether Triton has it.

    transport: system needs shared memory; inline never uses it; auto uses it if Triton can open
    our region, which it can only on this host. pool_bytes: its size, None for the default.
    registrations: how often Triton was told of it. info: one line for a person.
    Raises StartupError if system, or auto with pool_bytes, finds no such room.
    """

    def __init__(
        self, control: Control, transport: SystemTransport, pool_bytes: int | None, directory: Path
    ) -> None:
        self._control = control
        self._transport = transport
        self._pool_bytes = pool_bytes
        self._directory = directory
        self._pool: SharedMemoryPool | None = None
        self._is_registered = False
        self._registering = asyncio.Lock()
        self._retired: set[str] = set()
        self._quarantine: list[Lease] = []
        self.registrations = 0
        self.info = "inline (not connected yet)"
        if transport == "system" or (transport == "auto" and pool_bytes is not None):
            self._pool = self._make()

    def _make(self) -> SharedMemoryPool:
        return SharedMemoryPool(self._pool_bytes, directory=self._directory)

    @property
    def pool(self) -> SharedMemoryPool | None:
        """What batches may use now; None: go inline."""
        return self._pool if self._is_registered else None

    @property
    def in_use_bytes(self) -> int:
        """Shared memory that batches hold, quarantined ones included."""
        return self._pool.in_use_bytes if self._pool else 0

    @property
    def quarantined(self) -> int:
        """Pieces put aside because their batch's connection broke."""
        return len(self._quarantine)

    def quarantine(self, lease: Lease) -> None:
        """Triton may still use this piece, and will not say when it has finished."""
        if self._pool is not None and lease.belongs_to(self._pool):
            self._quarantine.append(lease)

    async def connect(self) -> None:
        """Make a Triton that has just come up know the region.

        Raises TritonUnavailable; with transport system also BackendError or StartupError.
        """
        self._is_registered = False
        if self._transport == "inline":
            self.info = "inline (gRPC bytes)"
            return
        try:
            async with self._registering:
                pool = await self._usable()
                await self._register(pool)
        except (BackendError, StartupError) as error:
            if self._transport == "system":
                raise
            self._retire()
            self.info = f"inline (no shared memory: {error})"
            return
        self.info = f"system shared memory, {pool.byte_size / 2**20:g} MiB"
        await self._forget_stale(pool)

    async def register_again(self, seen: int) -> None:
        """Register, unless another batch has done so since registration number `seen`.

        If Triton refuses, batches go inline from now on. Raises TritonUnavailable.
        """
        async with self._registering:
            if self._pool is not None and self.registrations == seen:
                with contextlib.suppress(BackendError):
                    await self._register(self._pool)

    async def close(self) -> None:
        """Remove the region, here and in Triton, which may be gone already."""
        self._is_registered = False
        self._retire()
        with contextlib.suppress(TritonUnavailable):
            for name in sorted(self._retired):
                await self._unregister(name)
        self._retired.clear()

    async def _usable(self) -> SharedMemoryPool:
        """The pool, or a new one if batches of unknown fate may still use the old one."""
        if self._quarantine:
            self._retire()
        if self._pool is None:
            self._pool = await asyncio.to_thread(self._make)  # zeroing takes up to 0.1 s
        return self._pool

    def _retire(self) -> None:
        self._quarantine.clear()  # never reused: their region is not either
        if self._pool is not None:
            self._retired.add(self._pool.name)
            self._pool.close()
            self._pool = None

    async def _register(self, pool: SharedMemoryPool) -> None:
        self._is_registered = False
        await self._control.register_region(name=pool.name, key=pool.key, byte_size=pool.byte_size)
        self.registrations += 1
        self._is_registered = True

    async def _forget_stale(self, pool: SharedMemoryPool) -> None:
        """Unregister our older regions, and those of sidecars that are gone.

        Only once Triton has opened ours: before, it might look at another host's /dev/shm. What
        it refuses, because a batch still uses the region, the next `connect` tries again.
        """
        for name in await self._control.region_status():
            gone = is_region_name(name) and not (pool.path.parent / name).exists()
            if name in self._retired or gone:
                await self._unregister(name)
        self._retired.intersection_update(await self._control.region_status())

    async def _unregister(self, name: str) -> None:
        with contextlib.suppress(BackendError):
            await self._control.unregister_region(name)
