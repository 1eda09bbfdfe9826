"""W9: variants chosen under load beside variants that are fixed.

A fixed setting names one variant of each family, all at the same height of their ladders; its
answers are worth their accuracy beside the family's best, as chosen ones are. Value: utility as a
share of all weight, so 1 is everybody in time with the best variant.
Goal: never below a fixed setting by more than NEAR, and above all of them from ABOVE_FROM on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tritonsched.core.policies import POLICIES
from tritonsched.core.scheduler import Scheduler
from tritonsched.sim.engine import Simulation
from tritonsched.sim.experiment import NOISE, SERIAL, Trace, inform
from tritonsched.sim.record import Record
from tritonsched.sim.workload import Workload
from tritonsched.sim.world import World

LOADS = (0.2, 0.4, 0.6, 0.8, 1.0, 1.1, 1.3, 1.6)
HEIGHTS = ("cheapest", "lower", "middle", "upper", "best")
NEAR = 0.002
ABOVE_FROM = 0.8


def fixed(workload: Workload, height: float) -> tuple[Workload, Mapping[str, float]]:
    """The workload with one variant of each family, and what that is worth beside the best.

    height: 0 the cheapest, 1 the best.
    """
    accuracy = {model.name: model.accuracy for model in workload.models}
    named = {
        family: variants[round(height * (len(variants) - 1))]
        for family, variants in workload.families.items()
    }
    worth = {
        family: accuracy[named[family]] / max(accuracy[name] for name in variants)
        for family, variants in workload.families.items()
    }
    models = [model for model in workload.models if model.name in named.values()]
    families = {family: (name,) for family, name in named.items()}
    return replace(workload, models=models, families=families), worth


def value(trace: Trace, rule: str, height: float | None = None) -> float:
    """Of one run; height: of the variants, if they are fixed."""
    free = trace.workload
    workload, worth = (free, None) if height is None else fixed(free, height)
    tuning, record = SERIAL, Record(accuracy=worth)
    scheduler = Scheduler(POLICIES[rule](), tuning=tuning, observers=(record,))
    world = World(workload.models, seed=trace.seed, rtt_ns=tuning.rtt_ns, faults=NOISE)
    inform(scheduler, workload.models)
    simulation = Simulation(scheduler, world, keep_log=False, families=workload.families)
    simulation.run(trace.requests())
    return record.utility / sum(request.weight for request in trace.requests())


def table(rule: str, seeds: int, length: int, loads: Sequence[float] = LOADS) -> list[list[str]]:
    """A line a load: chosen, then each fixed setting, then chosen less the best fixed one."""
    lines = [["load", f"{rule} chooses", *HEIGHTS, "less the best fixed one"]]
    for load in loads:
        traces = [Trace("W9", load, seed, length) for seed in range(1, seeds + 1)]
        chosen = sum(value(trace, rule) for trace in traces) / seeds
        others = [
            sum(value(trace, rule, step / (len(HEIGHTS) - 1)) for trace in traces) / seeds
            for step in range(len(HEIGHTS))
        ]
        figures = [f"{number:.4f}" for number in (chosen, *others)]
        lines.append([f"{load:g}", *figures, f"{chosen - max(others):+.4f}"])
    return [*lines, ["goal", *[""] * (1 + len(HEIGHTS)), f">= -{NEAR}, > 0 from {ABOVE_FROM}"]]
