"""Shared-memory calls over HTTP. Rule: Triton answers each; we remember, hide and guard.

Registering is remembered so that merged batches can use the region. The sidecar's own pool is not
shown, and "unregister all" (every example of Triton's clients begins with it) closes the others
one by one, with Triton's own words for what goes wrong.
"""

import base64
import json
import re
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from tritonsched.frontend.service import InferService
from tritonsched.proxy.asked import offsets_in
from tritonsched.proxy.region_guard import RegionGuard
from tritonsched.proxy.shield import Register
from tritonsched.tensors import Buffer, HttpReply

Ask = Callable[[str, str, Buffer], Awaitable[HttpReply]]
"""Method, raw path, body: asks Triton with the client's own headers."""

_CALL = re.compile(
    r"^(/v2/(system|cuda)sharedmemory)(?:/region/([^/?]+))?/(status|register|unregister)(?:\?.*)?$"
)
_IN_PATH = re.compile(r"^[^/?#\s]+$")
_ALIAS = f"unknown-{secrets.token_hex(8)}"  # a name that nobody has registered
_OK = 200


async def region_call(
    service: InferService, ask: Ask, method: str, raw_path: str, body: Buffer
) -> HttpReply | None:
    """The answer to a shared-memory call; None: it is another call. Raises GuardedName,
    Shielded.
    """
    call = _CALL.match(raw_path)
    if call is None:
        return None
    base, kind, name, verb = call.groups()
    if verb == "status" and method == "GET":
        return await _status(service.shield.guard, ask, raw_path, name)
    if method != "POST" or verb == "status":
        return await ask(method, raw_path, body)
    if verb == "register":
        return await _register(service, ask, raw_path, name or "", body, is_system=kind == "system")
    if name is None:
        return await _unregister_all(service, ask, base, raw_path, body)
    service.shield.guard.require_free(name)
    reply = await ask(method, raw_path, body)
    if reply.status == _OK:
        service.regions.unregistered(name)
    return reply


async def _register(
    service: InferService, ask: Ask, raw_path: str, name: str, body: Buffer, *, is_system: bool
) -> HttpReply:
    text, guard, regions = bytes(body), service.shield.guard, service.regions
    given = _read(text)
    guard.require_free(name, str(given.get("key", "")))
    if not given:
        guard.require_free_text(text)
    if is_system:
        service.shield.require(Register(name, offsets_in(text)))
    reply = await ask("POST", raw_path, body)
    if reply.status != _OK:
        return reply
    regions.unregistered(name)  # what we cannot read is not remembered
    size = given.get("byte_size")
    if not is_system:
        device, handle = given.get("device_id"), _handle(given.get("raw_handle"))
        if isinstance(device, int) and isinstance(size, int) and handle:
            await regions.registered_cuda(name, handle, device, size)
        return reply
    key, offset = given.get("key"), given.get("offset", 0)
    if isinstance(key, str) and isinstance(offset, int) and isinstance(size, int):
        regions.registered(name, key, offset, size)
    return reply


def _handle(given: Any) -> bytes:
    """Of a CUDA region; nothing if it is not plain. given: pairs, as `_read` leaves them."""
    try:
        ((_, text),) = given
        return base64.b64decode(text, validate=True)
    except (ValueError, TypeError):
        return b""


def _read(body: bytes) -> dict[str, Any]:
    """The members; nothing if it is not plain JSON, each member once."""
    try:
        pairs = json.loads(body.decode(), object_pairs_hook=list)
        made = dict(pairs)
    except (ValueError, TypeError, RecursionError):
        return {}
    return made if len(made) == len(pairs) else {}


async def _status(guard: RegionGuard, ask: Ask, raw_path: str, name: str | None) -> HttpReply:
    if name is not None and guard.is_hidden(name):
        reply = await ask("GET", raw_path.replace(name, _ALIAS), b"")
        body = bytes(reply.body).replace(_ALIAS.encode(), name.encode())
        return HttpReply(reply.status, reply.reason, reply.headers, body)
    reply = await ask("GET", raw_path, b"")
    regions = _regions(reply)
    shown = [region for region in regions if not guard.is_hidden(region["name"])]
    if len(shown) == len(regions):
        return reply
    return HttpReply(reply.status, reply.reason, _unsized(reply), orjson.dumps(shown))


def _unsized(reply: HttpReply) -> tuple[tuple[str, str], ...]:
    return tuple(pair for pair in reply.headers if pair[0].lower() != "content-length")


def _regions(reply: HttpReply) -> list[dict[str, Any]]:
    if reply.status != _OK:
        return []
    listed = orjson.loads(bytes(reply.body))
    return [region for region in listed if isinstance(region, dict) and "name" in region]


async def _unregister_all(
    service: InferService, ask: Ask, base: str, raw_path: str, body: Buffer
) -> HttpReply:
    names = [region["name"] for region in _regions(await ask("GET", f"{base}/status", b""))]
    guard = service.shield.guard
    if not any(map(guard.is_hidden, names)):
        reply = await ask("POST", raw_path, body)
        if reply.status == _OK:
            service.regions.forget_all(cuda="/cuda" in base)
        return reply
    # An unknown name is no error to Triton: its answer is the one for having closed them all.
    answer = await ask("POST", f"{base}/region/{_ALIAS}/unregister", b"")
    for name in names:
        if guard.is_hidden(name) or not _IN_PATH.match(name):
            continue
        reply = await ask("POST", f"{base}/region/{name}/unregister", b"")
        if reply.status == _OK:
            service.regions.unregistered(name)
        else:
            answer = reply
    return answer
