"""A call on HTTP/2, and what the connections of one server share. Rule: state; what is done with it
stands in `grpc_h2_connection`.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

from tritonsched.backend.base import GrpcCalls
from tritonsched.errors import MemoryFull, TritonschedError
from tritonsched.frontend import grpc_bodies, grpc_wire
from tritonsched.frontend.gate import Gate
from tritonsched.frontend.grpc_framing import (
    PREFIX_BYTES,
    Head,
    announced_bytes,
    is_one_message,
    message_of,
    timeout_of,
    too_large,
)
from tritonsched.frontend.grpc_h2_stream import H2Stream
from tritonsched.frontend.grpc_methods import INFER, GrpcMethods
from tritonsched.frontend.grpc_stream import Streams
from tritonsched.frontend.pieces import Pieces
from tritonsched.frontend.service import InferService
from tritonsched.http2 import Headers
from tritonsched.tensors import Cancel, InferCall

HEADS_MAX = 1024  # header lists remembered by a server
HEAD_BYTES_MAX = 4096  # longer ones are read each time
UNHEARD_MESSAGES_MAX = 8  # messages of the largest size that may be on their way on a connection
EARLY_BYTES_MIN = 64 * 1024  # a message whose end is worth not waiting for, to be refused


class Shared:
    """What the connections of one server have in common.

    request_bytes_max: a larger message is refused before it is whole.
    """

    def __init__(
        self,
        service: InferService,
        upstream: GrpcCalls,
        request_bytes_max: int,
        gate: Gate | None = None,
    ) -> None:
        self.service = service
        self.methods = GrpcMethods(service, upstream)
        self.streams = Streams(service, upstream)
        self.request_bytes_max = request_bytes_max
        self.gate = Gate() if gate is None else gate
        self.tasks: set[asyncio.Task[None]] = set()
        self._heads: dict[Headers, Head] = {}

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task that is kept until it ends."""
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def head_of(self, headers: Headers) -> tuple[Head, int | None]:
        """What they say, and the timeout in ns, which differs from call to call."""
        timeout_ns: int | None = None
        for name, value in headers:
            if name == b"grpc-timeout":
                timeout_ns = timeout_of(bytes(value))
                headers = tuple([pair for pair in headers if pair[0] != name])
                break
        return self._heads.get(headers) or self._remember(headers), timeout_ns

    def _remember(self, headers: Headers) -> Head:
        head = Head(headers)
        if sum([len(name) + len(value) for name, value in headers]) <= HEAD_BYTES_MAX:
            if len(self._heads) >= HEADS_MAX:
                self._heads.clear()
            self._heads[headers] = head
            head.said = headers
        return head

    def decoded(self, call: "Call", body: bytes) -> InferCall:
        """An inference that has been heard. Raises PayloadTooLarge, ClientError."""
        kept, received_ns, timeout_ns = call.head.kept, call.received_ns, call.timeout_ns
        if len(body) > self.request_bytes_max + PREFIX_BYTES:
            raise too_large(self.request_bytes_max)
        made = grpc_bodies.decode_known(
            body, kept, received_ns=received_ns, remaining_ns=timeout_ns
        )
        if made is not None:
            return made
        is_plain = body[:1] == b"\0" and is_one_message(body)
        if is_plain:  # such a message is not copied out of its body
            return grpc_bodies.decode(body, kept, received_ns=received_ns, remaining_ns=timeout_ns)
        message = message_of(body, call.head.encoding, self.request_bytes_max)
        return grpc_wire.decode(message, kept, received_ns=received_ns, remaining_ns=timeout_ns)

    def message_of(self, call: "Call", body: bytes) -> bytes:
        """What it says. Raises PayloadTooLarge, ClientError."""
        if len(body) > self.request_bytes_max + PREFIX_BYTES:
            raise too_large(self.request_bytes_max)
        return message_of(body, call.head.encoding, self.request_bytes_max)

    def too_much(self, call: "Call", unheard_bytes: int) -> TritonschedError | None:
        """Why no more of it is heard: its own size, as announced, or its connection's."""
        size_max = self.request_bytes_max
        announced = announced_bytes(call.pieces[0])
        if max(announced, call.size_bytes) > size_max + PREFIX_BYTES:
            return too_large(size_max)
        if unheard_bytes > UNHEARD_MESSAGES_MAX * size_max:
            return MemoryFull(f"{unheard_bytes} bytes of unfinished messages on one connection")
        return None

    def hopeless(self, call: "Call") -> TritonschedError | None:
        """Why a large message need not be sent to its end, as far as its first piece tells."""
        first = call.pieces[0]
        if call.head.method != INFER or announced_bytes(first) < EARLY_BYTES_MIN:
            return None
        made = grpc_wire.decode_head(
            first, call.head.kept, received_ns=call.received_ns, remaining_ns=call.timeout_ns
        )
        return None if made is None else self.service.hopeless(made)


class Call:
    """One call. received_ns: monotonic; timeout_ns: the client's, from then on. is_heard: it has
    said all. owed_bytes: of its window, not yet given back. cancel: what its end stops.
    """

    __slots__ = (
        "cancel", "head", "is_heard", "owed_bytes", "pieces", "received_ns", "size_bytes", "stream",
        "timeout_ns", "timer",
    )  # fmt: skip

    def __init__(self, head: Head, received_ns: int, timeout_ns: int | None) -> None:
        self.head = head
        self.received_ns = received_ns
        self.timeout_ns = timeout_ns
        self.is_heard = False
        self.pieces: Pieces = []
        self.size_bytes = 0
        self.owed_bytes = 0
        self.cancel: Cancel | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.stream: H2Stream | None = None
