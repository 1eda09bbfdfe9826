"""Each Triton can be seen."""

import json

from tests.unit.frontend.http_client import connected
from tests.unit.frontend.test_admin_server import View
from tests.unit.frontend.wires import HOST
from tritonsched.frontend.admin_server import AdminServer

STATES = [{"server": "left", "state": "up"}, {"server": "right", "state": "away"}]


async def test_servers_and_their_states_are_shown() -> None:
    server = AdminServer(View(), host=HOST, port=0, servers=lambda: STATES)
    await server.start()
    try:
        async with connected(server.port) as client:
            client.ask("GET", "/admin/servers", "Host: x")
            reply = await client.reply()
    finally:
        await server.stop()
    assert (reply.status, json.loads(reply.body)) == (200, {"servers": STATES})
