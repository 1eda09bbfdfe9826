"""What connections cost: memory of each idle one, and the p99 of busy ones beside ten thousand.

    make bench-connections                            # both protocols, about three minutes
    make bench-connections ARGS='--only grpc --idle 5000 --active 500 --seconds 3'

Two servers a protocol, each a process of its own with the sidecar's front end and a service that
answers at once: one is alone with the active connections, the other has the idle ones beside them
(each was served once). Memory is what the second one's resident pages grew by, over the number of
idle ones; the kernel's own for sockets is not in it. The active ones ask in turn, on a schedule
that does not wait for answers; latency counts from the scheduled time; the two servers are measured
alternately, medians shown. Goals: 20 kB each idle, p99 at most 1.2 times.
"""

import argparse
import asyncio
import contextlib
import gc
import json
import resource
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ngh2
import uvloop
from tritonclient.grpc import service_pb2 as pb

from tests.bench.frontend import HOST, INFER, MESSAGE_BYTES_MAX, Echo, say
from tests.fuzz.conversation import PREFACE
from tests.fuzz.h2_server import rss_bytes
from tritonsched.backend.upstream_grpc import GrpcUpstream
from tritonsched.backend.upstream_http import HttpUpstream
from tritonsched.frontend.gate import Limits
from tritonsched.frontend.grpc_framing import framed
from tritonsched.frontend.grpc_h2_server import H2GrpcServer
from tritonsched.frontend.http_server import HttpServer
from tritonsched.ports import FILES_KEPT
from tritonsched.serve import GC_THRESHOLDS, raise_open_files

ROOT = Path(__file__).parents[2]
GRPC, HTTP = "grpc", "http"
PROTOCOLS = (GRPC, HTTP)
IDLE_BYTES_GOAL = 20_000
P99_GOAL = 1.2
DIALS_AT_ONCE = 200
HEAD = 9  # of an HTTP/2 frame
HEADERS, END_STREAM = 1, 1
ANSWER_S = 30.0  # for the last answers of a run


# -- the servers -----------------------------------------------------------------------------------


async def serve(protocol: str) -> None:
    """Say the port, then the resident bytes for each line read, until the end of the input."""
    limits = {"host": HOST, "port": 0, "request_bytes_max": MESSAGE_BYTES_MAX}
    nowhere = f"{HOST}:1"
    server: Any
    if protocol == GRPC:
        server = H2GrpcServer(Echo(), GrpcUpstream(nowhere), **limits)  # type: ignore[arg-type]  # a mapping of both
    else:
        server = HttpServer(Echo(), HttpUpstream(nowhere), **limits)  # type: ignore[arg-type]  # as above
    server.gate.limits = Limits(connections_max=1_000_000)
    await server.start()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    sys.stdout.write(f"{server.port}\n")
    sys.stdout.flush()
    while await reader.readline():
        said = {"rss": rss_bytes(), "connections": len(server.gate)}
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()


@dataclass(slots=True)
class Served:
    """A server's process."""

    process: asyncio.subprocess.Process
    protocol: str
    port: int

    async def state(self) -> dict[str, int]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"\n")
        state: dict[str, int] = json.loads(await self.process.stdout.readline())
        return state


@contextlib.asynccontextmanager
async def served(protocol: str) -> AsyncIterator[Served]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.connections", "--serve", protocol,
        cwd=ROOT, stdin=pipe, stdout=pipe,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield Served(process, protocol, int(await process.stdout.readline()))
    finally:
        process.stdin.close()
        await process.wait()


# -- the clients -----------------------------------------------------------------------------------


def http_request() -> bytes:
    told = b'{"inputs":[{"name":"IN","datatype":"FP32","shape":[1,4],'
    told += b'"parameters":{"binary_data_size":16}}],'
    told += b'"outputs":[{"name":"OUT","parameters":{"binary_data":true}}]}'
    body = told + bytes(16)
    head = f"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    head += f"Inference-Header-Content-Length: {len(told)}\r\n\r\n"
    return head.encode() + body


