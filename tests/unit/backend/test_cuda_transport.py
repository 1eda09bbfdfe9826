"""Batches through a GPU's memory, there and back. A scripted GPU; faults: `test_cuda_region`."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.backend.contract import ROW_BYTES, BackendContract, batch, executed, outputs_of, row
from tests.unit.backend.cuda_stage import POOL_BYTES, CudaStage, on_gpu, staged
from tests.unit.backend.fake_triton import region_of
from tritonsched.backend.base import Backend
from tritonsched.backend.batch_call import BatchCall, DevicePlace
from tritonsched.errors import BackendError, RegionFault


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[CudaStage]:
    async with staged(tmp_path) as made:
        yield made


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
        place.owner()  # `close` of place_of


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
