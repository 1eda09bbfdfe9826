"""One POSIX shared-memory region, leased in pieces. Rule: a piece belongs to one batch at a time.

Made with `posix_fallocate`, because writing into a full /dev/shm is SIGBUS and not an exception,
and with every page mapped beforehand, because the first touch of a page costs more than the copy
into it. The file is locked (flock) while its sidecar lives, so that a later start can tell a dead
sidecar's region from a living one's, whatever became of the process id in its name.

Cost: O(free pieces) a lease and a release; neighbours join, so free pieces <= leases + 1.
"""

import contextlib
import fcntl
import mmap
import os
import re
import secrets
from bisect import bisect
from pathlib import Path

from tritonsched.errors import StartupError

SHM = Path("/dev/shm")  # noqa: S108  # the place of POSIX shared memory on Linux
ALIGN = 64  # a cache line: rows of two batches never share one
POOL_BYTES_MAX = 256 * 1024 * 1024
POOL_SHARE = 0.25  # of the file system, unless the policy file says otherwise
POOL_BYTES_MIN = 64 * 1024
_PAGE = mmap.PAGESIZE
_PREFIX = "tritonsched-"
# The embedded Triton's own regions begin alike; a pid and eight digits, then the end, are ours.
_NAME = re.compile(r"tritonsched-\d+-[0-9a-f]{8}")


class Lease:
    """A piece of the region. view: its bytes; offset: where it begins in the region."""

    __slots__ = ("_pool", "byte_size", "offset", "view")

    def __init__(self, pool: "SharedMemoryPool", offset: int, byte_size: int) -> None:
        self._pool: SharedMemoryPool | None = pool
        self.offset = offset
        self.byte_size = byte_size
        self.view = pool.slice(offset, byte_size)

    def belongs_to(self, pool: "SharedMemoryPool") -> bool:
        """Whether it is an unreleased piece of that pool."""
        return self._pool is pool

    def release(self) -> None:
        """Give the piece back. Only once Triton is known to be done with it, and only once."""
        assert self._pool is not None, "lease released twice"
        pool, self._pool = self._pool, None
        self.view.release()
        pool.give_back(self.offset, self.byte_size)


class SharedMemoryPool:
    """The region, and which pieces of it are free.

    byte_size: of the region; None takes 25 % of the file system, at most 256 MiB.
    in_use_bytes, leases: what is out now. Raises StartupError if there is not that much room.
    """

    def __init__(self, byte_size: int | None = None, *, directory: Path = SHM) -> None:
        remove_stale(directory)
        size = aligned(default_bytes(directory) if byte_size is None else byte_size, _PAGE)
        self.path, self._file = _make(directory, size)
        self.byte_size = size
        self.in_use_bytes = 0
        self.leases = 0
        flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
        self._map = mmap.mmap(self._file, size, flags=flags)
        self._memory = memoryview(self._map)
        self._free = [(0, size)]

    @property
    def name(self) -> str:
        """What the region is called in Triton."""
        return self.path.name

    @property
    def key(self) -> str:
        """What `shm_open` calls the region."""
        return f"/{self.path.name}"

    def lease(self, byte_size: int) -> Lease | None:
        """A piece of `byte_size` >= 1 bytes at a multiple of 64; None if there is no room now."""
        assert byte_size > 0, "a lease of nothing"
        size = aligned(byte_size, ALIGN)
        for index, (offset, length) in enumerate(self._free):
            if length >= size:
                rest = length - size
                self._free[index : index + 1] = [(offset + size, rest)] if rest else []
                self.in_use_bytes += size
                self.leases += 1
                return Lease(self, offset, byte_size)
        return None

    def slice(self, offset: int, byte_size: int) -> memoryview:
        """The region's bytes; for leases."""
        return self._memory[offset : offset + byte_size]

    def give_back(self, offset: int, byte_size: int) -> None:
        """A lease's piece is free again and joins its free neighbours; for leases."""
        size = aligned(byte_size, ALIGN)
        self.in_use_bytes -= size
        self.leases -= 1
        start, end = offset, offset + size
        first = last = bisect(self._free, (offset, size))
        if first > 0 and sum(self._free[first - 1]) == start:
            first -= 1
            start = self._free[first][0]
        if last < len(self._free) and self._free[last][0] == end:
            end = sum(self._free[last])
            last += 1
        self._free[first:last] = [(start, end - start)]

    def close(self) -> None:
        """Remove the region. Leases still out keep their memory mapped until they are dropped."""
        self.path.unlink(missing_ok=True)
        with contextlib.suppress(BufferError):  # a lease is out: unmapped with its last view
            self._memory.release()
            self._map.close()
        with contextlib.suppress(OSError):  # closed before
            os.close(self._file)
        self._file = -1


def default_bytes(directory: Path = SHM) -> int:
    """25 % of the file system, at most 256 MiB."""
    stat = os.statvfs(directory)
    share = int(stat.f_frsize * stat.f_blocks * POOL_SHARE)
    return max(POOL_BYTES_MIN, min(POOL_BYTES_MAX, share))


def is_region_name(name: str) -> bool:
    """Whether a sidecar's pool is called so."""
    return _NAME.fullmatch(name) is not None


def remove_stale(directory: Path = SHM) -> list[str]:
    """Remove the regions of sidecars that are gone: nobody holds their lock. Returns their names.

    Another user's regions cannot be opened and stay.
    """
    removed = []
    for path in sorted(directory.glob(f"{_PREFIX}*")):
        if not is_region_name(path.name):
            continue
        try:
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue
        with contextlib.suppress(BlockingIOError):  # its sidecar lives
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
            removed.append(path.name)
        os.close(file)
    return removed


def aligned(size: int, grain: int) -> int:
    """The next multiple of `grain`."""
    return -(-size // grain) * grain


def _make(directory: Path, size: int) -> tuple[Path, int]:
    """A new locked file of that size, and its descriptor."""
    while True:
        path = directory / f"{_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        if _locked(file, path):
            break
        os.close(file)
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        path.unlink(missing_ok=True)
        os.close(file)
        stat = os.statvfs(directory)
        raise StartupError(
            f"shared memory: {directory} has {stat.f_frsize * stat.f_bavail} bytes left and the "
            f"pool needs {size} ({error.strerror}); enlarge it (docker: --shm-size), lower "
            "transport.pool_mib, or use --transport inline"
        ) from error
    return path, file


def _locked(file: int, path: Path) -> bool:
    """Lock a file just made. False if another start took it for a dead sidecar's in between."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return path.exists()
