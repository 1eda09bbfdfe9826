"""A GPU's pool and its life with Triton: what does not work is left out, what is in doubt freed
late, and nothing stays. The GPU is scripted.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.backend.contract import batch, executed, outputs_of, row
from tests.unit.backend.cuda_stage import CudaStage, on_gpu, staged
from tests.unit.backend.fake_triton import Refusal
from tritonsched.backend.scripted_cuda import Fault
from tritonsched.errors import BackendError, StartupError, TritonUnavailable


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[CudaStage]:
    async with staged(tmp_path) as made:
        yield made


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("out-of-memory", "cudaErrorMemoryAllocation"),
        ("no-host", "cudaHostAlloc"),
        ("no-handle", "cudaErrorNotSupported"),
        ("ipc-refused", "failed to open CUDA IPC handle"),
        ("copy-error", "as the script says"),
        ("wrong-bytes", "other bytes"),
    ],
)
async def test_a_gpu_that_does_not_pass_is_left_out_with_its_reason(
    tmp_path: Path, fault: Fault, words: str
) -> None:
    """System shared memory carries on."""
    async with staged(tmp_path, fault) as stage:
        assert stage.backend.transport_word == "system"
        assert words in stage.backend.transport_info
        await outputs_of(stage.backend, on_gpu(batch(row(0))))
        assert (stage.backend.batches_cuda, stage.backend.batches_shm) == (0, 1)


async def test_without_bindings_it_is_said_what_to_install(tmp_path: Path) -> None:
    stage = CudaStage(tmp_path, faults=set())
    stage.is_installed = False
    await stage.backend.connect()
    assert "not installed" in stage.backend.transport_info
    await stage.backend.close()


async def test_a_triton_without_gpus_is_not_asked_for_any(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.grpc.calls.clear()
        stage.grpc.echo_gpus = []
        await stage.backend.connect()
        assert stage.backend.cuda.info == ""
        assert "CudaSharedMemoryRegister" not in stage.grpc.calls


@pytest.mark.parametrize("transport", ["system", "inline"])
async def test_other_transports_leave_gpus_alone(tmp_path: Path, transport: str) -> None:
    async with staged(tmp_path, transport=transport) as stage:
        await outputs_of(stage.backend, on_gpu(batch(row(0))))
        assert stage.backend.batches_cuda == 0
        assert not any(call.startswith("Cuda") for call in stage.grpc.calls)


async def test_transport_cuda_needs_it_to_work(tmp_path: Path) -> None:
    stage = CudaStage(tmp_path, transport="cuda", faults={"ipc-refused"})
    with pytest.raises(StartupError, match="transport cuda: no CUDA shared memory on gpu:0"):
        await stage.backend.connect()
    stage.grpc.echo_gpus = []
    with pytest.raises(StartupError, match="no model runs on a GPU"):
        await stage.backend.connect()
    await stage.backend.close()
    assert stage.held() == []


async def test_a_copy_that_fails_on_the_way_there_costs_only_the_gpu(stage: CudaStage) -> None:
    """Triton has not heard of the batch: it goes through shared memory."""
    stage.cuda.faults.add("copy-error")
    assert await outputs_of(stage.backend, on_gpu(batch(row(3)))) == [("OUTPUT", (1, 4), row(3))]
    assert len(stage.grpc.requests) == 1
    assert "no CUDA shared memory on gpu:0" in stage.backend.transport_info
    assert stage.backend.transport_word == "system"


async def test_a_copy_that_fails_on_the_way_back_fails_the_batch(stage: CudaStage) -> None:
    """It was executed; the driver sends its members alone. The next ones go another way."""

    def fail_from_now() -> None:
        stage.cuda.faults.add("copy-error")

    stage.grpc.before_infer = fail_from_now
    with pytest.raises(BackendError, match="as the script says"):
        await executed(stage.backend, on_gpu(batch(row(0))))
    await outputs_of(stage.backend, on_gpu(batch(row(0))))
    assert stage.backend.batches_shm == 1


async def test_after_the_next_connect_the_gpu_has_another_chance(stage: CudaStage) -> None:
    stage.cuda.faults.add("copy-error")
    await outputs_of(stage.backend, on_gpu(batch(row(3))))
    stage.cuda.faults.clear()
    await stage.backend.connect()
    await outputs_of(stage.backend, on_gpu(batch(row(3))))
    assert (stage.backend.batches_cuda, stage.backend.transport_word) == (2, "cuda")
    assert len(stage.grpc.cuda_regions) == 1


async def test_a_first_batch_that_comes_back_unwritten_gives_the_gpu_up(stage: CudaStage) -> None:
    """Triton opened the handle and writes elsewhere: what is well without it, is its fault."""
    stage.grpc.writes = False
    real = stage.grpc.edit

    def write_the_second(answer: object) -> None:
        stage.grpc.writes = True
        real(answer)

    stage.grpc.edit = write_the_second
    assert await outputs_of(stage.backend, on_gpu(batch(row(5)))) == [("OUTPUT", (1, 4), row(5))]
    assert "the first batch failed there" in stage.backend.transport_info
    assert stage.backend.batches_shm == 1


async def test_a_first_batch_that_fails_anyway_is_not_the_gpus_fault(stage: CudaStage) -> None:
    with pytest.raises(BackendError, match="nowhere"):
        await executed(stage.backend, on_gpu(batch(row(0), model="nowhere")))
    await outputs_of(stage.backend, on_gpu(batch(row(0))))
    assert stage.backend.transport_word == "cuda"


async def test_a_trusted_gpu_keeps_its_failures(stage: CudaStage) -> None:
    """What fails there later is not tried twice here: the driver takes it apart."""
    await outputs_of(stage.backend, on_gpu(batch(row(0))))
    with pytest.raises(BackendError):
        await executed(stage.backend, on_gpu(batch(row(0), model="nowhere")))
    assert len(stage.grpc.requests) == 2


async def test_a_region_that_was_forgotten_is_registered_again(stage: CudaStage) -> None:
    """Any client can close everybody's regions with one call."""
    for address, device, _ in stage.grpc.cuda_regions.values():
        stage.there.close_handle(device, address)
    stage.grpc.cuda_regions.clear()
    await outputs_of(stage.backend, on_gpu(batch(row(0))))
    assert stage.backend.transport_word == "cuda"
    assert len(stage.grpc.cuda_regions) == 1


