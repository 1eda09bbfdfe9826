"""The composition root, without Triton: starts that end early, what it tells, what it scrapes."""

import asyncio
import io
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.unit.frontend.wires import HOST, fixed, raw_http, unused_address
from tritonsched import serve
from tritonsched import sidecar as composition
from tritonsched.backend.embedded import EmbeddedConfig
from tritonsched.config.schema import PolicyFile
from tritonsched.core.batch import Batch
from tritonsched.core.feedback import Change
from tritonsched.core.request import Request
from tritonsched.errors import BackendError, StartupError
from tritonsched.frontend import triton_metrics
from tritonsched.options import Address, ServeOptions, TlsFiles, example_request
from tritonsched.sidecar import Sidecar

MS = 1_000_000
MODELS = Path(__file__).parent  # any directory


def options(**fields: Any) -> ServeOptions:
    """An embedded Triton, free ports, no waiting at the end."""
    given: dict[str, Any] = {
        "host": HOST, "http_port": 0, "grpc_port": 0, "metrics_port": 0,
        "triton_http": None, "triton_grpc": None, "triton_metrics": None,
        "policy": PolicyFile(), "repository": MODELS, "triton_env": Path("env"),
        "run_dir": Path("run"), "drain_s": 0.0,
    }  # fmt: skip
    return ServeOptions(**(given | fields))


class Embedded:
    """An embedded Triton, played. happened: what was done to it."""

    notes = ("a note",)
    metrics_address = "h:3"
    http_address = "h:1"
    grpc_address = "h:2"

    def __init__(self) -> None:
        self.failed_models = {"broken": "no weights"}
        self.config: EmbeddedConfig | None = None
        self.starting = asyncio.Event()
        self.goes_on = asyncio.Event()
        self.error: StartupError | None = None
        self.happened: list[str] = []

    def __call__(self, config: EmbeddedConfig) -> "Embedded":
        """Instead of the class: this one is made."""
        self.config = config
        return self

    async def start(self) -> None:
        self.starting.set()
        try:
            await self.goes_on.wait()
        except asyncio.CancelledError:
            self.happened.append("cancelled")
            raise
        if self.error is not None:
            raise self.error

    async def wait(self) -> int:
        await asyncio.Event().wait()
        return 0

    async def stop(self) -> None:
        self.happened.append("stopped")


@pytest.fixture
async def triton(monkeypatch: pytest.MonkeyPatch) -> Embedded:
    made = Embedded()
    monkeypatch.setattr(composition, "EmbeddedTriton", made)
    return made


@pytest.fixture
async def handlers() -> AsyncIterator[None]:
    """The signal handlers of the process, as they were."""
    yield
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(number)


async def starting(triton: Embedded, said: io.StringIO) -> asyncio.Task[None]:
    """`_serve`, in the middle of Triton's start."""
    task = asyncio.ensure_future(serve._serve(options(), Console(file=said, width=40)))
    reached = asyncio.ensure_future(triton.starting.wait())
    await asyncio.wait({task, reached}, return_when=asyncio.FIRST_COMPLETED)
    assert reached.done()
    return task


# -- a start that ends early ------------------------------------------------------------------


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_during_a_long_start_ends_it_and_gives_all_back(
    triton: Embedded, number: signal.Signals
) -> None:
    said = io.StringIO()
    task = await starting(triton, said)
    os.kill(os.getpid(), number)
    await task
    assert triton.happened == ["cancelled", "stopped"]
    assert said.getvalue() == f"starting the embedded Triton on {MODELS} …\n"


@pytest.mark.usefixtures("handlers")
async def test_a_start_that_fails_gives_all_back_and_tells_why(triton: Embedded) -> None:
    task = await starting(triton, io.StringIO())
    triton.error = StartupError("it does not start")
    triton.goes_on.set()
    with pytest.raises(StartupError, match="it does not start"):
        await task
    assert triton.happened == ["stopped"]


async def test_a_repository_that_is_not_there_is_told_with_the_option_to_change() -> None:
    sidecar = Sidecar(options(repository=Path("/none")), say=lambda _: None)
    with pytest.raises(StartupError) as caught:
        await sidecar.start()
    await sidecar.stop()
    assert str(caught.value) == (
        "model repository /none is not a directory; name one with --repository"
    )


async def test_a_certificate_that_cannot_be_used_is_told_before_triton_is_started(
    triton: Embedded,
) -> None:
    sidecar = Sidecar(options(tls=TlsFiles(MODELS, MODELS)), say=lambda _: None)
    with pytest.raises(StartupError, match="--tls-cert"):
        await sidecar.start()
    await sidecar.stop()
    assert triton.config is None


async def test_a_sidecar_that_never_started_can_be_stopped() -> None:
    await Sidecar(options(), say=lambda _: None).stop()


async def test_what_an_embedded_triton_has_to_say_is_told(triton: Embedded) -> None:
    """Models that could not be loaded among it."""
    said: list[str] = []
    sidecar = Sidecar(options(), say=said.append)
    triton.goes_on.set()
    assert await sidecar._tritons() == {"": Address("h:1", "h:2")}
    assert said[1:] == ["a note", "model 'broken' could not be loaded: no weights"]
    assert triton.config is not None
    assert triton.config.repository == MODELS
    await sidecar.stop()
    assert triton.happened == ["stopped"]


# -- while it runs ----------------------------------------------------------------------------


