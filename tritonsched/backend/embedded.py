"""An embedded Triton: started, proven, watched and stopped by the sidecar.

Rule: `start` returns a Triton that has answered right, or raises and leaves nothing behind; what a
killed sidecar left, the next start on the same run directory removes. Ports are loopback only.

Read with it: `embedded_env.py` (files, variables), `embedded_state.py` (orphans),
`embedded_proof.py` (the echo), `launch.py` (dies with its parent).
"""

import asyncio
import contextlib
import os
import re
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

import grpc.aio

from tritonsched.backend import embedded_env as env
from tritonsched.backend import embedded_proof as proof
from tritonsched.backend import embedded_state as state
from tritonsched.backend.prepare import prepare_repository
from tritonsched.errors import StartupError

HOST: Final = "127.0.0.1"
LAUNCH_SCRIPT: Final = Path(__file__).parent / "launch.py"
LOG_NAME: Final = "triton.log"
LOG_BYTES_MAX: Final = 256 * 1024  # of the log's end, searched for what went wrong
LOG_LINES_MAX: Final = 12  # quoted in an error
LOG_FAULT: Final = re.compile(r"^[EF]\d{4} |rror|unrecognized")
POLL_S: Final = 0.01  # between two tries of an endpoint that is about to open
START_ATTEMPTS_MAX: Final = 3  # its port is taken between our look and its bind; it crashes
EXIT_TIMEOUT_S: Final = 10  # Triton's own bound for batches in flight at SIGTERM
STOP_TIMEOUT_S: Final = EXIT_TIMEOUT_S + 10.0  # then SIGKILL; Triton unloads models after its bound
PORT_TAKEN_TEXT: Final = "already in use"
ENDPOINTS: Final = ("http", "grpc", "metrics")

ControlMode = Literal["none", "explicit", "poll"]


class EmbeddedTritonError(StartupError):
    """The embedded Triton did not come up; the text says why and ends with its last log lines."""


@dataclass(frozen=True, slots=True)
class EmbeddedConfig:
    """What to start, and where.

    environment: virtual environment of nvidia-pytriton. run_dir: log, backends, state; one sidecar
    at a time. build_dir: where the compiled emulated GPU is kept; run_dir/build if None.
    models: only these (explicit mode); empty means all. Ports: 0 means any free one, kept over
    `restart`.
    """

    repository: Path
    environment: Path
    run_dir: Path
    ready_timeout_s: float = 120.0
    extra_args: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    control_mode: ControlMode = "none"
    http_port: int = 0
    grpc_port: int = 0
    metrics_port: int = 0
    build_dir: Path | None = None

    def __post_init__(self) -> None:
        if not self.repository.is_dir():
            raise EmbeddedTritonError(
                f"model repository {self.repository} is not a directory; name one with --repository"
            )
        for port in (self.http_port, self.grpc_port, self.metrics_port):
            if not 0 <= port <= 65535:
                raise EmbeddedTritonError(f"port {port} is not one of 0 to 65535")


