"""Clients' regions on GPUs: what joins a batch there, what goes alone, and that all is closed."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.backend.contract import executed
from tests.unit.backend.cuda_stage import CudaStage, staged
from tests.unit.proxy.calls import call
from tritonsched.backend.catalogue import ModelInfo, TensorInfo
from tritonsched.core.batch import Batch
from tritonsched.core.request import Request
from tritonsched.errors import CudaFault, RegionFault
from tritonsched.proxy import client_regions
from tritonsched.proxy.assembly import join, placed, split
from tritonsched.proxy.client_regions import ClientRegions
from tritonsched.proxy.job import Job
from tritonsched.tensors import MergedReply, ShmRef, Tensor

ROW = 16  # bytes: four of FP32
ECHO = ModelInfo(
    name="echo",
    version="",
    max_batch_size=8,
    inputs={"INPUT": TensorInfo("INPUT", "FP32", (4,))},
    outputs={"OUTPUT": TensorInfo("OUTPUT", "FP32", (4,))},
    devices=("gpu:0",),
)


class Desk:
    """Clients, their regions, and a backend on scripted GPUs. addresses: of clients' memory."""

    def __init__(self, stage: CudaStage) -> None:
        self.stage = stage
        self.regions = ClientRegions(is_local=lambda: True, cuda=stage.backend.cuda)
        self.addresses: dict[str, int] = {}

    async def register(self, name: str, data: bytes, *, said: int | None = None) -> None:
        """A client's memory with that in it. said: how large the client says that it is."""
        made = self.addresses[name] = self.stage.client.allocate(0, len(data))
        self.stage.client.write(made, data)
        handle = self.stage.client.handle(0, made)
        await self.regions.registered_cuda(name, handle, 0, said or len(data))

    def read(self, ref: ShmRef) -> bytes:
        return self.stage.client.read(self.addresses[ref.region] + ref.offset, ref.byte_size)

    def job(self, number: int, source: ShmRef | bytes, target: ShmRef | None = None) -> Job:
        data, ref = (source, None) if isinstance(source, bytes) else (b"", source)
        size = len(data) or (ref.byte_size if ref else 0)
        rows = size // ROW
        refs = (("OUTPUT", target),) if target else ()
        made = call(Tensor("INPUT", "FP32", (rows, 4), data, ref), output_refs=refs)
        names = {r.region for r in made.refs}
        request = Request(number, "echo", "default", 1, rows, 0)
        return Job(made, ECHO, request, regions=self.regions.named(names))

    async def answers(self, *jobs: Job, device: str = "gpu:0") -> list[MergedReply]:
        """Joined, executed, split and placed, as the driver does it."""
        requests = tuple(job.request for job in jobs)
        rows = sum(request.rows for request in requests)
        batch = Batch(1, "echo", device, requests, rows, 0, 0, 0)
        reply = await executed(self.stage.backend, join(batch, jobs))
        try:
            made = [placed(a, job) for a, job in zip(split(reply, jobs), jobs, strict=True)]
        finally:
            reply.release()
        return [answer for answer in made if isinstance(answer, MergedReply)]


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    """At the end every handle is closed and all memory is given back."""
    async with staged(tmp_path) as stage:
        made = Desk(stage)
        yield made
        made.regions.forget()


def bytes_of(number: int) -> bytes:
    return bytes(range(number, number + ROW))


async def test_rows_on_a_gpu_and_rows_of_messages_make_one_batch(desk: Desk) -> None:
    await desk.register("r", bytes_of(0) + bytes_of(50))
    jobs = [desk.job(1, bytes_of(9)), desk.job(2, ShmRef("r", ROW, ROW)), desk.job(3, bytes_of(3))]
    answers = await desk.answers(*jobs)
    assert [bytes(a.outputs[0].data) for a in answers] == [bytes_of(9), bytes_of(50), bytes_of(3)]
    assert desk.stage.backend.batches_cuda == 1


async def test_outputs_are_written_on_the_gpu(desk: Desk) -> None:
    """Before the answer is heard of; it names the place, as Triton's does."""
    await desk.register("r", bytes(4 * ROW))
    target = ShmRef("r", 2 * ROW, 2 * ROW)
    plain, there = await desk.answers(
        desk.job(1, bytes_of(1)), desk.job(2, bytes_of(2) + bytes_of(3), target)
    )
    assert desk.read(target) == bytes_of(2) + bytes_of(3)
    assert bytes(plain.outputs[0].data) == bytes_of(1)
    assert (there.outputs[0].data, there.outputs[0].ref) == (b"", target)


