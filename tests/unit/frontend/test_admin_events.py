"""Frames reach those who listen; those who do not read lose frames and hold no memory."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import pytest

from tests.unit.frontend.http_client import Connection, Reply, connected
from tests.unit.frontend.test_admin_policy import reloader
from tests.unit.frontend.test_admin_server import View
from tests.unit.frontend.wires import HOST
from tests.unit.proxy.panorama import Panorama
from tritonsched.core.policies import DEFAULT_POLICY
from tritonsched.frontend import admin_events
from tritonsched.frontend.admin_events import LISTENERS_MAX, Audience, Listener, _is_own_name
from tritonsched.frontend.admin_server import AdminServer
from tritonsched.frontend.show import Seen, Show


async def at_once(_: float) -> None:
    """A pause that is over before it began."""


@contextlib.asynccontextmanager
async def serving(audience: Audience, token: str | None = None) -> AsyncIterator[AdminServer]:
    server = AdminServer(View(), host=HOST, port=0, audience=audience, token=token)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def listening(client: Connection, audience: Audience, host: str = "localhost:8002") -> Reply:
    """The head of the answer, when the listener has its place."""
    client.ask("GET", "/admin/events", f"Host: {host}")
    head = await client.head()
    assert await client.chunk() == b"retry: 2000\n\n"
    assert len(audience) >= 1
    return head


def show(made: Panorama) -> Show:
    seen = Seen(made.overview, made.scheduler, made.ledger, reloader(""), lambda: "")
    return Show(seen, clock=lambda: made.now, wall_ns=lambda: 1_000_000_000)


async def test_a_listener_gets_each_frame_as_an_event() -> None:
    audience = Audience()
    async with serving(audience) as server, connected(server.port) as client:
        head = await listening(client, audience)
        assert head.status == 200
        assert head.headers["content-type"] == "text/event-stream"
        assert head.headers["cache-control"] == "no-store"
        for frame in (b'{"a":1}', b'{"a":2}'):
            audience.give(frame)
            assert await client.chunk() == b"data: " + frame + b"\n\n"


async def test_who_is_slow_gets_the_newest_frame_and_loses_the_others() -> None:
    audience = Audience()
    listener = audience.join()
    assert listener is not None
    for number in range(5):
        audience.give(b"%d" % number)
    assert await listener.next() == b"4"
    assert listener.lost == 4
    audience.give(b"5")
    assert (await listener.next(), listener.lost) == (b"5", 4)


async def test_places_are_few_and_free_again_when_a_listener_leaves() -> None:
    audience = Audience()
    listeners = [audience.join() for _ in range(LISTENERS_MAX)]
    assert None not in listeners
    async with serving(audience) as server, connected(server.port) as client:
        client.ask("GET", "/admin/events", "Host: localhost")
        refused = await client.reply()
        assert refused.status == 503
        assert "close one" in json.loads(refused.body)["error"]
        first = listeners[0]
        assert first is not None
        audience.leave(first)
        assert (await listening(client, audience)).status == 200


async def test_a_listener_that_never_reads_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_events, "STALL_S", 0.0)
    audience = Audience()
    gone = asyncio.Event()
    leave = audience.leave

    def left(listener: Listener) -> None:
        leave(listener)
        gone.set()

    monkeypatch.setattr(audience, "leave", left)
    async with serving(audience) as server, connected(server.port) as client:
        await listening(client, audience)
        audience.give(b"x" * 16 * 1024 * 1024)  # more than sockets hold
        await gone.wait()
        assert len(audience) == 0


async def test_a_listener_that_closes_gives_its_place_back() -> None:
    audience = Audience()
    async with serving(audience) as server:
        async with connected(server.port) as client:
            await listening(client, audience)
        while len(audience):
            audience.give(b"{}")
            await asyncio.get_running_loop().run_in_executor(None, int)  # a turn of the loop's I/O


async def test_the_end_of_the_server_ends_every_listener_at_once() -> None:
    audience = Audience()
    async with serving(audience) as server, connected(server.port) as client:
        await listening(client, audience)
        await server.stop()
        assert await client.chunk() == b""
    assert len(audience) == 0
    assert audience.join() is None


@pytest.mark.parametrize(
    ("host", "headers", "token", "word"),
    [
        ("evil.example:8002", (), None, "use 127.0.0.1 or localhost"),
        ("localhost", ("Origin: http://localhost",), None, "web pages"),
        ("localhost", (), "secret", "Bearer TOKEN"),
    ],
    ids=["a name of another's", "a web page", "no token"],
)
async def test_who_may_not_listen_is_told_why(
    host: str, headers: tuple[str, ...], token: str | None, word: str
) -> None:
    audience = Audience()
    async with serving(audience, token) as server, connected(server.port) as client:
        client.ask("GET", "/admin/events", f"Host: {host}", *headers)
        reply = await client.reply()
    assert reply.status == 403
    assert word in json.loads(reply.body)["error"]
    assert len(audience) == 0


async def test_with_the_token_any_name_is_good() -> None:
    audience = Audience()
    async with serving(audience, "secret") as server, connected(server.port) as client:
        headers = ("Host: box.example", "Authorization: Bearer secret")
        client.ask("GET", "/admin/events", *headers)
        assert (await client.head()).status == 200


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("localhost:8002", True),
        ("127.0.0.1:8002", True),
        ("10.0.0.5", True),
        ("[::1]:8002", True),
        ("[::1]", True),
        ("evil.example", False),
        ("evil.example:8002", False),
        ("localhost.evil.example", False),
        ("", False),
    ],
)
def test_an_own_name_is_an_address_or_localhost(host: str, expected: bool) -> None:
    assert _is_own_name(host) is expected


async def test_without_listeners_a_second_is_sampled_and_no_frame_is_made() -> None:
    made = Panorama(["m"], ["c"], devices=1)
    shown = show(made)
    made.overview.is_watched = True
    await shown.turn(at_once)
    assert len(made.overview.recent) == 1
    assert made.overview.is_watched is False


async def test_a_frame_tells_what_the_sidecar_knows_of_itself() -> None:
    made = Panorama(["m"], ["c"], devices=1)
    shown = show(made)
    listener = shown.audience.join()
    assert listener is not None
    reloaded = shown._seen.reloader
    reloaded.last_error = "p.yaml:1:1: no"
    await shown.turn(at_once)
    frame = json.loads(await listener.next() or b"")
    assert made.overview.is_watched is True
    assert frame["sidecar"]["notices"] == ["the last policy was refused: p.yaml:1:1: no"]
    assert (frame["sidecar"]["rule"], frame["sidecar"]["at_ms"]) == (DEFAULT_POLICY, 1000)
    assert [row["name"] for row in frame["classes"]["rows"]] == ["default"]


async def test_a_turn_comes_after_each_pause_until_it_is_cancelled() -> None:
    made = Panorama(["m"], ["c"], devices=1)
    shown = show(made)
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) > 3:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await shown.run(pause)
    assert pauses == [1.0] * 4
    assert len(made.overview.recent) == 3
