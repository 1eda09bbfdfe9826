"""G1 to G6: what a request costs on its way, against raw Triton and a bare grpc.aio echo.

    python -m tests.bench.datapath                        # five repetitions, about 4 minutes
    python -m tests.bench.datapath --quick --sizes small  # one look

One Triton serves the same model several times: without a batcher, behind its dynamic batcher with
its default, and with delays of DELAYS_US (the sweep). The model gathers its rows and answers at
once, so that only the data path costs. The sidecar stands in front of the one without a batcher.
All stay up; each repetition asks every target in turn; medians are shown. CPU is that of Triton's
and the sidecar's processes, the load's is not counted. Rows a batch are the sidecar's own count.
"""

import argparse
import asyncio
import math
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.bench import frontend
from tests.bench.datapath_stage import (
    BATCHERS,
    LARGE,
    MERGING,
    PLAIN,
    SIDECAR,
    SIZES,
    SMALL,
    Target,
    batches,
    message,
    model_name,
    targets,
    tensor,
    web,
)
from tests.bench.loads import (
    H2LOAD_MISSING,
    PERF_ANALYZER,
    PERF_ANALYZER_MISSING,
    Asked,
    Sped,
    grpcio,
    h2load,
    has_h2load,
    perf_analyzer,
)
from tests.bench.meter import Figure, cpu_ns, dump, machine, median, table
from tritonsched.frontend.grpc_framing import framed

ONE, MANY, CLIENTS, ANALYZER, WEB = "h2load 1", "h2load 64", "grpcio 16", "perf_analyzer 16", "HTTP"
THREADS = 16
WARM_UP = 0.1  # of a run's requests, beforehand
ECHO_CONNECTIONS = 32
# Enough of each for half a second or more.
REQUESTS = {
    (SMALL, ONE): 2_000, (SMALL, MANY): 12_000, (SMALL, CLIENTS): 6_000, (SMALL, ANALYZER): 4_000,
    (SMALL, WEB): 8_000, (LARGE, ONE): 500, (LARGE, MANY): 2_000, (LARGE, CLIENTS): 1_500,
    (LARGE, ANALYZER): 1_000, (LARGE, WEB): 1_500,
}  # fmt: skip
TARGETS = {
    ONE: (PLAIN, MERGING, SIDECAR), MANY: (*BATCHERS, SIDECAR), CLIENTS: (*BATCHERS, SIDECAR),
    ANALYZER: (MERGING, SIDECAR), WEB: (MERGING, SIDECAR),
}  # fmt: skip
SPEED = ("requests_per_s", "p50_us", "p99_us")
Say = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Run:
    """One load on one target. cpu_us: a request, by process."""

    target: str
    size: str
    load: str
    requests_per_s: float
    p50_us: float
    p99_us: float
    cpu_us: dict[str, float]
    rows: float  # of a batch of the sidecar

    @property
    def total_us(self) -> float:
        return sum(self.cpu_us.values())

    @property
    def sidecar_us(self) -> float:
        return self.cpu_us.get("sidecar", 0.0)

    @property
    def triton_us(self) -> float:
        return self.cpu_us["triton"]


# -- the load -------------------------------------------------------------------------------------


def load(kind: str, target: Target, size: str, requests: int) -> Awaitable[Sped]:
    model = model_name(target.prefix, size)
    asked = Asked(framed(message(model, size)))
    match kind:
        case "h2load 1":
            return h2load(target.grpc, asked, requests=requests, connections=1)
        case "h2load 64":
            return h2load(target.grpc, asked, requests=requests, connections=8, streams=8)
        case "grpcio 16":
            return grpcio(target.grpc, asked, requests=requests, threads=THREADS)
        case "HTTP":
            return h2load(target.http, web(model, size), requests=requests, connections=32)
        case _:
            return perf_analyzer(target.grpc, model, requests=requests, in_flight=THREADS)


