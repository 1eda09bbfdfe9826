"""Two real Tritons behind one sidecar: work goes to both, one dies under load and nothing is lost,
it comes back and works again; sequences, streams and control calls find the right one.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from tests.integration.conftest import TRITON_ENVIRONMENT
from tests.integration.raw_triton import outputs_of, raw_client
from tests.integration.sidecars import HOST, grpc_url, http_url, metric, running_sidecar
from tests.integration.stream_models import ask, in_sequence, write_repository
from tests.integration.test_faults import PATIENCE_S, Load
from tritonsched.backend.embedded import EmbeddedConfig, EmbeddedTriton
from tritonsched.backend.prepare import emulated_model_config, write_emulated_model
from tritonsched.sidecar import Sidecar

SERVERS = """
servers:
  left: {{http: "{left.http_address}", grpc: "{left.grpc_address}",
    metrics: "{left.metrics_address}"}}
  right: {{http: "{right.http_address}", grpc: "{right.grpc_address}",
    metrics: "{right.metrics_address}", transport: inline}}
"""


@dataclass(slots=True)
class Scene:
    """A sidecar in front of two Tritons that a test may kill."""

    left: EmbeddedTriton
    right: EmbeddedTriton
    sidecar: Sidecar

    def batches(self, server: str) -> int:
        backend = self.sidecar.upstreams.backends[server]
        return backend.batches_shm + backend.batches_inline

    async def until(self, server: str, batches: int) -> None:
        """Wait until that server was sent so many merged batches."""
        async with asyncio.timeout(PATIENCE_S):
            while self.batches(server) < batches:
                await asyncio.to_thread(lambda: None)  # a turn of the loop, and of others

    async def admin(self, path: str) -> Any:
        url = f"http://{HOST}:{self.sidecar.admin_server.port}{path}"
        async with aiohttp.ClientSession() as session, session.get(url) as reply:
            return await reply.json()


async def killed(triton: EmbeddedTriton) -> None:
    """A polite stop takes seconds and has its own test."""
    if triton.is_running:
        os.kill(triton.pid, signal.SIGKILL)
    await triton.stop()


@pytest.fixture(scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory, build_dir: Path) -> AsyncIterator[Scene]:
    """Both have `gpu` and the models of the streams' tests; `left` alone has `only`."""
    async with AsyncExitStack() as stack:
        made = {}
        for name in ("left", "right"):
            directory = tmp_path_factory.mktemp(name)
            write_repository(directory / "models")
            for model in ("gpu", "only") if name == "left" else ("gpu",):
                config = emulated_model_config(
                    model, gpu="g", a_us=4000, b_us=500, with_stats=False
                )
                write_emulated_model(directory / "models", model, config)
            made[name] = EmbeddedTriton(
                EmbeddedConfig(
                    repository=directory / "models",
                    environment=TRITON_ENVIRONMENT,
                    run_dir=directory / "run",
                    build_dir=build_dir,
                    control_mode="explicit",
                )
            )
            stack.push_async_callback(killed, made[name])
        await asyncio.gather(*(triton.start() for triton in made.values()))
        policy = SERVERS.format(**made)
        given: dict[str, Any] = dict.fromkeys(("triton_http", "triton_grpc", "triton_metrics"))
        sidecar = await stack.enter_async_context(
            running_sidecar(made["left"], policy=policy, **given)
        )
        async with asyncio.timeout(PATIENCE_S):
            while sidecar.upstreams.notices():
                await asyncio.to_thread(lambda: None)
        yield Scene(made["left"], made["right"], sidecar)


