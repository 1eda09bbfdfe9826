"""Batches through a GPU's memory, and every way back from there. The GPU is scripted."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.backend.contract import ROW_BYTES, BackendContract, batch, executed, outputs_of, row
from tests.unit.backend.cuda_stage import POOL_BYTES, CudaStage, staged
from tests.unit.backend.fake_triton import Refusal, region_of
from tritonsched.backend.base import Backend
from tritonsched.backend.scripted_cuda import Fault
from tritonsched.errors import BackendError, RegionFault, StartupError, TritonUnavailable
from tritonsched.tensors import BatchCall, DevicePlace


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[CudaStage]:
    async with staged(tmp_path) as made:
        yield made


def on_gpu(call: BatchCall, device: int = 0) -> BatchCall:
    return replace(call, device=f"gpu:{device}")


class OnGpu:
    """Sends every batch to the first GPU, as the driver does for a model that runs there."""

    def __init__(self, stage: CudaStage) -> None:
        self._backend = stage.backend
        self.forward = self._backend.forward
        self.model_info = self._backend.model_info
        self.ready = self._backend.ready
        self.close = self._backend.close

    def send(self, call: BatchCall, done: object) -> None:
        self._backend.send(on_gpu(call), done)  # type: ignore[arg-type]  # as it came


class TestContractCuda(BackendContract):
    """The promises of a backend, through a GPU's memory."""

    @pytest.fixture
    def backend(self, stage: CudaStage) -> Backend:
        return OnGpu(stage)


# -- the way there and back -----------------------------------------------------------------------


async def test_inputs_and_outputs_lie_in_device_memory(stage: CudaStage) -> None:
    call = on_gpu(batch(row(0), row(4)))
    assert await outputs_of(stage.backend, call) == [("OUTPUT", (2, 4), row(0) + row(4))]
    (request,) = stage.grpc.requests
    (name,) = stage.grpc.cuda_regions
    assert [region_of(t) for t in (*request.inputs, *request.outputs)] == [name, name]
    assert not request.raw_input_contents
    assert stage.backend.batches_cuda == 1
    assert stage.backend.transport_word == "cuda"


async def test_the_rows_of_a_batch_go_up_in_one_copy(stage: CudaStage) -> None:
    """The parts lie one after the other on the host side already; beside them only the mark."""
    stage.cuda.copies.clear()
    await outputs_of(stage.backend, on_gpu(batch(*map(row, range(8)))))
    assert [size for _, _, size in stage.cuda.copies] == [8 * ROW_BYTES, 8, 8 * ROW_BYTES]


async def test_a_batch_of_another_device_does_not_go_there(stage: CudaStage) -> None:
    for device in ("cpu:echo:0", "", "gpu:1", "emulated"):
        await outputs_of(stage.backend, replace(batch(row(0)), device=device))
    assert (stage.backend.batches_cuda, stage.backend.batches_shm) == (0, 4)


async def test_the_message_is_not_sent_before_the_copy_has_ended(stage: CudaStage) -> None:
    """And the loop goes on meanwhile: another batch is served."""
    stage.cuda.gate.clear()
    waiting = asyncio.ensure_future(executed(stage.backend, on_gpu(batch(row(0)))))
    assert await outputs_of(stage.backend, batch(row(9)))
    assert (len(stage.grpc.requests), waiting.done()) == (1, False)
    stage.cuda.gate.set()
    reply = await waiting
    assert bytes(reply.outputs[0].data) == row(0)
    reply.release()


async def test_several_gpus_have_a_pool_each(tmp_path: Path) -> None:
    async with staged(tmp_path, gpus=2) as stage:
        assert next(iter(stage.grpc.cuda_regions.values()))[1:] == (0, POOL_BYTES)
        stage.grpc.echo_gpus = [0, 1]
        await stage.backend.connect()
        for device in (0, 1, 1):
            await outputs_of(stage.backend, on_gpu(batch(row(0)), device))
        used = [region_of(request.inputs[0]) for request in stage.grpc.requests]
        assert [stage.grpc.cuda_regions[name][1] for name in used] == [0, 1, 1]
        assert stage.backend.transport_info.startswith("cuda shared memory on gpu:0, gpu:1, 2 MiB")


async def test_a_gpu_that_a_later_model_runs_on_gets_a_pool_then(tmp_path: Path) -> None:
    async with staged(tmp_path, gpus=2) as stage:
        stage.grpc.echo_gpus = [1]
        await outputs_of(stage.backend, on_gpu(batch(row(0)), 1))
        await stage.backend.model_info("echo", "")
        await outputs_of(stage.backend, on_gpu(batch(row(0)), 1))
        assert (stage.backend.batches_shm, stage.backend.batches_cuda) == (1, 1)
        asked = len(stage.grpc.calls)
        await stage.backend.model_info("echo", "")
        assert stage.grpc.calls[asked:] == ["ModelConfig"]


async def test_a_later_gpu_that_does_not_pass_is_tried_once(tmp_path: Path) -> None:
    async with staged(tmp_path, gpus=2) as stage:
        stage.grpc.echo_gpus = [1]
        stage.cuda.faults.add("no-handle")
        for _ in range(2):
            await stage.backend.model_info("echo", "")
        assert "no CUDA shared memory on gpu:1" in stage.backend.transport_info
        assert stage.backend.transport_word == "cuda"


