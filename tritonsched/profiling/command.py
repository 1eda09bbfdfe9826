"""`tritonsched profile`: options in, one sweep, a profile out. Rule: what could be measured is
written even if some models could not; then the exit code says so (1). Wrong use is 2.
"""

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tritonsched.backend.control import Control
from tritonsched.backend.embedded import EmbeddedConfig, EmbeddedTriton
from tritonsched.backend.hardware import hardware
from tritonsched.backend.triton import TritonBackend
from tritonsched.backend.upstream_h2 import H2Upstream
from tritonsched.backend.upstream_http import HttpUpstream
from tritonsched.backend.weights import hashes
from tritonsched.bench.command import parse_shape
from tritonsched.config.profile_file import POINTS_MAX, Made, ProfileFile, Server
from tritonsched.errors import TritonschedError
from tritonsched.profiling.page import page
from tritonsched.profiling.sweep import Bar, Sweep, Sweeper, Wish, ready_models, told
from tritonsched.profiling.text import profile_text

REPOSITORY = Path("model_repository")
_stdout = Console(highlight=False)
_stderr = Console(stderr=True, highlight=False)

TritonOption = Annotated[
    str | None, typer.Option(help="HOST:PORT of a running Triton; both ports.")
]
RepositoryOption = Annotated[
    Path | None,
    typer.Option(help="Model repository of the embedded Triton, or where a running one has its."),
]
TritonEnvOption = Annotated[Path, typer.Option(help="Environment of the embedded Triton.")]
RunDirOption = Annotated[Path, typer.Option(help="Logs and state of the embedded Triton.")]
ModelsOption = Annotated[str, typer.Option(help="Names by comma; all that are ready if absent.")]
RowsOption = Annotated[
    str, typer.Option(help="Batch sizes by comma; powers of two and the largest if absent.")
]
ShapeOption = Annotated[
    list[str] | None,
    typer.Option("--shape", help="[MODEL/]INPUT:DIM,DIM of an input with variable ones."),
]
TransportOption = Annotated[
    Literal["auto", "cuda", "system", "inline"],
    typer.Option(help="How batches reach Triton, as in serve."),
]
OutOption = Annotated[Path, typer.Option(help="The profile.")]
HtmlOption = Annotated[Path | None, typer.Option(help="Curves of it, one page.")]


@dataclass(frozen=True, slots=True)
class ProfileOptions:
    """What was asked for. repository: None: that of a running Triton is not at hand."""

    triton: tuple[str, str] | None
    repository: Path | None
    triton_env: Path
    run_dir: Path
    wish: Wish
    transport: Literal["auto", "cuda", "system", "inline"]
    command: str


def profile(
    *,
    triton_http: TritonOption = None,
    triton_grpc: TritonOption = None,
    repository: RepositoryOption = None,
    triton_env: TritonEnvOption = Path(".venv-triton"),
    run_dir: RunDirOption = Path(".run"),
    models: ModelsOption = "",
    rows: RowsOption = "",
    shape: ShapeOption = None,
    transport: TransportOption = "auto",
    seed: Annotated[int, typer.Option(help="Of the random inputs.")] = 1,
    out: OutOption = Path("profile.yaml"),
    html: HtmlOption = None,
) -> None:
    """Measure how long each model takes at each batch size, for `serve --profile`."""
    if (triton_http is None) != (triton_grpc is None):
        _refuse("--triton-http and --triton-grpc belong together; name both or neither")
    try:
        wish = Wish(names_of(models), sizes_of(rows), dict(map(parse_shape, shape or ())), seed)
    except ValueError as error:
        _refuse(str(error))
    triton = (triton_http, triton_grpc) if triton_http and triton_grpc else None
    given = repository if triton else repository or REPOSITORY
    command = " ".join(["tritonsched", *sys.argv[1:]])
    options = ProfileOptions(triton, given, triton_env, run_dir, wish, transport, command)
    try:
        with _bar() as bar, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            made, sweep = runner.run(measure(options, bar, _say))
    except TritonschedError as error:
        _say(str(error))
        raise typer.Exit(1) from error
    _write(made, sweep, out, html)


