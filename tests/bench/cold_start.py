"""A sidecar that starts with nothing, against one that starts with a full profile.

    python -m tests.bench.cold_start                # in the simulator, with the very same scheduler
    python -m tests.bench.cold_start --live         # real Triton and sidecar, 80 s a run

A mix that no sidecar has seen: four models with random affine times (`--mix` is their seed) on one
device with 3 % of jitter and a few overruns. No policy file; each request names its deadline, four
full batches of its model. Load 1 is what full batches of all models could carry, each with a fourth
of the device. Poisson, open loop, the same requests for both. The profile is made by `tritonsched
profile` on the same Triton just before (simulated: the nominal times). "In time" is the client's
view. The goal: in the last of the windows, that is within a minute, at least 0.97 of the goodput
with a profile.
"""

import argparse
import asyncio
import itertools
import json
import random
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.overload import ROOT, Busy, cpu_s, say
from tests.integration.sidecars import serve_process
from tritonsched.backend.embedded import EmbeddedConfig, EmbeddedTriton
from tritonsched.backend.prepare import emulated_model_config, write_emulated_model
from tritonsched.bench.clients import OK, GrpcClient
from tritonsched.bench.load import BenchOptions, OpenLoop
from tritonsched.bench.measure import ClassCount
from tritonsched.bench.payload import PAYLOADS, Wording, inputs
from tritonsched.bench.plan import Arrivals, LoadClass, Shot, schedule
from tritonsched.core.observers import Observer
from tritonsched.core.policies import DEFAULT_POLICY, POLICIES
from tritonsched.core.request import Outcome, Request, SloClass
from tritonsched.core.scheduler import Scheduler
from tritonsched.sim.arrivals import poisson
from tritonsched.sim.engine import Simulation
from tritonsched.sim.experiment import NOISE, inform, tuning_for
from tritonsched.sim.workload import Stream, Workload
from tritonsched.sim.world import SimModel, World, affine
from tritonsched.tensors import Wire

MS = 1_000_000
S = 1_000_000_000
RTT_NS = 300_000
GOAL = 0.97
MODELS = 4
ROWS_MAX = 8
WINDOWS_S = (0, 1, 2, 5, 10, 20, 40, 60)  # the last one ends the run
WORDING = Wording(timeout=False, header=True, send_class=False)


@dataclass(frozen=True, slots=True)
class Kind:
    """A model: a batch takes a + b * rows, in ms."""

    name: str
    a_ms: float
    b_ms: float

    @property
    def full_ms(self) -> float:
        return self.a_ms + self.b_ms * ROWS_MAX

    def rate(self, load: float) -> float:
        """Requests of one row a second."""
        return load / MODELS * ROWS_MAX * 1000.0 / self.full_ms

    @property
    def load_class(self) -> LoadClass:
        return LoadClass(self.name, 1.0, round(4 * self.full_ms))


def mix(seed: int) -> list[Kind]:
    """Models of 4 to 20 ms and 0.8 to 5 ms a row."""
    rng = random.Random(seed)
    return [
        Kind(f"m{k}", round(rng.uniform(4, 20), 1), round(rng.uniform(0.8, 5), 1))
        for k in range(MODELS)
    ]


class Noted(OpenLoop):
    """Notes of each request when it was due and whether it was answered in time."""

    ended: list[tuple[float, bool]]

    async def _one(self, shot: Shot, count: ClassCount | None) -> None:
        status = await self._client.send(shot.load_class, shot.payload)
        late_ns = self._clock() - self._start_ns - shot.at_ns
        deadline_ms = self._options.classes[0].deadline_ms
        assert deadline_ms is not None
        self.ended.append((shot.at_ns / 1e9, status == OK and late_ns <= deadline_ms * 1e6))


