"""Triton's statistics through a sidecar that merges: what clients sent, on both protocols, beside
what Triton itself counts; and when its counters begin anew.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import grpc.aio
import pytest
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc import service_pb2 as pb

from tests.integration.conftest import TRITON_ENVIRONMENT
from tests.integration.sidecars import grpc_url, http_url, running_sidecar
from tests.integration.stage import PATIENCE_S, awaited, stub_of, tick
from tests.integration.stream_models import PLAIN, PYTHON, ask, write_model
from tritonsched.backend.embedded import EmbeddedConfig, EmbeddedTriton
from tritonsched.options import GrpcFrontend
from tritonsched.sidecar import Sidecar

CLIENTS = 48
POLICY = "scheduler: {policy: fcfs, window_ms: 20}\n"
ANSWERS_ERRORS = """
class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        if (inputs(request) < 0).any():
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("negative"))
        return response(inputs(request).copy())
"""
RAISES = ANSWERS_ERRORS.replace("return pb_utils.InferenceResponse(error=", "raise ValueError(")
MODELS = {"plain": PLAIN, "answers_errors": ANSWERS_ERRORS, "raises": RAISES}
COUNTED = ("success", "queue", "compute_input", "compute_infer", "compute_output")


@dataclass
class Scene:
    """models: the repository. direct: a stub of Triton itself. through: of the sidecar."""

    models: Path
    triton: EmbeddedTriton
    sidecar: Sidecar
    direct: Any
    through: Any

    async def burst(self, model: str, values: list[float] | None = None) -> int:
        """All at once; returns how many were answered well."""
        values = [float(n) for n in range(CLIENTS)] if values is None else values
        calls = (awaited(self.through.ModelInfer(ask(model, value))) for value in values)
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(end, grpc.aio.AioRpcError) for end in failures(ends))
        return len(ends) - len(failures(ends))

    async def counted(self, model: str, requests: int) -> tuple[Any, Any]:
        """What Triton and what the sidecar says of the model, when all of it is counted."""
        shown = await settled(self.through, model, requests)
        return await stats_of(self.direct, model), shown

    async def grow(self, model: str) -> Any:
        """A burst; the statistics when they have grown by it, as the sidecar shows them."""
        before = await stats_of(self.through, model)
        requests = of(before, "success") + await self.burst(model)
        shown = await settled(self.through, model, requests)
        assert of(shown, "success") == requests
        return shown


async def settled(stub: Any, model: str, requests: int) -> Any:
    """The statistics when so many requests are counted, which Triton does after it answers."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            stats = await stats_of(stub, model)
            if of(stats, "success") + of(stats, "fail") >= requests:
                return stats
            await tick()


def failures(ends: list[Any]) -> list[BaseException]:
    return [end for end in ends if isinstance(end, BaseException)]


async def stats_of(stub: Any, model: str, version: str = "") -> Any:
    request = pb.ModelStatisticsRequest(name=model, version=version)
    (stats,) = (await stub.ModelStatistics(request)).model_stats
    return stats


def of(stats: Any, name: str) -> int:
    return int(getattr(stats.inference_stats, name).count)


def times(stats: Any) -> dict[str, int]:
    return {name: int(getattr(stats.inference_stats, name).ns) for name in COUNTED}


@pytest.fixture(scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedTriton]:
    directory = tmp_path_factory.mktemp("statistics")
    for name, code in MODELS.items():
        write_model(directory / "models", name, PYTHON % 8, code)
    config = EmbeddedConfig(
        repository=directory / "models",
        environment=TRITON_ENVIRONMENT,
        run_dir=directory / "run",
        models=tuple(MODELS),
        control_mode="explicit",
    )
    triton = EmbeddedTriton(config)
    try:
        await triton.start()
        yield triton
    finally:
        if triton.is_running:
            os.kill(triton.pid, signal.SIGKILL)  # a polite stop takes 3 s
        await triton.stop()


@contextlib.asynccontextmanager
async def fronted(
    triton: EmbeddedTriton, frontend: GrpcFrontend = GrpcFrontend.NGH2
) -> AsyncIterator[Scene]:
    """A new sidecar; Triton may have counted before."""
    async with (
        running_sidecar(triton, policy=POLICY, grpc_frontend=frontend) as sidecar,
        stub_of(triton.grpc_address) as direct,
        stub_of(grpc_url(sidecar)) as through,
    ):
        yield Scene(triton.config.repository, triton, sidecar, direct, through)


@pytest.fixture(scope="module")
async def scene(shared: EmbeddedTriton) -> AsyncIterator[Scene]:
    async with fronted(shared) as made:
        yield made


