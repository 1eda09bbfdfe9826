"""Everything that is not an inference: passed to Triton as it came, on its own protocol.

Rule: bytes in, bytes out. Three exceptions: shared memory (`http_regions`); loading and unloading a
model invalidates what the sidecar knows of it, before and after; and readiness is Triton's word AND
our own.
"""

import re

from tritonsched.backend.upstream_http import HttpCalls
from tritonsched.frontend.family_calls import AskHttp, family_http
from tritonsched.frontend.http_regions import region_call
from tritonsched.frontend.model_statistics import http_statistics
from tritonsched.frontend.reservations import reservation_http
from tritonsched.frontend.service import InferService
from tritonsched.proxy.asked import depth_of, files_in
from tritonsched.proxy.shield import Document, Load
from tritonsched.tensors import Buffer, HttpReply

_REPOSITORY = re.compile(r"^/v2/repository/(?:[^/]+/)?models/([^/?]+)/(load|unload)(?:\?.*)?$")
_READY = re.compile(r"^/v2/health/ready(?:\?.*)?$")
_GENERATE = re.compile(
    r"^/v2/models/([^/?]+)(?:/versions/([0-9]+))?/generate(?:_stream)?(?:\?.*)?$"
)


def generates(raw_path: str) -> tuple[str, str] | None:
    """Model and version of a path whose answer comes in pieces and is passed on as it comes."""
    match = _GENERATE.match(raw_path)
    return None if match is None else (match.group(1), match.group(2) or "")


async def forward_http(
    service: InferService,
    upstream: HttpCalls,
    *,
    method: str,
    raw_path: str,
    headers: tuple[tuple[str, str], ...],
    body: Buffer,
) -> HttpReply:
    """A control call. Raises TritonUnavailable, GuardedName, Shielded or VariantsOnly."""
    service.shield.require(Document(depth_of(bytes(body))))

    async def ask(method: str, raw_path: str, body: Buffer) -> HttpReply:
        return await upstream.request(method, raw_path, headers, body)

    answer = await _ours(service, ask, method, raw_path, body)
    if answer is not None:
        return answer
    repository = _REPOSITORY.match(raw_path)
    if repository is None:
        reply = await ask(method, raw_path, body)
        if _READY.match(raw_path) and method == "GET" and not service.is_ready:
            return HttpReply(400, "", reply.headers, b"")
        return reply
    model = repository.group(1)
    if repository.group(2) == "load":
        service.shield.require(Load(model, files_in(bytes(body))))
    await service.invalidate(model)
    try:
        return await ask(method, raw_path, body)
    finally:
        await service.invalidate(model)


async def _ours(
    service: InferService, ask: AskHttp, method: str, raw_path: str, body: Buffer
) -> HttpReply | None:
    """What is not Triton's alone to answer; None: it is another call."""

    async def get(raw_path: str) -> HttpReply:
        return await ask("GET", raw_path, body)

    async def counted(method: str, raw_path: str, body: Buffer) -> HttpReply:
        stats = await http_statistics(service.tallies, get, method, raw_path)
        return await ask(method, raw_path, body) if stats is None else stats

    answer = await reservation_http(service, method, raw_path, body)
    if answer is None:
        answer = await region_call(service, ask, method, raw_path, body)
    if answer is None:
        answer = await family_http(service.families, counted, method, raw_path, body)
    if answer is None:
        answer = await http_statistics(service.tallies, get, method, raw_path)
    return answer
