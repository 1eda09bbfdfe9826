"""One POSIX shared-memory region, leased in pieces (`leases`). Rule: it is ours, and dies with us.

Made with `posix_fallocate`, because writing into a full /dev/shm is SIGBUS and not an exception,
and with every page mapped beforehand, because the first touch of a page costs more than the copy
into it. The file is locked (flock) while its sidecar lives, so that a later start can tell a dead
sidecar's region from a living one's, whatever became of the process id in its name.
"""

import contextlib
import fcntl
import mmap
import os
import re
import secrets
from pathlib import Path

from tritonsched.backend.leases import LeasedMemory, aligned
from tritonsched.errors import StartupError

SHM = Path("/dev/shm")  # noqa: S108  # the place of POSIX shared memory on Linux
POOL_BYTES_MAX = 256 * 1024 * 1024
POOL_SHARE = 0.25  # of the file system, unless the policy file says otherwise
POOL_BYTES_MIN = 64 * 1024
_PAGE = mmap.PAGESIZE
_PREFIX = "tritonsched-"
# The embedded Triton's own regions begin alike; a pid and eight digits, then the end, are ours.
_NAME = re.compile(r"tritonsched-\d+-[0-9a-f]{8}")


class SharedMemoryPool(LeasedMemory):
    """The region, and which pieces of it are free.

    byte_size: of the region; None takes 25 % of the file system, at most 256 MiB.
    Raises StartupError if there is not that much room.
    """

    def __init__(self, byte_size: int | None = None, *, directory: Path = SHM) -> None:
        remove_stale(directory)
        size = aligned(default_bytes(directory) if byte_size is None else byte_size, _PAGE)
        self.path, self._file = _make(directory, size)
        self.name = self.path.name  # what the region is called in Triton
        flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
        self._map = mmap.mmap(self._file, size, flags=flags)
        super().__init__(memoryview(self._map))

    @property
    def key(self) -> str:
        """What `shm_open` calls the region."""
        return f"/{self.path.name}"

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
