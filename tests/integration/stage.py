"""A Triton with the models of streams and a sidecar in front: where streams, cancellation and
loading are tested.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc.aio
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from tests.integration.conftest import TRITON_ENVIRONMENT
from tests.integration.sidecars import grpc_url, running_sidecar
from tests.integration.stream_models import MODELS, Gate, ask, write_repository
from tritonsched.backend.embedded import EmbeddedConfig, EmbeddedTriton
from tritonsched.core.devices import BATCHES_MAX
from tritonsched.sidecar import Sidecar

PROVEN = 10  # batches after which their time is known
PATIENCE_S = 30  # far more than anything here takes; a hang fails the test instead of the run


class Stage:
    """directory: of the model repository. gate: of the model `gated`."""

    def __init__(
        self, directory: Path, gate: Gate, triton: EmbeddedTriton, sidecar: Sidecar
    ) -> None:
        self.directory = directory
        self.gate = gate
        self.triton = triton
        self.sidecar = sidecar

    async def executed(self, model: str) -> int:
        """Rows that Triton has executed, in its own statistics."""
        async with stub_of(self.triton.grpc_address) as stub:
            asked = pb.ModelStatisticsRequest(name=model)
            (stats,) = (await stub.ModelStatistics(asked)).model_stats
            return int(stats.inference_count)

    async def queued(self, model: str, count: int) -> None:
        """Wait until so many requests of the model wait."""
        await until(lambda: self.waiting(model) == count)

    async def jam(self, stub: Any) -> list[asyncio.Future[Any]]:
        """Requests of `gated` that fill its device, and one that waits: so will what comes now."""
        sent: list[asyncio.Future[Any]] = []
        for number in range(BATCHES_MAX + 1):
            sent.append(asyncio.ensure_future(awaited(stub.ModelInfer(ask("gated", number)))))
            out = min(number + 1, BATCHES_MAX)
            await until(lambda: sent[-1].done() or self._has(out, number + 1 - out))  # noqa: B023
            assert not sent[-1].done(), sent[-1].exception() or "it went through a closed gate"
        return sent

    async def prove(self) -> None:
        """Let the times of `gated` be known, so that a second batch is sent ahead."""
        async with stub_of(grpc_url(self.sidecar)) as stub, self.gate.open():
            for number in range(PROVEN):
                await stub.ModelInfer(ask("gated", number))

    def _has(self, out: int, waiting: int) -> bool:
        """So many batches of `gated` are out, and so many requests wait."""
        running = [batch for batch in self.sidecar.scheduler.running() if batch.model == "gated"]
        return (len(running), self.waiting("gated")) == (out, waiting)

    def waiting(self, model: str) -> int:
        return self.sidecar.scheduler.queued().get(model, 0)


async def awaited(call: Any) -> Any:
    return await call


async def until(is_so: Callable[[], bool]) -> None:
    """Look after each turn of the loop, until it is so."""
    async with asyncio.timeout(PATIENCE_S):
        while not is_so():
            await tick()


async def tick() -> None:
    """One turn of the loop, and of the network."""
    await asyncio.to_thread(lambda: None)


@contextlib.asynccontextmanager
async def staged(directory: Path, build_dir: Path, **options: Any) -> AsyncIterator[Stage]:
    """options: of the sidecar. Times stay as they were proven: the gate keeps batches for as long
    as a test takes, which would be learnt, and then nothing is sent ahead for as long.
    """
    options.setdefault("policy", "feedback: {learning: false}\n")
    gate = write_repository(directory / "models")
    config = EmbeddedConfig(
        repository=directory / "models",
        environment=TRITON_ENVIRONMENT,
        run_dir=directory / "run",
        build_dir=build_dir,
        models=MODELS,
        control_mode="explicit",
    )
    async with EmbeddedTriton(config) as triton, running_sidecar(triton, **options) as sidecar:
        stage = Stage(directory / "models", gate, triton, sidecar)
        await stage.prove()
        yield stage


@contextlib.asynccontextmanager
async def stub_of(address: str) -> AsyncIterator[Any]:
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        await channel.channel_ready()  # calls made before go out in any order
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)
