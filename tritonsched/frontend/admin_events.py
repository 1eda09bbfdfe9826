"""`GET /admin/events`: a frame a second as server-sent events. Rule: a listener has room for one
frame; one who reads slowly loses frames, never memory, and one who does not read at all is let go.

The form of a frame: proxy/frame.py; who makes it: show.py. Without a token only loopback may
listen, and only under a name of this machine: else any web page could read along by giving its own
name the address 127.0.0.1 (DNS rebinding).
"""

import asyncio
from http import HTTPStatus
from ipaddress import ip_address

from aiohttp import web

from tritonsched.frontend.admin_guard import as_json, guarded

LISTENERS_MAX = 16
STALL_S = 30.0  # for a listener to take a frame that no longer fits into its socket


class Listener:
    """One who listens, with the newest frame that it has not taken. lost: frames that it missed."""

    def __init__(self) -> None:
        self.lost = 0
        self._frame: bytes | None = None
        self._is_over = False
        self._news = asyncio.Event()

    def give(self, frame: bytes) -> None:
        """This one is to be next, whatever was."""
        self.lost += self._frame is not None
        self._frame = frame
        self._news.set()

    def end(self) -> None:
        """There will be no more."""
        self._is_over = True
        self._news.set()

    async def next(self) -> bytes | None:
        """The newest frame, when there is one; None at the end."""
        await self._news.wait()
        if self._is_over:
            return None
        self._news.clear()
        frame, self._frame = self._frame, None
        return frame


class Audience:
    """Everybody who listens, at most LISTENERS_MAX."""

    def __init__(self) -> None:
        self._listeners: set[Listener] = set()
        self._is_over = False

    def __len__(self) -> int:
        return len(self._listeners)

    def join(self) -> Listener | None:
        """A place; None if there is none left."""
        if self._is_over or len(self._listeners) >= LISTENERS_MAX:
            return None
        listener = Listener()
        self._listeners.add(listener)
        return listener

    def leave(self, listener: Listener) -> None:
        self._listeners.discard(listener)

    def give(self, frame: bytes) -> None:
        """A frame for everybody."""
        for listener in self._listeners:
            listener.give(frame)

    def end(self) -> None:
        """The sidecar stops: let everybody go."""
        self._is_over = True
        for listener in self._listeners:
            listener.end()


def add_event_routes(app: web.Application, audience: Audience, token: str | None) -> None:
    """The route, and the end of it when the server stops."""

    async def events(request: web.Request) -> web.StreamResponse:
        if token is None and not _is_own_name(request.host):
            reason = f"host '{request.host}' is not this machine's; use 127.0.0.1 or localhost"
            return as_json({"error": reason}, HTTPStatus.FORBIDDEN)
        listener = audience.join()
        if listener is None:
            reason = f"{LISTENERS_MAX} listen already; close one"
            return as_json({"error": reason}, HTTPStatus.SERVICE_UNAVAILABLE)
        try:
            return await _stream(request, listener)
        finally:
            audience.leave(listener)

    async def end(_: web.Application) -> None:
        audience.end()

    app.router.add_get("/admin/events", guarded(events, token))
    app.on_shutdown.append(end)


async def _stream(request: web.Request, listener: Listener) -> web.StreamResponse:
    headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    await response.write(b"retry: 2000\n\n")
    try:
        while (frame := await listener.next()) is not None:
            async with asyncio.timeout(STALL_S):
                await response.write(b"data: %b\n\n" % frame)
    except (TimeoutError, ConnectionError):
        if request.transport is not None:
            request.transport.abort()
    return response


def _is_own_name(host: str) -> bool:
    """An address, or localhost: names that nobody else can give an address."""
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        return name == "localhost"
    return True
