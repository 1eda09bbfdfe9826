"""The command line. Rule: options in, one call out; every option can also come from the environment.

Exit codes: 0 done, 1 a fault while running, 2 wrong use (options, policy file, ports).
"""

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from tritonsched.bench.command import bench
from tritonsched.config.load import load_policy
from tritonsched.config.schema import PolicyFile
from tritonsched.core.policies import POLICIES
from tritonsched.errors import ConfigError, StartupError, TritonschedError
from tritonsched.serve import ServeOptions, run_serve

app = typer.Typer(
    name="tritonsched",
    help="A deadline-aware scheduling sidecar for NVIDIA Triton Inference Server.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("bench")(bench)
_stderr = Console(stderr=True, highlight=False)

Port = Annotated[int, typer.Option(min=0, max=65535)]


def _env(name: str) -> str:
    return f"TRITONSCHED_{name}"


@app.command()
def serve(
    *,
    host: Annotated[
        str, typer.Option(envvar=_env("HOST"), help="Address that all three ports bind to.")
    ] = "0.0.0.0",  # noqa: S104  # Triton's own default; a sidecar is a drop-in
    http_port: Annotated[
        int, typer.Option(envvar=_env("HTTP_PORT"), min=0, max=65535, help="0: any free port.")
    ] = 8000,
    grpc_port: Annotated[
        int, typer.Option(envvar=_env("GRPC_PORT"), min=0, max=65535, help="0: any free port.")
    ] = 8001,
    metrics_port: Annotated[
        int, typer.Option(envvar=_env("METRICS_PORT"), min=0, max=65535, help="0: any free port.")
    ] = 8002,
    triton_http: Annotated[
        str | None, typer.Option(envvar=_env("TRITON_HTTP"), help="HOST:PORT of a running Triton.")
    ] = None,
    triton_grpc: Annotated[
        str | None, typer.Option(envvar=_env("TRITON_GRPC"), help="HOST:PORT of a running Triton.")
    ] = None,
    triton_metrics: Annotated[
        str | None,
        typer.Option(
            envvar=_env("TRITON_METRICS"), help="HOST:PORT whose /metrics is appended to ours."
        ),
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(envvar=_env("POLICY"), help="Policy file (YAML).")
    ] = None,
    rule: Annotated[
        str | None,
        typer.Option(
            envvar=_env("RULE"),
            help=f"Scheduling rule, over the policy file's: {', '.join(sorted(POLICIES))}.",
        ),
    ] = None,
    transport: Annotated[
        str | None,
        typer.Option(
            envvar=_env("TRANSPORT"), help="auto, system or inline; over the policy file's."
        ),
    ] = None,
    repository: Annotated[
        Path,
        typer.Option(envvar=_env("REPOSITORY"), help="Model repository of the embedded Triton."),
    ] = Path("model_repository"),
    triton_env: Annotated[
        Path,
        typer.Option(envvar=_env("TRITON_ENV"), help="Virtual environment of the embedded Triton."),
    ] = Path(".venv-triton"),
    run_dir: Annotated[
        Path, typer.Option(envvar=_env("RUN_DIR"), help="Logs and state of the embedded Triton.")
    ] = Path(".run"),
    drain_s: Annotated[
        float,
        typer.Option(
            envvar=_env("DRAIN_S"), min=0, max=3600, help="Time for queued work at shutdown."
        ),
    ] = 30.0,
) -> None:
    """Serve: in front of the Triton named by --triton-http and --triton-grpc, or of an embedded one."""
    if (triton_http is None) != (triton_grpc is None):
        _refuse("--triton-http and --triton-grpc belong together; name both or neither")
    for option, address in (("--triton-http", triton_http), ("--triton-grpc", triton_grpc)):
        if address is not None and not _is_address(address):
            _refuse(f"{option}: {address!r} is not HOST:PORT")
    try:
        options = ServeOptions(
            host=host,
            http_port=http_port,
            grpc_port=grpc_port,
            metrics_port=metrics_port,
            triton_http=triton_http,
            triton_grpc=triton_grpc,
            triton_metrics=triton_metrics,
            policy=_policy(policy, rule, transport),
            repository=repository,
            triton_env=triton_env,
            run_dir=run_dir,
            drain_s=drain_s,
        )
        run_serve(options)
    except (ConfigError, StartupError) as error:
        _refuse(str(error))
    except TritonschedError as error:
        _stderr.print(f"tritonsched: {error}", markup=False)
        raise typer.Exit(1) from error


def _policy(path: Path | None, rule: str | None, transport: str | None) -> PolicyFile:
    """The policy file with the command line's words over it. Raises ConfigError."""
    loaded = PolicyFile() if path is None else load_policy(path)
    data = loaded.model_dump()
    if rule is not None:
        if rule not in POLICIES:
            raise ConfigError(f"--rule: {rule!r} is unknown; use one of {', '.join(sorted(POLICIES))}")
        data["scheduler"]["policy"] = rule
    if transport is not None:
        if transport not in ("auto", "system", "inline"):
            raise ConfigError(f"--transport: {transport!r} is not auto, system or inline")
        data["transport"]["mode"] = transport
    return PolicyFile.model_validate(data)


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and port.isascii() and port.isdigit() and 0 < int(port) < 65536


def _refuse(text: str) -> NoReturn:
    _stderr.print(f"tritonsched: {text}", markup=False)
    raise typer.Exit(2)


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed  # noqa: PLC0415  # needed here only

    sys.stdout.write(f"tritonsched {installed('tritonsched')}\n")


def main() -> None:
    """Entry point of the console script."""
    app()
