"""The pool in the real /dev/shm: a refusal instead of SIGBUS, and nothing left of the dead."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tritonsched.backend.shared_memory import SHM, SharedMemoryPool, remove_stale
from tritonsched.errors import StartupError

POOL_BYTES = 4 * 1024 * 1024
KILLS = 5
OWNER = """
import signal, subprocess, sys
from tritonsched.backend.shared_memory import SharedMemoryPool
pool = SharedMemoryPool(int(sys.argv[1]))
code = "import signal; signal.pause()"
child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
sys.stdout.write(f"{pool.name} {child.pid}\\n")
sys.stdout.flush()
signal.pause()
"""


@asynccontextmanager
async def owner() -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A process with a pool, and a child of its own that outlives it; and the pool's name."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", OWNER, str(POOL_BYTES), stdout=asyncio.subprocess.PIPE
    )
    child = 0
    try:
        assert process.stdout is not None
        name, child_pid = (await process.stdout.readline()).decode().split()
        child = int(child_pid)
        yield process, name
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        if child:
            os.kill(child, signal.SIGKILL)


def test_more_than_there_is_is_refused_with_numbers() -> None:
    """The kernel's own refusal, before a byte is written; nothing is left."""
    stat = os.statvfs(SHM)
    before = set(SHM.iterdir())
    with pytest.raises(StartupError, match=r"needs \d+ \(No space left on device\)") as caught:
        SharedMemoryPool(stat.f_frsize * (stat.f_blocks + 1))
    assert "docker: --shm-size" in str(caught.value)
    assert {path for path in SHM.iterdir() if path not in before} == set()


async def test_a_killed_sidecars_region_goes_with_the_next_start() -> None:
    """Every time, though a child of the dead one lives on, as an orphaned Triton may."""
    for _ in range(KILLS):
        async with owner() as (process, name):
            assert (SHM / name).stat().st_size == POOL_BYTES
            process.send_signal(signal.SIGKILL)
            await process.wait()
            assert (SHM / name).exists()
            SharedMemoryPool(POOL_BYTES).close()
            assert not (SHM / name).exists()


async def test_a_living_sidecars_region_stays() -> None:
    """Two sidecars may share a machine."""
    async with owner() as (_, name):
        assert name not in remove_stale()
        SharedMemoryPool(POOL_BYTES).close()
        assert (SHM / name).exists()
    assert name in remove_stale()