class Dying:
    """An embedded Triton that ends with each code in turn, then lives; restarts go as told."""

    def __init__(self, sidecar: Sidecar, codes: list[int], restarts: list[str]) -> None:
        self._sidecar = sidecar
        self._codes = iter(codes)
        self._restarts = iter(restarts)
        self.happened: list[str] = []

    async def wait(self) -> int:
        for code in self._codes:
            return code
        self._sidecar._stopping = True
        return 0

    async def restart(self) -> None:
        fault = next(self._restarts)
        self.happened.append(f"restart {fault}".strip())
        if fault:
            raise StartupError(fault)

    def lost(self) -> None:
        self.happened.append("lost")


async def test_an_embedded_triton_that_dies_is_started_again_until_it_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(composition, "RESTART_PAUSE_S", 0)
    said: list[str] = []
    sidecar = Sidecar(options(), say=said.append)
    dying: Any = Dying(sidecar, [-9, 1], ["no port", ""])
    sidecar.health = dying
    await sidecar._supervise(dying)
    assert dying.happened == ["lost", "restart no port", "lost", "restart"]
    assert said == [
        "the embedded Triton ended with code -9; starting it again",
        "no port",
        "the embedded Triton ended with code 1; starting it again",
    ]


async def test_a_merge_that_fails_is_counted_each_time_and_told_once_a_model() -> None:
    said: list[str] = []
    sidecar = Sidecar(options(), say=said.append)
    for model in ("a", "a", "b"):
        sidecar._taken_apart(batch_of(model), BackendError("too wide"))
    assert said == [
        f"model '{model}': a merged batch failed and is sent one by one: too wide"
        for model in ("a", "b")
    ]
    text = sidecar.metrics_registry.render().decode()
    assert 'tritonsched_merge_failures_total{model="a"} 2.0' in text
    assert 'tritonsched_merge_failures_total{model="b"} 1.0' in text


def batch_of(model: str) -> Batch:
    requests = tuple(Request(number, model, "default", 0, 1, 0) for number in (1, 2))
    return Batch(1, model, "gpu", requests, 2, 0, 0, 1)


async def test_each_change_is_counted_and_what_is_rare_is_said() -> None:
    said: list[str] = []
    sidecar = Sidecar(options(), say=said.append)
    sidecar._tuned(Change(0, "safety", 1.0, 1.25, "safety 1→1.25: missed 9 of 100"))
    sidecar._tuned(Change(0, "reply", 0.0, 1e6, "reply 0→1000 µs"))
    assert said == ["safety 1→1.25: missed 9 of 100"]
    text = sidecar.metrics_registry.render().decode()
    assert 'tritonsched_tuning_changes_total{direction="up",knob="safety"} 1.0' in text
    assert 'tritonsched_tuning_changes_total{direction="up",knob="reply"} 1.0' in text


class State:
    """Whether Triton is up, and whether we drain."""

    is_up = True
    is_draining = False


@pytest.mark.parametrize(
    ("is_up", "is_draining", "reason"),
    [
        (True, False, ""),
        (False, False, "Triton is not answering"),
        (True, True, "draining: the sidecar is shutting down"),
        (False, True, "draining: the sidecar is shutting down"),
    ],
)
async def test_why_it_is_not_ready(is_up: bool, is_draining: bool, reason: str) -> None:
    sidecar = Sidecar(options(), say=lambda _: None)
    state: Any = State()
    state.is_up, state.is_draining = is_up, is_draining
    sidecar.health = sidecar.proxy = state
    assert sidecar.why_not_ready() == reason


# -- Triton's metrics -------------------------------------------------------------------------

LARGE = b"# a comment of some length\n" * 100_000


async def scraped(address: str | None) -> bytes:
    sidecar = Sidecar(options(triton_http="h:1", triton_grpc="h:2"), say=lambda _: None)
    sidecar._metrics_address = address
    return await sidecar.triton_metrics()


@pytest.mark.parametrize("body", [b"nv_up 1\n", b"", LARGE], ids=["some", "none", "many pieces"])
async def test_tritons_metrics_are_passed_on_whole(body: bytes) -> None:
    async with raw_http(fixed("200 OK", body=body)) as triton:
        assert await scraped(triton.address) == body
        assert triton.seen[0].startswith(b"GET /metrics HTTP/1.1\r\n")


@pytest.mark.parametrize("status", ["404 Not Found", "500 Internal Server Error"])
async def test_what_is_no_metrics_is_left_out(status: str) -> None:
    """An error page among the metrics would spoil the whole scrape."""
    async with raw_http(fixed(status, body=b"<html>sorry</html>")) as triton:
        assert await scraped(triton.address) == b""


async def test_metrics_over_their_bound_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a line would spoil the scrape, too."""
    monkeypatch.setattr(triton_metrics, "BYTES_MAX", len(LARGE) - 1)
    async with raw_http(fixed("200 OK", body=LARGE)) as triton:
        assert await scraped(triton.address) == b""


async def test_metrics_that_cannot_be_had_are_none() -> None:
    assert await scraped(None) == b""
    assert await scraped(await unused_address()) == b""
    async with raw_http(fixed("900000 what", body=b"x")) as triton:
        assert await scraped(triton.address) == b""


# -- what it says -----------------------------------------------------------------------------


def test_the_example_that_is_printed_sends_a_whole_request() -> None:
    """Its pictures' bytes are where it says, and the head is as long as it says."""
    command = example_request("http://h:1")
    made, _, curl = command.partition(" | ")
    body = subprocess.run(["sh", "-c", made], capture_output=True, check=True).stdout
    length = int(curl.split("Inference-Header-Content-Length: ")[1].split("'")[0])
    (tensor,) = json.loads(body[:length])["inputs"]
    assert len(body) - length == tensor["parameters"]["binary_data_size"]
    assert curl.endswith(" http://h:1/v2/models/classify_lite0/infer")
