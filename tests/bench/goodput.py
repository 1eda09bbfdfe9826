"""G7 to G10 from the runs of `overload`: who answers in time when not everything can be.

    python -m tests.bench.goodput                 # 12 KB, medians of 3, about 10 minutes
    python -m tests.bench.goodput --quick         # one repetition, shorter, about 3 minutes
    python -m tests.bench.goodput --large         # G9: the same overload with 602 KB a request
    python -m tests.bench.goodput --sweep         # every queue policy of the sweep, not its best

Rule: it only reads what `overload` measured. Both sides of a ratio are medians over repetitions;
"best Triton" is the best of those that ran, at that load.
"""

import argparse
import asyncio
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench import overload
from tests.bench.meter import Figure, dump, machine, median, table

LOADS = (0.5, 0.8, 1.0, 1.3)
OVERLOAD = 1.3
LARGE_DIMS = (3, 224, 224)
Rows = Sequence[dict[str, Any]]


class Seen:
    """The runs, by load and target."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self.loads = list(dict.fromkeys(row["load"] for row in rows))
        names = list(dict.fromkeys(row["target"] for row in rows))
        self.rivals = [name for name in names if name != overload.SIDECAR.name]
        self.tuned = [name for name in self.rivals if name != overload.DEFAULT.name]

    def runs(self, load: float, name: str) -> list[dict[str, Any]]:
        return [r["result"] for r in self._rows if (r["load"], r["target"]) == (load, name)]

    def goodput(self, load: float, name: str) -> float:
        return median(run["goodput_per_s"] for run in self.runs(load, name))

    def tight_misses(self, load: float, name: str) -> float:
        """Share of the tight class that was not answered in time."""
        return 1 - overload.share(self.runs(load, name), "tight")

    def cpu_us(self, load: float, name: str) -> float:
        """Of the target, a request that was sent."""
        return median(overload.cpu_us(run, load) for run in self.runs(load, name))

    def lost(self, load: float, name: str) -> float:
        """Share of all requests not answered in time."""
        return median(
            1
            - sum(each["served"] for each in run["classes"].values())
            / max(1, sum(each["sent"] for each in run["classes"].values()))
            for run in self.runs(load, name)
        )


def figures(seen: Seen, *, large: bool) -> list[Figure]:
    """Those whose loads were run."""
    made = []
    if OVERLOAD in seen.loads:
        made += of_large(seen) if large else of_overload(seen)
    if large:
        return made
    ours = overload.SIDECAR.name
    for load in sorted({0.8, 1.0} & set(seen.loads)):
        best = min(seen.tight_misses(load, name) for name in seen.rivals)
        what = f"load {load:g}: misses of the tight class over the best Triton's"
        made.append(Figure("G8", what, _ratio(seen.tight_misses(load, ours), best), 0.85))
    if 0.5 in seen.loads:
        what = "load 0.5: share not answered in time"
        made.append(Figure("G8", what, seen.lost(0.5, ours), 0.001))
    for load in [load for load in seen.loads if load <= OVERLOAD]:
        late = median(run["late_by_ledger"] for run in seen.runs(load, ours))
        made.append(Figure("G10", f"load {load:g}: late among answered (ledger)", late, 0.01))
    return made


def of_overload(seen: Seen) -> list[Figure]:
    ours = seen.goodput(OVERLOAD, overload.SIDECAR.name)
    default = seen.goodput(OVERLOAD, overload.DEFAULT.name)
    best = max(seen.goodput(OVERLOAD, name) for name in seen.tuned)
    return [
        Figure("G7", "load 1.3: goodput over the device's limit", ours / overload.LIMIT, 0.93,
               at_least=True),
        Figure("G7", "load 1.3: goodput over the best queue policy's", ours / max(1.0, best), 1.03,
               at_least=True),
        Figure("G7", "load 1.3: goodput over Triton's default", ours / max(1.0, default), 10,
               at_least=True),
    ]  # fmt: skip


def of_large(seen: Seen) -> list[Figure]:
    """Where nobody has a request in time, the load itself is too much for the machine."""
    ours = overload.SIDECAR.name
    best = max(seen.tuned, key=lambda name: seen.goodput(OVERLOAD, name))
    mine, theirs = seen.goodput(OVERLOAD, ours), seen.goodput(OVERLOAD, best)
    goodput = mine / max(1.0, theirs) if mine or theirs else math.nan
    cpu = seen.cpu_us(OVERLOAD, ours) / seen.cpu_us(OVERLOAD, best)
    return [
        Figure("G9", "602 KB, load 1.3: goodput over tuned Triton's", goodput, 1.0, at_least=True),
        Figure("G9", "602 KB, load 1.3: CPU, sidecar + Triton over tuned Triton's", cpu, 0.8),
    ]


def _ratio(ours: float, theirs: float) -> float:
    """1 if both miss nothing."""
    return ours / theirs if theirs else 1.0 + ours


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one repetition of 5 s")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--loads", type=float, nargs="+", default=list(LOADS))
    parser.add_argument("--large", action="store_true", help="602 KB a request, load 1.3: G9")
    parser.add_argument("--sweep", action="store_true", help="every queue policy of the sweep")
    parser.add_argument("--json", type=Path, help="write every run")


def prepare(options: argparse.Namespace) -> None:
    """What `overload` needs beside."""
    options.protocol = "grpc"
    options.dims = LARGE_DIMS if options.large else overload.DIMS
    options.loads = [OVERLOAD] if options.large else options.loads
    if options.quick:
        options.repetitions, options.seconds = 1, 5.0


async def everything(options: argparse.Namespace) -> tuple[Rows, list[Figure]]:
    queued = overload.SWEEP if options.sweep else (overload.TUNED,)
    targets = (overload.SIDECAR, *(() if options.large else (overload.DEFAULT,)), *queued)
    rows = await overload.compare(targets, options)
    return rows, figures(Seen(rows), large=options.large)


def main() -> None:
    """Parse options, run, print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    options = parser.parse_args()
    prepare(options)
    rows, made = asyncio.run(everything(options))
    if options.json:
        dump(options.json, {"machine": machine(), "runs": list(rows)})
    words = (overload.markdown(list(rows)), overload.footnote(list(rows)), table(made))
    sys.stdout.write("\n\n".join(words) + "\n")


if __name__ == "__main__":
    main()
