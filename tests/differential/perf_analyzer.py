"""NVIDIA's perf_analyzer against the sidecar: every way of asking that it has for these models.

    make perf-analyzer                 # sets perf_analyzer up (Debian or Ubuntu), then this

For each way: does it complete, as it does against Triton itself; do Triton's counts of rows and of
requests, as perf_analyzer reads them through the sidecar, agree with what it sent; is a request's
time at the server made of queue and execution, and no longer than the client's. Figures of speed
are not compared: a few seconds on a shared machine say nothing.
"""

import argparse
import asyncio
import os
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.differential.models import write_repository
from tests.integration.sidecars import serve_process
from tritonsched.backend.embedded import EmbeddedConfig, EmbeddedTriton

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 120.0
TOLERANCE = 0.05  # of the requests: windows of client and server do not begin at the same moment
LONGER_MAX = (
    2.0  # as long at the server as at the client, for the same reason; a wait counted twice
)
ROUNDED_US = 4  # four parts, each rounded
COMMON = (
    "--measurement-mode", "count_windows", "--measurement-request-count", "50",
    "--max-trials", "6", "--stability-percentage", "999",
)  # fmt: skip
LOAD = ("--concurrency-range", "8")
PAIR = ("-m", "pair", "--shape", "A:2", "--shape", "B:2")
TEXT = ("-m", "text", "--shape", "IN:2", "--string-data", "abc")
SEQ = ("-m", "seq", "--shape", "IN:1", "--sequence-length", "5")
REPEAT = ("-m", "repeat", "--shape", "IN:3")
SHM = ("--shared-memory", "system")
WAYS: tuple[tuple[str, tuple[str, ...]], ...] = (
    *((wire, (*PAIR, *LOAD, *more)) for wire in ("http", "grpc") for more in ((), ("--async",))),
    *((wire, (*PAIR, *LOAD, *SHM, *more)) for wire in ("http", "grpc") for more in ((), ("-a",))),
    *((wire, (*PAIR, *LOAD, "-b", "4")) for wire in ("http", "grpc")),
    *((wire, (*TEXT, *LOAD, "--async")) for wire in ("http", "grpc")),
    *((wire, (*PAIR, "--request-rate-range", "100")) for wire in ("http", "grpc")),
    *((wire, (*SEQ, *LOAD)) for wire in ("http", "grpc")),
    ("http", (*PAIR, *LOAD, "--input-tensor-format", "json")),
    ("http", (*PAIR, *LOAD, "--output-tensor-format", "json")),
    *(("grpc", (*PAIR, *LOAD, "--grpc-compression-algorithm", c)) for c in ("gzip", "deflate")),
    *(("grpc", (*way, *LOAD, "--streaming", "--async")) for way in (PAIR, SEQ, REPEAT)),
)


@dataclass(frozen=True, slots=True)
class Run:
    """What perf_analyzer said. rows: of a request. sent: requests by its own count; counted: rows
    by the server's count, as requests; served: requests by the server's. latency_us: mean of a
    request, at the client. server_us: at the server; parts_us: queue and execution of that.
    """

    code: int
    text: str
    rows: int = 1

    @property
    def sent(self) -> int:
        return found("Request count", self.text)

    @property
    def counted(self) -> int:
        return found("Inference count", self.text) // self.rows

    @property
    def served(self) -> int:
        return found("Successful request count", self.text)

    @property
    def latency_us(self) -> int:
        return found("Avg latency", self.text)

    @property
    def server_us(self) -> int:
        return found("Avg request latency", self.text)

    @property
    def parts_us(self) -> int:
        return sum(map(int, re.findall(r"(?:queue|compute \w+) (\d+) usec", self.text)))

    @property
    def is_sane(self) -> bool:
        return (
            self.sent > 0
            and self._agrees(self.counted)
            and self._agrees(self.served)
            and 0 < self.parts_us <= self.server_us + ROUNDED_US
            and self.server_us <= LONGER_MAX * self.latency_us
        )

    def _agrees(self, count: int) -> bool:
        return abs(count - self.sent) <= max(8, TOLERANCE * self.sent)


async def run(binary: Path, wire: str, address: str, arguments: tuple[str, ...]) -> Run:
    """One run of perf_analyzer, ended if it takes too long."""
    environment = os.environ | {"LD_LIBRARY_PATH": str(binary.parent)}
    process = await asyncio.create_subprocess_exec(
        str(binary), "-i", wire, "-u", address, *COMMON, *arguments,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        async with asyncio.timeout(TIMEOUT_S):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return Run(-1, f"took longer than {TIMEOUT_S:g} s")
    assert process.returncode is not None
    rows = int(arguments[arguments.index("-b") + 1]) if "-b" in arguments else 1
    return Run(process.returncode, output.decode(errors="replace"), rows)


def found(name: str, text: str) -> int:
    """The first figure of this name; 0 if there is none."""
    match = re.search(rf"{name}: (\d+)", text)
    return int(match.group(1)) if match else 0


async def compare(binary: Path) -> int:
    """Every way, at Triton and at the sidecar; returns how many differ."""
    differ = 0
    with tempfile.TemporaryDirectory() as name:
        repository = Path(name) / "models"
        repository.mkdir()
        write_repository(repository)
        config = EmbeddedConfig(
            repository=repository,
            environment=ROOT / ".venv-triton",
            run_dir=Path(name) / "run",
            build_dir=ROOT / ".run" / "build",
        )
        async with EmbeddedTriton(config) as triton:
            given = ("--triton-http", triton.http_address, "--triton-grpc", triton.grpc_address)
            async with serve_process(*given, cwd=ROOT) as sidecar:
                for wire, arguments in WAYS:
                    http = wire == "http"
                    theirs = triton.http_address if http else triton.grpc_address
                    raw = await run(binary, wire, theirs, arguments)
                    ours = await run(
                        binary, wire, sidecar.http if http else sidecar.grpc, arguments
                    )
                    differ += told(wire, arguments, raw, ours)
    return differ


def told(wire: str, arguments: tuple[str, ...], raw: Run, ours: Run) -> bool:
    """Print one line; whether something is wrong."""
    wrong = ours.code != raw.code or (raw.is_sane and not ours.is_sane)
    line = f"{'DIFFERS' if wrong else 'ok':8}{wire} {' '.join(arguments)}: {figures(ours)}"
    sys.stdout.write(f"{line}; Triton: {figures(raw)}\n")
    if wrong:
        sys.stdout.write(ours.text[-2000:] + "\n")
    return wrong


def figures(run: Run) -> str:
    """In one line."""
    counts = f"{run.sent} sent, {run.counted} counted, {run.served} served"
    return f"{counts}, {run.server_us} of {run.latency_us} us at the server"


def main() -> None:
    """Exit status 1 if a way differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("binary", type=Path, help="perf_analyzer, its libraries beside it")
    options = parser.parse_args()
    differ = asyncio.run(compare(options.binary.resolve()))
    sys.stdout.write(f"{len(WAYS)} ways, {differ} differ\n")
    sys.exit(1 if differ else 0)


if __name__ == "__main__":
    main()
