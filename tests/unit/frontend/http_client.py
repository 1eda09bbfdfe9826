"""A client that says exactly the bytes it is given, and reads whole answers."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from tests.unit.frontend.wires import HOST


@dataclass(slots=True)
class Reply:
    """One answer. headers: names in lower case; the last of two."""

    status: int
    reason: str
    headers: dict[str, str]
    body: bytes = b""


@dataclass(slots=True)
class Connection:
    """One connection. interim: the statuses of the 1xx answers on the way."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    interim: list[int] = field(default_factory=list)

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def ask(self, method: str, path: str, *headers: str, body: bytes = b"") -> None:
        lines = [f"{method} {path} HTTP/1.1", *headers, f"Content-Length: {len(body)}", "", ""]
        self.send("\r\n".join(lines).encode("latin-1") + body)

    async def head(self) -> Reply:
        """Status and headers of the next answer."""
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
        _, status, reason = lines[0].split(" ", 2)
        pairs = (line.split(": ", 1) for line in lines[1:])
        return Reply(int(status), reason, {name.lower(): value for name, value in pairs})

    async def chunk(self) -> bytes:
        """The next piece of a chunked answer; empty at its end."""
        size = int(await self.reader.readuntil(b"\r\n"), 16)
        return (await self.reader.readexactly(size + 2))[:-2]

    async def reply(self) -> Reply:
        """The next whole answer."""
        made = await self.head()
        while made.status < 200:
            self.interim.append(made.status)
            made = await self.head()
        if "transfer-encoding" in made.headers:
            while piece := await self.chunk():
                made.body += piece
        else:
            made.body = await self.reader.readexactly(int(made.headers.get("content-length", "0")))
        return made

    async def is_closed(self) -> bool:
        """Wait for the other side to close; nothing more may come."""
        return await self.reader.read() == b""


@contextlib.asynccontextmanager
async def connected(port: int) -> AsyncIterator[Connection]:
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        yield Connection(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
