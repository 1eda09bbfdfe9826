"""The drift of `tests/bench/drift.py` behind a real Triton: emulated GPU, control file, real time.

    python -m tests.bench.drift_live [--seconds 30]

The mix of drift.py at load 0.6: three models on one emulated GPU with 3 % of jitter and 0.3 % of
overruns; in the middle third its control file makes it 1/0.6 times slower. Learning on, then off;
both begin with the nominal times. Outcomes are the sidecar's ledger's. The device's own time of a
batch comes from the model's STATS (start and end on the device, throttle in force).
Columns: as drift.py; `device error`: |predicted - device time| / device time of a batch at steady
speed, the prediction less the host's median share; `best`: the same p99 of somebody who knows the
true mean, hence what jitter, overruns and the emulation itself leave to err; `host`: that share,
p50 and p99, in ms: what lies between the device's time and what the sidecar measured.
"""

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import uvloop
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from tests.bench.drift import (
    COSTS,
    DEADLINES_MS,
    FACTOR,
    LOAD,
    NEAR,
    ROWS_MAX,
    SETTLED_NS,
    until_near,
)
from tests.integration.sidecars import grpc_url, running_sidecar
from tritonsched.backend.embedded import EmbeddedConfig, EmbeddedTriton
from tritonsched.backend.prepare import emulated_model_config, write_emulated_model
from tritonsched.core.batch import Batch
from tritonsched.core.latency import LatencyProfile
from tritonsched.core.observers import Observer
from tritonsched.core.request import Outcome, Request
from tritonsched.sidecar import Sidecar

ROOT = Path(__file__).parents[2]
GPU = "drift"
MS = 1_000_000
HOST_NS = 400_000  # what the nominal times grant the host, to begin with
WARMUP = 60  # requests a model, one by one, before anything counts
POLICY = "classes:\n" + "".join(
    f"  {name}: {{deadline_ms: {ms}}}\n" for name, ms in DEADLINES_MS.items()
)
POLICY += "models:\n" + "".join(f"  {name}: {{default_class: {name}}}\n" for name in COSTS)


@dataclass
class Seen:
    """A batch as the sidecar saw it, and, once matched, as the device did."""

    batch: Batch
    measured_ns: int
    now: int
    device_ns: float = 0.0
    throttle: float = 0.0


@dataclass
class Watch(Observer):
    """Every batch and outcome from `on` on."""

    seen: list[Seen] = field(default_factory=list)
    outcomes: dict[Outcome, int] = field(default_factory=dict)

    def on_complete(self, batch: Batch, *, measured_ns: int, now: int) -> None:
        self.seen.append(Seen(batch, measured_ns, now))

    def on_outcomes(
        self, requests: Sequence[Request], outcome: Outcome, reason: str, now: int
    ) -> None:
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + len(requests)


