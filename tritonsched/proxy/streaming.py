"""Work that is never merged but has an order or many answers: sequences, streams, decoupled models.

Rule: order is kept, bytes are not touched, and each call still waits for its turn on the device.

- A unary call of a sequence is let in when the one before it is answered: Triton orders calls as
  they arrive, and two of them may overtake each other on their way there. Like a message of a
  stream it has its device for a bound only: Triton may keep it until another sequence has ended.
- A message of a stream has its device until its first answer, but not for ever: a decoupled model
  may answer never, and a client may not read. Bounding it by the expected time itself would teach
  only the quick half of the answers, so the bound is HOLD_FACTOR times that (DESIGN.md 19).
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import partial

from tritonsched.backend.catalogue import ModelInfo
from tritonsched.core.batch import Batch
from tritonsched.core.request import PATIENCE_NS, Request
from tritonsched.errors import QueueFull, TritonschedError
from tritonsched.proxy.held import Held
from tritonsched.tensors import Answer, Cancel, Done, InferCall

HOLD_FACTOR = 4  # of the expected time; what takes longer is a decoupled model that goes on alone
HOLD_NS_MIN = 10_000_000  # jitter of a host must not end a hold of a model of a millisecond
HOLD_NS_UNPROVEN = 1_000_000_000  # while nothing is expected yet
PATIENCE_SHARE = 4  # of the time after which Triton ends an idle sequence: a call waits a quarter,
HOLD_SHARE = 2  # and one that waits in Triton for a slot keeps the device from others for a half
WAITING_MAX = 1024  # calls of one sequence that wait for the one before them
WAITING_RETRY_NS = 100_000_000

Begin = Callable[[Done], Cancel]


def hold_ns(expected_ns: int, idle_ns: int = 0) -> int:
    """For how long a message of a stream may have its device without an answer. idle_ns: after
    which Triton would end the sequences that wait for the device meanwhile; 0: never.
    """
    bound_ns = max(HOLD_NS_MIN, HOLD_FACTOR * expected_ns) if expected_ns else HOLD_NS_UNPROVEN
    return min(bound_ns, idle_ns // HOLD_SHARE) if idle_ns else bound_ns


async def hold(answered: asyncio.Future[bool], expected_ns: int) -> bool | None:
    """Wait for the first answer within the bound: whether it was one, None if none came."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(hold_ns(expected_ns) / 1e9):
            return await asyncio.shield(answered)
    return None


class Holds:
    """For how long calls of sequences have their devices. let_go: the device is free for others.

    A call may wait in Triton for a slot, which it gets when another sequence has ended; and that
    one cannot end while this one has its device. A start behind a start that waits so waits, too:
    it does not hold its device at all.
    """

    def __init__(self, let_go: Callable[[Batch], None]) -> None:
        self._let_go = let_go
        self._waiting: dict[int, str] = {}  # the models of batches that were let go

    def begin(self, batch: Batch, call: InferCall, idle_ns: int) -> Callable[[], None]:
        """Let go of its device after a bound, unless what this returns is called before. idle_ns:
        of its model.
        """
        waits = call.parameters.get("sequence_start") and batch.model in self._waiting.values()
        bound_ns = 0 if waits else hold_ns(batch.expected_ns, idle_ns)
        bound = asyncio.get_running_loop().call_later(bound_ns / 1e9, self._over, batch)

        def end() -> None:
            bound.cancel()
            self._waiting.pop(batch.id, None)

        return end

    def _over(self, batch: Batch) -> None:
        self._waiting[batch.id] = batch.model
        self._let_go(batch)


def sequence_of(call: InferCall, info: ModelInfo) -> Hashable | None:
    """What the call must keep its place in; None if it is free.

    An id that could not be read (`call.lone_reason`) stands in one line with all the like.
    """
    if not call.parameters and info.lone_reason != "sequence":
        return None
    number = call.parameters.get("sequence_id")
    if number or info.lone_reason == "sequence":
        return (call.model, type(number).__name__, number)
    return None


def as_served(request: Request, info: ModelInfo, *, is_next: bool) -> Request:
    """With what its model adds. is_next: of a sequence, and not its first; that one may have to
    wait in Triton, so nobody shares its turn.
    """
    if info.variants and request.version:  # the family's; of its variants it is the newest
        return replace(request, version="")
    if info.idle_ns:  # Triton ends a sequence whose next call is not there by then
        patience_ns = min(PATIENCE_NS, info.idle_ns // PATIENCE_SHARE)
        return replace(request, patience_ns=patience_ns, alone=not is_next, apart=is_next)
    return request


@dataclass(slots=True, eq=False)
class _Turn:
    """A call of a sequence. begin: lets it in. cancel: once it is in. is_over: it has ended."""

    begin: Begin
    done: Done
    size: int
    tenant: str
    cancel: Cancel | None = None
    is_over: bool = False


class Sequences:
    """The lines of calls, one a sequence that has a call running. held: counts who waits."""

    def __init__(self, held: Held) -> None:
        self._held = held
        self._lines: dict[Hashable, deque[_Turn]] = {}

    def submit(
        self, key: Hashable, size: int, begin: Begin, done: Done, tenant: str = ""
    ) -> Cancel:
        """Let a call of `size` bytes in when it is its turn. QueueFull if too many wait."""
        turn = _Turn(begin, done, size, tenant)
        line = self._lines.get(key)
        if line is None:
            self._lines[key] = deque()
            self._begin(key, turn)
        elif len(line) >= WAITING_MAX:
            turn.is_over = True
            text = f"{WAITING_MAX} calls of one sequence wait; try again later"
            done(QueueFull(text, retry_after_ns=WAITING_RETRY_NS))
        else:
            self._held.take(size, tenant)
            line.append(turn)
        return partial(self._cancel, key, turn)

    def _begin(self, key: Hashable, turn: _Turn) -> None:
        turn.cancel = turn.begin(partial(self._ended, key, turn))

    def _ended(self, key: Hashable, turn: _Turn, outcome: Answer | TritonschedError) -> None:
        turn.is_over = True
        self._next_soon(key)
        turn.done(outcome)

    def _cancel(self, key: Hashable, turn: _Turn) -> None:
        if turn.is_over:
            return
        turn.is_over = True
        if turn.cancel is None:
            self._lines[key].remove(turn)
            self._held.give_back(turn.size, turn.tenant)
        else:
            turn.cancel()
            self._next_soon(key)

    def _next_soon(self, key: Hashable) -> None:
        """In a loop turn of its own: a thousand that are refused at once are no recursion."""
        asyncio.get_running_loop().call_soon(self._next, key)

    def _next(self, key: Hashable) -> None:
        line = self._lines[key]
        if not line:
            del self._lines[key]
            return
        turn = line.popleft()
        self._begin(key, turn)
        self._held.give_back(turn.size, turn.tenant)
