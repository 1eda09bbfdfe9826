"""Models that come, go and change while clients send: every request has an answer or Triton's own
error, and nobody is served by what the model was before.
"""

import asyncio
import shutil
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from tests.integration.raw_triton import infer_request
from tests.integration.sidecars import grpc_url, http_url, metric, running_sidecar
from tests.integration.stage import PATIENCE_S, Stage, awaited, staged, stub_of, until
from tests.integration.stream_models import PLAIN, PYTHON, ask, write_model
from tests.unit.frontend.http_client import connected

CLIENTS = 32
ROUNDS = 2
SECOND = PLAIN.replace("inputs(request).copy()", "inputs(request) + 1000")
UNKNOWN = "Request for unknown model: '"
GONE = "UNAVAILABLE"


@pytest.fixture(scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory, build_dir: Path) -> AsyncIterator[Stage]:
    async with staged(tmp_path_factory.mktemp("repository"), build_dir) as made:
        yield made


@pytest.fixture
async def stage(shared: Stage) -> AsyncIterator[Stage]:
    """Its models are put back when the test ends, through the sidecar, which forgets them by that:
    Triton's index may be the same as before.
    """
    yield shared
    shutil.rmtree(shared.directory / "plain")
    shutil.rmtree(shared.directory / "broken", ignore_errors=True)
    write_model(shared.directory, "plain", PYTHON % 8, PLAIN)
    async with stub_of(grpc_url(shared.sidecar)) as stub:
        for model in ("plain", "gated", "double"):
            await load(stub, model)


async def load(stub: Any, model: str) -> None:
    await stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name=model))


async def unload(stub: Any, model: str) -> None:
    await stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name=model))


class Crowd:
    """CLIENTS in a closed loop. answers: by model and version, or Triton's words."""

    def __init__(self, stub: Any) -> None:
        self.answers: Counter[str] = Counter()
        self._stub = stub
        self._is_over = False

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(self._client(number))

    async def _client(self, number: int) -> None:
        value = float(number)
        while not self._is_over:
            model = ("plain", "plain", "plain", "double")[number % 4]
            try:
                reply = await self._stub.ModelInfer(ask(model, value))
            except grpc.aio.AioRpcError as error:
                self.answers[f"{error.code().name}: {error.details()}"] += 1
                continue
            (got,) = np.frombuffer(reply.raw_output_contents[0], np.float32)
            self._judge(model, reply.model_version, got - value)
            value = (value + CLIENTS) % 997

    def _judge(self, model: str, version: str, added: float) -> None:
        """A version's own work, never another's."""
        if model == "plain":
            assert added == {"1": 0, "2": 1000}[version]
        else:
            assert added in (0, 1000, 2000)  # each step runs the version there is
        self.answers[f"{model} {version}"] += 1

    async def until(self, what: str, count: int = 50) -> None:
        """So many more answers of the kind."""
        wanted = self.answers[what] + count
        await until(lambda: self.answers[what] >= wanted)

    def stop(self) -> None:
        self._is_over = True


async def test_loading_unloading_and_new_versions_under_load_lose_and_confuse_nothing(
    stage: Stage,
) -> None:
    async with stub_of(grpc_url(stage.sidecar)) as stub, asyncio.timeout(2 * PATIENCE_S):
        crowd = Crowd(stub)
        running = asyncio.ensure_future(crowd.run())
        gone = f"NOT_FOUND: {UNKNOWN}plain' has no available versions"
        await crowd.until("plain 1")
        await crowd.until("double 1")
        for _ in range(ROUNDS):
            await unload(stub, "plain")
            await crowd.until(gone)
            await load(stub, "plain")
            await crowd.until("plain 1")
        write_model(stage.directory, "plain", PYTHON % 8, SECOND, version=2)
        await load(stub, "plain")
        served = (await stub.ModelInfer(ask("plain", 1))).model_version
        assert served == "2"
        await crowd.until("plain 2")
        crowd.stop()
        await running
        assert stage.sidecar.why_not_ready() == ""
    words = [text for text in crowd.answers if not text.startswith(("plain ", "double "))]
    assert all(UNKNOWN in text or GONE in text for text in words), words
    assert stage.sidecar.proxy.tensor_bytes == 0


