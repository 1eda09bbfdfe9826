"""`/admin/policy` and `/admin/reload` on the operator's port.

Rule: who may read metrics may not steer; admin_guard says who may.
"""

from dataclasses import asdict
from http import HTTPStatus
from typing import Any

from aiohttp import web

from tritonsched.frontend.admin_guard import as_json, guarded
from tritonsched.proxy.reload import REFUSED, Reloader


def add_policy_routes(app: web.Application, reloader: Reloader, token: str | None) -> None:
    """Routes for operators. token: None lets in loopback alone."""

    async def show(_: web.Request) -> web.Response:
        return as_json(state(reloader))

    async def reload(_: web.Request) -> web.Response:
        made = await reloader.reload()
        refused = made.outcome == REFUSED
        return as_json(asdict(made), HTTPStatus.UNPROCESSABLE_ENTITY if refused else HTTPStatus.OK)

    app.router.add_get("/admin/policy", guarded(show, token))
    app.router.add_post("/admin/reload", guarded(reload, token))


def state(reloader: Reloader) -> dict[str, Any]:
    """The policy in use, how the last reload ended, and the last error that still stands."""
    return {
        "generation": reloader.last.generation,
        "policy": reloader.policy.model_dump(),
        "last_reload": asdict(reloader.last),
        "last_error": reloader.last_error,
    }
