"""`/admin/servers` on the operator's port: each Triton, and whether it answers. Rule: shows what is
known and asks nobody; admin_guard says who may ask.
"""

from collections.abc import Callable, Mapping, Sequence

from aiohttp import web

from tritonsched.frontend.admin_guard import as_json, guarded

States = Callable[[], Sequence[Mapping[str, str]]]


def add_server_routes(app: web.Application, states: States, token: str | None) -> None:
    """The route for operators. token: None lets in loopback alone."""

    async def show(_: web.Request) -> web.Response:
        return as_json({"servers": list(states())})

    app.router.add_get("/admin/servers", guarded(show, token))
