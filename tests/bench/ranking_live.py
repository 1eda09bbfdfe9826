"""Rules ranked live and in the simulator, on the same traces.

    python -m tests.bench.ranking_live [--seconds 10] [--only W2]

Three workloads of the study on an emulated GPU behind a real Triton, through the real sidecar, its
rules one after another; the load is a process of its own. To spare the host, everything is slowed
down by the same factor (times, deadlines and arrivals), which changes nothing in the simulator.
Value: weight of what was in time, as a share of all weight, in per cent; live, in time is the
client's view, from when the request was due to be sent. The first seconds teach the profiles (W6,
slowed down most, takes three) and do not count, on either side. Differences are in points, and a
rule's rank stands behind its value.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tests.bench.live import Gpu, Outcome, offered, sidecar, triton
from tests.bench.live_load import Shot
from tests.helpers import MS, S
from tritonsched.core.policies import POLICIES
from tritonsched.core.request import Outcome as End
from tritonsched.core.request import Request
from tritonsched.core.scheduler import Scheduler
from tritonsched.core.tuning import Tuning
from tritonsched.sim.engine import Simulation
from tritonsched.sim.experiment import inform
from tritonsched.sim.record import Record
from tritonsched.sim.studies import STUDIES
from tritonsched.sim.tables import scaled
from tritonsched.sim.workload import Workload
from tritonsched.sim.world import Faults, World

RULES = ("fcfs", "edf", "disbatcher", "lite", "lookahead")
SLOWER = {"W2": 2, "W6": 8, "W12": 6}
"""Workloads (cameras; twice too much of three weights; bursts), and how much slower they run."""
WARMUP_S = 5.0
READY_NS = 2 * S  # for the load's process to start
NOISE = Faults(jitter=0.03, overrun_rate=0.003)
GPU_NOISE = {"jitter_pct": 3, "overrun_rate": 0.003, "overrun_factor": 2.25}


@dataclass(frozen=True)
class Scene:
    """A workload, slowed down, with the requests of a run."""

    name: str
    workload: Workload
    requests: Sequence[Request]

    @property
    def weights(self) -> dict[str, float]:
        return {request.slo: request.weight for request in self.requests}


def scene(name: str, seconds: float) -> Scene:
    factor = SLOWER[name]
    workload = STUDIES[name].workload()
    models = [
        replace(model, exec_ns=scaled(model.exec_ns, factor), on_device={})
        for model in workload.models
    ]
    length_ns = round((WARMUP_S + seconds) * S / factor)
    requests = [
        replace(
            request,
            arrival_ns=request.arrival_ns * factor,
            deadline_ns=request.deadline_ns * factor,
        )
        for request in workload.requests(duration_ns=length_ns, seed=1)
    ]
    return Scene(name, Workload(models, workload.streams), requests)


class Counted(Record):
    """Of the requests after the warm-up: weight in time, and all weight."""

    def __init__(self) -> None:
        super().__init__()
        self.value = self.total_value = 0.0

    def on_outcomes(self, requests: Sequence[Request], outcome: End, reason: str, now: int) -> None:
        super().on_outcomes(requests, outcome, reason, now)
        for request in requests:
            if request.arrival_ns >= WARMUP_S * S:
                self.total_value += request.weight
                self.value += request.weight * (outcome is End.SERVED)


def simulated(found: Scene, rule: str, rtt_ns: int) -> float:
    """Value in per cent."""
    record = Counted()
    scheduler = Scheduler(POLICIES[rule](), tuning=Tuning(rtt_ns=rtt_ns), observers=(record,))
    world = World(found.workload.models, seed=1, rtt_ns=rtt_ns, faults=NOISE)
    inform(scheduler, found.workload.models)
    Simulation(scheduler, world, keep_log=False).run(found.requests)
    return 100 * record.value / record.total_value


def gpus(found: Scene) -> dict[str, Gpu]:
    return {
        model.name: Gpu(
            {rows: model.exec_ns(rows) / 1e3 for rows in range(1, model.rows_max + 1)},
            params=GPU_NOISE,
        )
        for model in found.workload.models
    }


def policy(found: Scene, rule: str) -> str:
    lines = [f"scheduler: {{policy: {rule}}}", "classes:"]
    lines += [f"  {name}: {{weight: {weight}}}" for name, weight in found.weights.items()]
    return "\n".join([*lines, f"default_class: {next(iter(found.weights))}", ""])


def shots(found: Scene) -> list[Shot]:
    """On the machine's clock, a moment from now."""
    zero_ns = time.monotonic_ns() + READY_NS
    return [
        Shot(zero_ns + r.arrival_ns, r.model, r.slo, (r.deadline_ns - r.arrival_ns) / MS)
        for r in found.requests
    ]