async def measure(kind: str, target: Target, size: str, metrics: str, scale: float) -> Run:
    """One load on one target."""
    requests = max(100, int(REQUESTS[size, kind] * scale))
    is_ours = target.name == SIDECAR
    rows_before, batches_before = await batches(metrics) if is_ours else (0.0, 0.0)
    before = {name: cpu_ns(pid) for name, pid in target.pids.items()}
    sped = await load(kind, target, size, requests)
    spent = {name: cpu_ns(pid) - before[name] for name, pid in target.pids.items()}
    rows, count = await batches(metrics) if is_ours else (0.0, 0.0)
    sent = sped.sent or float("nan")
    return Run(
        target.name, size, kind, sped.requests_per_s, sped.p50_us, sped.p99_us,
        {name: ns / 1e3 / sent for name, ns in spent.items()},
        (rows - rows_before) / max(1.0, count - batches_before),
    )  # fmt: skip


async def compare(options: argparse.Namespace, say: Say) -> list[Run]:
    """Every load on every target, repetitions interleaved."""
    sizes = [SIZES[word] for word in options.sizes]
    runs: list[Run] = []
    async with targets(sizes) as there:
        metrics = there["metrics"].http
        plan = [
            (kind, there[name], size)
            for size in sizes for kind in options.loads for name in TARGETS[kind]
        ]  # fmt: skip
        for step in plan:  # models asked about, regions touched, connections made
            await measure(*step, metrics, options.scale * WARM_UP)
        for _ in range(options.repetitions):
            for step in plan:
                run = await measure(*step, metrics, options.scale)
                runs.append(run)
                say(told(run))
    return runs


def told(run: Run) -> str:
    cpu = " + ".join(f"{name} {us:.1f}" for name, us in run.cpu_us.items())
    rows = f", {run.rows:.1f} rows a batch" if run.rows else ""
    return (
        f"{run.size}, {run.load}, {run.target}: {run.requests_per_s:.0f}/s, p50 {run.p50_us:.0f} "
        f"µs, CPU µs {cpu}{rows}"
    )


async def echoes(options: argparse.Namespace) -> dict[str, float]:
    """CPU µs a request of the echo servers, 12 KB over 32 connections: medians."""
    given = argparse.Namespace(
        requests=int(10_000 * options.scale), repetitions=options.repetitions,
        connections=ECHO_CONNECTIONS,
    )  # fmt: skip
    rows = await frontend.compare(frontend.SERVERS, given)
    return {
        name: median(row["cpu_us"] for row in rows if row["server"] == name)
        for name in frontend.SERVERS
    }


# -- command --------------------------------------------------------------------------------------


def runs_table(runs: Sequence[Run]) -> str:
    """Medians, a line a load and target; the last µs are CPU a request."""
    lines = [
        "| size | load | target | req/s | p50 µs | p99 µs | sidecar µs | Triton µs | rows |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for size, kind, name in dict.fromkeys((r.size, r.load, r.target) for r in runs):
        same = [r for r in runs if (r.size, r.load, r.target) == (size, kind, name)]
        speed = [median(getattr(run, key) for run in same) for key in SPEED]
        cpu = [median(getattr(run, key) for run in same) for key in ("sidecar_us", "triton_us")]
        rows = median(run.rows for run in same)
        lines.append(
            f"| {size} | {kind} | {name} | {' | '.join(f'{value:.0f}' for value in speed)} "
            f"| {' | '.join(f'{us:.1f}' for us in cpu)} | {rows:.1f} |"
        )
    return "\n".join(lines)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one repetition, a third as long")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--loads", nargs="+", choices=list(TARGETS), default=[ONE, MANY, CLIENTS])
    parser.add_argument("--json", type=Path, help="write every run")


