"""Which streams are admitted, against DeepRT's own rule, and what the answer costs.

    python -m tests.bench.admission [--sets 5] [--only families --only cost --only meanwhile]

families: streams of 5 to 30 frames a second are proposed one by one, deadlines in multiples of the
time of one row, on two families of profiles: `trt`, steep curves, 8 to 40 times; `amp`, flat ones,
3 to 12 times (scheduling study 4.6). Load: the device time that a frame costs at best, times the
rate. What was admitted is then served by the scheduler, with exact times and with batches that end
early. cost: of a proposal, and of DeepRT's test by frames. meanwhile: decisions made while a
proposal is tested beside the loop.
"""

import argparse
import asyncio
import itertools
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from tests.bench.streams import Frozen, Result, Watch
from tests.helpers import MS, S
from tritonsched.core.batch import Completion, Dispatch, Grant
from tritonsched.core.policies import POLICIES
from tritonsched.core.proposal import DevicePlan, Proposal
from tritonsched.core.request import Request
from tritonsched.core.reservation import Reservation
from tritonsched.core.schedulability import admits
from tritonsched.core.scheduler import Scheduler
from tritonsched.core.tuning import Tuning
from tritonsched.core.variant import Variant
from tritonsched.proxy.judging import judged
from tritonsched.sim.engine import TEST_NS, Simulation
from tritonsched.sim.tables import cost_ns, exec_ns, ratio, scaled
from tritonsched.sim.world import ExecNs, SimModel, World, affine, table

ROWS_MAX = 32
SECONDS = 4  # of a stream's life
SERIAL = Tuning(rtt_ns=0, guard_ns=0)


@dataclass(frozen=True)
class Family:
    """Profiles, and how many times the time of one row a deadline may be. asked: streams."""

    times: Mapping[str, ExecNs]
    multiples: tuple[float, float]
    asked: int


def families() -> dict[str, Family]:
    """The two of scheduling study 4.6; everything is on one T4."""
    steep = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "mobilenetv2",
             "inceptionv3", "vgg16", "densenet121")  # fmt: skip
    trt = {name: exec_ns(f"{name}-t4") for name in steep}
    trt["bert-base"] = exec_ns("bert-base-int8-s128-t4")
    slower = ratio("efficientnet-t4-of-v100")
    amp = {name: exec_ns(name) for name in ("resnet50-amp-t4", "se-resnext101-amp-t4")}
    amp["efficientnet-b0"] = scaled(exec_ns("efficientnet-b0-fp32-v100"), slower)
    amp["ssd300"] = scaled(exec_ns("ssd300-amp-v100"), ratio("ssd300-t4-of-v100"))
    found = {"trt": Family(trt, (8, 40), 160), "amp": Family(amp, (3, 12), 80)}
    return {name: replace(f, times=_rising(f.times)) for name, f in found.items()}


def _rising(times: Mapping[str, ExecNs]) -> dict[str, ExecNs]:
    """As a profile reads them: no size is slower than a larger one (published tables have some)."""
    made = {}
    for name, exec_at in times.items():
        least = [exec_at(rows) for rows in range(1, ROWS_MAX + 1)]
        for rows in range(ROWS_MAX - 2, -1, -1):
            least[rows] = min(least[rows], least[rows + 1])
        made[name] = table(dict(enumerate(least, 1)))
    return made


def proposals(family: Family, seed: int) -> list[Reservation]:
    """Streams in the order in which they are asked for."""
    dice = random.Random(seed)
    models = sorted(family.times)
    found = []
    for number in range(1, family.asked + 1):
        model = dice.choice(models)
        period_ns = round(S / dice.uniform(5, 30))
        found.append(
            Reservation(
                id=number,
                model=model,
                period_ns=period_ns,
                relative_deadline_ns=round(
                    family.times[model](1) * dice.uniform(*family.multiples)
                ),
                frames=SECONDS * S // period_ns,
                start_ns=dice.randrange(period_ns),
            )
        )
    return found


Fits = Callable[[Sequence[Reservation], Reservation], bool]


def deeprt(family: Family, *, use_utilisation: bool) -> Fits:
    """DeepRT's rule: windows of half the deadline."""

    def fits(granted: Sequence[Reservation], wanted: Reservation) -> bool:
        return admits(
            [*granted, wanted],
            lambda model, rows: family.times[model](rows),
            rows_max=dict.fromkeys(family.times, ROWS_MAX),
            use_utilisation=use_utilisation,
        )

    return fits


def planned(family: Family) -> Fits:
    """Ours: an exact plan of hold-EDF."""
    safe = {name: [times(rows) for rows in range(ROWS_MAX + 1)]
            for name, times in family.times.items()}  # fmt: skip
    caps = dict.fromkeys(family.times, ROWS_MAX)

    def fits(granted: Sequence[Reservation], wanted: Reservation) -> bool:
        device = DevicePlan("gpu0", 0, tuple(granted), frozenset(), caps, safe)
        return Proposal(0, 0, 0, (device,), wanted=wanted)._fits(wanted) is not None

    return fits


