"""The gRPC port in a process of its own, for the fuzzer. Rule: the real server; only what is behind
it is played.

Each line on its input is answered by a line of JSON: tasks, open files, resident bytes,
connections, and what went wrong in the loop since the line before.
"""

import asyncio
import json
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import grpc.aio
import uvloop

from tests.unit.frontend.services import Service, merged
from tests.unit.frontend.wires import HOST
from tritonsched.errors import TritonUnavailable
from tritonsched.frontend.gate import Gate
from tritonsched.frontend.grpc_h2_server import H2GrpcServer
from tritonsched.tensors import Answer, Cancel, Done, GrpcReply, InferCall, Send

REQUEST_BYTES_MAX = 1 << 20
FAULTS_MAX = 20  # told at once


class Turns(Service):
    """Answers in a later turn, so calls are cancelled while they wait, too."""

    def submit(self, call: InferCall, done: Done, send: Send | None = None) -> Cancel:
        if send is not None:
            cancel = super().submit(call, done, send)
            self.calls.clear()
            return cancel
        return asyncio.get_running_loop().call_later(0.001, done, merged()).cancel

    async def infer(self, call: InferCall) -> Answer:
        return merged()


class Stream:
    """A stream to Triton that says everything back."""

    def __init__(self, messages: AsyncIterator[bytes]) -> None:
        self._messages = messages

    async def initial_metadata(self) -> tuple[()]:
        return ()

    async def trailing_metadata(self) -> tuple[()]:
        return ()

    async def read(self) -> Any:
        return await anext(self._messages, grpc.aio.EOF)  # type: ignore[attr-defined]  # not in the stubs


class Upstream:
    """A Triton that answers all with nothing."""

    address = "played"

    async def start(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""

    def send(self, *_given: Any) -> None:
        raise AssertionError

    async def unary(self, *_given: Any) -> GrpcReply:
        return GrpcReply("OK", "", b"")

    def stream(
        self, _method: str, messages: AsyncIterator[bytes], _metadata: Iterable[Any] = ()
    ) -> Stream:
        return Stream(messages)

    def error_reply(self, error: grpc.aio.AioRpcError) -> GrpcReply:
        raise TritonUnavailable(str(error))


class Told:
    """What went wrong in the loop."""

    def __init__(self) -> None:
        self.faults: list[str] = []

    def __call__(self, _loop: Any, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.faults.append(f"{context.get('message')}: {error!r}")

    def take(self) -> list[str]:
        faults, self.faults = self.faults, []
        return faults[:FAULTS_MAX]


def rss_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def serve() -> None:
    loop = asyncio.get_running_loop()
    told, ended = Told(), Counter[str]()
    loop.set_exception_handler(told)
    gate = Gate(ended=lambda reason: ended.update([reason]))
    server = H2GrpcServer(
        Turns(), Upstream(), host=HOST, port=0, request_bytes_max=REQUEST_BYTES_MAX, gate=gate
    )
    await server.start()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    say({"port": server.port})
    while await reader.readline():
        state = {
            "tasks": len(asyncio.all_tasks()),
            "files": len(os.listdir("/proc/self/fd")),
            "rss_bytes": rss_bytes(),
            "connections": len(gate),
            "ended": dict(ended),
            "faults": told.take(),
        }
        say(state)
    await server.stop()


def say(state: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(state) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())
