"""One run: send what is due when it is due, count what comes back.

Sends are driven by one timerfd, not by a task each waiting for its time; a request is one task.
How late the generator itself was is part of the result (`send_lag_ms`): a run whose lag is not far
below its deadlines measured the generator.
"""

import asyncio
import os
import platform
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from tritonsched.bench.clients import Client, GrpcClient, HttpClient
from tritonsched.bench.measure import ClassCount, quantile_ms
from tritonsched.bench.payload import PAYLOADS, Wording, inputs
from tritonsched.bench.plan import DEFAULT_CLASS, Arrivals, DeadlineAs, LoadClass, Shot, schedule
from tritonsched.proxy.timer import Timer, TimerFd
from tritonsched.tensors import Wire

START_NS = 20_000_000  # from "go" to the schedule's zero, so that the first request is not late
Progress = Callable[[int, int], None]
TimerFactory = Callable[[asyncio.AbstractEventLoop, Callable[[], None]], Timer]


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What to send where. rate: requests a second; shapes: see payload.inputs."""

    target: str
    protocol: Wire
    model: str
    rate: float
    duration_s: float
    warmup_s: float = 1.0
    arrivals: Arrivals = Arrivals.POISSON
    classes: tuple[LoadClass, ...] = (DEFAULT_CLASS,)
    rows: int = 1
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    pictures: bool = False
    deadline_as: DeadlineAs = DeadlineAs.HEADER
    send_class: bool = False
    in_flight_max: int = 10_000
    drain_s: float = 10.0
    seed: int = 1


async def run(
    options: BenchOptions, progress: Progress = lambda _done, _all: None
) -> dict[str, Any]:
    """The whole run; the result is what `--json` writes. Raises TargetError or ValueError."""
    client: Client = (GrpcClient if options.protocol is Wire.GRPC else HttpClient)(options.target)
    try:
        await _prepare(client, options)
        shots = schedule(
            rate=options.rate,
            duration_s=options.warmup_s + options.duration_s,
            arrivals=options.arrivals,
            classes=options.classes,
            payloads=PAYLOADS,
            rng=random.Random(options.seed),  # noqa: S311  # a load, not a secret
        )
        load = OpenLoop(client, options, shots, progress)
        cpu_s = time.process_time()
        await load.finish()
        cpu_s = time.process_time() - cpu_s
        return load.result(cpu_s)
    finally:
        await client.close()


async def _prepare(client: Client, options: BenchOptions) -> None:
    if options.deadline_as is DeadlineAs.GRPC and options.protocol is not Wire.GRPC:
        raise ValueError("a deadline as grpc needs the protocol grpc; for http, use header")
    info = await client.model(options.model)
    payloads = inputs(
        info,
        rows=options.rows,
        shapes=dict(options.shapes),
        pictures=options.pictures,
        seed=options.seed,
    )
    how = options.deadline_as
    wording = Wording(
        timeout=how is DeadlineAs.TIMEOUT,
        header=how is DeadlineAs.HEADER,
        send_class=options.send_class,
        call_deadline=how is DeadlineAs.GRPC,
    )
    client.prepare(options.model, options.classes, payloads, wording)


class OpenLoop:
    """The shots of one run and what became of them. Clock and timer are arguments for tests on
    virtual time; both count nanoseconds of one monotonic clock.
    """

    def __init__(
        self,
        client: Client,
        options: BenchOptions,
        shots: list[Shot],
        progress: Progress = lambda _done, _all: None,
        *,
        clock: Callable[[], int] = time.monotonic_ns,
        timer: TimerFactory = TimerFd,
    ) -> None:
        self._client = client
        self._options = options
        self._shots = shots
        self._progress = progress
        self._next = 0
        self._counts = [ClassCount(each) for each in options.classes]
        self._warmup_ns = int(options.warmup_s * 1e9)
        self._lags_ns: list[int] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._all_sent = asyncio.Event()
        self._clock = clock
        self._start_ns = clock() + START_NS
        self._timer = timer(asyncio.get_running_loop(), self._fire)

    async def finish(self) -> None:
        """Send everything, then wait for answers, at most `drain_s`."""
        self._fire()
        await self._all_sent.wait()
        self._timer.close()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._options.drain_s)

    def _fire(self) -> None:
        """Send all that is due, and come back for the next."""
        now = self._clock()
        while self._next < len(self._shots):
            shot = self._shots[self._next]
            if self._start_ns + shot.at_ns > now:
                self._timer.arm(self._start_ns + shot.at_ns)
                break
            self._next += 1
            self._send(shot, now)
        else:
            self._all_sent.set()
        self._progress(self._next, len(self._shots))

    def _send(self, shot: Shot, now: int) -> None:
        count = self._counts[shot.load_class] if shot.at_ns >= self._warmup_ns else None
        if len(self._tasks) >= self._options.in_flight_max:
            if count is not None:
                count.unsent += 1
            return
        if count is not None:
            count.sent += 1
            count.unanswered += 1
            self._lags_ns.append(now - self._start_ns - shot.at_ns)
        task = asyncio.ensure_future(self._one(shot, count))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _one(self, shot: Shot, count: ClassCount | None) -> None:
        status = await self._client.send(shot.load_class, shot.payload)
        if count is not None:
            count.answered(status, self._clock() - self._start_ns - shot.at_ns)

    def result(self, cpu_s: float) -> dict[str, Any]:
        """What `--json` writes. cpu_s: of this process, for all shots."""
        options = self._options
        sent = sum(count.sent for count in self._counts)
        served = sum(count.served for count in self._counts)
        lags = sorted(self._lags_ns)
        return {
            "config": asdict(options),
            "machine": {
                "python": platform.python_version(),
                "system": platform.platform(),
                "processors": len(os.sched_getaffinity(0)),
                "tritonsched": version("tritonsched"),
                "grpcio": version("grpcio"),
                "aiohttp": version("aiohttp"),
            },
            "offered_per_s": round(
                sum(count.sent + count.unsent for count in self._counts) / options.duration_s, 2
            ),
            "goodput_per_s": round(served / options.duration_s, 2),
            "in_time_share": round(served / sent, 4) if sent else None,
            "send_lag_ms": {f"p{q * 100:g}": quantile_ms(lags, q) for q in (0.5, 0.99)},
            "client_cpu_us_per_request": round(cpu_s * 1e6 / max(1, len(self._shots)), 1),
            "classes": {
                count.load_class.name: count.as_dict(options.duration_s) for count in self._counts
            },
        }