@pytest.mark.parametrize("frontend", list(GrpcFrontend))
async def test_success_grows_by_the_clients_requests_and_tritons_own_by_fewer(
    shared: EmbeddedTriton, frontend: GrpcFrontend
) -> None:
    async with fronted(shared, frontend) as scene:
        before = await stats_of(scene.direct, "plain")
        assert await scene.burst("plain") == CLIENTS
        expected = of(before, "success") + CLIENTS
        raw, shown = await scene.counted("plain", expected)
    assert of(raw, "success") < expected
    assert {of(shown, name) for name in COUNTED} == {expected}
    assert of(shown, "fail") == of(raw, "fail") == 0
    for name in ("inference_count", "execution_count", "last_inference"):
        assert getattr(shown, name) == getattr(raw, name)
    assert list(shown.batch_stats) == list(raw.batch_stats)
    mine = times(shown)
    assert all(mine[name] > ns for name, ns in times(raw).items())
    assert mine["success"] >= sum(mine[name] for name in COUNTED[1:])


async def test_http_grpc_one_model_all_models_and_a_version_say_the_same(scene: Scene) -> None:
    await scene.grow("plain")
    versioned = await stats_of(scene.through, "plain", "1")
    shown = await stats_of(scene.through, "plain")
    every = (await scene.through.ModelStatistics(pb.ModelStatisticsRequest())).model_stats
    assert versioned == shown == next(stats for stats in every if stats.name == "plain")
    expected = MessageToDict(
        shown, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    async with aiohttp.ClientSession() as session:
        for path in ("plain/stats", "plain/versions/1/stats", "stats"):
            url = f"http://{http_url(scene.sidecar)}/v2/models/{path}"
            async with session.get(url) as reply:
                found = await reply.json()
            (stats,) = [made for made in found["model_stats"] if made["name"] == "plain"]
            assert as_text(stats) == as_text(expected)


def as_text(stats: Any) -> Any:
    """Numbers as text, as protobuf's own JSON has them."""
    if isinstance(stats, dict):
        return {key: as_text(value) for key, value in stats.items()}
    return [as_text(value) for value in stats] if isinstance(stats, list) else str(stats)


async def test_where_nothing_is_merged_only_the_sidecars_wait_is_added(
    shared: EmbeddedTriton,
) -> None:
    async with fronted(shared) as scene:
        before = await stats_of(scene.direct, "plain")
        for number in range(5):
            await scene.burst("plain", [float(number)])
        raw, shown = await scene.counted("plain", of(before, "success") + 5)
    waited = times(shown)["queue"] - times(raw)["queue"]
    assert waited > 0
    for name in ("success", "queue"):
        getattr(raw.inference_stats, name).ns += waited
    assert shown == raw


@pytest.mark.parametrize("model", ["answers_errors", "raises"])
async def test_a_merge_that_failed_is_counted_as_its_members_were(
    shared: EmbeddedTriton, model: str
) -> None:
    """As Triton counts the same requests when each comes alone."""
    values = [-1.0 if number % 9 == 0 else float(number) for number in range(CLIENTS)]
    async with stub_of(shared.grpc_address) as direct:
        for value in values:
            call = awaited(direct.ModelInfer(ask(model, value)))
            await asyncio.gather(call, return_exceptions=True)
        alone = await settled(direct, model, CLIENTS)
    async with fronted(shared) as scene:
        await scene.burst(model, values)
        _, shown = await scene.counted(model, 2 * CLIENTS)
    for name in (*COUNTED, "fail"):
        assert of(shown, name) == 2 * of(alone, name)
    assert shown.inference_count == 2 * alone.inference_count


@pytest.mark.parametrize("past", [False, True])
async def test_a_model_loaded_again_begins_anew(scene: Scene, *, past: bool) -> None:
    """Also one that is loaded at Triton's own port."""
    await scene.grow("plain")
    (scene.models / "plain" / "1" / "model.py").touch()
    await load(scene.direct if past else scene.through, "plain")
    assert of(await stats_of(scene.through, "plain"), "success") == 0
    assert of(await scene.grow("plain"), "success") == CLIENTS


async def test_a_load_that_changes_nothing_forgets_nothing(scene: Scene) -> None:
    """Triton goes on counting then."""
    for _ in range(2):  # the first finds what Python has compiled
        await load(scene.through, "plain")
    shown = await scene.grow("plain")
    await load(scene.through, "plain")
    assert await stats_of(scene.through, "plain") == shown


async def load(stub: Any, model: str) -> None:
    await stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name=model))


async def test_another_triton_begins_anew(scene: Scene) -> None:
    """Killed and started again."""
    await scene.burst("plain")
    os.kill(scene.triton.pid, signal.SIGKILL)
    scene.sidecar.health.lost()
    await scene.triton.restart()
    await scene.sidecar.health.wait_up()
    assert of(await stats_of(scene.through, "plain"), "success") == 0
    assert of(await scene.grow("plain"), "success") == CLIENTS
