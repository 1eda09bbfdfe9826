"""A device that changes its speed: what it costs, and how soon the sidecar knows.

    make bench-drift                      # in the simulator: learning, and learning off beside it
    python -m tests.bench.drift_live      # the same on the emulated GPU behind a real Triton

Each workload runs at load 0.6 with 3 % of jitter and 0.3 % of overruns; in the middle third every
device runs at 60 % of its speed. Both kinds start from the nominal times. Shares are of the whole
run. `batches`: answers a device gave, from the change on, until what was expected of its batches
when they were sent was within 5 % of their true mean five times in a row; over devices and seeds.
`error`: |measured - expected| / measured of the batches at steady speed.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tritonsched.core.batch import Batch
from tritonsched.core.latency import LatencyProfile
from tritonsched.core.observers import Observer
from tritonsched.core.policies import POLICIES
from tritonsched.core.request import Outcome, SloClass
from tritonsched.core.scheduler import Scheduler
from tritonsched.sim.arrivals import poisson
from tritonsched.sim.engine import Simulation
from tritonsched.sim.experiment import NOISE, Trace, inform, tuning_for
from tritonsched.sim.record import Record
from tritonsched.sim.workload import Stream, Workload
from tritonsched.sim.world import Faults, SimModel, World, affine

MS = 1_000_000
S = 1_000_000_000
LOAD = 0.6
FACTOR = 1 / 0.6
NEAR = 0.05  # of the true time
STEADY = 5  # answers in a row that must be near
SETTLED_NS = 300 * MS  # after a change; before that its errors count as the change's
COSTS = {"small": (8_000, 800), "medium": (20_000, 2_400), "large": (32_000, 6_000)}
DEADLINES_MS = {"small": 200, "medium": 400, "large": 800}
ROWS_MAX = 16


def mix(load: float) -> Workload:
    """Three models on one GPU, the mix that also runs live: a + b * rows, in µs, by COSTS; each
    model takes a third of the device's time when its batches are full.
    """
    models, streams = [], []
    for name, (a_us, b_us) in COSTS.items():
        models.append(SimModel(name, ROWS_MAX, affine(a_us * 1000, b_us * 1000)))
        full_s = (a_us + b_us * ROWS_MAX) / 1e6
        rate = load * ROWS_MAX / full_s / len(COSTS)
        slo = SloClass(name, DEADLINES_MS[name] * MS)
        streams.append(Stream(name, poisson(rate), ((slo, 1.0),)))
    return Workload(models, streams)


@dataclass
class Watch(Observer):
    """What batches were expected to take, and took. factor: of the device's times at a moment."""

    models: Mapping[str, SimModel]
    factor: Callable[[int], float]
    changes: Sequence[int]
    errors: list[float] = field(default_factory=list)
    off: dict[tuple[int, str], list[float]] = field(default_factory=dict)

    def on_complete(self, batch: Batch, *, measured_ns: int, now: int) -> None:
        began_ns = now - measured_ns
        last = max((change for change in self.changes if change <= began_ns), default=0)
        if began_ns - last >= SETTLED_NS:
            self.errors.append(abs(measured_ns - batch.expected_ns) / measured_ns)
        true_ns = self.models[batch.model].exec_on(batch.device)(batch.rows)
        off = batch.expected_ns / (true_ns * self.factor(began_ns)) - 1.0
        if last:
            self.off.setdefault((last, batch.device), []).append(off)

    def batchesuntil_near(self) -> list[int]:
        """By change and device; a device that never came near counts all its batches."""
        return [until_near(off) for off in self.off.values() if len(off) >= 2 * STEADY]


def until_near(off: Sequence[float]) -> int:
    for first in range(len(off) - STEADY + 1):
        if all(abs(value) <= NEAR for value in off[first : first + STEADY]):
            return first
    return len(off)


class Frozen(LatencyProfile):
    """Learning off: the table's times whatever is measured."""

    def observe(self, *, rows: int, exec_ns: int, now: int) -> None: ...