async def test_an_output_that_does_not_fit_is_not_written(desk: Desk) -> None:
    """Triton has to word it; the neighbour in the batch is well."""
    await desk.register("r", bytes(2 * ROW))
    jobs = [desk.job(1, bytes_of(1), ShmRef("r", 0, ROW - 1)), desk.job(2, bytes_of(2))]
    with pytest.raises(RegionFault, match=r"'r' has no 16 bytes"):
        await desk.answers(*jobs)
    assert desk.read(ShmRef("r", 0, 2 * ROW)) == bytes(2 * ROW)


async def test_a_place_outside_is_not_known(desk: Desk) -> None:
    await desk.register("r", bytes(2 * ROW))
    job = desk.job(1, ShmRef("r", ROW + 1, ROW))
    assert desk.regions.lone_reason(job.call, ECHO, job.regions) == "region-unknown"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, ""),
        ({"devices": ("cpu:echo:0",)}, "region-device"),
        ({"devices": ("gpu:0", "gpu:1")}, "region-device"),
        ({"outputs": {"OUTPUT": TensorInfo("OUTPUT", "FP32", (-1,))}}, "region-device"),
        ({"outputs": {"OUTPUT": TensorInfo("OUTPUT", "BYTES", (1,))}}, "region-device"),
    ],
)
async def test_it_is_merged_only_where_the_batches_go_to_a_gpu(
    desk: Desk, change: dict[str, object], reason: str
) -> None:
    """And an output is placed there only if its size is known beforehand."""
    await desk.register("r", bytes(2 * ROW))
    job = desk.job(1, ShmRef("r", 0, ROW), ShmRef("r", ROW, ROW))
    info = replace(ECHO, **change)  # type: ignore[arg-type]  # fields by name
    assert desk.regions.lone_reason(job.call, info, job.regions) == reason


@pytest.mark.parametrize("said", [ROW, 2 * ROW])
async def test_a_client_that_says_too_much_is_not_believed(desk: Desk, said: int) -> None:
    """A copy past the end of the memory would end our use of CUDA."""
    await desk.register("r", bytes(ROW), said=said)
    assert len(desk.regions) == (said == ROW)


async def test_what_cannot_be_opened_or_measured_is_left_to_triton(desk: Desk) -> None:
    await desk.regions.registered_cuda("r", b"x" * 64, 0, ROW)
    await desk.regions.registered_cuda("r", b"short", 0, ROW)
    assert len(desk.regions) == 0


async def test_memory_whose_size_cuda_does_not_tell_is_closed_again(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def untold(device: int, address: int) -> int:
        raise CudaFault("cuMemGetAddressRange: CUDA_ERROR_NOT_SUPPORTED")

    monkeypatch.setattr(desk.stage.cuda, "extent", untold)
    await desk.register("r", bytes(ROW))
    assert len(desk.regions) == 0


async def test_without_gpus_nothing_is_opened(tmp_path: Path) -> None:
    async with staged(tmp_path, transport="system") as stage:
        desk = Desk(stage)
        await desk.register("r", bytes(ROW))
        assert len(desk.regions) == 0
    regions = ClientRegions(is_local=lambda: True)
    await regions.registered_cuda("r", b"x" * 64, 0, ROW)
    assert len(regions) == 0


async def test_their_number_is_bounded(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_regions, "REGIONS_MAX", 1)
    await desk.register("a", bytes(ROW))
    await desk.register("b", bytes(ROW))
    assert len(desk.regions) == 1


async def test_a_region_closed_while_it_is_opened_is_not_known(desk: Desk) -> None:
    opening = asyncio.ensure_future(desk.register("r", bytes(ROW)))
    await asyncio.wait({opening}, timeout=0)
    desk.regions.unregistered("r")
    await opening
    assert len(desk.regions) == 0


async def test_closing_all_of_a_kind_leaves_the_other(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(ROW))
    regions = ClientRegions(is_local=lambda: True, directory=tmp_path, cuda=desk.stage.backend.cuda)
    desk.regions = regions
    regions.registered("s", "/file", 0, ROW)
    await desk.register("c", bytes(ROW))
    regions.forget_all(cuda=True)
    assert set(regions.named({"s", "c"})) == {"s"}
    await desk.register("c", bytes(ROW))
    regions.forget_all(cuda=False)
    assert set(regions.named({"s", "c"})) == {"c"}


async def test_who_uses_a_region_keeps_its_handle_open(desk: Desk) -> None:
    """Unregistered while a batch uses it; closed when that is over (the fixture looks)."""
    await desk.register("r", bytes_of(7))
    job = desk.job(1, ShmRef("r", 0, ROW))
    desk.regions.unregistered("r")
    assert "a handle of GPU 0" in desk.stage.cuda.held()
    (answer,) = await desk.answers(job)
    assert bytes(answer.outputs[0].data) == bytes_of(7)
