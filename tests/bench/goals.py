"""`make bench`: every figure of the fast path beside its goal, G1 to G12, on one page.

    make bench                                       # all of it, half an hour on a quiet machine
    make bench ARGS='--quick'                        # a look, about 8 minutes
    make bench ARGS='--only datapath --sizes small'  # a part; its options go with it
    make bench ARGS='--record'                       # and a line by commit into history.jsonl

Rule: a figure that misses its goal stays, with its value and the reason; nothing here measures.
Parts, each a command of its own (`python -m tests.bench.PART --help`): `datapath` G1 to G6,
`goodput` G7, G8, G10, `large` G9, `timers` G11, `saturation` G12.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

from tests.bench import datapath, frontend, goodput, saturation, timers
from tests.bench.meter import ROOT, Figure, dump, machine, table

HISTORY = ROOT / "tests" / "bench" / "history.jsonl"
HISTORY_LINES_MAX = 200
# Why a figure is where it is, by goal and words of it; told when it is missed.
REASONS: dict[tuple[str, str], str] = {
    ("G1", ""): "limits, accounts and the message's walk are in it; a bare echo parses nothing",
    ("G2", "12 KB"): "two decisions, a message and an answer of a batch for one request",
    ("G2", "602 KB"): "two copies and 37 events of the protocol engine a request of 16 KB frames",
    ("G3", ""): "a third is the protocol engine's; of the rest no part stands out",
    ("G4", "grpcio 16"): "16 in flight make batches of 4 to 8: what a batch costs is shared by few",
    ("G4", ""): "Triton's work a request falls to a fifth; the sidecar's is more than that saves",
    ("G5", ""): "one event loop, one core: its CPU a request bounds the throughput",
    ("G6", "h2load"): "of 16 KB frames, interpreter and protocol engine cost as much as the copies",
    ("G7", "limit"): "it counts full batches back to back; tight deadlines close some before that",
    ("G8", "0.5"): "stalls of the host are as long as a tight deadline's slack (timers' p99, G11)",
    ("G9", ""): "the copy into shared memory stands before the dispatch, on the event loop",
    ("G12", "idle"): "a batch that ends before its predicted time leaves a gap beyond the lead",
    ("G12", "joins"): "admission, tenants' places and worth, and observers are asked for each",
    ("G12", "dispatch of 32"): "the densest batch is looked for, and three tables follow",
}
Part = Callable[[argparse.Namespace], Awaitable[Sequence[Figure]]]


async def run_datapath(options: argparse.Namespace) -> Sequence[Figure]:
    return (await datapath.everything(options, frontend.say))[1]


async def run_goodput(options: argparse.Namespace) -> Sequence[Figure]:
    return await _goodput(options, large=False)


async def run_large(options: argparse.Namespace) -> Sequence[Figure]:
    return await _goodput(options, large=True)


async def _goodput(options: argparse.Namespace, *, large: bool) -> Sequence[Figure]:
    given = argparse.Namespace(
        repetitions=options.repetitions, quick=options.quick, seconds=options.seconds,
        loads=list(goodput.LOADS), large=large, sweep=options.sweep,
    )  # fmt: skip
    goodput.prepare(given)
    return (await goodput.everything(given))[1]


async def run_timers(options: argparse.Namespace) -> Sequence[Figure]:
    count = timers.COUNT // 3 if options.quick else timers.COUNT
    given = argparse.Namespace(repetitions=options.repetitions, count=count)
    return timers.figures(await timers.compare(given))


async def run_saturation(options: argparse.Namespace) -> Sequence[Figure]:
    requests = 1_500 if options.quick else 3_000
    return await saturation.everything(options.repetitions, requests)


PARTS: dict[str, Part] = {
    "datapath": run_datapath,
    "goodput": run_goodput,
    "large": run_large,
    "timers": run_timers,
    "saturation": run_saturation,
}


def explained(figure: Figure) -> Figure:
    """With the reason, if one is known."""
    for (goal, words), reason in REASONS.items():
        if figure.goal == goal and words in figure.what:
            return replace(figure, reason=reason)
    return figure


def line(figures: Sequence[Figure], about: dict[str, object]) -> str:
    """One run as a line of the history."""
    values = {f"{each.goal} {each.what}": each.as_dict()["value"] for each in figures}
    return json.dumps(about | {"figures": values}, ensure_ascii=False)


def record(path: Path, figures: Sequence[Figure], about: dict[str, object]) -> None:
    """Add a line; the oldest beyond HISTORY_LINES_MAX go."""
    lines = path.read_text().splitlines() if path.exists() else []
    kept = [*lines, line(figures, about)][-HISTORY_LINES_MAX:]
    path.write_text("\n".join(kept) + "\n")


def order(figure: Figure) -> int:
    return int(figure.goal.removeprefix("G"))


async def everything(options: argparse.Namespace) -> list[Figure]:
    found: list[Figure] = []
    for name in options.only:
        part = [explained(figure) for figure in await PARTS[name](options)]
        frontend.say(f"{name}\n{table(part)}")  # who ends it early has what was measured
        found += part
    return sorted(found, key=order)


def main() -> None:
    """Parse options, run the parts, print the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=8.0, help="of a run of goodput")
    parser.add_argument("--sweep", action="store_true", help="goodput: every queue policy")
    parser.add_argument(
        "--record", action="store_true", help="add a line to tests/bench/history.jsonl"
    )
    datapath.add_options(parser)
    options = parser.parse_args()
    datapath.prepare(parser, options)
    found = asyncio.run(everything(options))
    about = machine()
    if options.json:
        dump(options.json, {"machine": about, "figures": [each.as_dict() for each in found]})
    if options.record:
        record(HISTORY, found, about)
    words = ", ".join(f"{key} {value}" for key, value in about.items())
    sys.stdout.write(f"{table(found)}\n\n{words}\n")


if __name__ == "__main__":
    main()
