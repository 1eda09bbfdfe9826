"""G11: how late the driver's timer fires in a loaded server, against the loops' own timers.

    python -m tests.bench.timers              # three repetitions, about a minute

The echo server of `frontend` on the ngh2 front end answers RATE requests of 12 KB a second over
CONNECTIONS connections (h2load) while one-shot timers run, one after the other, each a random
SPAN_MS ahead: the driver's timerfd on uvloop, uvloop's `call_at`, asyncio's `call_at`. Late: fired
minus armed for, in µs, by CLOCK_MONOTONIC; negative is early. Each kind is a process of its own.
"""

import argparse
import asyncio
import contextlib
import json
import random
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from tests.bench import frontend
from tests.bench.loads import H2LOAD_MISSING, Asked, h2load, has_h2load
from tests.bench.meter import ROOT, Figure, dump, machine, median, quantile, table
from tritonsched.frontend.grpc_framing import framed
from tritonsched.proxy.timer import LoopTimer, Timer, TimerFd

RATE, CONNECTIONS = 1_000, 10
SPAN_MS = (2.0, 8.0)
COUNT = 500  # timers of a run
OURS, UVLOOP, ASYNCIO = "timerfd on uvloop", "uvloop call_at", "asyncio call_at"
KINDS = (OURS, UVLOOP, ASYNCIO)
SHARES = (0.0, 0.5, 0.9, 0.99)


class Lateness:
    """Timers one after the other; `done` is set after `count`."""

    def __init__(self, kind: str, count: int) -> None:
        loop = asyncio.get_running_loop()
        make = TimerFd if kind == OURS else LoopTimer
        self._timer: Timer = make(loop, self._fired)
        self._chance = random.Random(1)
        self._count = count
        self._due_ns = 0
        self.late_us: list[float] = []
        self.done = asyncio.Event()

    def begin(self) -> None:
        ahead_ms = self._chance.uniform(*SPAN_MS)
        self._due_ns = time.monotonic_ns() + int(ahead_ms * 1e6)
        self._timer.arm(self._due_ns)

    def _fired(self) -> None:
        self.late_us.append((time.monotonic_ns() - self._due_ns) / 1e3)
        if len(self.late_us) < self._count:
            self.begin()
        else:
            self.done.set()


async def serve(kind: str, count: int) -> None:
    """Say the port; at a line of input, run the timers and tell how late they were."""
    port, _server = await frontend.ours(frontend.NGH2)
    frontend.settle()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.readline)
    lateness = Lateness(kind, count)
    lateness.begin()
    await lateness.done.wait()
    sys.stdout.write(json.dumps(lateness.late_us) + "\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)


@dataclass(frozen=True, slots=True)
class Serving:
    """A server's process."""

    kind: str
    port: int
    process: asyncio.subprocess.Process

    async def late_us(self) -> list[float]:
        """Have it run its timers."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"go\n")
        return sorted(json.loads(await self.process.stdout.readline()))


@contextlib.asynccontextmanager
async def serving(kind: str, count: int) -> AsyncIterator[Serving]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.timers", "--serve", kind, "--count", str(count),
        cwd=ROOT, stdin=pipe, stdout=pipe, limit=1 << 20,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield Serving(kind, int(await process.stdout.readline()), process)
    finally:
        process.stdin.close()
        await process.wait()


async def measure(kind: str, count: int) -> list[float]:
    """How late each timer was, ordered, under load from the first to the last."""
    asked = Asked(framed(frontend.request()))
    async with serving(kind, count) as there:
        address = f"{frontend.HOST}:{there.port}"
        each = RATE // CONNECTIONS
        longest_s = count * SPAN_MS[1] / 1e3
        load = asyncio.ensure_future(
            h2load(address, asked, requests=int(longest_s * RATE), connections=CONNECTIONS,
                   rate=each)
        )  # fmt: skip
        found = await there.late_us()
        await load
        return found


async def compare(options: argparse.Namespace) -> dict[str, dict[float, float]]:
    """By kind, quantiles: medians over the repetitions, which are interleaved; of the earliest
    (0), the minimum.
    """
    found: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
    for _ in range(options.repetitions):
        for kind in KINDS:
            found[kind].append(await measure(kind, options.count))
            frontend.say(f"{kind}: p50 {quantile(found[kind][-1], 0.5):.0f} µs late")
    return {
        kind: {
            share: median(quantile(run, share) for run in runs)
            if share
            else min(run[0] for run in runs)
            for share in SHARES
        }
        for kind, runs in found.items()
    }


def figures(late: dict[str, dict[float, float]]) -> list[Figure]:
    ours, theirs = late[OURS], late[ASYNCIO]
    return [
        Figure("G11", "timerfd: earliest, µs late", ours[0.0], 0.0, at_least=True),
        Figure("G11", "timerfd: p50 late over asyncio call_at's", ours[0.5] / theirs[0.5], 0.1),
        Figure("G11", "timerfd: p50, µs late", ours[0.5]),
        Figure("G11", "timerfd: p90, µs late", ours[0.9]),
        Figure("G11", "timerfd: p99, µs late", ours[0.99]),
    ]


def markdown(late: dict[str, dict[float, float]]) -> str:
    lines = ["| timer | earliest | p50 | p90 | p99 |", "|---|---|---|---|---|"]
    lines += [
        f"| {kind} | {' | '.join(f'{value:.0f}' for value in row.values())} |"
        for kind, row in late.items()
    ]
    return "\n".join(lines)


def main() -> None:
    """Parse options, run, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--count", type=int, default=COUNT, help="timers of a run")
    parser.add_argument("--json", type=Path, help="write the quantiles")
    parser.add_argument("--serve", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        make: Any = asyncio.new_event_loop if options.serve == ASYNCIO else uvloop.new_event_loop
        with asyncio.Runner(loop_factory=make) as runner:
            runner.run(serve(options.serve, options.count))
        return
    if not has_h2load():
        parser.error(H2LOAD_MISSING)
    late = asyncio.run(compare(options))
    if options.json:
        dump(options.json, {"machine": machine(), "late_us": late})
    sys.stdout.write(markdown(late) + "\n\n" + table(figures(late)) + "\n")


if __name__ == "__main__":
    main()
