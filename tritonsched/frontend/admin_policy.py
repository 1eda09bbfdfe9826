"""`/admin/policy` and `/admin/reload` on the operator's port.

Rule: who may read metrics may not steer. Both answer loopback only, unless a token is set; then
whoever has it (`Authorization: Bearer …`). A request that carries `Origin` comes from a web page
and is refused: nobody's browser reloads a policy.
"""

import hmac
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any

import orjson
from aiohttp import web

from tritonsched.proxy.reload import REFUSED, Reloader


def add_policy_routes(app: web.Application, reloader: Reloader, token: str | None) -> None:
    """Routes for operators. token: None lets in loopback alone."""

    async def show(_: web.Request) -> web.Response:
        return _json(state(reloader))

    async def reload(_: web.Request) -> web.Response:
        made = await reloader.reload()
        refused = made.outcome == REFUSED
        return _json(asdict(made), HTTPStatus.UNPROCESSABLE_ENTITY if refused else HTTPStatus.OK)

    app.router.add_get("/admin/policy", _guarded(show, token))
    app.router.add_post("/admin/reload", _guarded(reload, token))


def state(reloader: Reloader) -> dict[str, Any]:
    """The policy in use, how the last reload ended, and the last error that still stands."""
    return {
        "generation": reloader.last.generation,
        "policy": reloader.policy.model_dump(),
        "last_reload": asdict(reloader.last),
        "last_error": reloader.last_error,
    }


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _guarded(handler: Handler, token: str | None) -> Handler:
    async def guarded(request: web.Request) -> web.StreamResponse:
        reason = _why_not(request, token)
        if reason:
            return _json({"error": reason}, HTTPStatus.FORBIDDEN)
        return await handler(request)

    return guarded


def _why_not(request: web.Request, token: str | None) -> str:
    if "Origin" in request.headers:
        return "requests of web pages are refused"
    if token is not None:
        given = request.headers.get("Authorization", "").encode()
        is_known = hmac.compare_digest(given, f"Bearer {token}".encode())
        return "" if is_known else "needs the header 'Authorization: Bearer TOKEN'"
    return "" if _is_loopback(request.remote) else "loopback only; set --admin-token for others"


def _is_loopback(remote: str | None) -> bool:
    try:
        address = ip_address(remote or "")
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _json(data: dict[str, Any], status: int = HTTPStatus.OK) -> web.Response:
    return web.Response(body=orjson.dumps(data), content_type="application/json", status=status)
