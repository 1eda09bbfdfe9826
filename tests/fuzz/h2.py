"""Odd HTTP/2 by the ten thousand at the gRPC port, while a sound client is answered all the time.

    make fuzz-h2 ARGS='--minutes 30'
    make fuzz-h2 ARGS='--minutes 1 --seed 7'      # the same conversations again

The server runs in a process of its own (`h2_server`). A finding is: an exception in its loop, an
end of its process, a sound call that is not answered (one client keeps calling on one connection,
and one conversation of ten is not spoilt), memory beyond the bound, or tasks, files and connections
that stay when everybody has left. Exit code 1 if there was one; the seed makes it again.
"""

import asyncio
import contextlib
import json
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import grpc.aio
import ngh2

from tests.fuzz.command import command
from tests.fuzz.conversation import PREFACE, Frame, conversation, spoilt
from tests.unit.frontend.h2_client import INFER, REQUEST
from tests.unit.frontend.wires import HOST

ROOT = Path(__file__).parents[2]
AT_ONCE = 16  # conversations
ROUND = 400  # conversations until all leave and the server's state is looked at
ANSWER_S = 20.0  # for a sound call: the server may be busy with others, and the machine with more
QUIET_S = 0.05  # without a word from the server, a spoilt conversation is over
LEFT_S = 30.0  # for the server to see that all have left
MEMORY_BYTES_MAX = 512 << 20
FINDINGS_MAX = 20


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class Server:
    """The process. Raises EOFError when it has ended."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.port = 0

    async def heard(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        if not line:
            raise EOFError(f"the server ended: {await self.process.wait()}")
        state: dict[str, Any] = json.loads(line)
        return state

    async def state(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        return await self.heard()


class Fuzz:
    """One run. found: what was found, with its seed."""

    def __init__(self, server: Server, seed: int) -> None:
        self.server = server
        self.seed = seed
        self.found: list[str] = []
        self.counts: Counter[str] = Counter()
        self.lingering: list[asyncio.StreamWriter] = []
        self.ended: dict[str, int] = {}

    def find(self, text: str) -> None:
        self.found.append(text)
        say(f"FINDING {text}")

    async def run(self, until_s: float) -> None:
        before = await self.server.state()
        number = 0
        async with self._watched():
            while time.monotonic() < until_s and len(self.found) < FINDINGS_MAX:
                seeds = iter(range(number, number + ROUND))
                await asyncio.gather(*[self._talk(seeds) for _ in range(AT_ONCE)])
                number += ROUND
                await self._left(before)
        self.counts["conversations"] = number

    async def _talk(self, seeds: Any) -> None:
        for number in seeds:
            random = Random(f"{self.seed}/{number}")
            frames, wanted = conversation(random)
            try:
                if random.random() < 0.1:
                    await self._sound(frames, wanted, number)
                else:
                    await self._spoilt(spoilt(frames, random), random)
            except ConnectionError:
                self.counts["reset by the server"] += 1

    async def _sound(self, frames: list[Frame], wanted: list[int], number: int) -> None:
        """Every call is answered."""
        reader, writer = await asyncio.open_connection(HOST, self.server.port)
        engine = ngh2.Connection(ngh2.Role.CLIENT, ngh2.Configuration())
        engine.initiate_connection({})
        engine.data_to_send()
        for _ in range(
            max(frame.stream_id for frame in frames) // 2 + 1
        ):  # so that it knows the streams
            engine.send_request([(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/"),
                                 (b":authority", b"x")])  # fmt: skip
        engine.data_to_send()
        said = b"".join(frame.encode() for frame in frames)
        opened = [0, *wanted]  # windows, by hand
        windows = b"".join(
            b"\0\0\4\x08\0" + number.to_bytes(4, "big") + (1 << 20).to_bytes(4, "big")
            for number in opened
        )
        writer.write(PREFACE + said + windows)
        missing = set(wanted)
        try:
            async with asyncio.timeout(ANSWER_S):
                while missing and (data := await reader.read(1 << 16)):
                    engine.receive_data(data)
                    for event in engine.events():
                        headers = dict(getattr(event, "headers", ()))
                        if b"grpc-status" in headers or isinstance(event, ngh2.StreamClosed):
                            missing.discard(event.stream_id)  # type: ignore[attr-defined]  # both have one
        except TimeoutError:
            pass
        self.counts["sound"] += 1
        if missing:
            self.find(f"{self.seed}/{number}: sound calls without an answer: {sorted(missing)}")
        writer.close()

    async def _spoilt(self, said: bytes, random: Random) -> None:
        """Said in pieces, heard while there is something to hear, and left in one of many ways."""
        reader, writer = await asyncio.open_connection(HOST, self.server.port)
        while said:
            size = random.choice((len(said), len(said), 9, 1000, 20_000))
            writer.write(said[:size])
            said = said[size:]
            if random.random() < 0.5:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1):
                        await writer.drain()
        listens = random.random() < 0.8
        with contextlib.suppress(TimeoutError):
            while listens and len(await asyncio.wait_for(reader.read(1 << 16), QUIET_S)):
                pass
        self.counts["spoilt"] += 1
        leaving = random.random()
        if leaving < 0.3:
            writer.transport.abort()
        elif leaving < 0.4:
            self.lingering.append(writer)
        else:
            if leaving < 0.6 and not writer.transport.is_closing():
                writer.write_eof()
            writer.close()

    @contextlib.asynccontextmanager
    async def _watched(self) -> Any:
        task = asyncio.ensure_future(self._watch())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _watch(self) -> None:
        """A sound client on one connection: each call is answered."""
        async with grpc.aio.insecure_channel(f"{HOST}:{self.server.port}") as channel:
            infer = channel.unary_unary(INFER, None, None)
            slowest = 0.0
            while True:
                began = time.monotonic()
                try:
                    await infer(REQUEST, timeout=ANSWER_S)
                except grpc.aio.AioRpcError as error:
                    self.find(f"a sound client got {error.code()}: {error.details()}")
                slowest = max(slowest, time.monotonic() - began)
                self.counts["watched"] += 1
                self.counts["slowest watched ms"] = round(slowest * 1e3)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.Event().wait(), 0.02)

    async def _left(self, before: dict[str, Any]) -> None:
        """All leave; what they took is given back."""
        for writer in self.lingering:
            writer.transport.abort()
        self.lingering.clear()
        until_s = time.monotonic() + LEFT_S
        watching = 1  # the sound client's connection, file and tasks
        while True:
            state = await self.server.state()
            for fault in state["faults"]:
                self.find(f"round to {self.counts['spoilt']}: {fault}")
            stays = {
                name: state[name] - before[name]
                for name in ("tasks", "files", "connections")
                if state[name] > before[name] + watching
            }
            if not stays or time.monotonic() > until_s:
                break
        if stays:
            self.find(f"left behind: {stays}")
        if state["rss_bytes"] > MEMORY_BYTES_MAX:
            self.find(f"{state['rss_bytes'] >> 20} MiB resident")
        self.counts["MiB"] = max(self.counts["MiB"], state["rss_bytes"] >> 20)
        self.ended = state["ended"]


async def fuzz(minutes: float, seed: int) -> int:
    """The number of findings."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.fuzz.h2_server", cwd=ROOT, stdin=pipe, stdout=pipe
    )
    server = Server(process)
    server.port = (await server.heard())["port"]
    run = Fuzz(server, seed)
    try:
        await run.run(time.monotonic() + 60 * minutes)
    except (EOFError, ConnectionRefusedError) as error:
        run.find(f"{error}")
    assert process.stdin is not None
    process.stdin.close()
    await process.wait()
    say(f"{dict(run.counts)}, ended by reason {run.ended}")
    say(f"{len(run.found)} findings, seed {seed}")
    return len(run.found)


if __name__ == "__main__":
    command("fuzz-h2", fuzz)
