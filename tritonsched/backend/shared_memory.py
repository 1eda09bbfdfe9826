"""One POSIX shared-memory region, leased in pieces. Rule: a piece belongs to one batch at a time.

Made with `posix_fallocate`, because writing into a full /dev/shm is SIGBUS and not an exception,
and with every page touched, because the first touch of a page on the hot path costs more than the
copy. The name carries this process' id, and the file is locked while the process lives, so that a
later start can tell a dead sidecar's region from a living one's, whatever became of the process id.
"""

import fcntl
import mmap
import os
import secrets
from bisect import insort
from pathlib import Path

from tritonsched.errors import StartupError

SHM = Path("/dev/shm")  # noqa: S108  # the place of POSIX shared memory on Linux
PREFIX = "tritonsched-"
ALIGN = 64  # a cache line: rows of two batches never share one
POOL_BYTES_MAX = 256 * 1024 * 1024
POOL_SHARE = 0.25  # of the file system, unless the policy file says otherwise
POOL_BYTES_MIN = 64 * 1024
_PAGE = 4096


class Lease:
    """A piece of the region. view: its bytes; offset: where it begins in the region."""

    __slots__ = ("_pool", "byte_size", "offset", "view")

    def __init__(self, pool: "SharedMemoryPool", offset: int, byte_size: int) -> None:
        self._pool: SharedMemoryPool | None = pool
        self.offset = offset
        self.byte_size = byte_size
        self.view = pool.slice(offset, byte_size)

    def release(self) -> None:
        """Give the piece back. Only once Triton is known to be done with it, and only once."""
        assert self._pool is not None, "lease released twice"
        pool, self._pool = self._pool, None
        self.view.release()
        pool.give_back(self.offset, self.byte_size)


class SharedMemoryPool:
    """The region and who holds which piece of it; O(free pieces) a lease.

    byte_size: of the region; None takes 25 % of the file system, at most 256 MiB.
    Raises StartupError if there is not that much room.
    """

    def __init__(self, byte_size: int | None = None, *, directory: Path = SHM) -> None:
        remove_stale(directory)
        size = _aligned(byte_size or default_size(directory), _PAGE)
        self.name = f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
        self.path = directory / self.name
        self.byte_size = size
        self.in_use = 0
        self._file = _make(self.path, size)
        self._map = mmap.mmap(self._file, size)
        for offset in range(0, size, _PAGE):
            self._map[offset] = 0
        self._memory = memoryview(self._map)
        self._free = [(0, size)]

    @property
    def key(self) -> str:
        """What `shm_open` calls the region; Triton is told this."""
        return f"/{self.name}"

    def lease(self, byte_size: int) -> Lease | None:
        """A piece of at least `byte_size` bytes (first fit); None if there is no room now."""
        size = _aligned(max(1, byte_size), ALIGN)
        for index, (offset, length) in enumerate(self._free):
            if length >= size:
                rest = length - size
                self._free[index : index + 1] = [(offset + size, rest)] if rest else []
                self.in_use += size
                return Lease(self, offset, byte_size)
        return None

    def slice(self, offset: int, byte_size: int) -> memoryview:
        """The region's bytes; for leases."""
        return self._memory[offset : offset + byte_size]

    def give_back(self, offset: int, byte_size: int) -> None:
        """A lease's piece is free again and joins its free neighbours; for leases."""
        size = _aligned(max(1, byte_size), ALIGN)
        self.in_use -= size
        insort(self._free, (offset, size))
        index = self._free.index((offset, size))
        if index + 1 < len(self._free) and offset + size == self._free[index + 1][0]:
            size += self._free.pop(index + 1)[1]
            self._free[index] = (offset, size)
        if index and sum(self._free[index - 1]) == offset:
            first, length = self._free[index - 1]
            self._free[index - 1 : index + 1] = [(first, length + size)]

    def close(self) -> None:
        """Remove the region; leases still out keep their memory mapped until they are dropped."""
        self.path.unlink(missing_ok=True)
        try:
            self._memory.release()
            self._map.close()
        except BufferError:
            pass  # a batch that never came back holds a view; the process' end unmaps it
        os.close(self._file)


def default_size(directory: Path = SHM) -> int:
    """25 % of the file system, at most 256 MiB."""
    stat = os.statvfs(directory)
    return max(POOL_BYTES_MIN, min(POOL_BYTES_MAX, int(stat.f_frsize * stat.f_blocks * POOL_SHARE)))


def remove_stale(directory: Path = SHM) -> list[str]:
    """Remove regions of sidecars that are gone (nobody holds their lock); returns their names."""
    removed = []
    for path in sorted(directory.glob(f"{PREFIX}*-*")):
        try:
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue  # another user's, or just removed
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
            removed.append(path.name)
        except OSError:
            pass  # its sidecar lives
        finally:
            os.close(file)
    return removed


def _make(path: Path, size: int) -> int:
    file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        os.close(file)
        path.unlink(missing_ok=True)
        stat = os.statvfs(path.parent)
        room = stat.f_frsize * stat.f_bavail
        raise StartupError(
            f"shared memory: {path.parent} has {room} bytes left and the pool needs {size} "
            f"({error.strerror}); enlarge it (docker: --shm-size), set transport.pool_mib, "
            "or use --transport inline"
        ) from error
    return file


def _aligned(size: int, grain: int) -> int:
    return -(-size // grain) * grain
