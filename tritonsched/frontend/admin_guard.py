"""Who may call `/admin/…` on the operator's port.

Rule: loopback only, unless a token is set; then whoever has it (`Authorization: Bearer …`). A
request that carries `Origin` comes from a web page and is refused: nobody's browser reloads a
policy.
"""

import hmac
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any

import orjson
from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def guarded(handler: Handler, token: str | None) -> Handler:
    """The handler for those who may, 403 with the reason for others. token: None lets in loopback
    alone.
    """

    async def guarded(request: web.Request) -> web.StreamResponse:
        reason = why_not(request, token)
        if reason:
            return as_json({"error": reason}, HTTPStatus.FORBIDDEN)
        return await handler(request)

    return guarded


def why_not(request: web.Request, token: str | None) -> str:
    """Empty if the request may pass, else the reason in words."""
    if "Origin" in request.headers:
        return "requests of web pages are refused"
    if token is not None:
        given = request.headers.get("Authorization", "").encode()
        is_known = hmac.compare_digest(given, f"Bearer {token}".encode())
        return "" if is_known else "needs the header 'Authorization: Bearer TOKEN'"
    return "" if is_loopback(request.remote) else "loopback only; set --admin-token for others"


def is_loopback(remote: str | None) -> bool:
    """Whether the address is this machine's own, in any of its forms."""
    try:
        address = ip_address(remote or "")
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def as_json(data: dict[str, Any], status: int = HTTPStatus.OK) -> web.Response:
    """`data` as the answer's body."""
    return web.Response(body=orjson.dumps(data), content_type="application/json", status=status)
