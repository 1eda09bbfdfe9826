"""What a gRPC front end costs: CPU a request of an echo of 12 KB over 32 connections.

    make bench-frontend                              # the table (about a minute)
    make bench-frontend ARGS='--server ngh2 --requests 200000'   # one alone, for a profiler

Three servers answer a ModelInferRequest of one fp32 tensor of 3x32x32 with that tensor: a bare
grpc.aio handler that returns the message it got, and the sidecar's two front ends (grpcio, ngh2)
with a service that answers at once. h2load asks, one request at a time on each connection. The CPU
is the server process' own, all its threads, from schedstat; repetitions are interleaved, medians
shown. Goal G1: ngh2 at most a fifth of the bare grpc.aio echo.
"""

import argparse
import asyncio
import contextlib
import gc
import json
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import uvloop
from tritonclient.grpc import service_pb2 as pb

from tritonsched.backend.upstream_grpc import SERVICE, GrpcUpstream
from tritonsched.core.batch import Refuse
from tritonsched.frontend.grpc_h2_server import H2GrpcServer
from tritonsched.frontend.grpc_server import GrpcServer
from tritonsched.proxy.client_regions import ClientRegions
from tritonsched.proxy.families import Families
from tritonsched.proxy.reserving import Entry, Reservations
from tritonsched.proxy.shield import Shield
from tritonsched.proxy.tallies import Tallies
from tritonsched.proxy.wish import Wish
from tritonsched.serve import GC_THRESHOLDS
from tritonsched.tensors import Answer, Cancel, Done, InferCall, MergedReply, Send, Tensor

