"""`tritonsched doctor` and `tritonsched status`: what is wrong here, in words, before it costs.

Rule: each check is one function that returns a finding; a finding says what was seen and what to
do. Exit 0: nothing is broken (advice may be given); 1: something is.
"""

import asyncio
import json
import os
import resource
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.metadata import distributions
from pathlib import Path
from typing import Annotated, Any

import typer

from tritonsched.admin_request import DEFAULT_ADMIN, admin_request
from tritonsched.backend.catalogue import ModelInfo
from tritonsched.backend.control import Control
from tritonsched.backend.cuda import Cuda, load
from tritonsched.backend.cuda_check import Ask, ask_process, ipc_fault
from tritonsched.backend.shared_memory import SHM
from tritonsched.backend.upstream_h2 import H2Upstream
from tritonsched.config.load import load_policy
from tritonsched.config.schema import PolicyFile
from tritonsched.core import scheduler
from tritonsched.core.policies.kernels import obstacle
from tritonsched.errors import ConfigError, CudaFault, TritonschedError

SHM_FREE_MIN = 64 * 1024 * 1024
FILES_MIN = 4096  # a descriptor a client, two a connection to Triton
CLOCK_STEP_NS_MAX = 1_000_000
MODELS_MAX = 256  # asked about one by one
STATUS_WAIT_S = 5.0


class Health(StrEnum):
    """How bad a finding is."""

    GOOD = "good"
    ADVICE = "advice"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check saw, and what to do."""

    check: str
    health: Health
    text: str


def doctor(
    *,
    triton_grpc: Annotated[
        str | None, typer.Option(help="HOST:PORT of a running Triton, to look at.")
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="Policy file: looks at each of its `servers`.")
    ] = None,
    triton_env: Annotated[Path, typer.Option(help="Environment of the embedded Triton.")] = Path(
        ".venv-triton"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Look for what keeps a sidecar from working well on this machine."""
    findings = [shared_memory(SHM), open_files(), clock(), embedded_numpy(triton_env), gpu_memory()]
    findings += [look_ahead(), machine_code()]
    servers = {} if triton_grpc is None else {"": triton_grpc}
    if policy is not None:
        servers |= {name: server.grpc for name, server in _policy(policy).servers.items()}
    findings += asyncio.run(_tritons(servers))
    if as_json:
        sys.stdout.write(json.dumps([asdict(finding) for finding in findings], indent=2) + "\n")
    else:
        sys.stdout.writelines(f"{f.health:<7} {f.check}: {f.text}\n" for f in findings)
    if any(finding.health is Health.BROKEN for finding in findings):
        raise typer.Exit(1)


def shared_memory(directory: Path) -> Finding:
    """Room for the pool. A container's own default is 64 MiB."""
    try:
        seen = os.statvfs(directory)
    except OSError as error:
        text = f"{directory}: {error.strerror}; batches travel inline"
        return Finding("shared memory", Health.ADVICE, text)
    free = seen.f_bavail * seen.f_frsize
    mib = free // (1024 * 1024)
    if free < SHM_FREE_MIN:
        text = f"{mib} MiB free in {directory}; give it more (shm_size), 64 MiB at least"
        return Finding("shared memory", Health.ADVICE, text)
    return Finding("shared memory", Health.GOOD, f"{mib} MiB free in {directory}")


def open_files() -> Finding:
    """Descriptors that the process may open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < FILES_MIN:
        text = f"at most {soft}; raise it to {FILES_MIN} (ulimit -n, LimitNOFILE=)"
        return Finding("open files", Health.ADVICE, text)
    return Finding("open files", Health.GOOD, f"at most {soft}")


def clock() -> Finding:
    """Deadlines need a monotonic clock finer than a millisecond."""
    step_ns = round(time.get_clock_info("monotonic").resolution * 1e9)
    if step_ns > CLOCK_STEP_NS_MAX:
        return Finding("clock", Health.BROKEN, f"moves in steps of {step_ns} ns; too coarse")
    return Finding("clock", Health.GOOD, f"moves in steps of {step_ns} ns")


def look_ahead() -> Finding:
    """Whether the default rule can be compiled."""
    why = obstacle()
    if why:
        text = f"rule 'lookahead' chooses as 'lite': {why}"
        return Finding("look-ahead", Health.ADVICE, text)
    return Finding("look-ahead", Health.GOOD, "compiled by numba")


def is_compiled() -> bool:
    """Whether core and data path run as machine code; they do the same either way."""
    return str(scheduler.__file__).endswith(".so")


def machine_code() -> Finding:
    """Compiled or not, neither is a fault."""
    text = "compiled by mypyc" if is_compiled() else "Python; a compiled build costs less CPU"
    return Finding("core and data path", Health.GOOD, text)


def embedded_numpy(environment: Path) -> Finding:
    """numpy 2 makes the embedded Triton's Python models read and write wrong values silently."""
    name = "embedded Triton"
    found = [
        made.version
        for site in environment.glob("lib/python3*/site-packages")
        for made in distributions(name="numpy", path=[str(site)])
    ]
    if not found:
        text = f"{environment} has no numpy; only a given Triton can be served"
        return Finding(name, Health.ADVICE, text)
    if int(found[0].partition(".")[0]) >= 2:
        text = f"{environment} has numpy {found[0]}: tensors are corrupted silently; install <2"
        return Finding(name, Health.BROKEN, text)
    return Finding(name, Health.GOOD, f"{environment} has numpy {found[0]}")