class Clients:
    """Poisson arrivals of one row each, open loop; remembers each batch's STATS."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub
        self._calls: set[asyncio.Task[None]] = set()
        self._bytes = np.ones((1, 3, 32, 32), np.float32).tobytes()
        self.stats: dict[str, set[tuple[float, ...]]] = {name: set() for name in COSTS}

    async def ask(self, model: str) -> None:
        request = pb.ModelInferRequest(model_name=model)
        tensor = request.inputs.add(name="INPUT", datatype="FP32", shape=[1, 3, 32, 32])
        assert tensor is not None
        request.raw_input_contents.append(self._bytes)
        try:
            reply = await self._stub.ModelInfer(request)
        except grpc.aio.AioRpcError:  # refused: the ledger has it
            return
        self.stats[model].add(tuple(np.frombuffer(reply.raw_output_contents[1], np.float64)))

    async def run(self, seconds: float, seed: int) -> None:
        """All models at LOAD."""
        loop = asyncio.get_running_loop()
        begin, plan = loop.time(), self._plan(seconds, seed)
        for at_s, model in plan:
            wait_s = begin + at_s - loop.time()
            if wait_s > 0:
                await pause(wait_s)
            call = loop.create_task(self.ask(model))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)
        while self._calls:
            await asyncio.wait(self._calls)

    def _plan(self, seconds: float, seed: int) -> list[tuple[float, str]]:
        plan = []
        for name, (a_us, b_us) in COSTS.items():
            dice = random.Random(f"{seed}/{name}")
            rate = LOAD * ROWS_MAX / ((a_us + b_us * ROWS_MAX) / 1e6) / len(COSTS)
            at_s = dice.expovariate(rate)
            while at_s < seconds:
                plan.append((at_s, name))
                at_s += dice.expovariate(rate)
        return sorted(plan)


async def pause(seconds: float) -> None:
    """Let the loop turn for so long."""
    future = asyncio.get_running_loop().create_future()
    handle = asyncio.get_running_loop().call_later(seconds, future.set_result, None)
    try:
        await future
    finally:
        handle.cancel()


def slow_down(control: Path, factor: float) -> None:
    control.write_text(f"{factor:.6f}")


async def throttle(control: Path, seconds: float) -> None:
    """60 % of the speed in the middle third."""
    await pause(seconds / 3)
    slow_down(control, FACTOR)
    await pause(seconds / 3)
    slow_down(control, 1)


async def one(directory: Path, seconds: float, *, learning: bool, drift: bool) -> str:
    """A run in a fresh Triton; its line of the table."""
    control = directory / "throttle"
    slow_down(control, 1)
    for seed, (name, (a_us, b_us)) in enumerate(COSTS.items(), 1):
        config = emulated_model_config(
            name, gpu=GPU, a_us=a_us, b_us=b_us, max_batch_size=ROWS_MAX, control_file=control,
            jitter_pct=3, overrun_rate=0.003, overrun_factor=2, seed=seed,
        )  # fmt: skip
        write_emulated_model(directory / "models", name, config)
    triton_config = EmbeddedConfig(
        repository=directory / "models",
        environment=ROOT / ".venv-triton",
        run_dir=directory / "run",
        build_dir=ROOT / ".run" / "build",
    )
    policy = POLICY + f"feedback: {{learning: {str(learning).lower()}}}\n"
    async with (
        EmbeddedTriton(triton_config) as triton,
        running_sidecar(triton, policy=policy) as sidecar,
        grpc.aio.insecure_channel(grpc_url(sidecar)) as channel,
    ):
        clients = Clients(service_pb2_grpc.GRPCInferenceServiceStub(channel))
        for _ in range(WARMUP):
            await asyncio.gather(*(clients.ask(name) for name in COSTS))
        nominal(sidecar)
        watch = Watch()
        sidecar.scheduler._audience.join(watch)
        clients.stats = {name: set() for name in COSTS}
        work = [clients.run(seconds, seed=1)]
        await asyncio.gather(*work, *([throttle(control, seconds)] if drift else []))
        said = told(sidecar)
    return line(watch, clients, learning=learning, drift=drift) + "\n" + said


def told(sidecar: Sidecar) -> str:
    """What was learnt, and what feedback changed last."""
    speed = sidecar.scheduler.speeds()[GPU]
    knobs = [word for word in sidecar.tuner.feedback.words() if not word.startswith("reply")]
    return (
        f"  speed {speed.factor:.3f}, {speed.changes} changes, spread {speed.spread:.3f}; "
        f"{sidecar.scheduler.tuning}; last: {'; '.join(knobs[-3:]) or '-'}"
    )


def nominal(sidecar: Sidecar) -> None:
    """Everybody begins with the same tables."""
    for name, (a_us, b_us) in COSTS.items():
        table = {r: HOST_NS + (a_us + b_us * r) * 1000 for r in range(1, ROWS_MAX + 1)}
        sidecar.scheduler.set_profile(name, GPU, LatencyProfile(table))


def match(watch: Watch, clients: Clients) -> list[Seen]:
    """Batches with what the device said: the one whose answer came first after the device's end."""
    found = []
    for model, stats in clients.stats.items():
        seen = sorted((s for s in watch.seen if s.batch.model == model), key=lambda s: s.now)
        rows = sorted(stats)
        index = 0
        for one_seen in seen:
            start_ns = one_seen.now - one_seen.measured_ns
            while index < len(rows) and rows[index][1] < start_ns:
                index += 1
            if index < len(rows) and rows[index][1] <= one_seen.now:
                start, end, count, factor = rows[index]
                if count == one_seen.batch.rows:
                    one_seen.device_ns, one_seen.throttle = end - start, factor
                    found.append(one_seen)
                index += 1
    return sorted(found, key=lambda s: s.now)


