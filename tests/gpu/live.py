"""The kit's runs on a Triton: equal answers, transports, rules. Rule: what was to be tested must
have been used; a run that went another way is a fault, not a figure.
"""

import asyncio
import contextlib
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from tests.gpu.repository import Net
from tests.integration.sidecars import serve_process
from tritonsched.backend.batch_call import BatchCall, BatchInput, BatchOutput, BatchReply
from tritonsched.backend.cuda_region import Transport
from tritonsched.backend.embedded import EmbeddedTriton
from tritonsched.backend.triton import TritonBackend
from tritonsched.backend.upstream_h2 import H2Upstream
from tritonsched.backend.upstream_http import HttpUpstream
from tritonsched.errors import TritonschedError

ROOT = Path(__file__).parents[2]
AT_ONCE = 4  # batches in flight while answers are compared
CUDA_POOL_BYTES = 512 * 2**20  # for AT_ONCE of the largest batches, inputs and outputs
WARM_UP = 5
LOAD = 1.2  # of what the model can serve in full batches
CLASSES = (("tight", 0.3, 3), ("loose", 0.7, 9))  # name, share, deadline in full batches
DRAIN_S = 30


class KitFault(Exception):
    """The machine has a GPU, and the kit did not work on it."""


@dataclass(frozen=True, slots=True)
class Stand:
    """A Triton and what is asked of it. tested: the transport to compare with gRPC bytes. sizes:
    batch sizes. repeat: batches for a figure. seconds: of load for a rule.
    """

    triton: EmbeddedTriton
    nets: Sequence[Net]
    tested: Transport
    device: str
    sizes: Sequence[int]
    repeat: int
    seconds: float

    def call(self, net: Net, rows: int, seed: int) -> BatchCall:
        """Random pictures, the same for the same seed."""
        values = np.random.default_rng(seed).random((rows, *net.dims), np.float32)
        return BatchCall(
            id=seed,
            model=net.name,
            version="",
            rows=rows,
            inputs=(BatchInput("INPUT", "FP32", values.shape, (values.tobytes(),)),),
            outputs=(BatchOutput("OUTPUT", net.out_bytes),),
            parameters={},
            device=self.device,
        )


@contextlib.asynccontextmanager
async def backend(triton: EmbeddedTriton, transport: Transport) -> AsyncIterator[TritonBackend]:
    """Connected to that Triton by that transport."""
    http, grpc = HttpUpstream(triton.http_address), H2Upstream(triton.grpc_address)
    await http.start()
    await grpc.start()
    made = TritonBackend(http, grpc, transport=transport, cuda_pool_bytes=CUDA_POOL_BYTES)
    try:
        await made.connect()
        yield made
    finally:
        await made.close()
        await grpc.close()
        await http.close()


def require_loaded(triton: EmbeddedTriton) -> None:
    """Raises KitFault if a model is missing."""
    if triton.failed_models:
        raise KitFault(f"Triton could not load {dict(triton.failed_models)}")


async def output_of(server: TritonBackend, call: BatchCall) -> bytes:
    """The batch's one output. Raises KitFault."""
    ended: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def done(outcome: BatchReply | TritonschedError) -> None:
        if isinstance(outcome, TritonschedError):
            ended.set_exception(KitFault(f"{call.model}, {call.rows} rows: {outcome}"))
        else:
            ended.set_result(bytes(outcome.outputs[0].data))
            outcome.release()

    server.send(call, done)
    return await ended


async def equal(stand: Stand) -> list[dict[str, Any]]:
    """The tested transport, several batches at once, against gRPC bytes, one at a time."""
    made = []
    triton = stand.triton
    async with backend(triton, "inline") as plain, backend(triton, stand.tested) as other:
        for net, rows in product(stand.nets, stand.sizes):
            made.append(await _compared(stand, net, rows, plain, other))  # awaits
        require_used(other, stand.tested, len(made) * AT_ONCE)
    return made


async def _compared(
    stand: Stand, net: Net, rows: int, plain: TritonBackend, other: TritonBackend
) -> dict[str, Any]:
    calls = [stand.call(net, rows, seed) for seed in range(AT_ONCE)]
    theirs = await asyncio.gather(*(output_of(other, call) for call in calls))
    ours = [await output_of(plain, call) for call in calls]
    worst = max(_difference(a, b) for a, b in zip(ours, theirs, strict=True))
    return {
        "model": net.name,
        "rows": rows,
        "batches": len(calls),
        "bytes": sum(map(len, ours)),
        "equal": ours == theirs,
        "worst": worst,
    }


def _difference(left: bytes, right: bytes) -> float:
    """The largest; infinite if the lengths differ."""
    a, b = np.frombuffer(left, np.float32), np.frombuffer(right, np.float32)
    return float(np.abs(a - b).max()) if a.shape == b.shape else float("inf")


