"""generate and generate_stream: Triton's bytes as they come, opened when it is their turn.

Rule: the call holds a device until Triton's first answer, within a bound (`proxy/streaming.py`); a
refusal comes before any byte, as an ordinary HTTP error. A client that leaves while it waits was
never there; one that leaves later is read to the end for.
"""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace

from tritonsched.backend.upstream_http import HttpCalls, HttpStream
from tritonsched.errors import TritonschedError
from tritonsched.frontend.http_codec import decode
from tritonsched.frontend.http_message import HttpRequest
from tritonsched.frontend.service import InferService
from tritonsched.proxy.streaming import hold
from tritonsched.tensors import Answer, HttpReply, InferCall

_OK_BELOW = 400


def generate_call(request: HttpRequest, raw_path: str, model: str, version: str) -> InferCall:
    """The call as scheduling sees it. Its parameters are the model's: `timeout` is no deadline."""
    call = decode(
        model=model,
        version=version,
        path=raw_path,
        headers=request.headers,
        body=request.body,
        received_ns=request.received_ns,
    )
    hints = replace(call.hints, timeout_us=None)
    return replace(call, inputs=(), hints=hints, form=None, lone_reason="generate")


class Generation:
    """One call. `open` waits for its turn and for Triton's first answer; what Triton says then is
    read from `stack`, which must be closed in the end.
    """

    def __init__(self, upstream: HttpCalls, request: HttpRequest, raw_path: str) -> None:
        self._upstream = upstream
        self._request = request
        self._raw_path = raw_path
        loop = asyncio.get_running_loop()
        self._opened: asyncio.Future[HttpStream] = loop.create_future()
        self._answered: asyncio.Future[bool] = loop.create_future()
        self._opening: asyncio.Task[None] | None = None
        self._call: InferCall | None = None
        self.stack = AsyncExitStack()

    async def open(self, service: InferService, call: InferCall) -> HttpStream:
        """Raises a leaf of TritonschedError."""
        self._call = call
        cancel = service.submit(call, self._done, self._send)
        try:
            return await self._opened
        except asyncio.CancelledError:
            cancel()
            if not self._opened.cancelled():  # it was opened at this very moment
                await self.stack.aclose()
            raise

    async def _send(self, expected_ns: int) -> HttpReply:
        """The device's part of it."""
        if self._opened.done():
            return HttpReply(499, "", (), b"")  # its client left as its turn came
        self._opening = asyncio.get_running_loop().create_task(self._open())
        is_ok = await hold(self._answered, expected_ns)
        return HttpReply(500 if is_ok is False else 200, "", (), b"")

    async def _open(self) -> None:
        request = self._request
        stream = self._upstream.stream(
            request.method,
            self._raw_path,
            request.headers,
            request.body,
            server=self._call.server if self._call else "",
        )
        try:
            reply = await self.stack.enter_async_context(stream)
        except TritonschedError as error:
            self._answered.set_result(False)
            self._done(error)
            return
        self._answered.set_result(reply.status < _OK_BELOW)
        if self._opened.done():
            await self.stack.aclose()
        else:
            self._opened.set_result(reply)

    def _done(self, outcome: Answer | TritonschedError) -> None:
        if isinstance(outcome, TritonschedError) and not self._opened.done():
            self._opened.set_exception(outcome)
