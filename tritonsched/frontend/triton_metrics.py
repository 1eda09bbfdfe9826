"""Triton's own metrics, fetched for a scrape of ours. Rule: whole or not at all."""

from http import HTTPStatus

import aiohttp

BYTES_MAX = 8 * 1024 * 1024
WAIT_S = 2.0  # a scrape that waits longer than that is lost anyway


async def triton_metrics(address: str) -> bytes:
    """Triton's exposition text; empty if it cannot be had. address: HOST:PORT. Never raises."""
    try:
        return await _fetched(address)
    except (aiohttp.ClientError, TimeoutError, OSError):
        return b""


async def _fetched(address: str) -> bytes:
    """Whole or not at all: an error page or half a line would spoil the scrape they join."""
    body = bytearray()
    timeout = aiohttp.ClientTimeout(total=WAIT_S)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.get(f"http://{address}/metrics") as reply,
    ):
        if reply.status != HTTPStatus.OK:
            return b""
        async for piece in reply.content.iter_any():
            body += piece
            if len(body) > BYTES_MAX:
                return b""
    return bytes(body)
