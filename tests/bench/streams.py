"""Guaranteed streams in the simulator: do they ever miss, and what is left for best effort?

    python -m tests.bench.streams [--sets 40] [--frames 200000] [--only guarantee --only beside]

guarantee: random sets of streams with exact profiles until so many frames were served, also with
batches that end early and with best effort beside: how many missed. beside: with noise, misses and
the share of the time that streams leave which best effort got; `floor` is without best effort.
tests/unit/core/test_streams_guarantee.py runs a small share of it. What is admitted, and what the
answer costs: tests/bench/admission.py.
"""

import argparse
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from heapq import merge

from tests.helpers import MS, S, exact
from tritonsched.core.batch import Batch, Grant
from tritonsched.core.latency import LatencyProfile
from tritonsched.core.observers import Observer
from tritonsched.core.policies import POLICIES
from tritonsched.core.request import Outcome, Request
from tritonsched.core.reservation import Reservation
from tritonsched.core.scheduler import Scheduler
from tritonsched.sim.engine import Simulation
from tritonsched.sim.world import ExecNs, Faults, SimModel, World, affine

MODELS = "abc"
ROWS_MAX = 16
ASKED_BY_NS = 500 * MS
FIRST_NS = 700 * MS  # the first frame; reservations are asked for before
BEST_EFFORT_MS = (50, 100, 300)  # relative deadlines


@dataclass(frozen=True)
class Setup:
    """One random set. best_effort: requests a second beside the streams. early: batches may take
    down to 0.4 of what is promised; learnt: profiles follow what is measured.
    """

    seed: int
    streams: int = 14
    seconds: int = 4
    best_effort: float = 0.0
    early: bool = False
    learnt: bool = False
    faults: Faults | None = None
    rule: str = "lite"


@dataclass
class Result:
    """What came of it. left_ns: time that the streams left; used_ns: what best effort got."""

    granted: int = 0
    refused: int = 0
    frames: int = 0
    missed: int = 0
    others: int = 0
    others_in_time: int = 0
    others_late: int = 0
    left_ns: int = 0
    used_ns: int = 0

    def add(self, other: "Result") -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


class Watch(Observer):
    """An observer: outcomes of guaranteed frames and of the rest, device time by batch."""

    def __init__(self, result: Result) -> None:
        self.result = result
        self.granted: dict[int, Reservation] = {}
        self.stream_ns = 0
        self.end_ns = 0  # of the streams

    def on_complete(self, batch: Batch, *, measured_ns: int, now: int) -> None:
        if any(request.reservation for request in batch.requests):
            self.stream_ns += measured_ns
        elif now < self.end_ns:
            self.result.used_ns += measured_ns

    def on_outcomes(
        self, requests: Sequence[Request], outcome: Outcome, reason: str, now: int
    ) -> None:
        for request in requests:
            served = outcome is Outcome.SERVED
            stream = self.granted.get(request.reservation)
            if stream is not None and request.arrival_ns >= stream.start_ns - stream.jitter_ns:
                self.result.frames += 1
                self.result.missed += not served
            else:
                self.result.others += 1
                self.result.others_in_time += served
                self.result.others_late += outcome is Outcome.LATE


