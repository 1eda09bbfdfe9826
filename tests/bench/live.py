"""The stage of live benches: emulated GPUs in a Triton, a sidecar before it, and a load, each a
process of its own. Rule: it measures nothing; it starts, stops and asks.
"""

import asyncio
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.live_load import ROW_FLOATS, Shot
from tests.integration.sidecars import ServeProcess, serve_process
from tritonsched.backend.embedded import EmbeddedConfig, EmbeddedTriton
from tritonsched.backend.prepare import emulated_model_config, write_emulated_model

ROOT = Path(__file__).parents[2]
LOAD_S_MAX = 300.0


@dataclass(frozen=True)
class Gpu:
    """A model on an emulated GPU. table_us: microseconds by rows, linear between. params: further
    ones of the emulated GPU.
    """

    table_us: Mapping[int, float]
    gpu: str = "gpu0"
    params: Mapping[str, Any] | None = None

    def config(self, name: str, seed: int) -> str:
        table = ",".join(f"{rows}:{us:.0f}" for rows, us in sorted(self.table_us.items()))
        return emulated_model_config(
            name, gpu=self.gpu, a_us=0, b_us=0, max_batch_size=max(self.table_us),
            dims=(ROW_FLOATS,), with_stats=False, table=table, seed=seed, **(self.params or {}),
        )  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What the load says, by shot. took_ms: from the due time to the answer; None without one.
    lags_ms: how late it was sent.
    """

    shots: Sequence[Shot]
    statuses: Sequence[str]
    took_ms: Sequence[float | None]
    lags_ms: Sequence[float]

    def lag_ms(self, share: float) -> float:
        """That quantile of the lags: the host's jitter, as the load's own process has it."""
        ranked = sorted(self.lags_ms)
        return ranked[min(len(ranked) - 1, int(share * len(ranked)))]

    def in_time(self, index: int) -> bool:
        """Answered well, within its deadline from when it was due to be sent."""
        took, shot = self.took_ms[index], self.shots[index]
        if self.statuses[index] != "ok" or took is None:
            return False
        return not shot.deadline_ms or took <= shot.deadline_ms


@contextlib.asynccontextmanager
async def triton(models: Mapping[str, Gpu]) -> AsyncIterator[EmbeddedTriton]:
    """A Triton with these models."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for seed, (model, gpu) in enumerate(models.items(), 1):
            write_emulated_model(directory / "models", model, gpu.config(model, seed))
        config = EmbeddedConfig(
            repository=directory / "models",
            environment=ROOT / ".venv-triton",
            run_dir=directory / "run",
            build_dir=ROOT / ".run" / "build",
        )
        async with EmbeddedTriton(config) as running:
            yield running


@contextlib.asynccontextmanager
async def sidecar(running: EmbeddedTriton, policy: str) -> AsyncIterator[ServeProcess]:
    """A sidecar before it, under this policy file."""
    with tempfile.TemporaryDirectory() as name:
        upstream = ("--triton-http", running.http_address, "--triton-grpc", running.grpc_address)
        arguments = (*upstream, "--policy", _written(name, policy))
        async with serve_process(*arguments, cwd=ROOT) as served:
            reading = asyncio.ensure_future(_read_on(served))
            try:
                yield served
            finally:
                reading.cancel()


def _written(directory: str, text: str) -> str:
    path = Path(directory, "given")
    path.write_text(text)
    return str(path)


async def _read_on(served: ServeProcess) -> None:
    """What it says later must not fill its pipe."""
    assert served.process.stdout is not None
    while line := await served.process.stdout.readline():
        served.lines.append(line.decode().rstrip())


async def offered(served: ServeProcess, shots: Sequence[Shot]) -> Outcome:
    """The shots, sent by a process of their own. Raises RuntimeError if that one failed."""
    with tempfile.TemporaryDirectory() as name:
        trace = _written(name, json.dumps({"target": served.grpc, "shots": list(shots)}))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.bench.live_load", trace,
            cwd=ROOT,
            env=os.environ,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(LOAD_S_MAX):
            output, errors = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"the load ended with {process.returncode}: {errors.decode()[-2000:]}")
    said: dict[str, Any] = json.loads(output)
    return Outcome(shots, said["statuses"], said["took_ms"], said["lags_ms"])
