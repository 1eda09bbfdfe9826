"""The command line: options and environment in, one call out; exit codes 0, 1 and 2."""

import subprocess
import sys
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests.unit.profiling.profiles import profile
from tritonsched import cli
from tritonsched.config.schema import PolicyFile
from tritonsched.core.policies import POLICIES
from tritonsched.errors import BackendError, ConfigError, StartupError, TritonschedError
from tritonsched.options import RECORD_BYTES, GrpcFrontend, ServeOptions, TlsFiles, no_policy_file
from tritonsched.profiling.text import profile_text

BOTH = ("--triton-http", "h:1", "--triton-grpc", "h:2")
ENVIRONMENT = {
    "host": "::1",
    "http_port": "1",
    "grpc_port": "2",
    "metrics_port": "3",
    "triton_http": "h:4",
    "triton_grpc": "h:5",
    "triton_metrics": "h:6",
    "repository": "models",
    "triton_env": "env",
    "run_dir": "run",
    "drain_s": "7.5",
    "grpc_frontend": "grpcio",
    "admin_token": "secret",
    "record": "r.jsonl",
    "record_bytes": "2000000",
    "tls_cert": "cert.pem",
    "tls_key": "key.pem",
    "tls_client_ca": "ca.pem",
}


class Serve:
    """Instead of `run_serve`: notes its options; ends with `error` if there is one."""

    def __init__(self) -> None:
        self.calls: list[ServeOptions] = []
        self.error: TritonschedError | None = None

    def __call__(self, options: ServeOptions) -> None:
        self.calls.append(options)
        if self.error is not None:
            raise self.error

    @property
    def options(self) -> ServeOptions:
        (options,) = self.calls
        return options


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Serve:
    made = Serve()
    monkeypatch.setattr(cli, "run_serve", made)
    return made


def run(*arguments: str, **environment: str) -> Result:
    names = {f"TRITONSCHED_{name.upper()}": value for name, value in environment.items()}
    return CliRunner().invoke(cli.app, arguments, env=names)


def words(result: Result) -> str:
    """What was said, without the frame and line breaks of a terminal."""
    return " ".join(result.stderr.replace("│", " ").split())


def shown(options: ServeOptions) -> dict[str, Any]:
    return {field.name: getattr(options, field.name) for field in fields(options)}


def test_without_options_it_serves_the_repository_on_tritons_own_ports(serve: Serve) -> None:
    result = run("serve")
    assert (result.exit_code, result.output) == (0, "")
    assert shown(serve.options) == {
        "host": "0.0.0.0",  # Triton's own default
        "http_port": 8000,
        "grpc_port": 8001,
        "metrics_port": 8002,
        "triton_http": None,
        "triton_grpc": None,
        "triton_metrics": None,
        "policy": PolicyFile(),
        "repository": Path("model_repository"),
        "triton_env": Path(".venv-triton"),
        "run_dir": Path(".run"),
        "drain_s": 30.0,
        "grpc_frontend": GrpcFrontend.NGH2,
        "policy_path": None,
        "read_policy": no_policy_file,
        "admin_token": None,
        "record": None,
        "record_bytes": RECORD_BYTES,
        "tls": None,
    }


def expected() -> dict[str, Any]:
    """ENVIRONMENT as options."""
    made: dict[str, Any] = dict(ENVIRONMENT) | {"policy": PolicyFile()}
    for name in ("http_port", "grpc_port", "metrics_port", "record_bytes"):
        made[name] = int(made[name])
    for name in ("repository", "triton_env", "run_dir", "record"):
        made[name] = Path(made[name])
    made["drain_s"] = float(made["drain_s"])
    made["grpc_frontend"] = GrpcFrontend(made["grpc_frontend"])
    made |= {"policy_path": None, "read_policy": no_policy_file}
    made["tls"] = TlsFiles(
        *[Path(made.pop(f"tls_{name}")) for name in ("cert", "key", "client_ca")]
    )
    return made


def test_every_option_can_come_from_the_environment(serve: Serve) -> None:
    assert run("serve", **ENVIRONMENT).exit_code == 0
    assert shown(serve.options) == expected()


def test_every_option_can_be_given_and_goes_before_the_environment(serve: Serve) -> None:
    given = [
        word
        for name, value in ENVIRONMENT.items()
        for word in (f"--{name.replace('_', '-')}", value)
    ]
    result = run("serve", *given, http_port="99", triton_http="other:99", drain_s="9")
    assert result.exit_code == 0
    assert shown(serve.options) == expected()


def test_an_empty_variable_is_none(serve: Serve) -> None:
    """As a compose file makes them of what is not set."""
    assert run("serve", triton_http="", policy="", rule="").exit_code == 0
    assert serve.options.triton_http is None