class EmbeddedTriton:
    """A Triton process; an async context manager.

    Start it from a thread that lives as long as it should (the loop's): the kernel ends it with
    that thread. failed_models: name to reason, of models that Triton could not load; the others
    serve. notes: lines for the operator (orphans removed, emulated GPU without compiler).
    """

    def __init__(self, config: EmbeddedConfig) -> None:
        self.config = replace(
            config,
            repository=config.repository.absolute(),
            environment=config.environment.absolute(),
            run_dir=config.run_dir.absolute(),
        )
        self.log_path = self.config.run_dir / LOG_NAME
        self.failed_models: Mapping[str, str] = {}
        self.notes: list[str] = []
        self._ports = (config.http_port, config.grpc_port, config.metrics_port)
        self._held = contextlib.ExitStack()
        self._process: asyncio.subprocess.Process | None = None
        self._exit: asyncio.Task[int] | None = None
        self._restarting: asyncio.Task[None] | None = None
        self._is_stopped = True
        self._state = state.new_state()

    @property
    def http_address(self) -> str:
        """host:port of Triton's HTTP endpoint; known once started."""
        return f"{HOST}:{self._ports[0]}"

    @property
    def grpc_address(self) -> str:
        """host:port of Triton's gRPC endpoint."""
        return f"{HOST}:{self._ports[1]}"

    @property
    def metrics_address(self) -> str:
        """host:port of Triton's Prometheus endpoint."""
        return f"{HOST}:{self._ports[2]}"

    @property
    def pid(self) -> int:
        """Of the server; its models' stubs are its children."""
        if self._process is None:
            raise EmbeddedTritonError("the embedded Triton is not started; call start() first")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """The server process lives."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start Triton and return when the echo proof has passed.

        Raises EmbeddedTritonError (it did not come up), RunDirInUse, TritonMissing, BuildFailed.
        """
        if self.is_running:
            raise EmbeddedTritonError(f"the embedded Triton runs already, as process {self.pid}")
        self._held.enter_context(state.locked(self.config.run_dir))
        self._is_stopped = False
        config = self.config
        self._ports = (config.http_port, config.grpc_port, config.metrics_port)
        try:
            await self._sweep_orphan()
            await self._start_process()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End Triton: SIGTERM, after STOP_TIMEOUT_S SIGKILL; its stubs and regions go with it.

        Does nothing if it is not started. A restart under way is given up.
        """
        self._is_stopped = True
        with self._held.pop_all():
            if self._restarting is not None:
                self._restarting.cancel()
                await asyncio.wait({self._restarting})
            await self._stop_process()
            self._process = self._exit = None

    async def restart(self) -> None:
        """End Triton, if it still runs, and start it again on the same ports; errors as `start`.

        After a failure it can be called again.
        """
        if self._is_stopped:
            raise EmbeddedTritonError("the embedded Triton is not started; call start() first")
        self._restarting = asyncio.create_task(self._start_again())
        try:
            await self._restarting
        except asyncio.CancelledError:
            if not self._is_stopped:
                raise
            raise EmbeddedTritonError("the embedded Triton was stopped while restarting") from None

    async def wait(self) -> int:
        """The exit code (negative: the signal), when the server ends by itself or otherwise."""
        if self._exit is None:
            raise EmbeddedTritonError("the embedded Triton is not started; call start() first")
        return await asyncio.shield(self._exit)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def _sweep_orphan(self) -> None:
        orphan = state.load_state(self.config.run_dir)
        if orphan is None:
            return
        swept = await state.sweep(self.config.run_dir, orphan)
        if swept:
            self.notes.append(f"removed what an earlier run left: {', '.join(swept)}")

    async def _start_again(self) -> None:
        await self._stop_process()
        await self._start_process()

    async def _start_process(self) -> None:
        installation, backends = await asyncio.to_thread(self._prepare)
        model, repositories = env.proof_model(self.config.repository)
        wanted = self._ports
        for attempt in range(1, START_ATTEMPTS_MAX + 1):
            self._ports = _fill_ports(wanted)
            arguments = self._arguments(repositories, model, backends.directory)
            await self._spawn(installation, arguments)
            fault = await self._come_up(model)
            if not fault:
                return
            has_crashed = self._exit is not None and self._exit.done() and self._exit.result() < 0
            is_taken = PORT_TAKEN_TEXT in fault and 0 in wanted
            await self._stop_process()
            if attempt == START_ATTEMPTS_MAX or not (is_taken or has_crashed):
                raise EmbeddedTritonError(fault)
            if has_crashed:  # seen once in a hundred starts of 2.51 on a machine under load
                self.notes.append(f"it is started again, because at its start {fault}")

    def _prepare(self) -> tuple[env.Installation, env.Backends]:
        installation = env.find_installation(self.config.environment)
        if missing := env.missing_libpython(installation):
            raise EmbeddedTritonError(f"Triton's python backend cannot start: {missing}")
        prepare_repository(self.config.repository)
        build_dir = self.config.build_dir or self.config.run_dir / "build"
        backends = env.lay_out_backends(installation, self.config.run_dir, build_dir)
        if backends.note and backends.note not in self.notes:
            self.notes.append(backends.note)
        return installation, backends

    def _arguments(
        self, repositories: list[Path], proof_model: str, backends: Path
    ) -> tuple[str, ...]:
        mode = "explicit" if self.config.models else self.config.control_mode
        loads = [*self.config.models, proof_model] if self.config.models else ["*"]
        return (
            *(f"--model-repository={path}" for path in repositories),
            f"--model-control-mode={mode}",
            *(f"--load-model={name}" for name in loads if mode == "explicit"),
            f"--backend-directory={backends}",
            f"--backend-config=python,shm-region-prefix-name={self._state.token}-",
            *(f"--{endpoint}-address={HOST}" for endpoint in ENDPOINTS),
            *(f"--{name}-port={port}" for name, port in zip(ENDPOINTS, self._ports, strict=True)),
            "--exit-on-error=false",
            f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
            *self.config.extra_args,
        )

    async def _spawn(self, installation: env.Installation, arguments: tuple[str, ...]) -> None:
        run_dir = self.config.run_dir
        # Before the process, so that there is no moment at which an orphan would be unknown.
        state.save_state(run_dir, self._state)
        if self.log_path.exists():
            self.log_path.replace(self.log_path.with_suffix(".log.1"))
        with self.log_path.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", str(LAUNCH_SCRIPT), str(os.getpid())),
                *(str(installation.server), *arguments),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=env.triton_environment(installation, run_dir, self._state.token),
                start_new_session=True,  # a Ctrl-C is the sidecar's: it drains before Triton ends
            )
        self._exit = asyncio.create_task(self._process.wait(), name="embedded-triton-exit")
        state.save_state(run_dir, state.with_process(self._state, self._process.pid))

    async def _come_up(self, model: str) -> str:
        """Wait for the proof, the process's end or the timeout; what went wrong, "" if nothing."""
        assert self._exit is not None
        async with grpc.aio.insecure_channel(
            self.grpc_address, options=proof.CHANNEL_OPTIONS
        ) as channel:
            proving = asyncio.create_task(self._prove(channel, model))
            try:
                done, _ = await asyncio.wait(
                    {proving, self._exit},
                    timeout=self.config.ready_timeout_s,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if self._exit in done:
                    return self._with_log(f"Triton ended with code {self._exit.result()}")
                if proving in done:
                    return proving.result()
                seconds = self.config.ready_timeout_s
                return self._with_log(f"Triton was not ready within {seconds:g} s")
            finally:
                proving.cancel()
                await asyncio.wait({proving})

    async def _prove(self, channel: grpc.aio.Channel, model: str) -> str:
        await proof.wait_until_live(channel)
        self.failed_models = await proof.failed_models(channel)
        if reason := self.failed_models.get(model):
            return self._with_log(f"Triton could not load its echo model '{model}': {reason}")
        if fault := await proof.prove(channel, model):
            return proof.numpy_trap(fault, self.config.environment)
        # These open after gRPC; if their port is taken, Triton ends, and that is waited for too.
        await self._answered(self.http_address, "/v2/health/live")
        await self._answered(self.metrics_address, "/metrics")
        return ""

    async def _answered(self, address: str, path: str) -> None:
        assert self._exit is not None
        while not await proof.answers(address, path):
            await asyncio.wait({self._exit}, timeout=POLL_S)

    def _with_log(self, fault: str) -> str:
        with self.log_path.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_BYTES_MAX))
            lines = log.read().decode(errors="replace").splitlines()
        telling = [line for line in lines if LOG_FAULT.search(line)] or lines
        return "\n".join([f"{fault}; from {self.log_path}:", *telling[-LOG_LINES_MAX:]])

    async def _stop_process(self) -> None:
        if self._exit is None:
            return
        assert self._process is not None
        try:
            if self.is_running:
                self._process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await asyncio.shield(self._exit)
        except TimeoutError:
            self.notes.append(f"Triton did not end within {STOP_TIMEOUT_S:g} s and was killed")
        finally:
            await state.sweep(self.config.run_dir, self._state)
            await asyncio.wait({self._exit})


def _fill_ports(wanted: tuple[int, int, int]) -> tuple[int, int, int]:
    """Free loopback ports in place of zeros; all different, as they are held together.

    Raises EmbeddedTritonError if a wanted one is in use.
    """
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in wanted]
        for name, port, free in zip(ENDPOINTS, wanted, sockets, strict=True):
            # As Triton itself does: connections of a server just killed must not block the port.
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                free.bind((HOST, port))
            except OSError as exc:
                raise EmbeddedTritonError(
                    f"the embedded Triton's {name} port {port} cannot be had ({exc.strerror}); "
                    "choose another, or 0 for any free one"
                ) from exc
        http, grpc_, metrics = (free.getsockname()[1] for free in sockets)
    return http, grpc_, metrics