ROOT = Path(__file__).parents[2]
HOST = "127.0.0.1"
INFER = f"{SERVICE}ModelInfer"
SHAPE = (1, 3, 32, 32)
DATA = bytes(range(256)) * (4 * 3 * 32 * 32 // 256)
MESSAGE_BYTES_MAX = 1 << 20
GOAL = 5.0  # times cheaper than the bare echo
BARE, GRPCIO, NGH2 = "bare grpc.aio echo", "grpcio", "ngh2"
SERVERS = (BARE, GRPCIO, NGH2)
WARM_UP = 3_000  # requests
_DONE = re.compile(r"requests: \d+ total, .* (\d+) succeeded, ")
_RATE = re.compile(r"finished in [^,]+, ([0-9.]+) req/s")


class Echo:
    """An InferService that answers at once, with what it was given."""

    is_ready = True

    def __init__(self) -> None:
        self.regions = ClientRegions(is_local=lambda: True)
        self.tallies = Tallies()
        self.families = Families()
        self.shield = Shield()
        self.reservations = Reservations(
            reserve=lambda _: None, release=lambda _: None, clock=time.monotonic_ns
        )

    def is_decoupled(self, _call: InferCall) -> bool | None:
        return False

    def hopeless(self, _call: InferCall) -> None:
        return None

    async def reserve(self, wish: Wish) -> Entry | Refuse:
        raise AssertionError(wish)

    def submit(self, call: InferCall, done: Done, send: Send | None = None) -> Cancel:
        done(self._answer(call))
        return lambda: None

    async def infer(self, call: InferCall) -> Answer:
        return self._answer(call)

    async def invalidate(self, model: str) -> None:
        raise AssertionError(model)

    def open_stream(self, close: Callable[[], None]) -> Callable[[], None]:
        raise AssertionError(close)

    def _answer(self, call: InferCall) -> Answer:
        assert not call.lone_reason, call.lone_reason
        (given,) = call.inputs
        return MergedReply(
            call.model, "1", (Tensor("OUT", given.datatype, given.shape, given.data),)
        )


def request() -> bytes:
    """The message: what tritonclient sends for one tensor."""
    made = pb.ModelInferRequest(model_name="m", id="1")
    made.inputs.add(name="IN", datatype="FP32", shape=SHAPE)
    made.outputs.add(name="OUT")
    made.raw_input_contents.append(DATA)
    message: bytes = made.SerializeToString()
    return message


# -- the servers, each a process of its own ------------------------------------------------------


async def bare() -> tuple[int, Any]:
    """grpc.aio with one raw handler: as cheap as it gets."""

    async def echo(message: bytes, _context: Any) -> bytes:
        return message

    handler = grpc.unary_unary_rpc_method_handler(echo)
    server = grpc.aio.server()
    service, _, method = INFER.strip("/").rpartition("/")
    generic = grpc.method_handlers_generic_handler(service, {method: handler})
    server.add_generic_rpc_handlers((generic,))
    port = server.add_insecure_port(f"{HOST}:0")
    await server.start()
    return port, server


async def ours(name: str) -> tuple[int, Any]:
    make = H2GrpcServer if name == NGH2 else GrpcServer
    upstream = GrpcUpstream(f"{HOST}:1")  # nothing is forwarded
    server = make(Echo(), upstream, host=HOST, port=0, request_bytes_max=MESSAGE_BYTES_MAX)
    await server.start()
    return server.port, server


def settle() -> None:
    """The garbage collector as a sidecar has it."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


async def serve(name: str) -> None:
    """Say the port, then serve until the end of the input."""
    port, _server = await (bare() if name == BARE else ours(name))
    settle()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


@dataclass(frozen=True, slots=True)
class Served:
    """A server's process."""

    name: str
    pid: int
    port: int

    def cpu_ns(self) -> int:
        """CPU time so far of all threads."""
        tasks = Path("/proc", str(self.pid), "task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks)


@contextlib.asynccontextmanager
async def served(name: str) -> AsyncIterator[Served]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.frontend", "--serve", name,
        cwd=ROOT, stdin=pipe, stdout=pipe,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        there = Served(name, process.pid, int(await process.stdout.readline()))
        await check(there)
        yield there
    finally:
        process.stdin.close()
        await process.wait()


async def check(there: Served) -> None:
    """A stock client gets its tensor back."""
    async with grpc.aio.insecure_channel(f"{HOST}:{there.port}") as channel:
        answer = await channel.unary_unary(INFER, None, None)(request())
    if there.name == BARE:
        assert answer == request()
    else:
        response = pb.ModelInferResponse.FromString(answer)
        assert (response.id, list(response.raw_output_contents)) == ("1", [DATA])


# -- the load ------------------------------------------------------------------------------------


async def load(there: Served, options: argparse.Namespace, requests: int) -> float:
    """Have h2load ask; its requests a second. Raises RuntimeError if not all were answered."""
    with tempfile.NamedTemporaryFile() as body:
        message = request()
        body.write(b"\0" + len(message).to_bytes(4, "big") + message)
        body.flush()
        process = await asyncio.create_subprocess_exec(
            "h2load", "-n", str(requests), "-c", str(options.connections), "-m", "1", "-t", "1",
            "-d", body.name, "-H", "content-type: application/grpc", "-H", "te: trailers",
            f"http://{HOST}:{there.port}{INFER}",
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output = (await process.communicate())[0].decode()
    done, rate = _DONE.search(output), _RATE.search(output)
    if done is None or rate is None or int(done.group(1)) != requests:
        raise RuntimeError(f"{there.name}: not every request was answered:\n{output}")
    return float(rate.group(1))


async def measure(there: Served, options: argparse.Namespace) -> dict[str, Any]:
    before = there.cpu_ns()
    rate = await load(there, options, options.requests)
    cpu_us = (there.cpu_ns() - before) / 1e3 / options.requests
    say(f"{there.name}: {cpu_us:.1f} µs of CPU a request, {rate:.0f} requests/s")
    return {"server": there.name, "cpu_us": round(cpu_us, 2), "requests_per_s": round(rate)}


async def compare(names: tuple[str, ...], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every server, repetitions interleaved; idle servers cost nothing."""
    rows = []
    async with contextlib.AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(served(name)) for name in names]
        for there in servers:
            await load(there, options, WARM_UP)
        for _ in range(options.repetitions):
            rows += [await measure(there, options) for there in servers]
    return rows


def say(text: str) -> None:
    sys.stderr.write(text + "\n")


def markdown(rows: list[dict[str, Any]]) -> str:
    """One line a server: medians over the repetitions."""
    lines = [
        "| gRPC front end | CPU µs/request | requests/s a core | to bare |",
        "|---|---|---|---|",
    ]
    cpu_us = {
        name: statistics.median(row["cpu_us"] for row in rows if row["server"] == name)
        for name in dict.fromkeys(row["server"] for row in rows)
    }
    for name, us in cpu_us.items():
        ratio = f"{cpu_us[BARE] / us:.1f}x" if BARE in cpu_us else "-"
        lines.append(f"| {name} | {us:.1f} | {1e6 / us:.0f} | {ratio} |")
    if BARE in cpu_us and NGH2 in cpu_us:
        reached = cpu_us[BARE] / cpu_us[NGH2]
        verdict = "reached" if reached >= GOAL else "missed"
        lines.append(f"\nG1, at least {GOAL:g}x of bare grpc.aio: {reached:.1f}x, {verdict}")
    return "\n".join(lines)


def main() -> None:
    """Parse options, run, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--server", choices=SERVERS, help="one alone")
    parser.add_argument("--json", type=Path, help="write every run's result")
    parser.add_argument("--serve", choices=SERVERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(options.serve))
        return
    if shutil.which("h2load") is None:
        parser.error("h2load is needed; on Debian or Ubuntu: apt install nghttp2-client")
    names = (options.server,) if options.server else SERVERS
    rows = asyncio.run(compare(names, options))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    sys.stdout.write(markdown(rows) + "\n")


if __name__ == "__main__":
    main()
