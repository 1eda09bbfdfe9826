"""`make study`: the tables by which the scheduler is judged, side by side with their goals.

Rule: nothing is typed in but goals and what papers published, with their source. Each table is
printed, and written as Markdown with `--out DIR`. Everything runs on one core in virtual time.
"""

import argparse
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from tests.bench import admission, cikm, deeprt, deeprt_adaptation, rivals, variants
from tritonsched.core.policies import DEFAULT_POLICY, POLICIES
from tritonsched.sim.campaign import Plan, Row, execute
from tritonsched.sim.experiment import Trace, bound_of, run
from tritonsched.sim.optimum import most_in_time
from tritonsched.sim.studies import STUDIES
from tritonsched.sim.world import Faults

INCUMBENT = "triton+reject"
GOALS = {
    "W1": 0.966, "W2": 0.957, "W3": 0.892, "W4": 0.880, "W5": 0.853, "W6": 0.882, "W7": 0.923,
    "W8": 0.985, "W9": 0.963, "W10": 0.943, "W11": 0.982, "W12": 0.958, "W13": 0.981, "W14": 0.843,
}  # fmt: skip
"""Of the scheduling study, on its own traces: those here are in its manner, not the same."""
LOADS = (0.7, 0.85, 1.0, 1.3, 2.0)
CIKM_MINUTES = 60.0  # simulated, a run; the replica had one to three hours
OPTIMUM_LENGTH = 2_000  # its cost grows with the square
Lines = list[list[str]]
_console = Console(highlight=False)


def workloads(options: argparse.Namespace) -> tuple[str, Lines]:
    """Utility as a share of the bound, by rule; the default rule against tuned Triton."""
    rules = [name for name in options.rules.split(",") if name]
    plan = Plan(list(STUDIES), [*rules, INCUMBENT], seeds=options.seeds, length=options.requests)
    found = execute(plan, jobs=options.jobs, tick=lambda trace: _console.print(f"  {trace}"))
    at = {(row.workload, row.contender): row for row in found}
    lines: Lines = [["workload", *plan.contenders, f"{rules[0]} / {INCUMBENT}", "miss", "goal"]]
    lines += [_of_workload(name, plan, at) for name in STUDIES]
    means = [_mean([at[name, rule].mean["value"] for name in STUDIES]) for rule in plan.contenders]
    ratios = [_ratio(at, name, rules[0]) for name in STUDIES]
    geometric = math.exp(_mean([math.log(ratio) for ratio in ratios]))
    worst_miss = max(at[name, rules[0]].mean["miss"] for name in STUDIES)
    lines.append(
        ["mean", *(f"{mean:.3f}" for mean in means), f"geometric {geometric:.3f}",
         f"max {worst_miss:.2%}", "0.929"]
    )  # fmt: skip
    lines.append(
        ["goals", *("" for _ in plan.contenders), f">= 1.15, min >= 0.98 (is {min(ratios):.2f})",
         "<= 0.60%", ""]
    )  # fmt: skip
    title = f"Utility / clairvoyant bound, {plan.seeds} seeds, about {plan.length} requests a trace"
    return title, lines


def _of_workload(name: str, plan: Plan, at: Mapping[tuple[str, str], Row]) -> list[str]:
    rule = plan.contenders[0]
    values = []
    for contender in plan.contenders:
        row = at[name, contender]
        half = row.spread["value"]
        values.append(f"{row.mean['value']:.3f}" + (f" ±{half:.3f}" if half is not None else ""))
    miss = at[name, rule].mean["miss"]
    return [name, *values, f"{_ratio(at, name, rule):.3f}", f"{miss:.2%}", f"{GOALS[name]}"]


def _ratio(at: Mapping[tuple[str, str], Row], name: str, rule: str) -> float:
    return at[name, rule].mean["value"] / at[name, INCUMBENT].mean["value"]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def shepherd(options: argparse.Namespace) -> tuple[str, Lines]:
    """Goodput beyond the limit: throughput order against deadline order."""
    others = ("edf", "fcfs", "clockwork", "sedf")
    rules = list(dict.fromkeys([DEFAULT_POLICY, *options.rules.split(","), *others]))
    rows = execute(Plan(["shepherd"], rules, seeds=1, length=95_000), jobs=1)
    base = next(row for row in rows if row.contender == "edf").mean["goodput"]
    lines: Lines = [["rule", "goodput/s", "of deadline order", "utility / bound", "miss"]]
    lines += [
        [
            row.contender,
            f"{row.mean['goodput']:.0f}",
            f"{row.mean['goodput'] / base:.2f}",
            f"{row.mean['value']:.3f}",
            f"{row.mean['miss']:.2%}",
        ]
        for row in rows
    ]
    lines.append(["goal; Shepherd without preemption", "", ">= 3; 3.7", "", ""])
    return "Shepherd's micro-benchmark (NSDI 2023): bursts of 1024 beside a slow model", lines


