"""What Triton still owes a stream's client, and what may be sent on meanwhile. Rule: no I/O.

- Triton says with each answer whether it is a message's last (`triton_final_response`); if a
  decoupled model ends without one, it says so only to those who ask
  (`triton_enable_empty_final_response`). Every message asks here; a client that did not ask does
  not hear it.
- A refusal stands behind the first answers of the messages before it.
- Messages of decoupled and of ordinary models are not at Triton together: it aborts when both
  answer on one stream in the same moment (`!byte_buffer->Valid()`; 2.51, within some dozen tries;
  of a kind with server issue 7472). Two decoupled ones, or two ordinary ones, do it no harm.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as pb

UNANSWERED_MAX = 1024  # messages of a stream at Triton; one more waits
_ASKS = "triton_enable_empty_final_response"
_FINAL = "triton_final_response"


def _asking() -> bytes:
    made = pb.ModelInferRequest()
    made.parameters[_ASKS].bool_param = True
    encoded: bytes = made.SerializeToString()
    return encoded


_ASKING = _asking()  # appended to a message: of a map's entries with one key the last one counts


def asking(message: bytes) -> tuple[bytes, bool]:
    """The message as it is sent, so that Triton says when it ends; whether the client asked.

    One that asks in a form that is wrong stays so: Triton says what is wrong with it.
    """
    if _ASKS.encode() in message:  # else no need to look closely
        given = pb.ModelInferRequest.FromString(message).parameters
        if _ASKS in given:
            kind = given[_ASKS].WhichOneof("parameter_choice")
            if kind != "bool_param" or given[_ASKS].bool_param:
                return message, True
    return message + _ASKING, False


@dataclass(slots=True, eq=False)
class Message:
    """One that is sent to Triton, or a refusal that waits behind such.

    answered: whether its first answer was one (not an error). asked: the client wants to hear of
    an end that is no answer.
    """

    id: str
    model: str = ""
    is_decoupled: bool = False
    asked: bool = False
    refusal: bytes = b""
    answered: asyncio.Future[bool] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Owed:
    """emit: gives the client one message."""

    def __init__(self, emit: Callable[[bytes], None]) -> None:
        self._emit = emit
        self._order: deque[Message] = deque()  # without a first answer, and refusals
        self._running: list[Message] = []  # without the last
        self._changed = asyncio.Event()

    async def clear_for(self, is_decoupled: bool | None) -> None:
        """Wait until a message of such a model may be sent (None: it is not known which)."""
        while len(self._running) >= UNANSWERED_MAX or any(
            message.is_decoupled is not is_decoupled for message in self._running
        ):
            self._changed.clear()
            await self._changed.wait()

    def sent(self, message: Message) -> None:
        self._order.append(message)
        self._running.append(message)

    def refused(self, name: str, refusal: bytes) -> None:
        self._order.append(Message(name, refusal=refusal))
        self._flush()

    def heard(self, raw: bytes) -> None:
        """Triton said this."""
        try:
            answer = pb.ModelStreamInferResponse.FromString(raw)
        except DecodeError:
            self._emit(raw)  # the client's to judge
            return
        response, is_error = answer.infer_response, bool(answer.error_message)
        message = self._answered(response.id, response.model_name)
        is_last = is_error or response.parameters[_FINAL].bool_param
        is_no_answer = is_last and not (is_error or response.outputs)
        if message is None or message.asked or not (is_no_answer and message.is_decoupled):
            self._emit(raw)
        if message is not None:
            self._note(message, is_error=is_error, is_last=is_last or not message.is_decoupled)

    def end(self) -> None:
        """Nobody answers any more; refusals are said."""
        waiting, self._order = self._order, deque()
        for message in (*self._running, *waiting):
            settle(message.answered, value=False)
        self._running.clear()
        self._changed.set()
        for message in waiting:
            if message.refusal:
                self._emit(message.refusal)

    def _answered(self, name: str, model: str) -> Message | None:
        """The oldest that it may be the answer to. An error names no model."""
        for message in self._running:
            if message.id == name and model in ("", message.model):
                return message
        return None

    def _note(self, message: Message, *, is_error: bool, is_last: bool) -> None:
        settle(message.answered, value=not is_error)
        if message in self._order:
            self._order.remove(message)
            self._flush()
        if is_last:
            self._running.remove(message)
            self._changed.set()

    def _flush(self) -> None:
        """Refusals that stand behind no one."""
        while self._order and self._order[0].refusal:
            self._emit(self._order.popleft().refusal)


def settle(future: "asyncio.Future[bool]", *, value: bool) -> None:
    """Once; what is settled stays."""
    if not future.done():
        future.set_result(value)
