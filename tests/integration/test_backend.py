"""The backend on a real Triton: through shared memory and without, through faults and restarts."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from tests.integration.conftest import TritonFactory
from tests.integration.raw_triton import raw_client
from tests.unit.backend.contract import (
    ROW_BYTES,
    BackendContract,
    batch,
    executed,
    lone_call,
    outputs_of,
    row,
)
from tritonsched.backend.base import Backend
from tritonsched.backend.batch_call import BatchCall, BatchInput, BatchOutput
from tritonsched.backend.embedded import EmbeddedTriton
from tritonsched.backend.prepare import emulated_model_config, write_emulated_model
from tritonsched.backend.scripted_cuda import ScriptedCuda
from tritonsched.backend.shared_memory import SHM
from tritonsched.backend.triton import TritonBackend
from tritonsched.backend.upstream_h2 import H2Upstream
from tritonsched.backend.upstream_http import HttpUpstream
from tritonsched.errors import TritonUnavailable
from tritonsched.proxy.assembly import row_bytes
from tritonsched.tensors import GrpcReply, Wire

POOL_BYTES = 8 * 1024 * 1024
ROW_FLOATS = 3072  # 12 KB


@asynccontextmanager
async def backend_to(triton: EmbeddedTriton, **options: Any) -> AsyncIterator[TritonBackend]:
    """A connected backend."""
    http, grpc = HttpUpstream(triton.http_address), H2Upstream(triton.grpc_address)
    await http.start()
    await grpc.start()
    backend = TritonBackend(http, grpc, **({"pool_bytes": POOL_BYTES} | options))
    try:
        await backend.connect()
        yield backend
    finally:
        await backend.close()
        await grpc.close()
        await http.close()


@pytest.fixture
async def shared(triton: EmbeddedTriton) -> AsyncIterator[TritonBackend]:
    async with backend_to(triton, transport="system") as backend:
        yield backend


class TestContractShared(BackendContract):
    """The promises of a backend, through shared memory."""

    @pytest.fixture
    def backend(self, shared: TritonBackend) -> Backend:
        return shared


class TestContractInline(BackendContract):
    """The promises of a backend, in messages."""

    @pytest.fixture
    async def backend(self, triton: EmbeddedTriton) -> AsyncIterator[Backend]:
        async with backend_to(triton, transport="inline") as backend:
            yield backend


def region_of(backend: TritonBackend) -> str:
    """Its region's name; other sidecars may have theirs on the same Triton."""
    assert backend.region.pool is not None
    return backend.region.pool.name


def wide_batch(seed: int, rows: int) -> BatchCall:
    """Rows of 12 KB, each a part of its own; every bit pattern, so NaNs too."""
    parts = tuple(
        np.random.default_rng([seed, index]).bytes(4 * ROW_FLOATS) for index in range(rows)
    )
    return BatchCall(
        id=seed,
        model="echo",
        version="1",
        rows=rows,
        inputs=(BatchInput("INPUT", "FP32", (rows, ROW_FLOATS), parts),),
        outputs=(BatchOutput("OUTPUT", 4 * ROW_FLOATS),),
        parameters={},
    )


@pytest.mark.parametrize("transport", ["system", "inline"])
async def test_a_merged_batch_equals_the_lone_answers_byte_for_byte(
    triton: EmbeddedTriton, transport: str
) -> None:
    """Eight rows at once, and each alone as a client would send it."""
    lone = [lone_call(Wire.GRPC)] * 8
    async with backend_to(triton, transport=transport) as backend:
        ((_, _, merged),) = await outputs_of(
            backend, batch(*[call.inputs[0].data for call in lone])
        )
        answers = [await backend.forward(call) for call in lone]
        counts = (backend.batches_shm, backend.batches_inline)
    alone = []
    for answer in answers:
        assert isinstance(answer, GrpcReply)
        message = service_pb2.ModelInferResponse.FromString(bytes(answer.message))
        alone.append(message.raw_output_contents[0])
    assert merged == b"".join(alone)
    assert counts == ((1, 0) if transport == "system" else (0, 1))


async def test_a_triton_without_gpus_refuses_cuda_in_words_and_system_memory_serves(
    triton: EmbeddedTriton,
) -> None:
    """A real Triton's own refusal of a handle; the GPU is scripted, and nothing of it stays."""
    cuda = ScriptedCuda()
    async with backend_to(triton, cuda=lambda: cuda) as backend:
        await backend.cuda.connect(["gpu:0"])
        assert backend.transport_word == "system"
        assert "no CUDA shared memory on gpu:0: " in backend.transport_info
        call = replace(batch(row(0)), device="gpu:0")
        assert await outputs_of(backend, call) == [("OUTPUT", (1, 4), row(0))]
        assert (backend.batches_cuda, backend.batches_shm) == (0, 1)
    assert cuda.held() == []


