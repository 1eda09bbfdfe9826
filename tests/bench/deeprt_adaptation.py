"""DeepRT's adaptation under overruns (SEC 2021, section 6) in shape: with it and without.

    python -m tests.bench.deeprt_adaptation [--seeds 5]

As in the paper: period and relative deadline are 200 ms, and 5 consecutive jobs take 100 to 1000
ms longer. Open there, chosen here: the streams (40 over four categories, about 0.6 of what DeepRT's
own rule admits) and the smaller shape (half of the time). As there, everything is served, late or
not, and a window is a job of its own. `refusing` is how we run it: what cannot be in time is
refused at once, which leaves no backlog, and so little for adaptation to do.
"""

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tests.bench.streams import Frozen
from tests.helpers import MS
from tritonsched.core.batch import Batch, Decision
from tritonsched.core.policies.disbatcher import Disbatcher
from tritonsched.core.request import RejectReason, Request
from tritonsched.core.reservation import Reservation
from tritonsched.core.schedulability import admits
from tritonsched.core.scheduler import Scheduler
from tritonsched.core.variant import Family, Variant
from tritonsched.sim.engine import Simulation
from tritonsched.sim.experiment import SERIAL
from tritonsched.sim.papers import (
    DEEPRT_CATEGORIES,
    DEEPRT_ROWS_MAX,
    deeprt_models,
)
from tritonsched.sim.record import Record
from tritonsched.sim.tables import scaled
from tritonsched.sim.world import SimModel, World

PERIOD_NS = 200 * MS
STREAMS = 40
FRAMES = 100  # of a stream: 20 s
JOBS = 5
FIRST_JOB = 20  # the first that overruns
SMALLER = 0.5  # of the time, in the smaller shape
ACCURACY = 0.9  # of the smaller shape; that it is less is what counts
DELAYS_MS = (100, 200, 500, 1000)
PAPER = {"without": (5, 14, 42, 92), "with": (1, 12, 40, 57)}
"""Frames missed on the desktop, read off the paper's chart."""


@dataclass(frozen=True)
class Setup:
    """delay_ms: of each of the jobs. adapts: there is a smaller shape. refuses: what cannot be in
    time.
    """

    seed: int
    delay_ms: int
    adapts: bool
    refuses: bool = False


class Everybody(Scheduler):
    """Serves everything, late or not, as DeepRT does."""

    def _refusal(self, request: Request, reach: tuple[int, int]) -> RejectReason | None:
        return None

    def _prune(self, now: int, decisions: list[Decision]) -> None:
        self._moved = False


class Overrunning(World):
    """Some consecutive batches take longer."""

    delay_ns = 0

    def exec_ns(self, batch: Batch, start_ns: int) -> int:
        late = FIRST_JOB <= batch.id < FIRST_JOB + JOBS
        return super().exec_ns(batch, start_ns) + late * self.delay_ns


def cameras(seed: int) -> list[Reservation]:
    """Streams of one period, as DeepRT's rule admits them one by one."""
    dice = random.Random(seed)
    times = deeprt_models()
    models = dice.sample(sorted(times), DEEPRT_CATEGORIES)
    taken: list[Reservation] = []
    for number in range(1, STREAMS + 1):
        asked = Reservation(
            id=number, model=dice.choice(models), period_ns=PERIOD_NS,
            relative_deadline_ns=PERIOD_NS, frames=FRAMES, start_ns=dice.randrange(PERIOD_NS),
        )  # fmt: skip
        rows_max = dict.fromkeys(times, DEEPRT_ROWS_MAX)
        if admits([*taken, asked], lambda m, r: times[m](r), rows_max=rows_max):
            taken.append(asked)
    return taken


def missed(setup: Setup, streams: Sequence[Reservation]) -> int:
    """Frames that were not in time."""
    times = deeprt_models()
    names = sorted({stream.model for stream in streams})
    models = [SimModel(name, DEEPRT_ROWS_MAX, times[name]) for name in names]
    if setup.adapts:
        models += [
            SimModel(f"{name}-small", DEEPRT_ROWS_MAX, scaled(times[name], SMALLER))
            for name in names
        ]
    record = Record()
    kind = Scheduler if setup.refuses else Everybody
    scheduler = kind(
        Disbatcher(merges=False), tuning=replace(SERIAL, learning=False), observers=(record,)
    )
    world = Overrunning(models, seed=setup.seed, rtt_ns=0)
    world.delay_ns = setup.delay_ms * MS
    simulation = Simulation(scheduler, world, keep_log=False)
    for model in models:
        table = {rows: model.exec_ns(rows) for rows in range(1, DEEPRT_ROWS_MAX + 1)}
        scheduler.set_profile(model.name, "gpu0", Frozen(table))
    for name in names if setup.adapts else ():
        small = f"{name}-small"
        scheduler.set_variant(Variant(small, DEEPRT_ROWS_MAX, ("gpu0",), ACCURACY), 0)
        scheduler.set_family(Family(name, (name, small)), 0)
    simulation.run(_frames(streams))
    return record.total - sum(record.on_time.values())


def _frames(streams: Sequence[Reservation]) -> list[Request]:
    times = sorted((s.arrival_ns(k), s.id, s.model) for s in streams for k in range(s.frames))
    return [
        Request(number, model, "c", 0, 1, at_ns, at_ns + PERIOD_NS)
        for number, (at_ns, _, model) in enumerate(times, 1)
    ]


def table(seeds: int) -> list[list[str]]:
    """A line a setting: frames missed by delay, the mean of the seeds, beside the paper's."""
    delays = [f"{ms} ms x {JOBS}" for ms in DELAYS_MS]
    lines = [["frames missed", *delays, "the paper's"]]
    found: dict[tuple[bool, bool], list[float]] = {}
    sets = {seed: cameras(seed) for seed in range(1, seeds + 1)}
    for refuses in (False, True):
        for adapts in (False, True):
            counts = [
                sum(missed(Setup(seed, ms, adapts, refuses), s) for seed, s in sets.items()) / seeds
                for ms in DELAYS_MS
            ]
            found[refuses, adapts] = counts
            word = "with" if adapts else "without"
            paper = " / ".join(map(str, PAPER[word])) if not refuses else ""
            name = f"{word} adaptation" + (", refusing" if refuses else "")
            lines.append([name, *(f"{count:.1f}" for count in counts), paper])
    saved = [
        f"{1 - adapted / plain:.0%}" if plain else "-"
        for plain, adapted in zip(found[False, False], found[False, True], strict=True)
    ]
    theirs = [f"{1 - a / b:.0%}" for a, b in zip(PAPER["with"], PAPER["without"], strict=True)]
    lines.append(["fewer, goal >= 35% at the last", *saved, " / ".join(theirs)])
    many = sum(map(len, sets.values())) / seeds
    lines.append([f"{many:.1f} streams of {FRAMES} frames", *("" for _ in delays), ""])
    return lines


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.deeprt_adaptation")
    parser.add_argument("--seeds", type=int, default=5)
    for line in table(parser.parse_args(arguments).seeds):
        sys.stdout.write(" | ".join(line) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