@dataclass
class Sum:
    """All runs of one setting."""

    sent: int = 0
    served: int = 0
    refused: int = 0
    missed: int = 0
    batches: list[int] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)

    def add(self, record: Record, watch: Watch) -> None:
        self.sent += record.total
        self.served += record.outcomes[Outcome.SERVED]
        self.refused += record.outcomes[Outcome.REJECTED]
        self.missed += record.outcomes[Outcome.LATE] + record.outcomes[Outcome.EXPIRED]
        self.batches += watch.batchesuntil_near()
        self.errors += watch.errors

    def line(self, *words: str) -> str:
        errors = sorted(self.errors)
        p50, p99 = (errors[int(share * (len(errors) - 1))] for share in (0.5, 0.99))
        worst = max(self.batches, default=0)
        typical = statistics.median(self.batches) if self.batches else 0
        return " | ".join(
            (
                *words,
                str(self.sent),
                f"{self.served / self.sent:.4f}",
                f"{self.missed / max(1, self.sent - self.refused):.3%}",
                f"{typical:g}, {worst}" if self.batches else "-",
                f"{p50:.1%}, {p99:.1%}",
            )
        )


HEAD = (
    "workload | speed | learning | requests | on time | missed of admitted "
    "| batches until within 5 % (median, worst) | error p50, p99"
)


def run(
    name: str, seed: int, *, drift: bool, learning: bool, rule: str, length: int, rtt_ns: int
) -> tuple[Record, Watch]:
    """One trace."""
    if name == "mix":
        workload, duration_ns = mix(LOAD), length * S // 250
    else:
        trace = Trace(name, LOAD, seed, length)
        workload, duration_ns = trace.workload, trace.duration_ns
    changes = (duration_ns // 3, 2 * duration_ns // 3) if drift else ()
    throttles = tuple(zip(changes, (FACTOR, 1.0), strict=False))
    faults: Faults = replace(NOISE, throttles=throttles)

    def factor(at_ns: int) -> float:
        return next((f for at, f in reversed(throttles) if at <= at_ns), 1.0)

    record = Record()
    watch = Watch({model.name: model for model in workload.models}, factor, changes)
    tuning = tuning_for(rtt_ns)
    scheduler = Scheduler(POLICIES[rule](), tuning=tuning, observers=(record, watch))
    inform(scheduler, workload.models)
    if not learning:
        freeze(scheduler, workload)
    world = World(workload.models, seed=seed, rtt_ns=tuning.rtt_ns, faults=faults)
    simulation = Simulation(scheduler, world, keep_log=False)
    simulation.run(workload.requests(duration_ns=duration_ns, seed=seed))
    return record, watch


def freeze(scheduler: Scheduler, workload: Workload) -> None:
    """Profiles that do not learn."""
    for model in workload.models:
        for device in model.devices:
            times = model.exec_on(device)
            table = {rows: times(rows) for rows in range(1, model.rows_max + 1)}
            scheduler.set_profile(model.name, device, Frozen(table))


def lines(options: argparse.Namespace) -> Iterator[str]:
    """The table."""
    yield HEAD
    totals = {key: Sum() for key in SETTINGS}
    for name in options.workloads.split(","):
        for drift, learning in SETTINGS:
            total = Sum()
            for seed in range(1, options.seeds + 1):
                found = run(
                    name,
                    seed,
                    drift=drift,
                    learning=learning,
                    rule=options.rule,
                    length=options.requests,
                    rtt_ns=round(options.rtt_ms * MS),
                )
                total.add(*found)
                totals[drift, learning].add(*found)
            yield total.line(name, *words(drift, learning))
    for key, total in totals.items():
        yield total.line("all", *words(*key))


SETTINGS = ((False, False), (False, True), (True, False), (True, True))


def words(drift: bool, learning: bool) -> tuple[str, str]:  # two columns
    return ("60 % in the middle third" if drift else "constant", "on" if learning else "off")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="bench-drift", description=__doc__)
    parser.add_argument("--workloads", default="mix,W2,W4,W7,W12")
    parser.add_argument("--rule", default="lite", choices=sorted(POLICIES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--rtt-ms", type=float, default=0.0)
    options = parser.parse_args(arguments)
    for line in lines(options):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