def line(watch: Watch, clients: Clients, *, learning: bool, drift: bool) -> str:
    found = match(watch, clients)
    host = sorted(s.measured_ns - s.device_ns for s in found)
    share = statistics.median(host)
    changes = [b.now for a, b in pairwise(found) if a.throttle != b.throttle]
    errors = sorted(
        abs(s.batch.expected_ns - share - s.device_ns) / s.device_ns
        for s in found
        if s.now - max((at for at in changes if at <= s.now), default=0) >= SETTLED_NS
    )
    best = sorted(abs(_true_ns(s) - s.device_ns) / s.device_ns for s in found)
    until = [until_near(off(found, at, changes, share)) for at in changes]
    sent = sum(watch.outcomes.values())
    missed = watch.outcomes.get(Outcome.LATE, 0) + watch.outcomes.get(Outcome.EXPIRED, 0)
    refused = watch.outcomes.get(Outcome.REJECTED, 0)
    p50, p99 = errors[len(errors) // 2], errors[int(0.99 * (len(errors) - 1))]
    host99 = host[int(0.99 * (len(host) - 1))]
    return " | ".join(
        (
            "60 % in the middle third" if drift else "constant",
            "on" if learning else "off",
            str(sent),
            f"{watch.outcomes.get(Outcome.SERVED, 0) / sent:.4f}",
            f"{missed / max(1, sent - refused):.3%}",
            ", ".join(map(str, until)) or "-",
            f"{p50:.1%}, {p99:.1%}",
            f"{best[int(0.99 * (len(best) - 1))]:.1%}",
            f"{share / MS:.2f}, {host99 / MS:.2f} ms",
            f"{len(found)} of {len(watch.seen)}",
        )
    )


def off(found: Sequence[Seen], at: int, changes: Sequence[int], host_ns: float) -> list[float]:
    """Expected over true mean time less one, from the change on until the next one."""
    until = min((change for change in changes if change > at), default=found[-1].now + 1)
    return [
        (seen.batch.expected_ns - host_ns) / _true_ns(seen) - 1.0
        for seen in found
        if at <= seen.now < until
    ]


def _true_ns(seen: Seen) -> float:
    """What the emulated GPU takes on the mean, at the throttle in force."""
    a_us, b_us = COSTS[seen.batch.model]
    return (a_us + b_us * seen.batch.rows) * 1000 * seen.throttle


HEAD = (
    "speed | learning | requests | on time | missed of admitted | batches until within "
    f"{NEAR:.0%} (down, up) | device error p50, p99 | best | host p50, p99 | batches seen by both"
)


SETTINGS = ((False, True), (True, False), (True, True))


async def table(seconds: float) -> None:
    """Every setting in turn."""
    sys.stdout.write(HEAD + "\n")
    for drift, learning in SETTINGS:
        with tempfile.TemporaryDirectory() as name:
            made = await one(Path(name), seconds, learning=learning, drift=drift)
        sys.stdout.write(made + "\n")
        sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0)
    uvloop.run(table(parser.parse_args().seconds))


if __name__ == "__main__":
    main()
