"""Twenty reserved cameras beside more best effort than the device can take, live.

    python -m tests.bench.cameras_live [--seconds 15]

One emulated GPU (3 % jitter, 0.2 % of batches take 2.25 times as long) behind a real Triton,
through the real sidecar; the load is a process of its own. Cameras: 5 frames a second each, due in
200 ms, on two models; best effort on two others, 1.3 times what the whole device could serve in its
best batches, due in 200 to 400 ms. Run once without best effort and once with it.
A frame is missed if it was refused or its answer came later than 200 ms after it was due to be
sent. Host: how late the load's process could send, p50, p99 and p99.9; a frame that was sent later
than its reservation allows (10 ms) is no frame of the stream, and counted apart. `beyond`: misses
that are late by more than the host's p99.9, and refusals. Used: of the time that the cameras'
batches leave the device, what best effort had.
"""

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp

from tests.bench.live import Gpu, Outcome, offered, sidecar, triton
from tests.bench.live_load import ROW_FLOATS, Shot
from tests.helpers import MS, S
from tests.integration.sidecars import ServeProcess

ROWS_MAX = 16
CAMERAS = 20
PERIOD_MS, DUE_MS, JITTER_MS = 200, 200, 10
COSTS_MS = {"cam-a": (5, 2.5), "cam-b": (7, 2), "free-a": (12, 3), "free-b": (8, 4)}
FILMED, FREE = ("cam-a", "cam-b"), ("free-a", "free-b")
OVERLOAD = 1.3
FREE_DUE_MS = (200, 300, 400)
NOISE = {"jitter_pct": 3, "overrun_rate": 0.002, "overrun_factor": 2.25}
POLICY = "classes: {stream: {}, free: {}}\ndefault_class: free\n"
WARMUP = (1, 2, 4, 8, 16)  # rows at once, several times each: every size is measured
START_MS = 3000.0  # from the reservation to the first frame: the load's process has to start


def say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def models() -> dict[str, Gpu]:
    return {
        name: Gpu({1: 1e3 * (a + b), ROWS_MAX: 1e3 * (a + b * ROWS_MAX)}, params=NOISE)
        for name, (a, b) in COSTS_MS.items()
    }


def warmup() -> list[Shot]:
    """Bursts of each size for each model, far enough apart."""
    at_ns, found = time.monotonic_ns() + 2 * S, []
    for name, (a, b) in COSTS_MS.items():
        for rows in WARMUP:
            for _ in range(4):
                found += [Shot(at_ns, name, "free") for _ in range(rows)]
                at_ns += round((1.5 * (a + b * rows) + 10) * MS)
    return found


@dataclass(frozen=True)
class Camera:
    """A granted stream. start_ns: of its first frame, on the machine's clock."""

    model: str
    name: str
    start_ns: int
    frames: int


async def reserved(served: ServeProcess, seconds: float) -> list[Camera]:
    """Those that were granted."""
    granted = []
    dice = random.Random(1)
    async with aiohttp.ClientSession() as session:
        for number in range(CAMERAS):
            model = FILMED[number % len(FILMED)]
            wish = {
                "period_ms": PERIOD_MS, "relative_deadline_ms": DUE_MS, "jitter_ms": JITTER_MS,
                "frames": int(1000 * seconds / PERIOD_MS),
                "start_in_ms": START_MS + dice.uniform(0, PERIOD_MS),
                "inputs": [{"name": "INPUT", "datatype": "FP32", "shape": [1, ROW_FLOATS]}],
            }  # fmt: skip
            url = f"http://{served.http}/v2/models/{model}/reservations"
            async with session.post(url, json=wish) as reply:
                said = await reply.json()
                now = time.monotonic_ns()
                if reply.status == 201:
                    start_ns = now + round(said["starts_in_ms"] * MS)
                    granted.append(Camera(model, said["id"], start_ns, said["frames"]))
    return granted


def frames(cameras: Sequence[Camera]) -> list[Shot]:
    return [
        Shot(c.start_ns + k * PERIOD_MS * MS, c.model, "stream", DUE_MS, c.name)
        for c in cameras
        for k in range(c.frames)
    ]