def gpu_memory(cuda: Callable[[], Cuda] = load, ask: Ask = ask_process) -> Finding:
    """Whether batches may lie in GPUs' memory: that needs memory of one process in another."""
    name = "CUDA shared memory"
    try:
        found = cuda()
        gpus = found.devices()
    except CudaFault as fault:
        return Finding(name, Health.GOOD, f"none: {fault}; models on the CPU need none")
    faults = [f"gpu:{n}: {why}" for n in range(len(gpus)) if (why := ipc_fault(found, n, ask))]
    if faults:
        text = f"{'; '.join(faults)}; share the pid and ipc namespaces with Triton (DESIGN 31)"
        return Finding(name, Health.ADVICE, text)
    return Finding(name, Health.GOOD, f"works between processes on {', '.join(gpus)}")


def _policy(path: Path) -> PolicyFile:
    try:
        return load_policy(path)
    except ConfigError as error:
        sys.stderr.write(f"tritonsched: {error}\n")
        raise typer.Exit(2) from error


async def _tritons(servers: Mapping[str, str]) -> list[Finding]:
    """servers: gRPC addresses by name."""
    findings: list[Finding] = []
    told: dict[str, list[ModelInfo]] = {}
    for name, address in servers.items():
        found, told[name] = await _triton(f"Triton '{name}'" if name else "Triton", address)
        findings += found
    return [*findings, *forms(told)]


def forms(told: Mapping[str, Sequence[ModelInfo]]) -> Iterator[Finding]:
    """Models that servers have in other forms: the first server alone would serve them."""
    first: dict[str, tuple[str, ModelInfo]] = {}
    for server, models in told.items():
        for model in models:
            known, info = first.setdefault(model.name, (server, model))
            if not info.is_like(model):
                text = (
                    f"{model.name}: another form on server '{server}' than on '{known}', which "
                    "serves it alone; make the configurations equal"
                )
                yield Finding("servers", Health.ADVICE, text)


async def _triton(check: str, address: str) -> tuple[list[Finding], list[ModelInfo]]:
    grpc = H2Upstream(address)
    await grpc.start()
    try:
        control = Control(grpc)
        live = await control.is_live()
        names = {model for model, _, state in await control.repository_index() if state == "READY"}
        infos = [await control.model_info(name, "") for name in sorted(names)[:MODELS_MAX]]
    except TritonschedError as error:
        return [Finding(check, Health.BROKEN, f"{address}: {error}")], []
    finally:
        await grpc.close()
    text = f"{address} {'is live' if live else 'is not live'}, {len(names)} models ready"
    first = Finding(check, Health.GOOD if live else Health.BROKEN, text)
    return [first, *batching(infos)], infos


def batching(models: list[ModelInfo]) -> Iterator[Finding]:
    """Triton's own dynamic batcher holds finished batches back once more."""
    for model in models:
        if model.queue_delay_ns is not None and not model.lone_reason:
            delay_us = model.queue_delay_ns // 1000
            text = (
                f"{model.name}: Triton's dynamic batching is on (delay {delay_us} µs); batches are "
                "made here already, so take dynamic_batching out of its config.pbtxt"
            )
            yield Finding("batching", Health.ADVICE, text)


def status(
    *,
    admin: Annotated[
        str, typer.Option(help="HOST:PORT of the sidecar's metrics and admin.")
    ] = DEFAULT_ADMIN,
    token: Annotated[
        str | None, typer.Option(envvar="TRITONSCHED_ADMIN_TOKEN", help="As --admin-token.")
    ] = None,
) -> None:
    """Say whether a running sidecar can serve, and with which policy."""
    try:
        ready = _get(admin, "/healthz/ready", token).strip()
        policy = json.loads(_get(admin, "/admin/policy", token))
        servers = _get(admin, "/admin/servers", token)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"tritonsched: no sidecar's answer from {admin}: {error}\n")
        raise typer.Exit(1) from error
    lines = (*status_lines(ready, policy), *server_lines(servers))
    sys.stdout.writelines(f"{line}\n" for line in lines)
    if ready != "ready":
        raise typer.Exit(1)


def status_lines(ready: str, policy: dict[str, Any]) -> Iterator[str]:
    """What `status` prints. ready: the text of /healthz/ready; policy: of /admin/policy."""
    yield ready
    if "policy" not in policy:
        yield f"policy  {policy.get('error', 'not shown')}"
        return
    rule = policy["policy"]["scheduler"]["policy"]
    yield f"policy  generation {policy['generation']}, rule {rule}"
    if policy["last_error"]:
        yield f"error   {policy['last_error']}"


def server_lines(servers: str) -> Iterator[str]:
    """What `status` prints of each Triton. servers: the text of /admin/servers; not JSON where the
    sidecar is an older one.
    """
    told = json.loads(servers) if servers.startswith("{") else {}
    for server in told.get("servers", ()):
        name = server["server"] or "Triton"
        version, how = server["version"] or "unknown", server["transport"]
        yield f"server  {name} {server['state']}, {server['grpc']}, version {version}, {how}"


def _get(admin: str, path: str, token: str | None) -> str:
    """The body, of an error status as well. Raises OSError if nobody answers."""
    request = admin_request(admin, path, token)
    try:
        with urllib.request.urlopen(request, timeout=STATUS_WAIT_S) as reply:  # noqa: S310
            return str(reply.read().decode())
    except urllib.error.HTTPError as error:
        return error.read().decode()