def prepare(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Fill in what follows from the options; end with what is missing on this machine."""
    options.scale = 0.3 if options.quick else 1.0
    options.repetitions = 1 if options.quick else options.repetitions
    if not has_h2load():
        parser.error(H2LOAD_MISSING)
    if ANALYZER in options.loads and not PERF_ANALYZER.exists():
        parser.error(PERF_ANALYZER_MISSING)


async def everything(options: argparse.Namespace, say: Say) -> tuple[list[Run], list[Figure]]:
    echo = await echoes(options) if SMALL in map(SIZES.get, options.sizes) else {}
    runs = await compare(options, say)
    return runs, figures(runs, echo)


def figures(runs: Sequence[Run], echo: dict[str, float]) -> list[Figure]:
    """Those of the goals that were measured."""
    found = Medians(runs)
    made: list[Figure] = []
    if echo:
        bare = echo[frontend.BARE]
        what = "bare grpc.aio echo's CPU over the ngh2 front end's, 12 KB"
        made.append(Figure("G1", what, bare / echo[frontend.NGH2], 5, at_least=True))
        ours = found.of(SMALL, MANY, SIDECAR, "sidecar_us")
        what = "sidecar's CPU over bare grpc.aio echo's, 12 KB, batches of 8 and more"
        made.append(Figure("G3", what, ours / bare, 0.25))
    for size in dict.fromkeys(run.size for run in runs):
        made += of_size(found, size)
    return sorted((f for f in made if not math.isnan(f.value)), key=lambda f: f.goal)


def of_size(found: "Medians", size: str) -> list[Figure]:
    """G2, G4, G5, G6 of one size; NaN where a load was not asked for."""
    small = size == SMALL
    added_ms = (
        found.of(size, ONE, SIDECAR, "p50_us")
        - min(found.of(size, ONE, name, "p50_us") for name in (PLAIN, MERGING))
    ) / 1e3
    made = [
        Figure("G2", f"{size}: added p50 at concurrency 1, ms", added_ms, 0.12 if small else 0.15)
    ]
    goals = {MANY: 0.8 if small else 0.9, CLIENTS: 1.1 if small else 1.2}
    for load_name, goal in goals.items():
        cpu = found.of(size, load_name, SIDECAR, "total_us")
        rate = found.of(size, load_name, SIDECAR, "requests_per_s")
        for name, their_us, their_rate in found.batchers(size, load_name):
            what = f"{size}, {load_name}: CPU, sidecar + Triton over {name}"
            made.append(Figure("G4", what, cpu / their_us, 1.0))
            what = f"{size}, {load_name}: requests/s over {name}"
            made.append(Figure("G5", what, rate / their_rate, goal, at_least=True))
        if not small:
            gigabytes = len(tensor(size)) / found.of(size, load_name, SIDECAR, "sidecar_us") / 1e3
            what = f"{size}, {load_name}: GB/s a sidecar core takes in"
            made.append(Figure("G6", what, gigabytes, 2.0, at_least=True))
    return made


class Medians:
    """Of the runs, over repetitions."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = runs

    def of(self, size: str, kind: str, target: str, key: str) -> float:
        """NaN if that was not run."""
        same = [r for r in self._runs if (r.size, r.load, r.target) == (size, kind, target)]
        return median(getattr(run, key) for run in same)

    def batchers(self, size: str, kind: str) -> list[tuple[str, float, float]]:
        """Triton's dynamic batcher by default and at its best delay: CPU and rate of each."""
        cpu = {name: self.of(size, kind, name, "total_us") for name in BATCHERS}
        rate = {name: self.of(size, kind, name, "requests_per_s") for name in BATCHERS}
        return [
            ("the dynamic batcher", cpu[MERGING], rate[MERGING]),
            ("the best of its delays", min(cpu.values()), max(rate.values())),
        ]


def main() -> None:
    """Parse options, run, print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    options = parser.parse_args()
    prepare(parser, options)
    runs, made = asyncio.run(
        everything(options, lambda text: sys.stderr.write(text + "\n") and None)
    )
    if options.json:
        dump(options.json, {"machine": machine(), "runs": [asdict(run) for run in runs]})
    sys.stdout.write(runs_table(runs) + "\n\n" + table(made) + "\n")


if __name__ == "__main__":
    main()
