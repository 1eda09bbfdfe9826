"""What `tritonsched serve` can be asked for. Rule: values only; nothing starts here."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from tritonsched.config.schema import PolicyFile
from tritonsched.errors import ConfigError

RECORD_BYTES = 64 * 1024 * 1024  # some 140,000 requests a file: 480 bytes each


def no_policy_file() -> PolicyFile:
    """Raises ConfigError: what a sidecar without a policy file says when told to reload it."""
    raise ConfigError("there is no policy file to reload; start with --policy FILE")


class GrpcFrontend(StrEnum):
    """What speaks gRPC with clients."""

    NGH2 = "ngh2"
    GRPCIO = "grpcio"


@dataclass(frozen=True, slots=True)
class Address:
    """A Triton's ports, each HOST:PORT. transport: empty for the policy file's."""

    http: str
    grpc: str
    metrics: str | None = None
    transport: str = ""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files. certificate: with its chain. client_ca: who signs clients' certificates, which are
    then asked for; None: they are not.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What `tritonsched serve` was asked for. triton_http and triton_grpc: both or neither.

    policy_path: where `policy` stands; None: it cannot be reloaded. read_policy: reads it again.
    record: where to write what happens; None: nowhere. record_bytes: of one file. tls: of the HTTP
    and the gRPC port; None: they are plain.
    """

    host: str
    http_port: int
    grpc_port: int
    metrics_port: int
    triton_http: str | None
    triton_grpc: str | None
    triton_metrics: str | None
    policy: PolicyFile
    repository: Path
    triton_env: Path
    run_dir: Path
    drain_s: float
    grpc_frontend: GrpcFrontend = GrpcFrontend.NGH2
    policy_path: Path | None = None
    read_policy: Callable[[], PolicyFile] = no_policy_file
    admin_token: str | None = None
    record: Path | None = None
    record_bytes: int = RECORD_BYTES
    tls: TlsFiles | None = None

    def addresses(self) -> dict[str, Address]:
        """The Tritons that are given, by name (empty for that of the command line); maybe none."""
        if self.triton_http is not None and self.triton_grpc is not None:
            return {"": Address(self.triton_http, self.triton_grpc, self.triton_metrics)}
        return {
            name: Address(server.http, server.grpc, server.metrics, server.transport or "")
            for name, server in self.policy.servers.items()
        }


def example_request(http: str) -> str:
    """A command that can be pasted: a picture in the package, classified by its raw bytes."""
    picture = Path(__file__).parent / "data" / "pictures" / "cat.uint8"
    head = (
        '{"inputs":[{"name":"IMAGE","datatype":"UINT8","shape":[1,260,260,3],'
        '"parameters":{"binary_data_size":202800}}],'
        '"outputs":[{"name":"SCORES","parameters":{"classification":3}}]}'
    )
    return (
        f"(printf %s '{head}'; cat {picture}) | curl -si --data-binary @- "
        f"-H 'Inference-Header-Content-Length: {len(head)}' -H 'x-request-deadline-ms: 500' "
        f"-H 'x-tritonsched-explain: 1' {http}/v2/models/classify_lite0/infer"
    )


def greeting(
    host: str, http_port: int, grpc_port: int, admin_port: int, *, tls: bool = False
) -> list[str]:
    """What a person at the terminal is told when it is ready."""
    shown = "127.0.0.1" if host == "0.0.0.0" else host  # noqa: S104
    scheme = "https" if tls else "http"
    http, admin = f"{scheme}://{shown}:{http_port}", f"http://{shown}:{admin_port}"
    return [
        f"HTTP     {http}",
        f"gRPC     {shown}:{grpc_port}",
        f"metrics  {admin}/metrics",
        f"page     {admin}/",
        "ready; try a request:",
        f"  {example_request(http)}",
    ]