def grpc_start() -> tuple[bytes, bytes]:
    """What a connection begins with, and a whole call on stream 1: without compression's memory, so
    that it is the same on every stream.
    """
    made = pb.ModelInferRequest(model_name="m", id="1")
    made.inputs.add(name="IN", datatype="FP32", shape=(1, 4))
    made.raw_input_contents.append(bytes(16))
    engine = ngh2.Connection(ngh2.Role.CLIENT, ngh2.Configuration(max_deflate_dynamic_table_size=0))
    engine.initiate_connection({ngh2.Setting.HEADER_TABLE_SIZE: 0})
    engine.set_local_window_size((1 << 31) - 1)
    start = engine.data_to_send()
    assert start.startswith(PREFACE)
    engine.send_request([
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", INFER.encode()),
        (b":authority", b"x"), (b"content-type", b"application/grpc"), (b"te", b"trailers"),
    ])  # fmt: skip
    engine.send_data(1, framed(made.SerializeToString()), end_stream=True)
    return start, engine.data_to_send()


class Client(asyncio.Protocol):
    """One connection. answered: hears the number of answers that came."""

    def __init__(self, answered: Callable[["Client", int], None]) -> None:
        self._answered = answered
        self._rest = b""
        self.transport: Any = None
        self.due: list[float] = []  # when its open requests were scheduled

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None

    def ask(self) -> None:
        raise NotImplementedError


class HttpClient(Client):
    request = http_request()

    def ask(self) -> None:
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self._answered(self, data.count(b"HTTP/1.1 200 "))


class GrpcClient(Client):
    start, call = grpc_start()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._stream_id = -1
        self.transport.write(self.start)

    def ask(self) -> None:
        """The call, on the next stream."""
        self._stream_id += 2
        number = self._stream_id.to_bytes(4, "big")
        call, end = self.call, HEAD + int.from_bytes(self.call[:3], "big")
        self.transport.write(
            call[:5] + number + call[HEAD:end] + call[end : end + 5] + number + call[end + HEAD :]
        )

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        count = 0
        while len(data) >= HEAD:
            end = HEAD + int.from_bytes(data[:3], "big")
            if len(data) < end:
                break
            count += data[3] == HEADERS and bool(data[4] & END_STREAM)
            data = data[end:]
        self._rest = data
        self._answered(self, count)


CLIENTS: dict[str, type[Client]] = {GRPC: GrpcClient, HTTP: HttpClient}


class Crowd:
    """Connections to one server. latencies_s: of answers since the last run began."""

    def __init__(self, there: Served) -> None:
        self._there = there
        self.clients: list[Client] = []
        self.latencies_s: list[float] = []
        self._missing = 0
        self._complete = asyncio.Event()

    async def grow(self, count: int) -> None:
        """So many more, each served once. Raises ConnectionError if one is turned away."""
        made: list[Client] = []
        gates = asyncio.Semaphore(DIALS_AT_ONCE)

        async def dial() -> None:
            async with gates:
                _, client = await asyncio.get_running_loop().create_connection(
                    lambda: CLIENTS[self._there.protocol](self._answered), HOST, self._there.port
                )
                made.append(client)

        await asyncio.gather(*[dial() for _ in range(count)])
        self.clients += made
        self._expect(count)
        for client in made:
            client.due.append(time.perf_counter())
            client.ask()
        await self._all_answered()

    async def load(self, rate: float, seconds: float) -> float:
        """Each in turn, on a schedule. Returns the p99 in seconds."""
        count = round(rate * seconds)
        self._expect(count)
        began = time.perf_counter()
        for number in range(count):
            due = began + number / rate
            while (left := due - time.perf_counter()) > 0:
                await pause(left)
            client = self.clients[number % len(self.clients)]
            client.due.append(due)
            client.ask()
        await self._all_answered()
        return statistics.quantiles(self.latencies_s, n=100)[98]

    def _expect(self, count: int) -> None:
        self._missing = count
        self._complete.clear()
        self.latencies_s.clear()

    async def _all_answered(self) -> None:
        async with asyncio.timeout(ANSWER_S):
            await self._complete.wait()
        gone = sum(client.transport is None for client in self.clients)
        if gone:
            raise ConnectionError(f"{gone} connections were closed")

    def _answered(self, client: Client, count: int) -> None:
        now = time.perf_counter()
        for _ in range(count):
            self.latencies_s.append(now - client.due.pop(0))
        self._missing -= count
        if not self._missing:
            self._complete.set()