async def loaded(address: str, kind: Kind, load: float, seed: int) -> list[tuple[float, bool]]:
    """One model's requests for the whole run: when each was due, in s, and if it was in time."""
    client = GrpcClient(address)
    rate, classes = kind.rate(load), (kind.load_class,)
    try:
        info = await client.model(kind.name)
        payloads = inputs(info, rows=1, shapes={}, pictures=False, seed=seed)
        client.prepare(kind.name, classes, payloads, WORDING)
        shots = schedule(
            rate=rate,
            duration_s=WINDOWS_S[-1],
            arrivals=Arrivals.POISSON,
            classes=classes,
            payloads=PAYLOADS,
            rng=random.Random(f"{seed} {kind.name}"),
        )
        options = BenchOptions(address, Wire.GRPC, kind.name, rate, WINDOWS_S[-1], classes=classes)
        loop = Noted(client, options, shots)
        loop.ended = []
        await loop.finish()
        return loop.ended
    finally:
        await client.close()


@asynccontextmanager
async def triton_with(kinds: list[Kind], directory: Path) -> AsyncIterator[EmbeddedTriton]:
    """An embedded Triton with these models on one emulated GPU."""
    repository = directory / "models"
    for number, kind in enumerate(kinds):
        config = emulated_model_config(
            kind.name, gpu="g", a_us=kind.a_ms * 1000, b_us=kind.b_ms * 1000, with_stats=False,
            max_batch_size=ROWS_MAX, jitter_pct=3, overrun_rate=0.002, overrun_factor=1.5,
            seed=number,
        )  # fmt: skip
        write_emulated_model(repository, kind.name, config)
    config_of = EmbeddedConfig(
        repository=repository,
        environment=ROOT / ".venv-triton",
        run_dir=directory / "run",
        build_dir=ROOT / ".run" / "build",
    )
    async with EmbeddedTriton(config_of) as triton:
        yield triton


async def driven(
    address: str, options: argparse.Namespace, load: float, seed: int
) -> list[tuple[float, bool]]:
    """All models' requests, from a process of its own: gRPC does not bear that this one forks."""
    words = (
        "--drive",
        address,
        "--loads",
        str(load),
        "--seed",
        str(seed),
        "--mix",
        str(options.mix),
    )
    command = [sys.executable, "-m", "tests.bench.cold_start", *words]
    ran = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, cwd=ROOT)
    output, _ = await ran.communicate()
    return [(float(at), bool(good)) for at, good in json.loads(output)]


async def drive(options: argparse.Namespace) -> list[tuple[float, bool]]:
    """What that process does."""
    (load,) = options.loads
    runs = [loaded(options.drive, kind, load, options.seed) for kind in mix(options.mix)]
    return [each for run in await asyncio.gather(*runs) for each in run]


async def measured(
    options: argparse.Namespace, load: float, seed: int, *, known: bool
) -> dict[str, Any]:
    """One run on a Triton of its own; known: with a profile of it."""
    kinds = mix(options.mix)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        async with triton_with(kinds, directory) as triton:
            there = ["--triton-http", triton.http_address, "--triton-grpc", triton.grpc_address]
            profile = ["--profile", str(directory / "profile.yaml")] if known else []
            if known:
                command = [sys.executable, "-m", "tritonsched", "profile", *there]
                command += ["--models", ",".join(kind.name for kind in kinds), "--out"]
                ran = await asyncio.create_subprocess_exec(*command, profile[1], cwd=ROOT)
                assert await ran.wait() == 0
            async with serve_process(*there, *profile, cwd=ROOT) as served:
                busy = Busy.now()
                target_s = -cpu_s([triton.pid, served.process.pid])
                ended = await driven(served.grpc, options, load, seed)
                target_s += cpu_s([triton.pid, served.process.pid])
                foreign = busy.foreign_share(Busy.now(), target_s)
    return {
        "load": load,
        "seed": seed,
        "known": known,
        "windows": windows(ended),
        "foreign": foreign,
    }


