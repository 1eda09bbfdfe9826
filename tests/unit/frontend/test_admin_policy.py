"""Who may steer, and what they are told."""

import asyncio
import json

import pytest

from tests.unit.frontend.http_client import Reply, connected
from tests.unit.frontend.test_admin_server import View
from tests.unit.frontend.wires import HOST
from tritonsched.config.load import parse_policy
from tritonsched.config.schema import PolicyFile
from tritonsched.core.ledger import Ledger
from tritonsched.frontend.admin_server import AdminServer
from tritonsched.proxy.reload import Reloader


def reloader(text: str) -> Reloader:
    async def read() -> PolicyFile:
        return parse_policy(text, "p.yaml")

    async def pause(_: float) -> None:
        await asyncio.Event().wait()

    return Reloader(
        PolicyFile(),
        read=read,
        adopt=lambda _: None,
        ledger=Ledger(),
        told=lambda _: None,
        pause=pause,
    )


async def ask(
    made: Reloader, method: str, path: str, *headers: str, token: str | None = None
) -> Reply:
    server = AdminServer(View(), host=HOST, port=0, reloader=made, token=token)
    await server.start()
    try:
        async with connected(server.port) as client:
            client.ask(method, path, "Host: x", *headers)
            return await client.reply()
    finally:
        await server.stop()


async def test_a_reload_is_answered_with_what_changed() -> None:
    made = reloader("scheduler: {window_ms: 3}\n")
    reply = await ask(made, "POST", "/admin/reload")
    assert reply.status == 200
    told = json.loads(reply.body)
    assert (told["outcome"], told["generation"]) == ("applied", 2)
    assert told["changes"] == ["scheduler.window_ms 0.0→3.0"]
    shown = json.loads((await ask(made, "GET", "/admin/policy")).body)
    assert (shown["generation"], shown["policy"]["scheduler"]["window_ms"]) == (2, 3.0)


async def test_a_refused_reload_is_422_with_each_fault_and_stays_to_be_read() -> None:
    made = reloader("scheduler: {windw_ms: 3}\n")
    reply = await ask(made, "POST", "/admin/reload")
    assert reply.status == 422
    (fault,) = json.loads(reply.body)["faults"]
    assert (fault["line"], fault["column"], fault["path"]) == (1, 13, "scheduler.windw_ms")
    shown = json.loads((await ask(made, "GET", "/admin/policy")).body)
    assert "did you mean 'window_ms'" in shown["last_error"]
    assert shown["policy"]["scheduler"]["window_ms"] == 0.0


REFUSED = {
    "a web page": (("Origin: http://evil",), None),
    "no token": ((), "secret"),
    "another token": (("Authorization: Bearer secreT",), "secret"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_who_may_not_steer_is_told_why(name: str) -> None:
    headers, token = REFUSED[name]
    made = reloader("")
    reply = await ask(made, "POST", "/admin/reload", *headers, token=token)
    assert reply.status == 403
    assert json.loads(reply.body)["error"]
    assert made.last.generation == 1


async def test_the_token_lets_in() -> None:
    headers = ("Authorization: Bearer secret",)
    reply = await ask(reloader(""), "POST", "/admin/reload", *headers, token="secret")
    assert reply.status == 200