async def test_a_changed_configuration_is_read_again(stage: Stage) -> None:
    """Fewer rows a batch: merged batches keep to it, and Triton itself refuses a larger request."""
    async with stub_of(grpc_url(stage.sidecar)) as stub, asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*(awaited(stub.ModelInfer(ask("plain", n))) for n in range(64)))
        await unload(stub, "plain")
        write_model(stage.directory, "plain", PYTHON % 2, PLAIN)
        await load(stub, "plain")
        before = [await rows(stage, le) for le in ("2.0", "+Inf")]
        await asyncio.gather(*(awaited(stub.ModelInfer(ask("plain", n))) for n in range(64)))
        within, count = [await rows(stage, le) for le in ("2.0", "+Inf")]
        assert within - before[0] == count - before[1] > 0
        three = infer_request("plain", {"IN": np.zeros((3, 1), np.float32)})
        with pytest.raises(grpc.aio.AioRpcError, match="batch-size must be <= 2"):
            await stub.ModelInfer(three)


async def rows(stage: Stage, le: str) -> float:
    """Batches of `plain` with so many rows or fewer."""
    return await metric(stage.sidecar, "tritonsched_batch_rows_bucket", model="plain", le=le)


async def test_what_waits_for_a_model_that_goes_away_is_answered(stage: Stage) -> None:
    """What runs is finished; what waits has Triton's word that there is no such model."""
    async with stub_of(grpc_url(stage.sidecar)) as stub, asyncio.timeout(PATIENCE_S):
        jam = await stage.jam(stub)
        waiting = asyncio.ensure_future(awaited(stub.ModelInfer(ask("gated", 5))))
        await stage.queued("gated", 2)
        await unload(stub, "gated")
        async with stage.gate.open():
            ends = await asyncio.gather(*jam, waiting, return_exceptions=True)
        for end in ends[-2:]:
            assert isinstance(end, grpc.aio.AioRpcError)
            assert UNKNOWN in (end.details() or "")
        assert not isinstance(ends[0], BaseException)


async def test_what_others_load_past_the_sidecar_is_noticed(stage: Stage) -> None:
    """A sequence model in the place of a plain one, changed at Triton's own port."""
    async with (
        stub_of(grpc_url(stage.sidecar)) as stub,
        stub_of(stage.triton.grpc_address) as past,
        asyncio.timeout(PATIENCE_S),
    ):
        await stub.ModelInfer(ask("plain", 1))
        assert stage.sidecar.scheduler.queued().get("plain") == 0
        await unload(past, "plain")
        known = stage.sidecar.proxy.knows
        await until(lambda: not known("plain"))
        with pytest.raises(grpc.aio.AioRpcError, match=UNKNOWN):
            await stub.ModelInfer(ask("plain", 1))
        assert "plain" not in stage.sidecar.scheduler.queued()


async def test_a_model_that_loads_or_is_broken_keeps_nobody_else_waiting(stage: Stage) -> None:
    """Triton is not ready then, and says so; what it serves is served, from the start, too."""
    write_model(stage.directory, "broken", PYTHON % 8, "raise ValueError('no')")
    async with stub_of(grpc_url(stage.sidecar)) as stub, asyncio.timeout(PATIENCE_S):
        with pytest.raises(grpc.aio.AioRpcError, match="load failed for model 'broken'"):
            await load(stub, "broken")
        port = int(http_url(stage.sidecar).rpartition(":")[2])
        async with connected(port) as client:
            client.ask("GET", "/v2/health/ready", "Host: x")
            assert (await client.reply()).status == 400  # Triton's word
        assert stage.sidecar.why_not_ready() == ""
        await stub.ModelInfer(ask("plain", 1))
    async with running_sidecar(stage.triton) as late, stub_of(grpc_url(late)) as stub:
        await stub.ModelInfer(ask("plain", 1))
