"""Several Tritons' HTTP ports as one. Rule: as `fleet_grpc` has it, by method and path.

| call                                                | goes to                                   |
|-----------------------------------------------------|-------------------------------------------|
| GET, and whatever is not below                      | the first that is up and says 200         |
| statistics, `repository/index`                      | all; counts are added, lists united       |
| `load`, `unload`, settings, `unregister`            | all; the first error, with its server     |
| `register`                                          | all or none, and again whoever comes up   |
| `generate`                                          | the server that the scheduler chose       |
"""

import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import orjson

from tritonsched.backend import sums
from tritonsched.backend.fleet import Ports, none_up
from tritonsched.backend.upstream_http import HttpStream, HttpUpstream
from tritonsched.errors import TritonUnavailable
from tritonsched.tensors import Buffer, HttpReply

_STATISTICS = re.compile(r"^/v2/models(?:/[^/?]+(?:/versions/[0-9]+)?)?/stats(?:\?.*)?$")
_INDEX = re.compile(r"^/v2/repository/(?:[^/?]+/)?index(?:\?.*)?$")
_REGION = re.compile(
    r"^/v2/(system|cuda)sharedmemory(?:/region/([^/?]+))?/(register|unregister)(?:\?.*)?$"
)
_TO_ALL = re.compile(
    r"^/v2/(?:repository/(?:[^/]+/)?models/[^/?]+/(?:load|unload)"
    r"|(?:models/[^/?]+/)?trace/setting|logging)(?:\?.*)?$"
)
_OK = 200
Given = tuple[tuple[str, str | bytes], ...]


class FleetHttp(Ports[HttpUpstream]):
    """All HTTP ports as one."""

    async def request(
        self, method: str, raw_path: str, headers: Iterable[tuple[str, str | bytes]], body: Buffer
    ) -> HttpReply:
        """As the table has it. Raises TritonUnavailable if no server answers."""
        kept = tuple(headers)
        if method == "GET" and _STATISTICS.match(raw_path):
            return await self._joined(sums.json_statistics, method, raw_path, kept, body)
        if method == "POST" and _INDEX.match(raw_path):
            return await self._joined(sums.json_index, method, raw_path, kept, body)
        region = _REGION.match(raw_path) if method == "POST" else None
        if region is not None:
            return await self._region(region, raw_path, kept, body)
        if method == "POST" and _TO_ALL.match(raw_path):
            return _first_error(await self._all(method, raw_path, kept, body))
        return await self._any(method, raw_path, kept, body)

    @contextlib.asynccontextmanager
    async def stream(
        self,
        method: str,
        raw_path: str,
        headers: Iterable[tuple[str, str | bytes]],
        body: Buffer,
        *,
        server: str = "",
    ) -> AsyncIterator[HttpStream]:
        """One call of that server, or of any, whose answer is passed on as it comes. Raises
        TritonUnavailable.
        """
        upstream = self._upstreams[self._members.chosen(server)]
        async with upstream.stream(method, raw_path, headers, body) as reply:
            yield reply

    # -- who is asked ---------------------------------------------------------------------------

    async def _any(self, method: str, path: str, headers: Given, body: Buffer) -> HttpReply:
        first: HttpReply | None = None
        for name in self._members:
            try:
                reply = await self._upstreams[name].request(method, path, headers, body)
            except TritonUnavailable:
                continue
            if reply.status == _OK:
                return reply
            first = first or reply
        if first is None:
            raise none_up()
        return first

    async def _all(
        self, method: str, path: str, headers: Given, body: Buffer
    ) -> dict[str, HttpReply]:
        """What each answers. Raises TritonUnavailable if none does."""
        return await self._members.ask_all(
            lambda name: self._upstreams[name].request(method, path, headers, body)
        )

    async def _joined(
        self,
        join: Callable[[list[Any]], Any],
        method: str,
        path: str,
        headers: Given,
        body: Buffer,
    ) -> HttpReply:
        """Of those that know; an error only if it is everybody's."""
        replies = (await self._all(method, path, headers, body)).values()
        good = [reply for reply in replies if reply.status == _OK]
        if len(good) < 2:  # nothing to join
            return next(iter(good or replies))
        try:
            made = orjson.dumps(join([orjson.loads(bytes(reply.body)) for reply in good]))
        except (ValueError, TypeError, LookupError, AttributeError):
            return good[0]  # the client's to judge
        kept = tuple(pair for pair in good[0].headers if pair[0].lower() != "content-length")
        return replace(good[0], headers=kept, body=made)

    # -- shared memory --------------------------------------------------------------------------

    async def _region(
        self,
        call: re.Match[str],
        path: str,
        headers: Given,
        body: Buffer,
    ) -> HttpReply:
        kind, name, verb = call.groups()
        replies = await self._all("POST", path, headers, body)
        failed = [server for server, reply in replies.items() if reply.status != _OK]
        if verb == "unregister":
            self._registrations.drop(kind, name or "")
        elif failed:  # on all or on none: a request that uses the region may go anywhere
            undo = f"/v2/{kind}sharedmemory/region/{name}/unregister"
            for server in replies.keys() - failed:
                await self._upstreams[server].request("POST", undo, (), b"")
        else:
            kept = bytes(body)

            def replay(server: str) -> Awaitable[HttpReply]:
                return self._upstreams[server].request("POST", path, headers, kept)

            self._registrations.keep(kind, name or "", replay)
        return _first_error(replies)


def _first_error(replies: Mapping[str, HttpReply]) -> HttpReply:
    """The first answer that is one, with its server's name; else the first answer."""
    for name, reply in replies.items():
        if reply.status != _OK:
            return _named(reply, name)
    return next(iter(replies.values()))


def _named(reply: HttpReply, name: str) -> HttpReply:
    try:
        told = orjson.loads(bytes(reply.body))
        body = orjson.dumps({**told, "error": f"server '{name}': {told['error']}"})
    except (ValueError, TypeError, LookupError):
        return reply
    kept = tuple(pair for pair in reply.headers if pair[0].lower() != "content-length")
    return replace(reply, headers=kept, body=body)
