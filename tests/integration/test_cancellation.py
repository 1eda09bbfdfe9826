"""Clients that leave: what waits is never executed, by Triton's own count; what runs is finished
for the others. Triton itself is never cancelled.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from tests.integration.sidecars import grpc_url, http_url, metric
from tests.integration.stage import PATIENCE_S, Stage, awaited, staged, stub_of, tick
from tests.integration.stream_models import ask
from tests.unit.frontend.http_client import connected

CLIENTS = 32
JSON = json.dumps(
    {"inputs": [{"name": "IN", "datatype": "FP32", "shape": [1, 1], "data": [1]}]}
).encode()


@pytest.fixture(scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory, build_dir: Path) -> AsyncIterator[Stage]:
    async with staged(tmp_path_factory.mktemp("cancel"), build_dir) as made:
        yield made


def port_of(stage: Stage) -> int:
    return int(http_url(stage.sidecar).rpartition(":")[2])


Client = Callable[[Stage], contextlib.AbstractAsyncContextManager[None]]


@contextlib.asynccontextmanager
async def http_infer(stage: Stage, path: str = "infer", body: bytes = JSON) -> AsyncIterator[None]:
    """It has asked; at the end of the block it closes its connection."""
    async with connected(port_of(stage)) as client:
        client.ask("POST", f"/v2/models/gated/{path}", "Host: x", body=body)
        yield


@contextlib.asynccontextmanager
async def http_generate(stage: Stage) -> AsyncIterator[None]:
    async with http_infer(stage, "generate_stream", b'{"IN":[[2.0]]}'):
        yield


@contextlib.asynccontextmanager
async def grpc_infer(stage: Stage) -> AsyncIterator[None]:
    """It cancels its call."""
    async with stub_of(grpc_url(stage.sidecar)) as stub:
        call = stub.ModelInfer(ask("gated", 9))
        code = asyncio.ensure_future(call.code())
        yield
        call.cancel()
        assert await code is grpc.StatusCode.CANCELLED


@contextlib.asynccontextmanager
async def grpc_connection(stage: Stage) -> AsyncIterator[None]:
    """It closes its connection."""
    async with stub_of(grpc_url(stage.sidecar)) as stub:
        call = asyncio.ensure_future(awaited(stub.ModelInfer(ask("gated", 9))))
        yield
    await asyncio.gather(call, return_exceptions=True)


@contextlib.asynccontextmanager
async def grpc_stream(stage: Stage, *, half_closed: bool = False) -> AsyncIterator[None]:
    async with stub_of(grpc_url(stage.sidecar)) as stub:
        stream = stub.ModelStreamInfer()
        await stream.write(ask("gated", 9))
        if half_closed:
            await stream.done_writing()
        yield
        stream.cancel()


@contextlib.asynccontextmanager
async def half_closed_stream(stage: Stage) -> AsyncIterator[None]:
    async with grpc_stream(stage, half_closed=True):
        yield


CLIENT: list[Client] = [
    http_infer, http_generate, grpc_infer, grpc_connection, grpc_stream, half_closed_stream,
]  # fmt: skip


@pytest.mark.parametrize("client", CLIENT, ids=lambda client: client.__name__)
async def test_who_leaves_while_waiting_is_dropped_and_never_executed(
    stage: Stage, client: Client
) -> None:
    """While the device is still busy: it is not only refused when its turn comes."""
    before = await stage.executed("gated")
    async with stub_of(grpc_url(stage.sidecar)) as stub, asyncio.timeout(PATIENCE_S):
        jam = await stage.jam(stub)
        async with client(stage):
            await stage.queued("gated", 2)
        await stage.queued("gated", 1)
        async with stage.gate.open():
            await asyncio.gather(*jam)
            await stage.sidecar.proxy.drained()
            assert await stage.executed("gated") == before + len(jam)


async def test_who_half_closes_still_waits_and_is_answered(stage: Stage) -> None:
    """It may send no more and still read; Triton answers it, too."""
    async with stub_of(grpc_url(stage.sidecar)) as stub, asyncio.timeout(PATIENCE_S):
        jam = await stage.jam(stub)
        async with connected(port_of(stage)) as client:
            client.ask("POST", "/v2/models/gated/infer", "Host: x", body=JSON)
            client.writer.write_eof()
            head = await client.head()
            assert head.status == 100  # asked whether it is there
            assert stage.waiting("gated") == 2
            async with stage.gate.open():
                assert (await client.reply()).status == 200
                assert await client.is_closed()
                await asyncio.gather(*jam)


async def test_in_a_batch_that_runs_only_the_answer_is_dropped(stage: Stage) -> None:
    """The others of the batch get theirs, and Triton has executed all of it."""
    before = await stage.executed("gated")
    async with stub_of(grpc_url(stage.sidecar)) as stub, asyncio.timeout(PATIENCE_S):
        jam = await stage.jam(stub)
        leaver, stayer = (stub.ModelInfer(ask("gated", value)) for value in (41, 42))
        await stage.queued("gated", 3)
        while stage.waiting("gated"):
            await stage.gate.let_one_through()
            await tick()
        leaver.cancel()
        async with stage.gate.open():
            reply = await stayer
            assert np.frombuffer(reply.raw_output_contents[0], np.float32) == [42]
            await asyncio.gather(*jam)
            await stage.sidecar.driver.drained()
            assert await stage.executed("gated") == before + len(jam) + 2


async def test_under_load_what_was_dispatched_was_executed_and_nothing_else(stage: Stage) -> None:
    """Of 32 clients, on both protocols, two of three leave at any moment."""
    rows = await metric(stage.sidecar, "tritonsched_batch_rows_sum", model="plain")
    lone = await stage.executed("plain")
    async with stub_of(grpc_url(stage.sidecar)) as stub, asyncio.timeout(PATIENCE_S):
        kept = await asyncio.gather(
            *(_grpc_client(stub, index) for index in range(CLIENTS // 2)),
            *(_http_client(port_of(stage), index) for index in range(CLIENTS // 2)),
        )
        assert sum(kept) == CLIENTS * 5
        await stage.sidecar.proxy.drained()
        await stage.sidecar.driver.drained()
    assert stage.sidecar.proxy.tensor_bytes == 0
    dispatched = await metric(stage.sidecar, "tritonsched_batch_rows_sum", model="plain") - rows
    assert await stage.executed("plain") - lone == dispatched
    gone = await metric(
        stage.sidecar, "tritonsched_requests_total", model="plain", outcome="cancelled"
    )
    assert gone > 0


async def _grpc_client(stub: Any, index: int) -> int:
    """How many of its calls it waited for; all of them well answered."""
    kept = 0
    for step in range(15):
        call = stub.ModelInfer(ask("plain", step))
        if step % 3 == index % 3:
            assert len((await call).raw_output_contents) == 1
            kept += 1
            continue
        for _ in range(step % 4):
            await tick()
        call.cancel()
    return kept


async def _http_client(port: int, index: int) -> int:
    kept = 0
    for step in range(15):
        async with connected(port) as client:
            client.ask("POST", "/v2/models/plain/infer", "Host: x", body=JSON)
            if step % 3 == index % 3:
                assert (await client.reply()).status == 200
                kept += 1
                continue
            for _ in range(step % 4):
                await tick()
    return kept
