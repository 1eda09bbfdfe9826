"""DeepRT's evaluation (SEC 2021, section 6) in shape: misses of admitted streams, by rule.

Rule: the streams are those of `sim/papers.py`; one is admitted if the rule that will run it,
simulated with exact times on every frame of every stream so far, misses none. Everybody then serves
the admitted streams with the study's noise. Triton's batchers run every model at once on the shared
device, as in the paper: BATCH waits for a full batch, BATCH-Delay for a full batch or a time, AIMD
for a batch whose size grows while it is in time.
"""

import random
from collections.abc import Mapping, Sequence

from tritonsched.core.policies import POLICIES
from tritonsched.core.request import NEVER_NS, Request
from tritonsched.core.scheduler import Scheduler
from tritonsched.sim.engine import Simulation
from tritonsched.sim.experiment import NOISE, SERIAL, inform
from tritonsched.sim.papers import (
    DEEPRT_CATEGORIES,
    DEEPRT_ROWS_MAX,
    Camera,
    deeprt_proposals,
    deeprt_workload,
)
from tritonsched.sim.record import Record
from tritonsched.sim.triton import Batcher, TritonServer
from tritonsched.sim.world import Faults, World

MS = 1_000_000
END_NS = 3_600 * 1_000 * MS
TRACES = {"trace 1": 50.0, "trace 2": 150.0, "trace 3": 250.0}
"""Mean period and relative deadline in ms, on the desktop."""
PAPER = {
    "DeepRT": (5, 2, 2), "BATCH-Delay": (17, 13, 6), "BATCH": (19, 22, 9), "AIMD": (28, 25, 23),
}  # fmt: skip
"""Misses in per cent, bar labels of the paper's figure."""
BATCH_ROWS = 2  # "as small as memory allows"; larger ones wait longer to be full
DELAY_SHARE = 0.25  # of the mean deadline, BATCH-Delay's time limit; the paper names none
BATCHERS: Mapping[str, Batcher] = {
    "BATCH-Delay": Batcher(BATCH_ROWS),
    "BATCH": Batcher(BATCH_ROWS, delay_ns=NEVER_NS),
    "AIMD": Batcher(DEEPRT_ROWS_MAX, delay_ns=NEVER_NS, aimd=True),
}


def serve(cameras: Sequence[Camera], rule: str, faults: Faults, seed: int) -> Record:
    """Their frames under one of our rules."""
    workload = deeprt_workload(cameras)
    record = Record()
    world = World(workload.models, seed=seed, rtt_ns=0, faults=faults)
    scheduler = Scheduler(POLICIES[rule](), tuning=SERIAL, observers=(record,))
    inform(scheduler, workload.models)
    simulation = Simulation(scheduler, world, keep_log=False)
    simulation.run(frames(cameras))
    return record


def serve_batched(cameras: Sequence[Camera], batcher: Batcher, seed: int) -> Record:
    """Their frames under one of Triton's ways, all models at once on the device."""
    workload = deeprt_workload(cameras)
    record = Record()
    world = World(workload.models, seed=seed, rtt_ns=0, faults=NOISE)
    batchers = {model.name: batcher for model in workload.models}
    server = TritonServer(world, batchers, slots=DEEPRT_CATEGORIES, observers=(record,))
    server.run(frames(cameras))
    return record


def frames(cameras: Sequence[Camera]) -> list[Request]:
    return list(deeprt_workload(cameras).requests(duration_ns=END_NS, seed=0))


def missed(record: Record) -> int:
    """Frames that were not in time, refused ones among them: a stream has no second try."""
    return record.total - sum(record.on_time.values())


def admitted(proposals: Sequence[Camera], rule: str) -> list[Camera]:
    """Those accepted one by one by exact simulation of the rule."""
    taken: list[Camera] = []
    for camera in proposals:
        if missed(serve([*taken, camera], rule, Faults(), 0)) == 0:
            taken.append(camera)
    return taken


def compared(cameras: Sequence[Camera], rule: str, mean_ms: float, seed: int) -> dict[str, int]:
    """Frames missed, by contender, the rule first."""
    found = {rule: missed(serve(cameras, rule, NOISE, seed))}
    for name, batcher in BATCHERS.items():
        told = batcher
        if name == "BATCH-Delay":
            told = Batcher(batcher.rows_max, delay_ns=round(DELAY_SHARE * mean_ms * MS))
        found[name] = missed(serve_batched(cameras, told, seed))
    return found


def table(rule: str, seeds: int) -> list[list[str]]:
    """A line a contender: misses in per cent on the three traces, beside the paper's."""
    misses: dict[str, list[float]] = {name: [] for name in (rule, *BATCHERS)}
    streams: list[str] = []
    single: list[str] = []
    for mean_ms in TRACES.values():
        found = dict.fromkeys(misses, 0)
        total = many = alone = 0
        for seed in range(1, seeds + 1):
            proposals = deeprt_proposals(mean_ms, random.Random(seed))
            taken = admitted(proposals, rule)
            many += len(taken)
            alone += len(admitted(proposals, "sedf"))
            total += len(frames(taken))
            for name, count in compared(taken, rule, mean_ms, seed).items():
                found[name] += count
        streams.append(f"{many / seeds:.1f}")
        single.append(f"{alone / seeds:.1f}")
        for name, count in found.items():
            misses[name].append(100.0 * count / total)
    lines = [["misses, %", *TRACES, "the paper's"]]
    papers = {rule: "DeepRT", **{name: name for name in BATCHERS}}
    for name, values in misses.items():
        figures = PAPER[papers[name]]
        label = f"{papers[name]} " + " / ".join(str(figure) for figure in figures)
        lines.append([name, *(f"{value:.2f}" for value in values), label])
    lines.append(["streams admitted", *streams, "DeepRT 4 / 10 / 16"])
    lines.append(["by SEDF, one frame at a time", *single, "SEDF 4 / 7 / 12"])
    return lines
