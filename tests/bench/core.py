"""`make bench-core`: what a decision costs, by rule and workload.

Rule: CPU time of this thread, so that other processes on the machine do not count; the simulator's
own share stands beside it. Columns: simulated requests a second on one core (all of it), µs a
request in the core (submit, decide, complete, next wake-up), µs an event (the inputs of one
moment and their decision) as mean, 99 % quantile and maximum, and the yardstick: how long a
million additions took just before and after. Neighbours on the same machine make it two to ten
times as long, and the rest with it; below, the mean a request of each rule stands as it was and as
it would be where the yardstick is REFERENCE_MS, and simulated requests a second over all workloads.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from statistics import fmean, harmonic_mean
from typing import Any, cast

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from tritonsched.core.batch import Completion, Decision
from tritonsched.core.policies import POLICIES
from tritonsched.core.request import Request
from tritonsched.core.scheduler import Scheduler
from tritonsched.sim.experiment import Trace, default_load, run, workload_names

WORKLOADS = tuple(f"W{number}" for number in range(1, 15))
RATE, COST, YARDSTICK = "requests/s", "core µs/request", "yardstick ms"
REFERENCE_MS = 50.0  # of a quiet machine
CLOCK = time.thread_time_ns


class TimedScheduler:
    """Sums up what one costs; an event ends when its next wake-up is known. No subclass, because
    a compiled scheduler can have none that is not.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._timed = scheduler
        self.events: list[int] = []
        self._spent = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._timed, name)

    def submit(self, request: Request, now: int) -> None:
        start = CLOCK()
        self._timed.submit(request, now)
        self._spent += CLOCK() - start

    def complete(self, completion: Completion, now: int) -> None:
        start = CLOCK()
        self._timed.complete(completion, now)
        self._spent += CLOCK() - start

    def decide(self, now: int) -> list[Decision]:
        start = CLOCK()
        decisions = self._timed.decide(now)
        self._spent += CLOCK() - start
        return decisions

    def next_wakeup(self) -> int | None:
        start = CLOCK()
        wakeup = self._timed.next_wakeup()
        self.events.append(self._spent + CLOCK() - start)
        self._spent = 0
        return wakeup


def measure(workload: str, rule: str, length: int) -> dict[str, float]:
    """One trace, twice: as it is, and with every call timed."""
    trace = Trace(workload, default_load(workload), 1, length)
    before_ms = yardstick_ms()
    start = CLOCK()
    total = run(trace, rule).record.total
    spent = CLOCK() - start
    made: list[TimedScheduler] = []

    def make(*args: Any, **options: Any) -> Scheduler:
        made.append(TimedScheduler(Scheduler(*args, **options)))
        return cast("Scheduler", made[0])

    run(trace, rule, make=make)
    events = sorted(made[0].events)
    return {
        RATE: total / spent * 1e9,
        COST: sum(events) / total / 1e3,
        "mean µs/event": sum(events) / len(events) / 1e3,
        "p99 µs/event": events[int(0.99 * (len(events) - 1))] / 1e3,
        "max µs/event": events[-1] / 1e3,
        YARDSTICK: (before_ms + yardstick_ms()) / 2,
    }


def yardstick_ms() -> float:
    """How fast this machine is just now, by which figures of two machines can be compared."""
    start = CLOCK()
    total = 0
    for number in range(1_000_000):
        total += number
    return (CLOCK() - start) / 1e6


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="bench-core", description="the cost of decisions")
    parser.add_argument("--rules", default=",".join(sorted(POLICIES)))
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    parser.add_argument("--requests", type=int, default=10_000)
    options = parser.parse_args(arguments)
    made = Table(box=SIMPLE)
    for name in ("workload", "rule"):
        made.add_column(name)
    columns: list[str] = []
    found: dict[str, list[dict[str, float]]] = {}
    for workload in options.workloads.split(","):
        if workload not in workload_names():
            parser.error(f"{workload} is unknown; use {', '.join(workload_names())}")
        for rule in options.rules.split(","):
            figures = measure(workload, rule, options.requests)
            for name in figures if not columns else ():
                columns.append(name)
                made.add_column(name, justify="right")
            made.add_row(workload, rule, *(f"{value:,.1f}" for value in figures.values()))
            found.setdefault(rule, []).append(figures)
    Console().print(made)
    for rule, rows in found.items():
        measured = fmean(row[COST] for row in rows)
        scaled = fmean(row[COST] * REFERENCE_MS / row[YARDSTICK] for row in rows)
        simulated = harmonic_mean([row[RATE] for row in rows])
        sys.stdout.write(
            f"{rule}: mean {measured:.1f} µs a request; {scaled:.1f} at {REFERENCE_MS:.0f} ms; "
            f"{simulated:,.0f} simulated requests/s\n"
        )


if __name__ == "__main__":
    main()