async def test_a_full_pool_sends_the_batch_through_shared_memory(stage: CudaStage) -> None:
    pool = stage.backend.cuda.pool("gpu:0")
    assert pool is not None
    all_of_it = pool.lease(POOL_BYTES)
    assert all_of_it is not None
    await outputs_of(stage.backend, on_gpu(batch(row(0))))
    assert (stage.backend.batches_shm, stage.backend.fallbacks) == (1, 1)
    all_of_it.release()


# -- faults, and the way round ---------------------------------------------------------------------


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


# -- clients' own memory ---------------------------------------------------------------------------


def place_of(stage: CudaStage, data: bytes) -> DevicePlace:
    """A client's memory with that in it, opened by the sidecar."""
    made = stage.client.allocate(0, len(data))
    stage.client.write(made, data)
    address = stage.cuda.open_handle(0, stage.client.handle(0, made))

    def close() -> None:
        stage.cuda.close_handle(0, address)
        stage.client.free(0, made)

    return DevicePlace(address, len(data), close)


def done_with(*places: DevicePlace) -> None:
    for place in places:
        place.owner()  # type: ignore[operator]  # `close` of place_of


async def test_what_lies_on_the_gpu_stays_there(stage: CudaStage) -> None:
    """Rows of clients on the host and on the GPU make one batch; nothing is fetched for it."""
    place = place_of(stage, row(4))
    stage.cuda.copies.clear()
    call = on_gpu(batch(row(0), place, row(8)))  # type: ignore[arg-type]  # a part like others
    assert (await outputs_of(stage.backend, call))[0][2] == row(0) + row(4) + row(8)
    sources = [source for _, source, _ in stage.cuda.copies]
    assert place.address in sources
    done_with(place)


async def test_outputs_that_a_client_wants_there_do_not_come_down(stage: CudaStage) -> None:
    """But for the mark, which shows that they were written."""
    first, second = place_of(stage, bytes(ROW_BYTES)), place_of(stage, bytes(ROW_BYTES))
    call = on_gpu(batch(row(0), row(4)))
    output = replace(call.outputs[0], places=((0, first), (ROW_BYTES, second)))
    stage.cuda.copies.clear()
    await outputs_of(stage.backend, replace(call, outputs=(output,)))
    assert stage.client.read(first.address, ROW_BYTES) == row(0)
    assert stage.client.read(second.address, ROW_BYTES) == row(4)
    assert sorted(size for _, _, size in stage.cuda.copies)[:2] == [8, 8]
    assert sum(size for _, _, size in stage.cuda.copies) == 4 * ROW_BYTES + 16
    done_with(first, second)


@pytest.mark.parametrize("device", ["cpu:echo:0", "gpu:7"])
async def test_a_batch_that_does_not_go_there_cannot_use_it(stage: CudaStage, device: str) -> None:
    """The driver takes it apart, and Triton reads the region itself."""
    place = place_of(stage, row(4))
    call = replace(batch(row(0), place), device=device)  # type: ignore[arg-type]
    with pytest.raises(RegionFault):
        await executed(stage.backend, call)
    assert stage.backend.region.in_use_bytes == 0
    done_with(place)


async def test_without_room_on_the_gpu_it_cannot_be_used(stage: CudaStage) -> None:
    place = place_of(stage, row(4))
    pool = stage.backend.cuda.pool("gpu:0")
    assert pool is not None
    all_of_it = pool.lease(POOL_BYTES)
    assert all_of_it is not None
    with pytest.raises(RegionFault):
        await executed(stage.backend, on_gpu(batch(row(0), place)))  # type: ignore[arg-type]
    all_of_it.release()
    all_but_inputs = pool.lease(POOL_BYTES - 64)
    assert all_but_inputs is not None
    call = on_gpu(batch(row(0)))
    output = replace(call.outputs[0], places=((0, place),))
    with pytest.raises(RegionFault, match="outputs"):
        await executed(stage.backend, replace(call, outputs=(output,)))
    all_but_inputs.release()
    assert pool.in_use_bytes == 0
    done_with(place)


async def test_an_answer_past_the_gpu_cannot_be_placed_there(stage: CudaStage) -> None:
    """Triton may answer in the message though memory was offered."""
    place = place_of(stage, bytes(ROW_BYTES))

    def inline_after_all(answer: object) -> None:
        answer.raw_output_contents[0] = row(1)  # type: ignore[attr-defined]

    await outputs_of(stage.backend, on_gpu(batch(row(0))))
    stage.grpc.edit = inline_after_all
    call = on_gpu(batch(row(0)))
    output = replace(call.outputs[0], places=((0, place),))
    with pytest.raises(BackendError, match="past the GPU"):
        await executed(stage.backend, replace(call, outputs=(output,)))
    done_with(place)


async def test_a_repeat_that_can_go_nowhere_is_told(stage: CudaStage) -> None:
    """A failed copy on the way there, and a part that only the GPU has."""
    place = place_of(stage, row(4))
    stage.cuda.faults.add("copy-error")
    with pytest.raises(RegionFault):
        await executed(stage.backend, on_gpu(batch(place)))  # type: ignore[arg-type]
    stage.cuda.faults.clear()
    done_with(place)


async def test_a_triton_that_does_not_show_what_it_opened_is_not_believed(tmp_path: Path) -> None:
    stage = CudaStage(tmp_path, faults=set())

    async def nothing(_: object) -> object:
        raise Refusal("UNAVAILABLE", "no status today")

    stage.grpc._CudaSharedMemoryStatus = nothing  # type: ignore[method-assign]
    await stage.backend.connect()
    assert "no status today" in stage.backend.transport_info
    await stage.backend.close()
