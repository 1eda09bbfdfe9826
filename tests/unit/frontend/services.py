"""The sidecar as the front ends know it, played by a test."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from tritonsched.core.batch import Refuse
from tritonsched.errors import TritonschedError
from tritonsched.frontend.status import known
from tritonsched.proxy.client_regions import ClientRegions
from tritonsched.proxy.families import Families
from tritonsched.proxy.reserving import Entry, Reservations
from tritonsched.proxy.shield import Shield
from tritonsched.proxy.tallies import Tallies
from tritonsched.proxy.wish import Wish
from tritonsched.tensors import (
    Answer,
    Cancel,
    Done,
    Explain,
    HttpReply,
    InferCall,
    MergedReply,
    Send,
    Tensor,
)

DATA = bytes(range(16))
EXPLAIN = Explain(
    queue_ns=3_120_000, batch_rows=8, batch_requests=4, variant="m", slack_ns=1_500_000
)
EXPLAINED = (
    "queue_ms=3.120; batch_rows=8; batch_requests=4; variant=m; slack_ms=1.500"  # the whole of it
)


def merged(*, explain: Explain | None = None) -> MergedReply:
    return MergedReply("m", "3", (Tensor("OUT", "FP32", (1, 4), DATA),), explain)


class Service:
    """An InferService. calls: what came; begun: what began to come, and is `refused`; said: each
    invalidation, and what a test adds. closes: of the streams that are open.
    """

    def __init__(self, answer: Callable[[InferCall], Awaitable[Answer]] | None = None) -> None:
        self.calls: list[InferCall] = []
        self.begun: list[InferCall] = []
        self.refused: TritonschedError | None = None
        self.said: list[str] = []
        self.ready = True
        self.closes: dict[object, Callable[[], None]] = {}
        self.regions = ClientRegions(is_local=lambda: True)
        self.tallies = Tallies()
        self.families = Families()
        self.reservations = Reservations(
            reserve=lambda wanted: self.said.append(f"reserve {wanted.id}"),
            release=lambda number: self.said.append(f"release {number}"),
            clock=time.monotonic_ns,
        )
        self.wishes: list[Wish] = []
        self.outcome: Entry | Refuse | None = None
        self.shield = Shield()
        self._answer = answer

    @property
    def is_ready(self) -> bool:
        return self.ready

    def submit(self, call: InferCall, done: Done, send: Send | None = None) -> Cancel:
        """A call with `send` is sent at once unless the test has an answer for it."""
        if send is not None:
            self.calls.append(call)
        doing = self.infer(call) if send is None else self._sent(call, send)
        task = asyncio.ensure_future(self._told(doing, done))
        return task.cancel

    async def _sent(self, call: InferCall, send: Send) -> Answer:
        if self._answer is not None:
            await self._answer(call)
        return await asyncio.shield(asyncio.ensure_future(send(0)))  # the driver's own: it goes on

    def hopeless(self, call: InferCall) -> TritonschedError | None:
        self.begun.append(call)
        return self.refused

    async def reserve(self, wish: Wish) -> Entry | Refuse:
        self.wishes.append(wish)
        assert self.outcome is not None
        return self.outcome

    def is_decoupled(self, _call: InferCall) -> bool | None:
        return False

    def open_stream(self, close: Callable[[], None]) -> Callable[[], None]:
        key = object()
        self.closes[key] = close

        def closed() -> None:
            self.closes.pop(key, None)

        return closed

    async def _told(self, doing: Coroutine[Any, Any, Answer], done: Done) -> None:
        try:
            done(await doing)
        except TritonschedError as error:
            done(error)
        except Exception as error:
            done(known(error))

    async def infer(self, call: InferCall) -> Answer:
        self.calls.append(call)
        return merged() if self._answer is None else await self._answer(call)

    async def invalidate(self, model: str) -> None:
        self.said.append(f"invalidate {model}")


def always(answer: Answer | Exception) -> Callable[[InferCall], Awaitable[Answer]]:
    """The same answer, or error, to every call."""

    async def given(_call: InferCall) -> Answer:
        if isinstance(answer, Exception):
            raise answer
        return answer

    return given


def http_reply(**fields: Any) -> HttpReply:
    given: dict[str, Any] = {
        "status": 400, "reason": "Bad Request", "headers": (("X-A", "1"),), "body": b"why",
    }  # fmt: skip
    return HttpReply(**(given | fields))