async def test_a_forgotten_region_that_triton_refuses_is_given_up(stage: CudaStage) -> None:
    await outputs_of(stage.backend, on_gpu(batch(row(0))))
    for address, device, _ in stage.grpc.cuda_regions.values():
        stage.there.close_handle(device, address)
    stage.grpc.cuda_regions.clear()
    stage.cuda.faults.add("ipc-refused")
    await outputs_of(stage.backend, on_gpu(batch(row(0))))
    assert stage.backend.transport_word == "system"


async def broken_with_a_batch_out(stage: CudaStage) -> None:
    stage.grpc.hold.clear()
    out = asyncio.ensure_future(executed(stage.backend, on_gpu(batch(row(0)))))
    while not stage.grpc.requests:
        await asyncio.wait({out}, timeout=0)
    stage.grpc.is_up = False
    stage.grpc.hold.set()
    with pytest.raises(TritonUnavailable):
        await out
    stage.grpc.is_up = True


async def test_memory_of_a_broken_batch_is_freed_when_triton_has_closed_it(
    stage: CudaStage,
) -> None:
    """Not before: Triton may still write there."""
    (old,) = stage.grpc.cuda_regions
    await broken_with_a_batch_out(stage)
    stage.grpc.in_use.add(old)
    await stage.backend.connect()
    assert len(stage.grpc.cuda_regions) == 2
    assert len([line for line in stage.cuda.held() if "of GPU" in line]) == 2
    stage.grpc.in_use.clear()
    await stage.backend.connect()
    assert old not in stage.grpc.cuda_regions
    await outputs_of(stage.backend, on_gpu(batch(row(0))))


async def test_pools_that_triton_does_not_close_are_bounded(stage: CudaStage) -> None:
    """Beyond the bound the GPU goes without, instead of filling up."""
    for _ in range(4):
        stage.grpc.in_use.update(stage.grpc.cuda_regions)
        if stage.backend.transport_word == "cuda":
            await broken_with_a_batch_out(stage)
        await stage.backend.connect()
        stage.grpc.requests.clear()
    assert len(stage.grpc.cuda_regions) == 2
    assert "still holds pools" in stage.backend.transport_info
    stage.grpc.in_use.clear()


async def test_a_triton_that_has_died_keeps_nothing_from_being_freed(tmp_path: Path) -> None:
    """Its handles were closed with it; nobody can be asked."""
    stage = CudaStage(tmp_path, faults=set())
    await stage.backend.connect()
    await broken_with_a_batch_out(stage)
    for address, device, _ in stage.grpc.cuda_regions.values():
        stage.there.close_handle(device, address)
    stage.grpc.is_up = False
    await stage.backend.close()
    assert stage.held() == []


async def test_pools_of_sidecars_that_are_gone_are_closed(stage: CudaStage) -> None:
    """The GPU's memory would stay taken; those of living ones, and clients' regions, stay."""
    gone, alive = "tritonsched-4194305-0123abcd", f"tritonsched-{os.getpid()}-0123abcd"
    for name in (gone, alive, "mine"):
        address = stage.there.open_handle(0, stage.client.handle(0, stage.client.allocate(0, 8)))
        stage.grpc.cuda_regions[name] = (address, 0, 8)
    await stage.backend.connect()
    assert gone not in stage.grpc.cuda_regions
    assert {alive, "mine"} < set(stage.grpc.cuda_regions)
    for name in (alive, "mine"):
        address, device, _ = stage.grpc.cuda_regions.pop(name)
        stage.there.close_handle(device, address)


async def test_an_answer_that_is_out_is_valid_after_its_pool_was_given_up(
    stage: CudaStage,
) -> None:
    reply = await executed(stage.backend, on_gpu(batch(row(5))))
    stage.cuda.faults.add("copy-error")
    await outputs_of(stage.backend, on_gpu(batch(row(1))))
    stage.cuda.faults.clear()
    await stage.backend.connect()
    assert bytes(reply.outputs[0].data) == row(5)
    reply.release()


async def test_a_triton_that_does_not_show_what_it_opened_is_not_believed(tmp_path: Path) -> None:
    stage = CudaStage(tmp_path, faults=set())

    async def nothing(_: object) -> object:
        raise Refusal("UNAVAILABLE", "no status today")

    stage.grpc._CudaSharedMemoryStatus = nothing  # type: ignore[method-assign]
    await stage.backend.connect()
    assert "no status today" in stage.backend.transport_info
    await stage.backend.close()