def names_of(text: str) -> tuple[str, ...]:
    """`a,b`, each once."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def sizes_of(text: str) -> tuple[int, ...]:
    """`1,2,8`. Raises ValueError in words."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if any(not (word.isascii() and word.isdigit() and 0 < int(word) <= 65_536) for word in words):
        raise ValueError(f"--rows: {text!r} is not a list of batch sizes, for example 1,2,4,8")
    if len(words) > POINTS_MAX:
        raise ValueError(f"--rows: {len(words)} batch sizes; at most {POINTS_MAX}")
    return tuple(map(int, words))


async def measure(
    options: ProfileOptions, bar: Bar, say: Callable[[str], None]
) -> tuple[ProfileFile, Sweep]:
    """The whole run. Raises TritonschedError: Triton does not start, or does not answer."""
    async with contextlib.AsyncExitStack() as stack:
        http_address, grpc_address = await _addresses(options, stack, say)
        http, grpc = HttpUpstream(http_address), H2Upstream(grpc_address)
        for upstream in (http, grpc):
            await upstream.start()
            stack.push_async_callback(upstream.close)
        backend = TritonBackend(http, grpc, transport=options.transport)
        stack.push_async_callback(backend.close)
        await backend.connect()
        rtt_ns = await backend.rtt_ns(time.monotonic_ns)
        versions = await ready_models(backend, options.wish.models)
        files = await asyncio.to_thread(hashes, options.repository, versions)
        sweeper = Sweeper(
            backend,
            options.wish,
            clock=time.monotonic_ns,
            rtt_ns=rtt_ns,
            files=files,
            bar=bar,
        )
        sweep = await sweeper.run(versions)
        server = Server(
            version=await Control(grpc).server_version(),
            transport=backend.transport_word,
            rtt_ms=round(rtt_ns / 1e6, 3),
        )
    return _profile(options, sweep, server), sweep


async def _addresses(
    options: ProfileOptions, stack: contextlib.AsyncExitStack, say: Callable[[str], None]
) -> tuple[str, str]:
    if options.triton is not None:
        return options.triton
    say(f"starting the embedded Triton on {options.repository} …")
    config = EmbeddedConfig(
        repository=options.repository or REPOSITORY,
        environment=options.triton_env,
        run_dir=options.run_dir,
    )
    embedded = EmbeddedTriton(config)
    await stack.enter_async_context(embedded)
    for note in embedded.notes:
        say(note)
    return embedded.http_address, embedded.grpc_address


def _profile(options: ProfileOptions, sweep: Sweep, server: Server) -> ProfileFile:
    made = Made(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        tritonsched=version("tritonsched"),
        command=options.command[:1000],
    )
    return ProfileFile(
        profile=1, made=made, hardware=hardware(), triton=server, models=sweep.models
    )


def _write(made: ProfileFile, sweep: Sweep, out: Path, html: Path | None) -> None:
    """Files and words. Exits with 1 if a model could not be measured or a file not be written."""
    for line in told(sweep):
        _say(line)
    try:
        if sweep.models:
            out.write_text(profile_text(made))
            _stdout.print(f"{out}: {len(sweep.models)} models", markup=False, soft_wrap=True)
        if sweep.models and html is not None:
            html.write_text(page(made))
            _stdout.print(f"{html}: curves", markup=False, soft_wrap=True)
    except OSError as error:
        _say(f"{error.filename}: cannot be written: {error.strerror}")
        raise typer.Exit(1) from error
    if sweep.failed or not sweep.models:
        raise typer.Exit(1)


class _RichBar:
    """Bar on a terminal: model, batch size, runs, how many of how many, time left."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None)

    def begin(self, points: int) -> None:
        self._progress.update(self._task, total=points)

    def show(self, model: str, rows: int, runs: int) -> None:
        self._progress.update(self._task, description=f"{model}, {rows} rows: {runs} runs")

    def advance(self, points: int) -> None:
        self._progress.advance(self._task, points)


class _NoBar:
    """Nothing, where nobody looks."""

    def begin(self, points: int) -> None: ...

    def show(self, model: str, rows: int, runs: int) -> None: ...

    def advance(self, points: int) -> None: ...


@contextlib.contextmanager
def _bar() -> Iterator[Bar]:
    if not _stderr.is_terminal:
        yield _NoBar()
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_stderr, transient=True) as progress:
        yield _RichBar(progress)


def _refuse(text: str) -> NoReturn:
    _say(text)
    raise typer.Exit(2)


def _say(text: str) -> None:
    _stderr.print(f"tritonsched profile: {text}", markup=False, soft_wrap=True)