def require_used(server: TritonBackend, transport: Transport, batches: int) -> None:
    """Raises KitFault unless so many batches went by that transport."""
    used = counts(server)
    if used.get(transport) != batches:
        text = f"{batches} batches were to go by {transport}: {used}; {server.transport_info}"
        raise KitFault(text)


def counts(server: TritonBackend) -> dict[str, int]:
    """Batches by the way of their inputs."""
    return {
        "cuda": server.batches_cuda,
        "system": server.batches_shm,
        "inline": server.batches_inline,
    }


def taken(before: dict[str, int], after: dict[str, int]) -> str:
    """The ways that were taken in between: `cuda`, or `cuda, inline`."""
    return ", ".join(name for name in after if after[name] > before[name])


async def transports(stand: Stand, names: Sequence[Transport]) -> list[dict[str, Any]]:
    """One batch at a time by each transport, interleaved by model and size."""
    made = []
    async with contextlib.AsyncExitStack() as stack:
        servers = [(n, await stack.enter_async_context(backend(stand.triton, n))) for n in names]
        for net, rows, (name, server) in product(stand.nets, stand.sizes, servers):
            made.append(await _timed(stand, net, rows, name, server))  # awaits
    return made


async def _timed(
    stand: Stand, net: Net, rows: int, name: Transport, server: TritonBackend
) -> dict[str, Any]:
    call = stand.call(net, rows, seed=1)
    before = counts(server)
    for _ in range(WARM_UP):
        await output_of(server, call)
    times, cpu = [], time.process_time_ns()
    for _ in range(stand.repeat):
        begun = time.monotonic_ns()
        await output_of(server, call)
        times.append(time.monotonic_ns() - begun)
    cpu = time.process_time_ns() - cpu
    used = taken(before, counts(server))
    if name == stand.tested and used != name:
        raise KitFault(f"batches of {rows} rows were to go by {name} and went by {used}")
    return {
        "model": net.name,
        "rows": rows,
        "transport": name if used == name else f"{name} (went {used})",
        "p50_ms": round(statistics.median(times) / 1e6, 3),
        "p90_ms": round(sorted(times)[len(times) * 9 // 10] / 1e6, 3),
        "cpu_us": round(cpu / 1e3 / stand.repeat, 1),
    }


async def policies(
    stand: Stand, net: Net, full_ms: float, wanted: Sequence[tuple[str, Transport]], place: Path
) -> list[dict[str, Any]]:
    """Rules under load, by a sidecar and a load generator in processes of their own.

    full_ms: a batch of the largest of the sizes. wanted: rule and transport.
    """
    rate = LOAD * max(stand.sizes) / (full_ms / 1e3)
    deadlines = {name: round(full_ms * times + 5, 1) for name, _, times in CLASSES}
    policy = place / "policy.yaml"
    classes = "".join(f"  {n}: {{deadline_ms: {ms}}}\n" for n, ms in deadlines.items())
    policy.write_text(f"classes:\n{classes}default_class: loose\n")
    made = []
    for rule, transport in wanted:
        given = ("--rule", rule, "--transport", transport, "--policy", str(policy))
        entry = {"rule": rule, "transport": transport, "rate": round(rate, 1)}
        made.append(entry | await _loaded(stand, net, rate, deadlines, given))
    return made


async def _loaded(
    stand: Stand, net: Net, rate: float, deadlines: dict[str, float], given: Sequence[str]
) -> dict[str, Any]:
    http, grpc = stand.triton.http_address, stand.triton.grpc_address
    triton = ("--triton-http", http, "--triton-grpc", grpc)
    async with serve_process(*triton, *given, cwd=ROOT) as served:
        command = [
            sys.executable, "-m", "tritonsched", "bench", "--model", net.name,
            "--target", served.grpc, "--protocol", "grpc", "--rate", f"{rate:.3f}",
            "--duration-s", str(stand.seconds),
            "--warmup-s", "2", "--drain-s", str(DRAIN_S), "--json", "-",
            *(w for n, share, _ in CLASSES for w in ("--class", f"{n}:{share}:{deadlines[n]}")),
        ]  # fmt: skip
        bench = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        output, _ = await bench.communicate()
    if bench.returncode:
        raise KitFault(f"{' '.join(command)} ended with {bench.returncode}")
    return summed(json.loads(output))


def summed(result: dict[str, Any]) -> dict[str, Any]:
    """A load generator's result, over its classes."""
    rows = result["classes"].values()
    sent = max(1, sum(row["sent"] for row in rows))
    return {
        "goodput": round(result["goodput_per_s"], 1),
        "in_time": f"{sum(row['served'] for row in rows) / sent:.1%}",
        "refused": sum(sum(row["refused"].values()) for row in rows),
        "late": sum(row["late"] for row in rows),
    }
