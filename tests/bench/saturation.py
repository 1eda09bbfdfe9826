"""G12: how long a saturated device waits between batches, and what decisions cost at 1000 queued.

    python -m tests.bench.saturation              # about half a minute

Device: an emulated GPU of 5 ms + 0.6 ms a row, at most 32 rows, tells start and end of each batch
by its own clock (STATS); IN_FLIGHT grpcio calls of 12 KB are always out, through the sidecar and,
beside it, at Triton's own dynamic batcher. Idle: time between one batch's end and the next one's
start over the batches' time. Decisions: CPU of this thread in the core, rule `lite`.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
from tritonclient.grpc import service_pb2 as pb

from tests.bench.loads import INFER
from tests.bench.meter import ROOT, Figure, dump, machine, median, table
from tests.integration.sidecars import serve_process
from tritonsched.backend.embedded import EmbeddedConfig, EmbeddedTriton
from tritonsched.backend.prepare import emulated_model_config, write_emulated_model
from tritonsched.core.batch import Completion, Dispatch
from tritonsched.core.latency import LatencyProfile
from tritonsched.core.policies import POLICIES
from tritonsched.core.request import Request
from tritonsched.core.scheduler import Scheduler
from tritonsched.core.tuning import Tuning
from tritonsched.core.variant import ServerState, Variant

A_US, B_US, ROWS_MAX = 5_000, 600, 32
IN_FLIGHT = 96  # two batches may be out, and a third must be there to be chosen
SIDECAR, TRITON = "sidecar", "Triton, dynamic batcher"
MODELS = {SIDECAR: "plain", TRITON: "merging"}
QUEUED = 1_000
BATCHES_MIN = 20  # of a run: fewer say nothing
WARM_UP = 10  # batches
Stats = tuple[float, float]  # of a batch: start and end, ns

# -- the device -----------------------------------------------------------------------------------


def message(model: str) -> bytes:
    made = pb.ModelInferRequest(model_name=model)
    made.inputs.add(name="INPUT", datatype="FP32", shape=(1, 3, 32, 32))
    made.raw_input_contents.append(np.ones((1, 3, 32, 32), np.float32).tobytes())
    serialized: bytes = made.SerializeToString()
    return serialized


async def ask(address: str, model: str, requests: int) -> set[Stats]:
    """The batches in which they were answered."""
    found: set[Stats] = set()
    body, left = message(model), iter(range(requests))
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(INFER, None, pb.ModelInferResponse.FromString)

        async def client() -> None:
            for _ in left:
                answer: Any = await call(body)
                start, end, *_ = np.frombuffer(answer.raw_output_contents[1], np.float64)
                found.add((float(start), float(end)))

        await asyncio.gather(*(client() for _ in range(IN_FLIGHT)))
    return found


def idle_share(found: Iterable[Stats]) -> float:
    """Of the batches' time; the first ones fill the queue, the last ones empty it."""
    batches = sorted(found)[WARM_UP : -IN_FLIGHT // ROWS_MAX]
    if len(batches) < BATCHES_MIN:
        raise ValueError(f"{len(batches)} batches are too few; ask for more")
    idle_ns = sum(after[0] - before[1] for before, after in pairwise(batches))
    return idle_ns / sum(end - start for start, end in batches)


async def measure_idle(repetitions: int, requests: int) -> dict[str, float]:
    """By target; medians."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for model, batching in ((MODELS[SIDECAR], None), (MODELS[TRITON], "")):
            config = emulated_model_config(
                model, gpu=model, a_us=A_US, b_us=B_US, max_batch_size=ROWS_MAX,
                dynamic_batching=batching,
            )  # fmt: skip
            write_emulated_model(directory / "models", model, config)
        triton_config = EmbeddedConfig(
            repository=directory / "models",
            environment=ROOT / ".venv-triton",
            run_dir=directory / "run",
            build_dir=ROOT / ".run" / "build",
        )
        async with EmbeddedTriton(triton_config) as triton:
            given = ("--triton-http", triton.http_address, "--triton-grpc", triton.grpc_address)
            async with serve_process(*given, cwd=ROOT) as served:
                where = {SIDECAR: served.grpc, TRITON: triton.grpc_address}
                runs: dict[str, list[float]] = {target: [] for target in where}
                for _ in range(repetitions):
                    for target, address in where.items():
                        found = await ask(address, MODELS[target], requests)
                        runs[target].append(idle_share(found))
    return {target: median(shares) for target, shares in runs.items()}


# -- the core -------------------------------------------------------------------------------------


def filled() -> tuple[Scheduler, int]:
    """`lite` with QUEUED requests of one row waiting, and the batch that runs."""
    scheduler = Scheduler(POLICIES["lite"](), tuning=Tuning())
    scheduler.set_server(ServerState.READY, 0)
    scheduler.set_variant(Variant("m", rows_max=ROWS_MAX, devices=("gpu",)), 0)
    profile = LatencyProfile({1: 5_600_000, ROWS_MAX: 24_200_000})
    scheduler.set_profile("m", "gpu", profile)
    for number in range(QUEUED + 1):
        scheduler.submit(request(number), 0)
        if not number:  # it runs alone, the others wait
            scheduler.decide(0)
    scheduler.decide(0)
    (running,) = scheduler.running()
    return scheduler, running.id


def request(number: int) -> Request:
    deadline_ns = 10_000_000_000 + number * 1_000
    return Request(number, "m", "default", 1, 1, 0, deadline_ns)


def decision_us() -> tuple[float, float]:
    """(A request that joins QUEUED others, a dispatch of 32 of them), CPU µs."""
    scheduler, running = filled()
    arrivals = [request(QUEUED + 1 + number) for number in range(100)]
    start = time.thread_time_ns()
    for each in arrivals:
        scheduler.submit(each, 1)
    scheduler.decide(1)
    arrived_ns = time.thread_time_ns() - start
    now = 6_000_000
    scheduler.complete(Completion(running), now)
    start = time.thread_time_ns()
    decisions = scheduler.decide(now)
    dispatched_ns = time.thread_time_ns() - start
    (batch,) = [made.batch for made in decisions if isinstance(made, Dispatch)]
    assert batch.rows == ROWS_MAX, batch.rows
    return arrived_ns / len(arrivals) / 1e3, dispatched_ns / 1e3


def measure_core(repetitions: int) -> tuple[float, float]:
    """Medians."""
    runs = [decision_us() for _ in range(repetitions)]
    return median(run[0] for run in runs), median(run[1] for run in runs)


# -- command --------------------------------------------------------------------------------------


def figures(idle: dict[str, float], core: tuple[float, float]) -> list[Figure]:
    return [
        Figure("G12", "sidecar: device idle between batches over their time", idle[SIDECAR], 0.03),
        Figure("G12", "Triton's dynamic batcher: the same", idle[TRITON]),
        Figure("G12", f"µs a request that joins {QUEUED}, lite", core[0], 1.0),
        Figure("G12", f"µs a dispatch of 32 at {QUEUED} queued, lite", core[1], 25.0),
    ]


async def everything(repetitions: int, requests: int) -> list[Figure]:
    core = measure_core(10 * repetitions)
    return figures(await measure_idle(repetitions, requests), core)


def main() -> None:
    """Parse options, run, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--requests", type=int, default=3_000, help="of a run")
    parser.add_argument("--json", type=Path, help="write the figures")
    options = parser.parse_args()
    made = asyncio.run(everything(options.repetitions, options.requests))
    if options.json:
        dump(options.json, {"machine": machine(), "figures": [each.as_dict() for each in made]})
    sys.stdout.write(table(made) + "\n")


if __name__ == "__main__":
    main()
