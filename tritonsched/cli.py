"""The command line. Rule: options in, one call out; every option can also come from the
environment.

Exit codes: 0 done, 1 a fault while running, 2 wrong use (options, policy file, ports).
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from tritonsched.bench.command import bench
from tritonsched.checking import check, schema
from tritonsched.config.load import load_policy
from tritonsched.config.profile_file import load_profile
from tritonsched.config.schema import PolicyFile
from tritonsched.core.policies import POLICIES
from tritonsched.doctor import doctor, status
from tritonsched.errors import ConfigError, StartupError, TritonschedError
from tritonsched.exporting import app as tuning
from tritonsched.options import RECORD_BYTES, GrpcFrontend, ServeOptions, TlsFiles, no_policy_file
from tritonsched.profiling.command import profile
from tritonsched.serve import run_serve
from tritonsched.sim.command import simulate
from tritonsched.sim.replay_command import replay
from tritonsched.top import top

app = typer.Typer(
    name="tritonsched",
    help="A deadline-aware scheduling sidecar for NVIDIA Triton Inference Server.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("bench")(bench)
app.command("simulate")(simulate)
app.command("replay")(replay)
app.command("check")(check)
app.command("schema")(schema)
app.command("doctor")(doctor)
app.command("status")(status)
app.add_typer(tuning)
app.command("top")(top)
app.command("profile")(profile)
_stderr = Console(stderr=True, highlight=False)


def _env(name: str) -> str:
    return f"TRITONSCHED_{name}"


def _port(name: str) -> Any:  # what typer.Option returns is for typer alone
    return typer.Option(envvar=_env(name), min=0, max=65535, help="0: any free port.")


HostOption = Annotated[
    str, typer.Option(envvar=_env("HOST"), help="Address that all three ports bind to.")
]
TritonHttpOption = Annotated[
    str | None, typer.Option(envvar=_env("TRITON_HTTP"), help="HOST:PORT of a running Triton.")
]
TritonGrpcOption = Annotated[
    str | None, typer.Option(envvar=_env("TRITON_GRPC"), help="HOST:PORT of a running Triton.")
]
TritonMetricsOption = Annotated[
    str | None,
    typer.Option(envvar=_env("TRITON_METRICS"), help="HOST:PORT whose /metrics joins ours."),
]
PolicyOption = Annotated[
    Path | None, typer.Option(envvar=_env("POLICY"), help="Policy file (YAML).")
]
AdminTokenOption = Annotated[
    str | None,
    typer.Option(
        envvar=_env("ADMIN_TOKEN"),
        help="Lets others than loopback call /admin: Authorization: Bearer TOKEN.",
    ),
]
ProfileOption = Annotated[
    Path | None,
    typer.Option(envvar=_env("PROFILE"), help="Times to start from; over the policy file's."),
]
RuleOption = Annotated[
    str | None,
    typer.Option(
        envvar=_env("RULE"),
        help=f"Scheduling rule, over the policy file's: {', '.join(sorted(POLICIES))}.",
    ),
]
TransportOption = Annotated[
    str | None,
    typer.Option(
        envvar=_env("TRANSPORT"), help="auto, cuda, system, inline; over the policy file's."
    ),
]
GrpcFrontendOption = Annotated[
    GrpcFrontend,
    typer.Option(
        envvar=_env("GRPC_FRONTEND"),
        help="What speaks gRPC with clients: libnghttp2 in the event loop, or gRPC's own library.",
    ),
]
RepositoryOption = Annotated[
    Path, typer.Option(envvar=_env("REPOSITORY"), help="Model repository of the embedded Triton.")
]
TritonEnvOption = Annotated[
    Path, typer.Option(envvar=_env("TRITON_ENV"), help="Environment of the embedded Triton.")
]
RunDirOption = Annotated[
    Path, typer.Option(envvar=_env("RUN_DIR"), help="Logs and state of the embedded Triton.")
]
DrainOption = Annotated[
    float,
    typer.Option(envvar=_env("DRAIN_S"), min=0, max=3600, help="Time for queued work at shutdown."),
]
TlsCertOption = Annotated[
    Path | None,
    typer.Option(envvar=_env("TLS_CERT"), help="PEM certificate of the HTTP and the gRPC port."),
]
TlsKeyOption = Annotated[Path | None, typer.Option(envvar=_env("TLS_KEY"), help="Its key (PEM).")]
TlsClientCaOption = Annotated[
    Path | None,
    typer.Option(envvar=_env("TLS_CLIENT_CA"), help="Clients need a certificate of this CA (PEM)."),
]
RecordOption = Annotated[
    Path | None,
    typer.Option(
        envvar=_env("RECORD"), help="Write arrivals, decisions, completions for `replay`."
    ),
]
RecordBytesOption = Annotated[
    int,
    typer.Option(
        envvar=_env("RECORD_BYTES"), min=1 << 20, max=1 << 40, help="Of one file; four are kept."
    ),
]


@app.command()
def serve(
    *,
    host: HostOption = "0.0.0.0",  # noqa: S104  # Triton's own default; a sidecar is a drop-in
    http_port: Annotated[int, _port("HTTP_PORT")] = 8000,
    grpc_port: Annotated[int, _port("GRPC_PORT")] = 8001,
    metrics_port: Annotated[int, _port("METRICS_PORT")] = 8002,
    triton_http: TritonHttpOption = None,
    triton_grpc: TritonGrpcOption = None,
    triton_metrics: TritonMetricsOption = None,
    policy: PolicyOption = None,
    profile: ProfileOption = None,
    rule: RuleOption = None,
    transport: TransportOption = None,
    grpc_frontend: GrpcFrontendOption = GrpcFrontend.NGH2,
    repository: RepositoryOption = Path("model_repository"),
    triton_env: TritonEnvOption = Path(".venv-triton"),
    run_dir: RunDirOption = Path(".run"),
    drain_s: DrainOption = 30.0,
    admin_token: AdminTokenOption = None,
    record: RecordOption = None,
    record_bytes: RecordBytesOption = RECORD_BYTES,
    tls_cert: TlsCertOption = None,
    tls_key: TlsKeyOption = None,
    tls_client_ca: TlsClientCaOption = None,
) -> None:
    """Serve in front of the Triton of --triton-http and --triton-grpc, or of an embedded one."""
    _check_addresses(triton_http, triton_grpc, triton_metrics)
    reread = partial(_policy, policy, rule, transport, profile)
    with _faults_told():
        _check_servers(reread(), triton_http or triton_metrics)
        options = ServeOptions(
            host=host, http_port=http_port, grpc_port=grpc_port, metrics_port=metrics_port,
            triton_http=triton_http, triton_grpc=triton_grpc, triton_metrics=triton_metrics,
            policy=reread(), repository=repository, triton_env=triton_env, run_dir=run_dir,
            drain_s=drain_s, grpc_frontend=grpc_frontend,
            policy_path=policy, read_policy=reread if policy else no_policy_file,
            admin_token=admin_token, record=record, record_bytes=record_bytes,
            tls=_tls(tls_cert, tls_key, tls_client_ca),
        )  # fmt: skip
        run_serve(options)


@contextmanager
def _faults_told() -> Iterator[None]:
    """A fault is a line on standard error and an exit code."""
    try:
        yield
    except (ConfigError, StartupError) as error:
        _refuse(str(error))
    except TritonschedError as error:
        _say(str(error))
        raise typer.Exit(1) from error


def _tls(cert: Path | None, key: Path | None, client_ca: Path | None) -> TlsFiles | None:
    if cert is None or key is None:
        if (cert, key, client_ca) != (None, None, None):
            _refuse("--tls-cert and --tls-key belong together, and --tls-client-ca needs both")
        return None
    return TlsFiles(cert, key, client_ca)


def _check_addresses(http: str | None, grpc: str | None, metrics: str | None) -> None:
    if (http is None) != (grpc is None):
        _refuse("--triton-http and --triton-grpc belong together; name both or neither")
    named = {"--triton-http": http, "--triton-grpc": grpc, "--triton-metrics": metrics}
    for option, address in named.items():
        if address is not None and not _is_address(address):
            _refuse(f"{option}: {address!r} is not HOST:PORT")


def _check_servers(policy: PolicyFile, named: str | None) -> None:
    """Raises ConfigError: servers come from one place."""
    if policy.servers and named is not None:
        raise ConfigError("the policy file names servers; leave --triton-http, -grpc, -metrics out")


def _policy(
    path: Path | None, rule: str | None, transport: str | None, profile: Path | None
) -> PolicyFile:
    """The policy file with the command line's words over it. Raises ConfigError."""
    loaded = PolicyFile() if path is None else load_policy(path)
    data = loaded.model_dump()
    if rule is not None:
        if rule not in POLICIES:
            listed = ", ".join(sorted(POLICIES))
            raise ConfigError(f"--rule: {rule!r} is unknown; use one of {listed}")
        data["scheduler"]["policy"] = rule
    if transport is not None:
        if transport not in ("auto", "cuda", "system", "inline"):
            raise ConfigError(f"--transport: {transport!r} is not auto, cuda, system or inline")
        data["transport"]["mode"] = transport
    if profile is not None:
        data["profile"] = str(profile)
    if data["profile"] is not None:
        load_profile(Path(data["profile"]))  # its faults are told here, and at a reload refuse it
    return PolicyFile.model_validate(data)


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and port.isascii() and port.isdigit() and 0 < int(port) < 65536


def _refuse(text: str) -> NoReturn:
    _say(text)
    raise typer.Exit(2)


def _say(text: str) -> None:
    """One fault a line, never broken: editors and scripts read `file:line:col: message`."""
    _stderr.print(f"tritonsched: {text}", markup=False, soft_wrap=True)


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed  # noqa: PLC0415  # needed here only

    sys.stdout.write(f"tritonsched {installed('tritonsched')}\n")


def main() -> None:
    """Entry point of the console script."""
    app()
