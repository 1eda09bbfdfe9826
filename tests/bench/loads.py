"""Three generators: h2load (C), grpcio's own clients, NVIDIA's perf_analyzer. Rule: each is a
process of its own, sends a number of requests that is given, and fails loudly if one of them was
not answered.
"""

import asyncio
import json
import os
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.meter import ROOT, quantile
from tritonsched.backend.upstream_grpc import SERVICE

INFER = f"{SERVICE}ModelInfer"
H2LOAD_MISSING = "h2load is needed; on Debian or Ubuntu: apt install nghttp2-client"
PERF_ANALYZER = ROOT / ".tools" / "perf_analyzer" / "perf_analyzer"
PERF_ANALYZER_MISSING = "perf_analyzer is not set up; `make perf-analyzer` does it"
RUN_S_MAX = 120.0
_DONE = re.compile(r"requests: \d+ total, .* (\d+) succeeded, ")
_RATE = re.compile(r"finished in [^,]+, ([0-9.]+) req/s")
_STATUS = re.compile(r"status codes: (\d+) 2xx")


@dataclass(frozen=True, slots=True)
class Sped:
    """How it went. sent: all requests, those to warm up included; 0 if that is not known. Times in
    µs, as the generator saw them.
    """

    sent: int

    requests_per_s: float
    p50_us: float
    p99_us: float


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, over and over. path, headers: beside those that every gRPC call has. body: as
    the protocol frames it. http: HTTP/1.1.
    """

    body: bytes
    path: str = INFER
    headers: tuple[str, ...] = ("content-type: application/grpc", "te: trailers")
    http: bool = False


def has_h2load() -> bool:
    return shutil.which("h2load") is not None


async def h2load(
    address: str, asked: Asked, *, requests: int, connections: int, streams: int = 1, rate: int = 0
) -> Sped:
    """rate: of each connection, 0 for as fast as it goes. Raises RuntimeError."""
    with tempfile.TemporaryDirectory() as name:
        body, log = Path(name, "body"), Path(name, "log")
        await asyncio.to_thread(body.write_bytes, asked.body)
        command = [
            "h2load", "-n", str(requests), "-c", str(connections), "-m", str(streams), "-t", "1",
            "-d", str(body), f"--log-file={log}",
            *(word for header in asked.headers for word in ("-H", header)),
            *(("--h1",) if asked.http else ()), *((f"--rps={rate}",) if rate else ()),
            f"http://{address}{asked.path}",
        ]  # fmt: skip
        text = await _run(command)
        done, speed, fine = _DONE.search(text), _RATE.search(text), _STATUS.search(text)
        if done is None or speed is None or fine is None:
            raise RuntimeError(f"h2load at {address}:\n{text}")
        if {int(done.group(1)), int(fine.group(1))} != {requests}:
            raise RuntimeError(f"{address}: not every request was answered:\n{text}")
        took = _latencies(log)
    return Sped(requests, float(speed.group(1)), quantile(took, 0.5), quantile(took, 0.99))


def _latencies(log: Path) -> list[float]:
    """In µs, ordered: the third column of h2load's log."""
    return sorted(float(line.split("\t")[2]) for line in log.read_text().splitlines())


async def grpcio(address: str, asked: Asked, *, requests: int, threads: int) -> Sped:
    """Threads of one grpcio channel, each with one call at a time. Raises RuntimeError."""
    with tempfile.NamedTemporaryFile() as body:
        body.write(asked.body)
        body.flush()
        command = [
            sys.executable, "-m", "tests.bench.grpc_clients", "--target", address,
            "--body", body.name, "--requests", str(requests), "--threads", str(threads),
        ]  # fmt: skip
        told: dict[str, Any] = json.loads(await _run(command))
    return Sped(**told)


async def perf_analyzer(address: str, model: str, *, requests: int, in_flight: int) -> Sped:
    """NVIDIA's client over gRPC. Raises RuntimeError."""
    command = [
        str(PERF_ANALYZER), "-i", "grpc", "-u", address, "-m", model,
        "--concurrency-range", str(in_flight), "--async", "--max-trials", "3",
        "--measurement-mode", "count_windows", "--measurement-request-count", str(requests),
        "--stability-percentage", "999", "--percentile", "50",
    ]  # fmt: skip
    text = await _run(command, LD_LIBRARY_PATH=str(PERF_ANALYZER.parent))
    rate = re.search(r"Throughput: ([0-9.]+) infer/sec", text)
    took = {int(share): float(us) for share, us in re.findall(r"p(\d+) latency: (\d+) usec", text)}
    if rate is None or not {50, 99} <= set(took):
        raise RuntimeError(f"perf_analyzer at {address}:\n{text[-2000:]}")
    return Sped(0, float(rate.group(1)), took[50], took[99])


async def _run(command: list[str], **environment: str) -> str:
    """What it printed. Raises RuntimeError if it failed or took too long."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=ROOT,
        env=os.environ | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(RUN_S_MAX):
            output, errors = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise RuntimeError(f"{command[0]} took longer than {RUN_S_MAX:g} s") from None
    if process.returncode:
        told = (output + errors).decode(errors="replace")[-2000:]
        raise RuntimeError(f"{command[0]} ended with {process.returncode}:\n{told}")
    return output.decode(errors="replace")