def admitted(asked: Sequence[Reservation], fits: Fits) -> list[Reservation]:
    granted: list[Reservation] = []
    for wanted in asked:
        if fits(granted, wanted):
            granted.append(wanted)
    return granted


def load(family: Family, streams: Sequence[Reservation]) -> float:
    """Device time a second, each frame in the best batch that its deadline allows."""
    return sum(
        cost_ns(family.times[s.model], ROWS_MAX, s.relative_deadline_ns) / s.period_ns
        for s in streams
    )


def served(family: Family, streams: Sequence[Reservation], seed: int, *, early: bool) -> Result:
    """All of them through the scheduler; early: a batch takes 0.6 to 1 times what is promised."""
    first_ns = (len(streams) + 2) * 2 * TEST_NS + S
    moved = [
        Reservation(
            id=s.id, model=s.model, period_ns=s.period_ns, frames=s.frames,
            relative_deadline_ns=s.relative_deadline_ns, start_ns=first_ns + s.start_ns,
        )
        for s in streams
    ]  # fmt: skip
    result = Result()
    watch = Watch(result)
    scheduler = Scheduler(POLICIES["lite"](), tuning=SERIAL, observers=(watch,))
    share = random.Random(seed).uniform(0.6, 1.0) if early else 1.0
    used = sorted({s.model for s in streams})
    models = [SimModel(name, ROWS_MAX, scaled(family.times[name], share)) for name in used]
    simulation = Simulation(scheduler, World(models, seed=seed, rtt_ns=0), keep_log=False)
    for name in used:
        table = {rows: family.times[name](rows) for rows in range(1, ROWS_MAX + 1)}
        scheduler.set_profile(name, "gpu0", Frozen(table))
    for number, stream in enumerate(moved):
        simulation.reserve(stream, at_ns=number * 2 * TEST_NS)
    simulation.run(until_ns=first_ns - MS)
    granted = [answer.reservation for answer in simulation.answers if isinstance(answer, Grant)]
    watch.granted.update({stream.id: stream for stream in granted})
    simulation.run(_frames(moved))
    result.granted, result.refused = len(granted), len(moved) - len(granted)
    return result


def _frames(streams: Sequence[Reservation]) -> Iterator[Request]:
    times = sorted((s.arrival_ns(k), s.id) for s in streams for k in range(s.frames))
    by_id = {s.id: s for s in streams}
    for number, (at_ns, stream_id) in enumerate(times, 1):
        stream = by_id[stream_id]
        due_ns = at_ns + stream.relative_deadline_ns
        yield Request(number, stream.model, "s", 0, 1, at_ns, due_ns, reservation=stream_id)


def show_families(sets: int) -> None:
    """Admitted load, DeepRT's and ours, and misses of what was admitted."""
    say("family | DeepRT, both phases | phase 2 alone | ours | ours / DeepRT | streams, DeepRT and "
        "ours | frames | misses: exact, early | not granted again\n")  # fmt: skip
    means = []
    for name, family in families().items():
        rules = {
            "both": deeprt(family, use_utilisation=True),
            "second": deeprt(family, use_utilisation=False),
            "ours": planned(family),
        }
        loads = dict.fromkeys(rules, 0.0)
        counts = dict.fromkeys(rules, 0)
        total = [Result(), Result()]
        for seed in range(1, sets + 1):
            asked = proposals(family, seed)
            streams = {rule: admitted(asked, fits) for rule, fits in rules.items()}
            for rule, taken in streams.items():
                loads[rule] += load(family, taken) / sets
                counts[rule] += len(taken)
            for early in (False, True):
                total[early].add(served(family, streams["ours"], seed, early=early))
        means.append(loads["ours"] / loads["both"])
        say(
            f"{name} | {loads['both']:.3f} | {loads['second']:.3f} | {loads['ours']:.3f} | "
            f"{means[-1]:.2f} | {counts['both'] / sets:.1f}, {counts['ours'] / sets:.1f} | "
            f"{sum(r.frames for r in total)} | {total[0].missed}, {total[1].missed} | "
            f"{total[0].refused + total[1].refused}\n"
        )
    say(f"mean ratio {statistics.mean(means):.2f}; goals: >= 1.3 each, >= 1.45 on the mean\n")


# -- cost -----------------------------------------------------------------------------------------


