"""The pool on a GPU: pieces apart, copies in order, nothing freed too early, nothing left."""

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tritonsched.backend.cuda import GRAIN_BYTES, Stream
from tritonsched.backend.cuda_lane import Lane
from tritonsched.backend.cuda_memory import CudaPool
from tritonsched.backend.scripted_cuda import Fault, ScriptedCuda
from tritonsched.backend.shared_memory import is_region_name
from tritonsched.errors import CudaFault


@pytest.fixture
def cuda() -> ScriptedCuda:
    return ScriptedCuda()


async def made(cuda: ScriptedCuda, byte_size: int = 1) -> CudaPool:
    return await asyncio.to_thread(CudaPool, cuda, 0, byte_size, asyncio.get_running_loop())


@pytest.fixture
async def pool(cuda: ScriptedCuda) -> AsyncIterator[CudaPool]:
    made_pool = await made(cuda)
    yield made_pool
    made_pool.close()
    await made_pool.closed()
    assert cuda.held() == []


async def copied(pool: CudaPool, way: str, *runs: tuple[int, int]) -> CudaFault | None:
    told: asyncio.Future[CudaFault | None] = asyncio.get_running_loop().create_future()
    getattr(pool, way)(runs, (), told.set_result)
    return await told


async def test_its_memory_is_its_own_block_and_its_name_a_pools(pool: CudaPool) -> None:
    """CUDA hands out the whole block of 2 MiB with a handle."""
    assert pool.byte_size == GRAIN_BYTES
    assert is_region_name(pool.name)


async def test_bytes_go_up_and_come_down_at_the_same_offset(
    pool: CudaPool, cuda: ScriptedCuda
) -> None:
    first, lease = pool.lease(100), pool.lease(64)
    assert first is not None
    assert lease is not None
    lease.view[:] = bytes(range(64))
    assert await copied(pool, "upload", (lease.offset, 64)) is None
    assert cuda.read(pool.address(lease.offset), 64) == bytes(range(64))
    lease.view[:] = bytes(64)
    assert await copied(pool, "download", (lease.offset, 32)) is None
    assert bytes(lease.view) == bytes(range(32)) + bytes(32)
    first.release()
    lease.release()


async def test_copies_of_one_way_end_in_the_order_in_which_they_were_asked_for(
    pool: CudaPool,
) -> None:
    heard: list[int] = []
    last = asyncio.Event()
    for number in range(20):
        pool.upload([(64 * number, 64)], (), lambda _, n=number: heard.append(n))  # type: ignore[misc]
    pool.upload((), (), lambda _: last.set())
    await last.wait()
    assert heard == list(range(20))


async def test_a_failed_copy_is_told_and_the_next_one_done(
    pool: CudaPool, cuda: ScriptedCuda
) -> None:
    cuda.faults.add("copy-error")
    assert isinstance(await copied(pool, "upload", (0, 64)), CudaFault)
    cuda.faults.clear()
    assert await copied(pool, "upload", (0, 64)) is None
    assert isinstance(await copied(pool, "download", (GRAIN_BYTES, 64)), CudaFault)


@pytest.mark.parametrize(
    "fault", ["out-of-memory", "no-host", "no-handle", "copy-error", "wrong-bytes"]
)
async def test_a_pool_that_cannot_be_made_leaves_nothing(cuda: ScriptedCuda, fault: Fault) -> None:
    cuda.faults.add(fault)
    with pytest.raises(CudaFault):
        await made(cuda)
    assert cuda.held() == []


async def test_a_closed_pool_is_freed_when_its_last_answer_was_read(cuda: ScriptedCuda) -> None:
    """Quarantined pieces are not waited for: nobody reads them."""
    pool = await made(cuda)
    out, doubtful = pool.lease(64), pool.lease(64)
    assert out is not None
    assert doubtful is not None
    pool.quarantine(doubtful)
    pool.close()
    assert pool.has_answers
    out.view[:] = bytes(64)
    assert cuda.held()
    out.release()
    await pool.closed()
    assert cuda.held() == []


async def test_a_piece_of_another_pool_is_not_quarantined_here(
    pool: CudaPool, cuda: ScriptedCuda
) -> None:
    other = await made(cuda)
    piece = other.lease(64)
    assert piece is not None
    pool.quarantine(piece)
    assert pool.quarantined == 0
    piece.release()
    other.close()
    await other.closed()


async def test_a_mistake_of_ours_does_not_end_the_lane(cuda: ScriptedCuda) -> None:
    """Its batch hears of it and others go on."""
    lane = Lane(cuda.stream(0), asyncio.get_running_loop(), "test")
    heard: list[CudaFault | None] = []
    last = asyncio.Event()

    def broken(_: Stream) -> None:
        raise ZeroDivisionError

    lane.do(broken, heard.append)

    def ended(fault: CudaFault | None) -> None:
        heard.append(fault)
        last.set()

    lane.do(lambda _: None, ended)
    await last.wait()
    await asyncio.to_thread(lane.end)
    assert isinstance(heard[0], CudaFault)
    assert "ZeroDivisionError" in str(heard[0])
    assert heard[1] is None
    assert cuda.held() == []


@settings(max_examples=25)
@given(sizes=st.lists(st.integers(min_value=1, max_value=GRAIN_BYTES // 4), max_size=12))
def test_leases_never_overlap_and_all_of_them_come_back(sizes: list[int]) -> None:
    """As of the system pool: the same pieces."""

    async def scenario() -> None:
        cuda = ScriptedCuda()
        pool = await made(cuda)
        leases = [lease for lease in map(pool.lease, sizes) if lease is not None]
        ends = sorted((lease.offset, lease.offset + lease.byte_size) for lease in leases)
        assert all(a[1] <= b[0] for a, b in pairwise(ends))
        for lease in leases:
            lease.release()
        assert (pool.leases, pool.in_use_bytes) == (0, 0)
        pool.close()
        await pool.closed()
        assert cuda.held() == []

    asyncio.run(scenario())