def simulated(
    options: argparse.Namespace, load: float, seed: int, *, known: bool
) -> dict[str, Any]:
    """The same in virtual time: nobody else takes a part of the machine."""
    kinds = mix(options.mix)
    models = [SimModel(k.name, ROWS_MAX, affine(int(k.a_ms * MS), int(k.b_ms * MS))) for k in kinds]
    slos = [SloClass(k.name, int((k.load_class.deadline_ms or 0) * MS)) for k in kinds]
    streams = [
        Stream(kind.name, poisson(kind.rate(load)), ((slo, 1.0),))
        for kind, slo in zip(kinds, slos, strict=True)
    ]
    noted, tuning = InTime(), tuning_for(RTT_NS)
    scheduler = Scheduler(POLICIES[DEFAULT_POLICY](), tuning=tuning, observers=(noted,))
    if known:
        inform(scheduler, models)
    world = World(models, seed=seed, rtt_ns=tuning.rtt_ns, faults=NOISE)
    simulation = Simulation(scheduler, world, keep_log=False)
    simulation.run(Workload(models, streams).requests(duration_ns=WINDOWS_S[-1] * S, seed=seed))
    return {"load": load, "seed": seed, "known": known, "windows": windows(noted.ended)}


class InTime(Observer):
    """Notes of each request when it came, in s, and whether it was answered in time."""

    def __init__(self) -> None:
        self.ended: list[tuple[float, bool]] = []

    def on_outcomes(
        self, requests: Sequence[Request], outcome: Outcome, reason: str, now: int
    ) -> None:
        for request in requests:
            self.ended.append((request.arrival_ns / S, outcome is Outcome.SERVED))


def windows(ended: list[tuple[float, bool]]) -> list[float]:
    """Requests in time, a second, by when they were due."""
    pairs = itertools.pairwise(WINDOWS_S)
    return [sum(good for at, good in ended if a <= at < b) / (b - a) for a, b in pairs]


def table(runs: list[dict[str, Any]]) -> str:
    """Goodput with and without a profile by window and load, medians over the repetitions."""
    spans = [f"{a}-{b} s" for a, b in itertools.pairwise(WINDOWS_S)]
    lines = [f"| load | start | {' | '.join(spans)} |", f"|---|---|{'---|' * len(spans)}"]
    for load in dict.fromkeys(run["load"] for run in runs):
        cold, warm = (
            [
                statistics.median(values)
                for values in zip(
                    *(r["windows"] for r in runs if (r["load"], r["known"]) == (load, known)),
                    strict=True,
                )
            ]
            for known in (False, True)
        )
        for name, values in (("nothing known", cold), ("full profile", warm)):
            shown = " | ".join(f"{value:.1f}" for value in values)
            lines.append(f"| {load:g} | {name} | {shown} |")
        ratios = [a / max(b, 1e-9) for a, b in zip(cold, warm, strict=True)]
        lines.append(f"| {load:g} | ratio | {' | '.join(f'{r:.3f}' for r in ratios)} |")
        word = "reached" if ratios[-1] >= GOAL else "missed"
        say(f"load {load:g}: {ratios[-1]:.3f} of the goodput with a profile; goal {GOAL}: {word}")
    return "\n".join(lines)


async def compare(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Both starts at every load, interleaved."""
    kinds = mix(options.mix)
    for kind in kinds:
        say(f"{kind.name}: {kind.a_ms} ms + {kind.b_ms} ms a row; {kind.load_class.deadline_ms} ms")
    runs = []
    for repetition in range(options.repetitions):
        for load in options.loads:
            for known in (False, True):
                if not options.live:
                    runs.append(simulated(options, load, repetition + 1, known=known))
                    continue
                run = await measured(options, load, repetition + 1, known=known)
                runs.append(run)
                rates = " ".join(f"{rate:.0f}" for rate in run["windows"])
                start = "full profile" if known else "nothing known"
                say(f"load {load:g}, {start}: {rates}; {run['foreign']:.0%} went to others")
    return runs


def main() -> None:
    """Parse options, run, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mix", type=int, default=1)
    parser.add_argument("--loads", type=float, nargs="+", default=[0.6, 0.9, 1.2])
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--live", action="store_true", help="a real Triton and a real sidecar")
    parser.add_argument("--json", type=Path, help="write every run")
    parser.add_argument("--drive", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive:
        sys.stdout.write(json.dumps(asyncio.run(drive(options))))
        return
    runs = asyncio.run(compare(options))
    if options.json:
        options.json.write_text(json.dumps(runs, indent=1) + "\n")
    sys.stdout.write(table(runs) + "\n")


if __name__ == "__main__":
    main()
