"""`tritonsched simulate`: options in, a campaign of simulated runs, a table, a page or JSON out."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tritonsched.sim.campaign import FIGURES, Plan, Row, execute
from tritonsched.sim.experiment import Trace, contenders, workload_names
from tritonsched.sim.page import page
from tritonsched.sim.studies import STUDIES
from tritonsched.sim.telling import STDERR, refuse, write

MS = 1_000_000
SHOWN = ("value", "on_time", "goodput", "miss", "worst", "rows")
"""Figures of the table; the page and the JSON have all."""
_stdout = Console(highlight=False)

WorkloadOption = Annotated[
    str, typer.Option(help=f"Names by comma, or all for W1..W14: {', '.join(workload_names())}.")
]
RulesOption = Annotated[str, typer.Option(help=f"Names by comma: {', '.join(contenders())}.")]
LoadsOption = Annotated[
    str, typer.Option(help="By comma; 1 is the fluid capacity. Default each workload's own.")
]
SeedsOption = Annotated[int, typer.Option(min=1, help="Traces a workload and load.")]
RequestsOption = Annotated[
    int, typer.Option(min=100, help="Requests a trace, about; but 1 to 30 s of them.")
]
RttOption = Annotated[
    float, typer.Option(min=0, max=1000, help="Round trip between sidecar and Triton.")
]
JobsOption = Annotated[int, typer.Option(min=1, help="Processes.")]
HtmlOption = Annotated[
    Path | None, typer.Option(help="Write a page with tables and charts; it needs nothing else.")
]
JsonOption = Annotated[
    Path | None, typer.Option("--json", help="Write the rows as JSON; - for standard output.")
]


def simulate(
    *,
    workload: WorkloadOption = "tight",
    rules: RulesOption = "lite,triton+reject",
    loads: LoadsOption = "",
    seeds: SeedsOption = 3,
    requests: RequestsOption = 5_000,
    rtt_ms: RttOption = 0.0,
    jobs: JobsOption = 1,
    html: HtmlOption = None,
    json_path: JsonOption = None,
) -> None:
    """Compare scheduling rules with each other and with Triton's batcher, in virtual time."""
    plan = Plan(
        workloads=_workloads(workload),
        contenders=_names("--rules", rules, contenders()),
        loads=_loads(loads),
        seeds=seeds,
        length=requests,
        rtt_ns=round(rtt_ms * MS),
    )
    rows = _run(plan, jobs)
    if html is not None:
        command = f"tritonsched {' '.join(quote(word) for word in sys.argv[1:])}"
        write(html, page(plan, rows, command))
    if json_path is not None:
        text = json.dumps([as_dict(row) for row in rows], indent=1) + "\n"
        write(json_path, text)
    if json_path != Path("-"):
        _stdout.print(table(plan, rows))


def _workloads(text: str) -> list[str]:
    return list(STUDIES) if text == "all" else _names("--workload", text, workload_names())


def _names(option: str, text: str, known: Sequence[str]) -> list[str]:
    names = [word.strip() for word in text.split(",") if word.strip()]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        refuse(f"{option}: {', '.join(unknown) or 'nothing'} is unknown; use {', '.join(known)}")
    return list(dict.fromkeys(names))


def _loads(text: str) -> list[float]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    try:
        found = [float(word) for word in words]
    except ValueError:
        found = [0.0]
    if any(not 0 < load <= 100 for load in found):
        refuse(f"--loads: {text!r} is not numbers by comma above 0 and up to 100, like 0.5,1,1.3")
    return found


def _run(plan: Plan, jobs: int) -> list[Row]:
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=STDERR, transient=True) as progress:
        task = progress.add_task("simulating", total=len(plan.traces()))

        def tick(trace: Trace) -> None:
            named = f"{trace.name} at {trace.load:g}, seed {trace.seed}"
            progress.update(task, advance=1, description=named)

        return execute(plan, jobs=jobs, tick=tick)


def table(plan: Plan, rows: Sequence[Row]) -> Table:
    """Value by workload if there are several, else every figure of the one."""
    if len(plan.workloads) > 1 and len(plan.loads) < 2:
        return _matrix(plan, rows)
    caption = "; ".join(f"{name}: {FIGURES[name]}" for name in SHOWN)
    made = Table(box=SIMPLE, caption=caption, caption_justify="left", padding=(0, 1, 0, 0))
    for name in ("workload", "load", "rule", *SHOWN):
        made.add_column(
            name, justify="left" if name in ("workload", "rule") else "right", no_wrap=True
        )
    for row in rows:
        figures = (_written(row, name) for name in SHOWN)
        made.add_row(row.workload, f"{row.load:g}", row.contender, *figures)
    return made


def _matrix(plan: Plan, rows: Sequence[Row]) -> Table:
    caption = f"value: {FIGURES['value']}; ± half a 95 % interval\n/ {FIGURES['worst']}"
    made = Table(box=SIMPLE, caption=caption)
    made.add_column("workload")
    for name in plan.contenders:
        made.add_column(name, justify="right", no_wrap=True)
    at = {(row.workload, row.contender): row for row in rows}
    for workload in plan.workloads:
        found = [at[workload, name] for name in plan.contenders]
        title = STUDIES[workload].title if workload in STUDIES else ""
        cells = (f"{_written(row, 'value')} / {row.mean['worst']:.2f}" for row in found)
        made.add_row(f"{workload} {title}", *cells)
    made.add_section()
    for label, figure in (("mean", "value"), ("mean miss", "miss")):
        means = (
            sum(at[w, name].mean[figure] for w in plan.workloads) / len(plan.workloads)
            for name in plan.contenders
        )
        made.add_row(label, *(f"{value:.4f}" for value in means))
    return made


def _written(row: Row, name: str) -> str:
    value, half = row.mean[name], row.spread[name]
    digits = 1 if name in ("goodput", "rows") else 4 if name == "miss" else 3
    spread = "" if half is None or name != "value" else f" ±{half:.{digits}f}"
    return f"{value:.{digits}f}{spread}"


def as_dict(row: Row) -> dict[str, object]:
    """Plain values, ready for JSON."""
    return {
        "workload": row.workload,
        "load": row.load,
        "rule": row.contender,
        "mean": dict(row.mean),
        "half_interval_95": dict(row.spread),
    }