def value(found: Scene, outcome: Outcome) -> float:
    """Of a live run, in per cent."""
    earned = total = 0.0
    for index, request in enumerate(found.requests):
        if request.arrival_ns >= WARMUP_S * S:
            total += request.weight
            earned += request.weight * outcome.in_time(index)
    return 100 * earned / total


def ranks(values: dict[str, float]) -> dict[str, int]:
    """1 is the best."""
    order = sorted(values, key=lambda rule: -values[rule])
    return {rule: order.index(rule) + 1 for rule in values}


def pairs_agree(live: dict[str, float], sim: dict[str, float], apart: float) -> tuple[int, int]:
    """(pairs of rules that the live runs order as the simulator, all pairs): those that the
    simulator has at least so many points apart.
    """
    pairs = [
        (a, b) for a in sim for b in sim if a < b and abs(sim[a] - sim[b]) >= apart
    ]  # fmt: skip
    same = sum((live[a] - live[b]) * (sim[a] - sim[b]) > 0 for a, b in pairs)
    return same, len(pairs)


async def ranked(found: Scene, rtt_ns: int) -> None:
    """A line a rule."""
    sim = {rule: simulated(found, rule, rtt_ns) for rule in RULES}
    live: dict[str, float] = {}
    lags: dict[str, float] = {}
    async with triton(gpus(found)) as running:
        for rule in RULES:
            async with sidecar(running, policy(found, rule)) as served:
                outcome = await offered(served, shots(found))
                live[rule], lags[rule] = value(found, outcome), outcome.lag_ms(0.99)
    ranks_sim, ranks_live = ranks(sim), ranks(live)
    for rule in RULES:
        say(
            f"{found.name} | {rule} | {sim[rule]:.1f} ({ranks_sim[rule]}) | "
            f"{live[rule]:.1f} ({ranks_live[rule]}) | {live[rule] - sim[rule]:+.1f} | "
            f"{lags[rule]:.1f} ms\n"
        )
    same, pairs = pairs_agree(live, sim, 3.0)
    mean = sum(abs(live[rule] - sim[rule]) for rule in RULES) / len(RULES)
    say(f"{found.name}: {same} of {pairs} pairs 3 points apart in the same order, mean difference "
        f"{mean:.1f} points\n")  # fmt: skip
    sys.stdout.flush()


async def table(names: Sequence[str], seconds: float, rtt_ms: float) -> None:
    say("workload | rule | simulated (rank) | live (rank) | difference | the load's lag p99\n")
    for name in names:
        await ranked(scene(name, seconds), round(rtt_ms * MS))


def say(text: str) -> None:
    sys.stdout.write(text)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.ranking_live")
    parser.add_argument("--seconds", type=float, default=6.0, help="of a run, beside the warm-up")
    parser.add_argument("--only", action="append", choices=SLOWER)
    parser.add_argument("--rtt-ms", type=float, default=0.6, help="the simulator's round trip")
    given = parser.parse_args(arguments)
    asyncio.run(table(given.only or list(SLOWER), given.seconds, given.rtt_ms))


if __name__ == "__main__":
    main(sys.argv[1:])
