"""Clients' shared-memory regions, read and written for them in merged batches.

Rule: a system region is read and written through its file, never mapped. A client may shrink the
file at any time, and touching a mapping past its end is SIGBUS, which ends the process; `pread`
there is a short read and only that client's request fails. For the same reason a place is checked
against the file at every use. One copy by the kernel, as large as the one out of a mapping.

A region is opened when Triton has just opened it, not when it is first used: a client may unlink
its key and make another region of the same name. Who uses one holds it: unregistered, it stays
open until its last user is gone.

What is not known here (registered before the sidecar started, past the bound, on another host) is
no error: the request goes alone, as it came, and Triton reads the region itself. Regions on
GPUs are `client_cuda`.
"""

import contextlib
import os
import stat
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from tritonsched.backend.catalogue import ModelInfo
from tritonsched.backend.cuda_region import CudaRegions
from tritonsched.backend.shared_memory import SHM
from tritonsched.errors import RegionFault
from tritonsched.proxy.client_cuda import CudaClientRegion, reaches
from tritonsched.tensors import Buffer, InferCall, ShmRef

REGIONS_MAX = 512  # each is an open file, of which a process has 1024 by default
_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe must not block us

Regions = Mapping[str, "ClientRegion | CudaClientRegion"]
"""The regions that one request uses, by name."""


class ClientRegion:
    """A region as it was registered: `byte_size` bytes of its file from `offset` on.

    Raises OSError if there is no such file, ValueError if it is not one of that size.
    """

    __slots__ = ("_file", "byte_size", "offset")

    def __init__(self, path: Path, offset: int, byte_size: int) -> None:
        self._file = os.open(path, _FLAGS)
        self.offset = offset
        self.byte_size = byte_size
        if not stat.S_ISREG(os.fstat(self._file).st_mode) or not self.is_whole:
            raise ValueError(f"{path} is not a file of {offset + byte_size} bytes")

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):  # it was never opened
            os.close(self._file)

    @property
    def is_whole(self) -> bool:
        """Its file still has every byte that was registered."""
        return os.fstat(self._file).st_size >= self.offset + self.byte_size

    def holds(self, ref: ShmRef) -> bool:
        """Whether the place lies in what was registered."""
        return ref.offset + ref.byte_size <= self.byte_size

    def read(self, ref: ShmRef) -> bytes:
        """The bytes there now. Raises RegionFault if the file has fewer."""
        data = os.pread(self._file, ref.byte_size, self.offset + ref.offset)
        if len(data) != ref.byte_size:
            raise RegionFault(f"shared memory region '{ref.region}' was made smaller")
        return data

    def write(self, ref: ShmRef, data: Buffer) -> None:
        """Put the bytes there. Raises RegionFault if they do not fit, or the file is smaller."""
        if len(data) > ref.byte_size or not self.is_whole:
            raise RegionFault(f"shared memory region '{ref.region}' has no {len(data)} bytes there")
        try:
            written = os.pwrite(self._file, data, self.offset + ref.offset)
        except OSError as error:
            raise RegionFault(f"shared memory region '{ref.region}': {error.strerror}") from error
        if written != len(data):
            raise RegionFault(f"shared memory region '{ref.region}' took {written} bytes only")


class ClientRegions:
    """What clients have registered through this sidecar.

    is_local: Triton is known to have our /dev/shm, so that a key means the same to both.
    directory: where POSIX shared memory is. cuda: the pools on GPUs, if there may be any.
    """

    def __init__(
        self,
        *,
        is_local: Callable[[], bool],
        directory: Path = SHM,
        cuda: CudaRegions | None = None,
    ) -> None:
        self._is_local = is_local
        self._directory = directory
        self._cuda = cuda
        self._regions: dict[str, ClientRegion | CudaClientRegion] = {}
        self._opening: dict[str, object] = {}

    def __len__(self) -> int:
        return len(self._regions)

    def registered(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Triton has just opened the region. What cannot be opened here is not remembered."""
        self._regions.pop(name, None)
        file_name = key.partition("\0")[0].lstrip("/")  # as shm_open reads it
        if "/" in file_name or file_name in ("", ".", ".."):
            return
        if len(self._regions) >= REGIONS_MAX or not self._is_local():
            return
        with contextlib.suppress(OSError, ValueError):
            self._regions[name] = ClientRegion(self._directory / file_name, offset, byte_size)

    async def registered_cuda(self, name: str, handle: bytes, device: int, byte_size: int) -> None:
        """As `registered`, for memory of GPU `device` that Triton has just opened by its handle."""
        self._regions.pop(name, None)
        if self._cuda is None or len(self._regions) + len(self._opening) >= REGIONS_MAX:
            return
        mine = self._opening[name] = object()
        memory = await self._cuda.clients.open(device, handle, byte_size)
        if self._opening.get(name) is mine:  # else it was closed meanwhile, or is another's
            del self._opening[name]
            if memory is not None:
                self._regions[name] = CudaClientRegion(memory)

    def unregistered(self, name: str) -> None:
        """Triton has closed the region; requests that use it keep it until they are answered."""
        self._regions.pop(name, None)
        self._opening.pop(name, None)

    def forget(self) -> None:
        """Triton is another process."""
        self._regions.clear()
        self._opening.clear()

    def forget_all(self, *, cuda: bool) -> None:
        """Triton has closed all of this kind."""
        if cuda:
            self._opening.clear()
        for name, region in tuple(self._regions.items()):
            if isinstance(region, CudaClientRegion) is cuda:
                del self._regions[name]

    def lone_reason(self, call: InferCall, info: ModelInfo, regions: Regions) -> str:
        """Why a call with these known regions cannot be merged; empty if it can."""
        if not hold_all(regions, call.refs):
            return "region-unknown"
        if not any(isinstance(region, CudaClientRegion) for region in regions.values()):
            return ""
        there = [n for n, r in call.output_refs if isinstance(regions[r.region], CudaClientRegion)]
        return "" if reaches(info, there, self._has_pool) else "region-device"

    def _has_pool(self, device: str) -> bool:
        return self._cuda is not None and self._cuda.pool(device) is not None

    def named(self, names: Collection[str]) -> Regions:
        """Those of a request's regions that are known, for as long as it needs them."""
        return {name: self._regions[name] for name in names if name in self._regions}


def hold_all(regions: Regions, refs: Iterable[ShmRef]) -> bool:
    """Whether every place lies in a known region; otherwise Triton has to word what is wrong."""
    return all(ref.region in regions and regions[ref.region].holds(ref) for ref in refs)