def test_rule_and_transport_go_before_the_policy_file(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("scheduler: {policy: fcfs, window_ms: 2}\ntransport: {mode: system}\n")
    result = run("serve", "--rule", "edf", policy=str(path), transport="inline")
    assert result.exit_code == 0
    policy = serve.options.policy
    assert (policy.scheduler.policy, policy.scheduler.window_ms) == ("edf", 2)
    assert policy.transport.mode == "inline"
    serve.calls.clear()
    run("serve", "--policy", str(path))
    policy = serve.options.policy
    assert (policy.scheduler.policy, policy.transport.mode) == ("fcfs", "system")


@pytest.mark.parametrize("rule", sorted(POLICIES))
def test_each_rule_is_named_in_the_help_and_taken(serve: Serve, rule: str) -> None:
    assert run("serve", "--rule", rule).exit_code == 0
    assert serve.options.policy.scheduler.policy == rule
    assert rule in run("serve", "--help").output


WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "half a Triton": (
        ("--triton-grpc", "h:2"),
        "--triton-http and --triton-grpc belong together; name both or neither",
    ),
    "half a certificate": (("--tls-cert", "c"), "--tls-cert and --tls-key belong together"),
    "a CA alone": (("--tls-client-ca", "c"), "--tls-cert and --tls-key belong together"),
    "no port": (("--triton-http", "h", "--triton-grpc", "h:2"), "--triton-http: 'h' is not HOST"),
    "no host": (("--triton-http", ":1", "--triton-grpc", "h:2"), "--triton-http: ':1' is not HOST"),
    "port 0": ((*BOTH[:3], "h:0"), "--triton-grpc: 'h:0' is not HOST:PORT"),
    "a port too large": ((*BOTH, "--triton-metrics", "h:65536"), "--triton-metrics: 'h:65536'"),
    "a word for a port": ((*BOTH, "--triton-metrics", "h:metrics"), "--triton-metrics: 'h:metri"),
    "digits of another script": ((*BOTH, "--triton-metrics", "h:٣"), "--triton-metrics: 'h:٣'"),
    "a rule": (("--rule", "best"), "--rule: 'best' is unknown; use one of cikm, clipper"),
    "a transport": (("--transport", "tcp"), "--transport: 'tcp' is not auto, cuda, system or"),
    "a listening port": (("--http-port", "65536"), "should be less than or equal to 65535"),
    "a drain time": (("--drain-s", "-1"), "should be greater than or equal to 0"),
    "an option": (("--http-prot", "1"), "No such option: --http-prot"),
    "a policy that is not there": (("--policy", "/none"), "/none: cannot be read: No such file"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_use_says_what_and_ends_with_2(serve: Serve, name: str) -> None:
    arguments, text = WRONG[name]
    result = run("serve", *arguments)
    assert (result.exit_code, serve.calls, result.stdout) == (2, [], "")
    assert text in words(result)


def test_a_fault_in_the_environment_is_wrong_use_too(serve: Serve) -> None:
    result = run("serve", grpc_port="many")
    assert (result.exit_code, serve.calls) == (2, [])
    assert "valid integer" in words(result)


def test_a_profile_is_read_before_anything_starts_and_goes_before_the_policy_files(
    serve: Serve, tmp_path: Path
) -> None:
    """The one that the policy file names lies beside that file."""
    path, given = tmp_path / "policy.yaml", tmp_path / "given.yaml"
    (tmp_path / "own.yaml").write_text(profile_text(profile()))
    given.write_text(profile_text(profile()))
    path.write_text("profile: own.yaml\n")
    assert run("serve", "--policy", str(path)).exit_code == 0
    assert serve.options.policy.profile == str(tmp_path / "own.yaml")
    assert serve.options.read_policy() == serve.options.policy
    serve.calls.clear()
    assert run("serve", "--policy", str(path), "--profile", str(given)).exit_code == 0
    assert serve.options.policy.profile == str(given)
    (tmp_path / "own.yaml").write_text("profile: 1\nmodels: {m: {points: [{rows: -1}]}}\n")
    result = run("serve", "--policy", str(path))
    assert result.exit_code == 2
    where = f"{tmp_path}/own.yaml:2:30: models.m.points.0.rows: "
    assert where + "Input should be greater than or equal to 1" in result.output
    given.unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        serve.options.read_policy()


def test_each_fault_of_a_policy_file_is_one_line_whatever_the_width(
    serve: Serve, tmp_path: Path
) -> None:
    """Editors and scripts read `file:line:col: path: message`."""
    path = tmp_path / "a-name-so-long-that-no-terminal-of-eighty-columns-has-room-for-it.yaml"
    path.write_text("classes:\n  gold: {deadline_ms: -1, wieght: [2]}\nlimits: {x: 1}\n")
    result = run("serve", "--policy", str(path))
    assert (result.exit_code, serve.calls) == (2, [])
    lines = result.stderr.splitlines()
    assert lines[0].startswith(f"tritonsched: {path}:2:23: classes.gold.deadline_ms: ")
    assert "[bold]" not in result.stderr
    assert f"{path}:2:27: classes.gold.wieght: unknown key; did you mean 'weight'?" in lines
    assert f"{path}:3:10: limits.x: unknown key" in lines


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StartupError("port 8000 is in use; choose another [one]"), 2),
        (ConfigError("no shared memory"), 2),
        (BackendError("it broke"), 1),
    ],
)
def test_what_ends_the_service_decides_the_exit_code(
    serve: Serve, error: TritonschedError, code: int
) -> None:
    """The text comes as it is, brackets and all, and without a traceback."""
    serve.error = error
    result = run("serve")
    assert (result.exit_code, result.stderr) == (code, f"tritonsched: {error}\n")


def test_without_a_command_it_says_how_it_is_used() -> None:
    result = run()
    assert result.exit_code == 2
    assert all(word in result.output for word in ("Usage", "serve", "bench", "version"))


def test_the_version_is_the_installed_one() -> None:
    result = run("version")
    assert (result.exit_code, result.stdout) == (0, f"tritonsched {version('tritonsched')}\n")


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tritonsched", "version"], capture_output=True, check=True
    )
    assert done.stdout.decode() == f"tritonsched {version('tritonsched')}\n"