def optimum(options: argparse.Namespace) -> tuple[str, Lines]:
    """In time, as a share of the exact optimum: one model, no noise."""
    rules = [name for name in options.rules.split(",") if name]
    lines: Lines = [["load", "optimum / all", "bound / all", *(f"{r} / optimum" for r in rules)]]
    for load in LOADS:
        traces = [Trace("W1", load, seed, OPTIMUM_LENGTH) for seed in range(1, options.seeds + 1)]
        totals = dict.fromkeys(("all", "optimum", "bound", *rules), 0.0)
        for trace in traces:
            requests = list(trace.requests())
            totals["all"] += len(requests)
            totals["optimum"] += most_in_time(requests, trace.workload.models[0])
            totals["bound"] += bound_of(trace)
            for rule in rules:
                totals[rule] += run(trace, rule, faults=Faults()).record.utility
        best = totals["optimum"]
        lines.append(
            [f"{load:g}", f"{best / totals['all']:.3f}", f"{totals['bound'] / totals['all']:.3f}",
             *(f"{totals[rule] / best:.3f}" for rule in rules)]
        )  # fmt: skip
    lines.append(["goal", "", "", ">= 0.98", *("" for _ in rules[1:])])
    return "W1 without noise, as a share of the exact clairvoyant optimum", lines


def deeprt_shape(options: argparse.Namespace) -> tuple[str, Lines]:
    """Misses of admitted streams on DeepRT's three desktop traces, under the paper's own rule."""
    title = "DeepRT's evaluation in shape (SEC 2021): misses of the streams that were admitted"
    return title, deeprt.table("disbatcher", options.seeds)


def deeprt_judged(options: argparse.Namespace) -> tuple[str, Lines]:
    """The same under the rule that is judged."""
    rule = options.rules.split(",")[0]
    return f"The same under {rule}", deeprt.table(rule, options.seeds)


def published(options: argparse.Namespace) -> tuple[str, Lines]:
    """What other papers' rules come to, beside what the scheduling study found."""
    return rivals.table(
        seeds=options.seeds,
        length=options.requests,
        jobs=options.jobs,
        tick=lambda trace: _console.print(f"  {trace}"),
    )


def deeprt_adaptation_shape(options: argparse.Namespace) -> tuple[str, Lines]:
    """Misses while some jobs take longer, with a smaller shape and without."""
    title = "DeepRT's adaptation: period = deadline = 200 ms, 5 consecutive jobs take longer"
    return title, deeprt_adaptation.table(options.seeds)


def deeprt_admission_time(_: argparse.Namespace) -> tuple[str, Lines]:
    """Its test by number of frames."""
    return "DeepRT's admission test: time by frames", admission.deeprt_lines()


def cikm_shape(options: argparse.Namespace) -> tuple[str, Lines]:
    """Quality of answers of one model in two sizes."""
    title = "CIKM'17: quality of answers and share of the simple model, one p2, by queries a second"
    return title, cikm.table(minutes=CIKM_MINUTES, seeds=options.seeds)


def chosen_variants(options: argparse.Namespace) -> tuple[str, Lines]:
    """Variants chosen under load against each of them fixed."""
    title = "W9: utility / all weight, variants chosen and fixed"
    return title, variants.table(options.rules.split(",")[0], options.seeds, options.requests)


SECTIONS: Mapping[str, Callable[[argparse.Namespace], tuple[str, Lines]]] = {
    "workloads": workloads,
    "published": published,
    "optimum": optimum,
    "shepherd": shepherd,
    "deeprt": deeprt_shape,
    "deeprt-judged": deeprt_judged,
    "deeprt-adaptation": deeprt_adaptation_shape,
    "deeprt-admission": deeprt_admission_time,
    "cikm": cikm_shape,
    "variants": chosen_variants,
}


def show(title: str, lines: Lines) -> None:
    made = Table(box=SIMPLE, title=title, title_justify="left")
    for number, name in enumerate(lines[0]):
        made.add_column(name, justify="left" if number == 0 else "right")
    for line in lines[1:]:
        made.add_row(*line)
    _console.print(made)


def markdown(title: str, lines: Lines) -> str:
    rule = ["---"] * len(lines[0])
    body = "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:]))
    return f"## {title}\n\n{body}\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables, and write them where asked."""
    parser = argparse.ArgumentParser(prog="study", description="tables side by side with goals")
    parser.add_argument("--only", choices=SECTIONS, action="append")
    parser.add_argument("--rules", default=",".join(_rules()), help="the first one is judged")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    for name in _named(options.only or SECTIONS):
        title, lines = SECTIONS[name](options)
        show(title, lines)
        if options.out is not None:
            options.out.mkdir(parents=True, exist_ok=True)
            (options.out / f"{name}.md").write_text(markdown(title, lines), encoding="utf-8")


def _named(wanted: Iterable[str]) -> list[str]:
    """`deeprt` means all that is about it."""
    wanted = list(wanted)
    return [name for name in SECTIONS if name in wanted or name.partition("-")[0] in wanted]


def _rules() -> list[str]:
    """The default rule first, then the others; those of other papers have a table of their own."""
    return [DEFAULT_POLICY, *sorted(set(POLICIES) - {DEFAULT_POLICY, *rivals.PUBLISHED})]


if __name__ == "__main__":
    main()