async def pause(seconds: float) -> None:
    passed = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, passed.set)
    await passed.wait()


# -- the comparison --------------------------------------------------------------------------------


async def compare(protocol: str, options: argparse.Namespace) -> dict[str, Any]:
    """Memory of idle connections, and p99 of active ones without and with them."""
    async with served(protocol) as alone, served(protocol) as beside:
        quiet, idle, busy = Crowd(alone), Crowd(beside), Crowd(beside)
        await quiet.grow(options.active)
        await idle.grow(1)  # what the first connection brings is not a connection's
        before = await beside.state()
        await idle.grow(options.idle - 1)
        after = await beside.state()
        each = (after["rss"] - before["rss"]) / (options.idle - 1)
        say(f"{protocol}: {each:.0f} bytes for each of {after['connections']} idle connections")
        await busy.grow(options.active)
        pairs = []
        for _ in range(options.repetitions):
            pair = [await crowd.load(options.rate, options.seconds) for crowd in (quiet, busy)]
            say(f"{protocol}: p99 {pair[0] * 1e3:.2f} ms alone, {pair[1] * 1e3:.2f} ms beside")
            pairs.append(pair)
    medians = [statistics.median(column) for column in zip(*pairs, strict=True)]
    return {
        "protocol": protocol, "idle": options.idle, "active": options.active,
        "bytes_each": round(each), "p99_alone_ms": medians[0] * 1e3, "p99_ms": medians[1] * 1e3,
        "ratio": statistics.median(pair[1] / pair[0] for pair in pairs),
    }  # fmt: skip


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| protocol | idle | bytes each | active | p99 alone | p99 beside idle | times |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['protocol']} | {row['idle']} | {row['bytes_each']} | {row['active']} "
        f"| {row['p99_alone_ms']:.2f} ms | {row['p99_ms']:.2f} ms | {row['ratio']:.2f} |"
        for row in rows
    ]
    small = all(row["bytes_each"] <= IDLE_BYTES_GOAL for row in rows)
    quick = all(row["ratio"] <= P99_GOAL for row in rows)
    words = {True: "reached", False: "missed"}
    lines.append(
        f"\n{IDLE_BYTES_GOAL} bytes each idle: {words[small]}; "
        f"p99 at most {P99_GOAL} times: {words[quick]}"
    )
    return "\n".join(lines)


def check_open_files(connections: int) -> str:
    """What is wrong with the limit; empty if nothing is."""
    raise_open_files()
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    say(f"{files} open files allowed, {connections + FILES_KEPT} wanted")
    if files != resource.RLIM_INFINITY and files < connections + FILES_KEPT:
        return (
            f"{files} open files do not hold {connections} connections: ulimit -Hn, or fewer --idle"
        )
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--idle", type=int, default=10_000)
    parser.add_argument("--active", type=int, default=1_000)
    parser.add_argument("--rate", type=float, default=1_000, help="requests a second, all together")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each run")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--only", choices=PROTOCOLS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", choices=PROTOCOLS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    fault = check_open_files(2 * options.active + options.idle) if not options.serve else ""
    raise_open_files()
    if fault:
        parser.error(fault)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if options.serve:
            runner.run(serve(options.serve))
            return
        names = (options.only,) if options.only else PROTOCOLS
        rows = [runner.run(compare(name, options)) for name in names]
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    sys.stdout.write(markdown(rows) + "\n")


if __name__ == "__main__":
    main()