def best_effort(begin_ns: int, end_ns: int) -> list[Shot]:
    """Poisson."""
    dice = random.Random(2)
    batches_ms = [COSTS_MS[name][0] + COSTS_MS[name][1] * ROWS_MAX for name in FREE]
    rate = OVERLOAD * 1000 * ROWS_MAX * len(FREE) / sum(batches_ms)
    found, at_ns = [], begin_ns
    while at_ns < end_ns:
        at_ns += round(dice.expovariate(rate) * S)
        found.append(Shot(at_ns, dice.choice(FREE), "free", dice.choice(FREE_DUE_MS)))
    return found


async def busy_s(served: ServeProcess) -> dict[str, float]:
    """Device time by model so far."""
    url = f"http://{served.metrics}/metrics"
    async with aiohttp.ClientSession() as session, session.get(url) as reply:
        text = await reply.text()
    found = {}
    for line in text.splitlines():
        if line.startswith("tritonsched_exec_seconds_sum{"):
            name = line.partition('model="')[2].partition('"')[0]
            found[name] = float(line.rpartition(" ")[2])
    return found


@dataclass(frozen=True)
class Run:
    """What came of it. busy: share of the device's time, by model."""

    outcome: Outcome
    cameras: int
    busy: dict[str, float]


async def filmed(served: ServeProcess, seconds: float, *, beside: bool) -> Run:
    await offered(served, warmup())
    cameras = await reserved(served, seconds)
    shots = frames(cameras)
    begin_ns, end_ns = min(s.at_ns for s in shots), max(s.at_ns for s in shots)
    if beside:
        shots += best_effort(begin_ns, end_ns)
    before = await busy_s(served)
    outcome = await offered(served, sorted(shots))
    after = await busy_s(served)
    took_s = (end_ns - begin_ns) / S
    busy = {name: (after[name] - before.get(name, 0.0)) / took_s for name in after}
    return Run(outcome, len(cameras), busy)


def line(run: Run, *, beside: bool) -> str:
    outcome = run.outcome
    host_ms = outcome.lag_ms(0.999)
    sent = missed = beyond = late = others = in_time = 0
    for index, shot in enumerate(outcome.shots):
        if not shot.reservation:
            others += 1
            in_time += outcome.in_time(index)
        elif outcome.lags_ms[index] > JITTER_MS:
            late += 1
        else:
            took = outcome.took_ms[index]
            refused = outcome.statuses[index] != "ok" or took is None
            sent += 1
            missed += not outcome.in_time(index)
            beyond += refused or (took is not None and took > DUE_MS + host_ms)
    streams = sum(run.busy.get(name, 0.0) for name in FILMED)
    free = sum(run.busy.get(name, 0.0) for name in FREE)
    return " | ".join(
        (
            "with best effort" if beside else "cameras alone",
            f"{run.cameras} of {CAMERAS}",
            f"{sent}, {late}",
            f"{missed}: {missed / max(1, sent):.3%}",
            f"{beyond}: {beyond / max(1, sent):.3%}",
            ", ".join(f"{outcome.lag_ms(share):.2f}" for share in (0.5, 0.99, 0.999)) + " ms",
            f"{in_time / others:.1%} of {others}" if others else "-",
            f"{streams:.2f}, {free:.2f}",
            f"{free / max(1e-9, 1 - streams):.1%}" if others else "-",
        )
    )


HEAD = (
    "run | granted | frames, sent too late | missed | beyond the host | host p50, p99, p99.9 | "
    "best effort in time | busy with streams, best effort | left-over time used"
)


async def table(seconds: float) -> None:
    say(HEAD + "\n")
    async with triton(models()) as running:
        for beside in (False, True):
            async with sidecar(running, POLICY) as served:
                run = await filmed(served, seconds, beside=beside)
            say(line(run, beside=beside) + "\n")
    say("goal: <= 0.05 % beyond the host's jitter; >= 80 % of the left-over time used\n")


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.cameras_live")
    parser.add_argument("--seconds", type=float, default=15.0, help="of film")
    asyncio.run(table(parser.parse_args(arguments).seconds))


if __name__ == "__main__":
    main(sys.argv[1:])