def run(setup: Setup) -> Result:
    """One set: reservations are asked for, frames come, best effort comes between them."""
    dice = random.Random(setup.seed)
    costs = {name: (dice.randint(MS, 4 * MS), dice.randint(200_000, MS)) for name in MODELS}
    tables = {name: affine(*cost) for name, cost in costs.items()}
    result = Result()
    watch = Watch(result)
    scheduler = Scheduler(POLICIES[setup.rule](), observers=(watch,))
    world = World(
        [SimModel(name, ROWS_MAX, _early(tables[name], setup)) for name in MODELS],
        seed=setup.seed,
        faults=setup.faults,
    )
    simulation = Simulation(scheduler, world, keep_log=False)
    for name, table in tables.items():
        scheduler.set_profile(name, "gpu0", _profile(table, setup))
    asked = list(_streams(setup, dice))
    for number, reservation in enumerate(asked):
        simulation.reserve(reservation, at_ns=number * ASKED_BY_NS // len(asked))
    simulation.run(until_ns=FIRST_NS - MS)
    for answer in simulation.answers:
        if isinstance(answer, Grant):
            watch.granted[answer.reservation.id] = answer.reservation
    watch.end_ns = FIRST_NS + ASKED_BY_NS + setup.seconds * S
    simulation.run(_requests(setup, asked, dice))
    result.granted = len(watch.granted)
    result.refused = len(asked) - result.granted
    result.left_ns = setup.seconds * S - watch.stream_ns
    return result


def _early(table: ExecNs, setup: Setup) -> ExecNs:
    """Ends early, the more so the fewer rows: what reorders an eager schedule."""
    if not setup.early:
        return table
    share = random.Random(setup.seed ^ 1).uniform(0.4, 1.0)
    return lambda rows: round(table(rows) * (share if rows % 3 else 1.0))


def _profile(table: ExecNs, setup: Setup) -> LatencyProfile:
    points = {rows: table(rows) for rows in range(1, ROWS_MAX + 1)}
    if setup.learnt:
        return LatencyProfile(points)
    return Frozen(points) if setup.early else exact(points)


class Frozen(LatencyProfile):
    """Promises the table's times whatever is measured."""

    def observe(self, *, rows: int, exec_ns: int, now: int) -> None: ...

    def margin_ns(self, rows: int) -> int:
        return 0


def _streams(setup: Setup, dice: random.Random) -> Iterator[Reservation]:
    for number in range(1, setup.streams + 1):
        period_ns = dice.randint(20, 100) * MS
        yield Reservation(
            id=number,
            model=dice.choice(MODELS),
            period_ns=period_ns,
            relative_deadline_ns=dice.randint(20, 150) * MS,
            frames=setup.seconds * S // period_ns,
            start_ns=FIRST_NS + ASKED_BY_NS + dice.randrange(100 * MS),
        )


def _requests(setup: Setup, asked: Sequence[Reservation], dice: random.Random) -> Iterator[Request]:
    frames = sorted(
        (stream.arrival_ns(k), stream.id, stream.model, stream.relative_deadline_ns)
        for stream in asked
        for k in range(stream.frames)
    )
    others: list[tuple[int, int, str, int]] = []
    now = FIRST_NS + ASKED_BY_NS
    while setup.best_effort and now < FIRST_NS + ASKED_BY_NS + setup.seconds * S:
        now += round(dice.expovariate(setup.best_effort) * S)
        others.append((now, 0, dice.choice(MODELS), dice.choice(BEST_EFFORT_MS) * MS))
    for number, (at_ns, stream_id, model, relative_ns) in enumerate(merge(frames, others), 1):
        yield Request(
            number,
            model,
            "stream" if stream_id else "other",
            0,
            1,
            at_ns,
            at_ns + relative_ns,
            reservation=stream_id,
        )


NOISE = Faults(jitter=0.03, overrun_rate=0.002)
EXACT: Mapping[str, Setup] = {
    "exact times": Setup(0),
    "batches end early": Setup(0, early=True),
    "early, best effort 150/s": Setup(0, early=True, best_effort=150),
    "exact, best effort 150/s, edf": Setup(0, best_effort=150, rule="edf"),
    "early, best effort 150/s, lookahead": Setup(0, early=True, best_effort=150, rule="lookahead"),
}
NOISY = Setup(0, learnt=True, faults=NOISE)
BESIDE: Mapping[str, Setup] = {
    "exact, best effort 100/s": Setup(0, best_effort=100),
    "exact, best effort 400/s": Setup(0, best_effort=400),
    "early, best effort 400/s": Setup(0, best_effort=400, early=True),
    "noise, floor": NOISY,
    "noise, best effort 100/s": replace(NOISY, best_effort=100),
    "noise, best effort 400/s": replace(NOISY, best_effort=400),
    "noise, best effort 1600/s": replace(NOISY, best_effort=1600),
}
FIRST_SEED = 5000  # of the table: the guard was chosen on others


def show_guarantee(frames: int) -> None:
    """Zero misses, over `frames` frames in all."""
    say("setting | sets | streams granted | frames | missed\n")
    everything = Result()
    for name, setup in EXACT.items():
        total, sets = Result(), 0
        while total.frames * len(EXACT) < frames:
            total.add(run(replace(setup, seed=sets)))
            sets += 1
        granted = f"{total.granted} of {total.granted + total.refused}"
        say(f"{name} | {sets} | {granted} | {total.frames} | {total.missed}\n")
        everything.add(total)
    say(f"all: {everything.missed} of {everything.frames} missed; goal 0 of 200,000\n")


def show_beside(sets: int) -> None:
    """Misses beside best effort, and what it got of the left-over time."""
    say("setting | sets | granted | frames | stream misses | best effort in time | time used\n")
    for name, setup in BESIDE.items():
        total = Result()
        for seed in range(FIRST_SEED, FIRST_SEED + sets):
            total.add(run(replace(setup, seed=seed)))
        others = total.others_in_time / total.others if total.others else 0.0
        say(
            f"{name} | {sets} | {total.granted} of {total.granted + total.refused} | "
            f"{total.frames} | {total.missed}: {100 * total.missed / max(1, total.frames):.4f} % | "
            f"{100 * others:.1f} % | {100 * total.used_ns / total.left_ns:.1f} %\n"
        )
    say("goal: <= 0.05 % with >= 80 % of the left-over time used\n")


def say(text: str) -> None:
    sys.stdout.write(text)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.streams")
    parser.add_argument("--sets", type=int, default=40, help="random sets a row")
    parser.add_argument("--frames", type=int, default=200_000, help="of the guarantee, in all")
    parser.add_argument("--only", action="append", choices=("guarantee", "beside"))
    given = parser.parse_args(arguments)
    parts: Mapping[str, Callable[[], None]] = {
        "guarantee": partial(show_guarantee, given.frames),
        "beside": partial(show_beside, given.sets),
    }
    for name in given.only or parts:
        parts[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