async def test_many_batches_at_once_keep_their_rows(shared: TritonBackend) -> None:
    """Random bits of 64 batches, 8 MiB of pool: nothing mixes, everything is given back."""
    calls = [wide_batch(seed, 1 + seed % 8) for seed in range(64)]
    answers = await asyncio.gather(*(outputs_of(shared, call) for call in calls))
    for call, ((_, _, data),) in zip(calls, answers, strict=True):
        assert data == call.inputs[0].joined()
    assert shared.batches_shm == 64
    assert shared.region.in_use_bytes == 0


async def test_several_outputs_of_declared_size_come_through_shared_memory(
    triton: EmbeddedTriton, shared: TritonBackend
) -> None:
    """Two outputs, of different datatype and length, as Triton gives them directly."""
    info = await shared.model_info("emulated_a", "")
    assert info is not None
    values = np.random.default_rng(5).standard_normal((3, 3, 32, 32), np.float32)
    call = BatchCall(
        id=1,
        model="emulated_a",
        version="",
        rows=3,
        inputs=(BatchInput("INPUT", "FP32", (3, 3, 32, 32), (values.tobytes(),)),),
        outputs=tuple(BatchOutput(name, row_bytes(info, name)) for name in info.outputs),
        parameters={},
    )
    async with raw_client(triton.grpc_address) as client:
        direct = await client.infer("emulated_a", INPUT=values)
    answers = {name: (shape, data) for name, shape, data in await outputs_of(shared, call)}
    assert set(answers) == {"OUTPUT", "STATS"}
    assert answers["OUTPUT"] == ((3, 2), direct["OUTPUT"].tobytes())
    assert answers["STATS"][0] == (3, 4)
    assert shared.fallbacks == 0


async def test_triton_shows_the_region_while_the_backend_is_open(triton: EmbeddedTriton) -> None:
    """Of our size, readable by its user only, and gone with the backend; here and in Triton."""
    async with backend_to(triton, transport="auto") as backend:
        name = region_of(backend)
        assert (await backend.region_status())[name] == POOL_BYTES
        assert (SHM / name).stat().st_mode & 0o777 == 0o600
        assert backend.transport_info == "system shared memory, 8 MiB"
    async with backend_to(triton, transport="inline") as backend:
        assert name not in await backend.region_status()
    assert not (SHM / name).exists()


async def test_a_client_that_unregisters_all_regions_hurts_nobody(
    triton: EmbeddedTriton, shared: TritonBackend
) -> None:
    """Batches before, during and after are answered; the region is back."""
    name = region_of(shared)
    everything = service_pb2.SystemSharedMemoryUnregisterRequest()
    async with raw_client(triton.grpc_address) as client:
        for seed in range(5):
            calls = [wide_batch(seed, 4) for _ in range(8)]
            *answers, _ = await asyncio.gather(
                *(outputs_of(shared, call) for call in calls),
                client.stub.SystemSharedMemoryUnregister(everything),
                return_exceptions=True,  # 2.51 may refuse: the region is in use
            )
            for call, answer in zip(calls, answers, strict=True):
                assert isinstance(answer, list), answer
                assert answer[0][2] == call.inputs[0].joined()
        await client.stub.SystemSharedMemoryUnregister(everything)
        assert name not in await shared.region_status()
        await outputs_of(shared, wide_batch(9, 8))
    assert (await shared.region_status())[name] == POOL_BYTES
    assert shared.batches_inline == 0
    assert shared.region.in_use_bytes == 0


@pytest.fixture
async def slow(
    triton_factory: TritonFactory, tmp_path: Path
) -> AsyncIterator[tuple[EmbeddedTriton, TritonBackend]]:
    """A Triton of the test's own, whose model takes a minute for a batch, and a backend."""
    repository = tmp_path / "models"
    dims = (ROW_BYTES // 4,)
    config = emulated_model_config("slow", gpu="g", a_us=60_000_000, b_us=0, dims=dims)
    write_emulated_model(repository, "slow", config)
    triton = await triton_factory(repository)
    async with backend_to(triton, transport="system") as backend:
        yield triton, backend


async def test_after_a_killed_triton_batches_go_through_a_new_region(
    slow: tuple[EmbeddedTriton, TritonBackend],
) -> None:
    """The batch that was out fails at once; its memory is never used again."""
    triton, backend = slow
    old = region_of(backend)
    out = asyncio.ensure_future(executed(backend, batch(row(0), model="slow", row_bytes=8)))
    while backend.batches_shm == 0:
        await asyncio.wait({out}, timeout=0)
    await backend.ready()  # answered after the batch was sent on the same connection
    os.kill(triton.pid, signal.SIGKILL)
    with pytest.raises(TritonUnavailable):
        await out
    assert backend.region.quarantined == 2
    assert not await backend.ready()
    await triton.wait()
    await triton.restart()
    await backend.connect()
    assert region_of(backend) != old
    assert list(await backend.region_status()) == [region_of(backend)]
    assert not (SHM / old).exists()
    await outputs_of(backend, batch(row(1), model="tritonsched_echo", row_bytes=None))
    assert (backend.batches_shm, backend.region.quarantined) == (2, 0)