async def test_a_server_dies_under_load_nothing_is_lost_and_it_works_again_when_it_is_back(
    scene: Scene,
) -> None:
    load = Load(grpc_url(scene.sidecar))
    running = asyncio.create_task(load.run())
    await load.until("OK", 100)
    assert min(scene.batches("left"), scene.batches("right")) > 0
    os.kill(scene.left.pid, signal.SIGKILL)
    await scene.left.wait()
    async with asyncio.timeout(PATIENCE_S):
        while scene.sidecar.upstreams.is_server_up("left"):  # its socket says so, or a lost batch
            await asyncio.to_thread(lambda: None)
    served = load.statuses["OK"]
    await load.until("OK", served + 200)
    (away, up) = (await scene.admin("/admin/servers"))["servers"]
    assert [(s["server"], s["state"]) for s in (away, up)] == [("left", "away"), ("right", "up")]
    assert await metric(scene.sidecar, "tritonsched_server_up", server="left") == 0
    assert scene.sidecar.why_not_ready() == ""
    sent = scene.batches("left")
    await scene.left.restart()
    await scene.until("left", sent + 10)
    load.stop()
    await asyncio.wait_for(running, PATIENCE_S)
    assert set(load.statuses) == {"OK"}  # nothing was lost
    assert await metric(scene.sidecar, "tritonsched_server_up", server="left") == 1
    assert await metric(scene.sidecar, "tritonsched_device_speed_ratio", device="left/g") > 0
    assert await metric(scene.sidecar, "nv_inference_count", model="gpu", server="right") > 0


async def test_a_sequence_stays_with_its_server_and_sequences_are_spread(scene: Scene) -> None:
    async with raw_client(grpc_url(scene.sidecar)) as client:

        async def play(who: int) -> float:
            answers = []
            for step in range(5):
                asked = in_sequence(ask("summed", who), who, step, 5)
                answers.append(outputs_of(await client.stub.ModelInfer(asked)))
            return float(answers[-1]["OUT"].flat[0])

        numbers = range(1, 7)
        assert await asyncio.gather(*map(play, numbers)) == [5.0 * who for who in numbers]
    for server in (scene.left, scene.right):
        async with raw_client(server.grpc_address) as direct:
            (stats,) = (
                await direct.stub.ModelStatistics(pb.ModelStatisticsRequest(name="summed"))
            ).model_stats
            assert stats.inference_stats.success.count == 15  # three sequences of five


async def test_a_stream_goes_where_its_model_is_and_stays_there(scene: Scene) -> None:
    async with raw_client(grpc_url(scene.sidecar)) as client:
        for _ in range(3):
            call = client.stub.ModelStreamInfer()
            values = []
            for value in (2.0, 3.0):
                asked = ask("repeat", value, rows=False)
                await call.write(asked)
                for _ in range(int(value)):
                    answer = await call.read()
                    values.append(outputs_of(answer.infer_response)["OUT"].flat[0])
            await call.done_writing()
            assert values == [0, 1, 0, 1, 2]


async def test_control_calls_go_where_they_have_to(scene: Scene) -> None:
    base = f"http://{http_url(scene.sidecar)}"
    async with aiohttp.ClientSession() as session:

        async def called(method: str, path: str, body: bytes = b"") -> tuple[int, Any]:
            async with session.request(method, base + path, data=body) as reply:
                return reply.status, await reply.json(content_type=None)

        assert (await called("GET", "/v2/models/only/config"))[0] == 200  # left alone has it
        status, index = await called("POST", "/v2/repository/index")
        names = [model["name"] for model in index]
        assert (status, len(names)) == (200, len(set(names)))
        assert {"only", "gpu", "summed"} <= set(names)
        status, told = await called("POST", "/v2/repository/models/nothing/load")
        assert status >= 400
        assert told["error"].startswith("server 'left': ")
        assert (await called("POST", "/v2/repository/models/plain/unload"))[0] == 200
        for server in (scene.left, scene.right):
            async with raw_client(server.grpc_address) as direct:
                assert (await direct.model_states())["plain"] != "READY"


async def test_statistics_are_the_sums_of_both(scene: Scene) -> None:
    calls = 40
    row = np.ones((1, 3, 32, 32), np.float32)
    request = pb.ModelStatisticsRequest(name="gpu")
    before = {server: scene.batches(server) for server in ("left", "right")}
    async with raw_client(grpc_url(scene.sidecar)) as client:
        (then,) = (await client.stub.ModelStatistics(request)).model_stats
        await asyncio.gather(*(client.infer("gpu", INPUT=row) for _ in range(calls)))
        (stats,) = (await client.stub.ModelStatistics(request)).model_stats
    assert all(scene.batches(server) > count for server, count in before.items())
    assert stats.inference_count - then.inference_count == calls
    done, done_then = stats.inference_stats.success.count, then.inference_stats.success.count
    assert done - done_then == calls