def proposal(streams: int = 60, seconds: int = 4) -> Proposal:
    """One more stream beside `streams` others, at 5 to 30 frames a second."""
    dice = random.Random(1)
    tables = {f"m{k}": affine((2 + k) * MS // 2, (2 + k) * MS // 10) for k in range(5)}
    safe = {name: [table(rows) for rows in range(ROWS_MAX + 1)] for name, table in tables.items()}
    cameras = []
    for number in range(1, streams + 2):
        period_ns = S // dice.choice([5, 10, 15, 20, 30])
        cameras.append(
            Reservation(
                id=number,
                model=dice.choice(sorted(tables)),
                period_ns=period_ns,
                relative_deadline_ns=dice.randint(50, 250) * MS,
                frames=seconds * S // period_ns,
                start_ns=dice.randrange(100 * MS),
            )
        )
    caps = dict.fromkeys(tables, ROWS_MAX)
    device = DevicePlan("gpu0", 0, tuple(cameras[:-1]), frozenset(), caps, safe)
    return Proposal(0, MS, 0, (device,), wanted=cameras[-1])


def deeprt_ms(frames: int) -> float:
    """Both phases for so many frames, of 20 streams; the least of three."""
    dice = random.Random(2)
    streams = [
        Reservation(
            id=n, model="m", period_ns=dice.randint(90, 110) * MS, frames=frames // 20,
            start_ns=n * MS, relative_deadline_ns=dice.randint(50, 250) * MS,
        )
        for n in range(1, 21)
    ]  # fmt: skip
    cost = partial(_row_cost, MS, MS // 5)
    return min(_took_ms(lambda: admits(streams, cost, rows_max={"m": 32})) for _ in range(3))


def _row_cost(base_ns: int, row_ns: int, _: str, rows: int) -> int:
    return base_ns + row_ns * rows


def _took_ms(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def deeprt_lines() -> list[list[str]]:
    """A line a number of frames, beside the paper's desktop."""
    paper = {100: "1.2", 1_000: "15", 10_000: "160", 100_000: "1600"}
    lines = [["frames", "DeepRT's test, ms", "us a frame", "the paper's, ms, read off its chart"]]
    for frames, theirs in paper.items():
        took = deeprt_ms(frames)
        lines.append([f"{frames}", f"{took:.2f}", f"{1000 * took / frames:.2f}", theirs])
    return lines


def show_cost() -> None:
    asked = proposal()
    times = [_took_ms(asked.run) for _ in range(5)]
    yes = asked.run().added is not None
    say(
        f"a proposal beside 60 streams of {SECONDS} s, granted {yes}: "
        f"{statistics.median(times):.1f} ms (of 5: {min(times):.1f} to {max(times):.1f}); "
        "goal <= 100 ms\n"
    )
    for line in deeprt_lines():
        say(" | ".join(line) + "\n")
    say("goal: 10,000 frames < 50 ms, linear in frames (of 100,000, what twice the hyperperiod of "
        "at most 60 s holds is tested: the rest repeats)\n")  # fmt: skip


# -- decisions go on meanwhile --------------------------------------------------------------------


class Pace:
    """A scheduler that gets a request and decides at every turn of the loop, and ends a batch."""

    def __init__(self) -> None:
        self.gaps_ns: list[int] = []
        self._loop = asyncio.get_running_loop()
        self._scheduler = Scheduler(POLICIES["lite"](), tuning=SERIAL)
        self._scheduler.set_variant(Variant("m", 32, ("gpu0",)), time.monotonic_ns())
        table = {rows: MS + rows * MS // 10 for rows in range(1, 33)}
        self._scheduler.set_profile("m", "gpu0", Frozen(table))
        self._numbers = itertools.count(1)
        self._last_ns = time.monotonic_ns()
        self._on = True

    def turn(self) -> None:
        now = time.monotonic_ns()
        self.gaps_ns.append(now - self._last_ns)
        self._last_ns = now
        request = Request(next(self._numbers), "m", "c", 0, 1, now, now + 50 * MS)
        self._scheduler.submit(request, now)
        for decision in self._scheduler.decide(now):
            if isinstance(decision, Dispatch):
                self._scheduler.complete(Completion(decision.batch.id), now)
        if self._on:
            self._loop.call_soon(self.turn)

    def stop(self) -> None:
        self._on = False


async def pace(asked: Proposal | None, wall_s: float = 0.0) -> tuple[float, list[int]]:
    """(seconds, gaps between decisions) while a proposal is tested beside the loop; without one,
    for `wall_s`.
    """
    pacing = Pace()
    pacing.turn()
    began = time.perf_counter()
    if asked is None:
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(wall_s, over.set_result, None)
        await over
    else:
        await judged(asked)
    took = time.perf_counter() - began
    pacing.stop()
    return took, pacing.gaps_ns


async def _show_meanwhile() -> None:
    took, gaps = await pace(proposal())
    alone, free = await pace(None, took)
    for name, seconds, found in (("while it is tested", took, gaps), ("without", alone, free)):
        ranked = sorted(found)
        say(
            f"{name}: {1e3 * seconds:.0f} ms, {len(found)} decisions; between two of them p50 "
            f"{ranked[len(ranked) // 2] / 1e3:.0f} us, p99 "
            f"{ranked[int(0.99 * len(ranked))] / 1e6:.1f} ms, longest {ranked[-1] / 1e6:.1f} ms\n"
        )


def show_meanwhile() -> None:
    asyncio.run(_show_meanwhile())


def say(text: str) -> None:
    sys.stdout.write(text)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.admission")
    parser.add_argument("--sets", type=int, default=5, help="sequences a family")
    parser.add_argument("--only", action="append", choices=("families", "cost", "meanwhile"))
    given = parser.parse_args(arguments)
    parts: Mapping[str, Callable[[], None]] = {
        "families": partial(show_families, given.sets),
        "cost": show_cost,
        "meanwhile": show_meanwhile,
    }
    for name in given.only or parts:
        parts[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
