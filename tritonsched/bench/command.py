"""`tritonsched bench`: options in, one run, a table or JSON out."""

import asyncio
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from tritonsched.bench.clients import TargetError
from tritonsched.bench.load import BenchOptions, run
from tritonsched.bench.load import Progress as OnProgress
from tritonsched.bench.plan import DEFAULT_CLASS, Arrivals, DeadlineAs, parse_class
from tritonsched.bench.report import table
from tritonsched.tensors import Wire

PORTS = {Wire.GRPC: 8001, Wire.HTTP: 8000}
PROGRESS_EVERY = 100  # sends between two looks of the bar
_stdout = Console(highlight=False)
_stderr = Console(stderr=True, highlight=False)

TargetOption = Annotated[
    str | None, typer.Option(help="HOST:PORT; default the sidecar's own port on 127.0.0.1.")
]
ProtocolOption = Annotated[Wire, typer.Option(help="The protocol.")]
RateOption = Annotated[float, typer.Option(min=0.001, help="Requests a second.")]
DurationOption = Annotated[float, typer.Option(min=0.001, help="Seconds that count.")]
WarmupOption = Annotated[float, typer.Option(min=0, help="Seconds before, not counted.")]
ClassOption = Annotated[
    list[str] | None,
    typer.Option("--class", help="NAME:SHARE:DEADLINE_MS[:TIMEOUT_MS[:PRIORITY]], once a class."),
]
ShapeOption = Annotated[
    list[str] | None, typer.Option("--shape", help="NAME:DIM,DIM of an input with variable ones.")
]
DeadlineOption = Annotated[
    DeadlineAs,
    typer.Option(help="timeout: the v2 parameter; grpc: the call's own, never at a bare Triton."),
]
JsonOption = Annotated[
    Path | None, typer.Option("--json", help="Write the result as JSON; - for standard output.")
]


def bench(
    *,
    model: Annotated[str, typer.Option(help="Model to call.")] = "classify_lite0",
    target: TargetOption = None,
    protocol: ProtocolOption = Wire.GRPC,
    rate: RateOption = 10.0,
    duration_s: DurationOption = 10.0,
    warmup_s: WarmupOption = 1.0,
    arrivals: Annotated[Arrivals, typer.Option(help="Poisson or constant.")] = Arrivals.POISSON,
    class_: ClassOption = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows a request.")] = 1,
    shape: ShapeOption = None,
    pictures: Annotated[bool, typer.Option(help="Send the packaged pictures.")] = False,
    deadline_as: DeadlineOption = DeadlineAs.HEADER,
    send_class: Annotated[bool, typer.Option(help="Send x-tritonsched-class.")] = False,
    in_flight_max: Annotated[int, typer.Option(min=1, help="More are not sent.")] = 10_000,
    drain_s: Annotated[float, typer.Option(min=0, help="Wait for answers at the end.")] = 10.0,
    seed: Annotated[int, typer.Option(help="Of schedule and tensors.")] = 1,
    json_file: JsonOption = None,
) -> None:
    """Open-loop load: count what is answered in time, by class."""
    try:
        options = BenchOptions(
            target=target or f"127.0.0.1:{PORTS[protocol]}",
            protocol=protocol,
            model=model,
            rate=rate,
            duration_s=duration_s,
            warmup_s=warmup_s,
            arrivals=arrivals,
            classes=tuple(map(parse_class, class_ or ())) or (DEFAULT_CLASS,),
            rows=rows,
            shapes=tuple(map(parse_shape, shape or ())),
            pictures=pictures,
            deadline_as=deadline_as,
            send_class=send_class,
            in_flight_max=in_flight_max,
            drain_s=drain_s,
            seed=seed,
        )
        with _bar() as progress, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            result = runner.run(run(options, progress))
    except (TargetError, ValueError) as error:
        _refuse(str(error))
    _show(result, json_file)


def _show(result: dict[str, Any], json_file: Path | None) -> None:
    """A table for people, or JSON to a file (and the table) or to standard output (alone)."""
    text = json.dumps(result, indent=2)
    if json_file is not None and str(json_file) == "-":
        _stdout.print(text, markup=False, soft_wrap=True)
        return
    if json_file is not None:
        json_file.write_text(text + "\n")
    _stdout.print(table(result))


def parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """NAME:DIM,DIM. Raises ValueError in words."""
    name, _, dims = text.rpartition(":")
    try:
        shape = tuple(int(dim) for dim in dims.split(","))
    except ValueError:
        shape = ()
    if not name or not shape or any(dim < 1 for dim in shape):
        raise ValueError(f"shape {text!r} is not NAME:DIM,DIM, for example INPUT:3,32,32")
    return name, shape


def _refuse(text: str) -> NoReturn:
    _stderr.print(f"tritonsched bench: {text}", markup=False)
    raise typer.Exit(2)


@contextlib.contextmanager
def _bar() -> Iterator[OnProgress]:
    """A progress bar on a terminal; nothing elsewhere."""
    if not _stderr.is_terminal:
        yield lambda _done, _all: None
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_stderr, transient=True) as bar:
        task = bar.add_task("sent", total=None)

        def show(done: int, total: int) -> None:
            if done % PROGRESS_EVERY == 0 or done == total:
                bar.update(task, completed=done, total=total)

        yield show
