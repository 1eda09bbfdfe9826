"""A backend that does what it is told, for tests and demonstrations without Triton.

Rule: no clock and no chance of its own; time passes in the sleeper it is given, and each call
takes the next step of its script. `ScriptedBackend([ok(4 * MS), fail(), ok(9 * MS)], …)` serves a
batch in 4 ms, fails the second, serves the third in 9 ms.

It keeps the promises of `base.Backend`; one contract test runs on it and on real Triton.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from tritonsched.backend.batch_call import BatchCall, BatchDone, BatchReply
from tritonsched.backend.catalogue import ModelInfo
from tritonsched.errors import (
    BackendError,
    MalformedAnswer,
    TritonschedError,
    TritonUnavailable,
)
from tritonsched.tensors import GrpcReply, HttpReply, InferCall, RawReply, Tensor, Wire

Compute = Callable[[BatchCall], tuple[Tensor, ...]]
Canned = Callable[[InferCall], RawReply]
Sleeper = Callable[[int], Awaitable[None]]


class _End(Enum):
    OK = "ok"
    FAIL = "fail"
    MALFORMED = "malformed"
    LOSE = "lose"


@dataclass(frozen=True, slots=True)
class Step:
    """What becomes of one call: after `ns`, or when `resume` is called, it ends so."""

    end: _End
    ns: int = 0
    hangs: bool = False


def ok(ns: int = 0) -> Step:
    """Answered after `ns`."""
    return Step(_End.OK, ns)


def fail(ns: int = 0) -> Step:
    """Executed and failed by Triton: BackendError, or Triton's error as a lone call's answer."""
    return Step(_End.FAIL, ns)


def malformed(ns: int = 0) -> Step:
    """A merged answer of the wrong size: MalformedAnswer. A lone call is answered as by `ok`."""
    return Step(_End.MALFORMED, ns)


def lose(ns: int = 0) -> Step:
    """The connection breaks: TritonUnavailable."""
    return Step(_End.LOSE, ns)


def hang(then: Step | None = None) -> Step:
    """Nothing happens before `resume` is called; then as `then`, by default answered."""
    return replace(then or ok(), hangs=True)


def identity(call: BatchCall) -> tuple[Tensor, ...]:
    """Output number i is input number i, or the last one."""
    tensors = []
    for index, output in enumerate(call.outputs):
        source = call.inputs[min(index, len(call.inputs) - 1)]
        data = source.joined()
        tensors.append(Tensor(output.name, source.datatype, source.shape, data))
    return tuple(tensors)


def canned(call: InferCall) -> RawReply:
    """An empty answer that it worked, on the call's own protocol."""
    if call.wire is Wire.HTTP:
        return HttpReply(200, "OK", (), b"")
    return GrpcReply("OK", "", b"")


def _error(call: InferCall, text: str, *, status: int, code: str) -> RawReply:
    if call.wire is Wire.HTTP:
        return HttpReply(status, "", (), json.dumps({"error": text}).encode())
    return GrpcReply(code, text, b"")


class ScriptedBackend:
    """A `Backend`. steps: one a call, in order of arrival; then `afterwards` for ever.

    models: by name; any version is served. sleeper: lets a number of ns pass.
    compute: a merged batch's outputs. reply: a lone call's answer.
    is_up: switch it off and everything raises TritonUnavailable. batches, lone: what has come in.
    unreleased: answers whose `release` has not been called. closed: `close` was called.
    """

    def __init__(
        self,
        steps: Iterable[Step],
        *,
        models: Mapping[str, ModelInfo],
        sleeper: Sleeper,
        compute: Compute = identity,
        reply: Canned = canned,
        afterwards: Step | None = None,
    ) -> None:
        self._steps = iter(tuple(steps))
        self._models = models
        self._sleeper = sleeper
        self._compute = compute
        self._reply = reply
        self._afterwards = afterwards or ok()
        self._resumed = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()
        self.is_up = True
        self.batches: list[BatchCall] = []
        self.lone: list[InferCall] = []
        self.unreleased = 0
        self.closed = False

    def resume(self) -> None:
        """Let go of all calls that hang."""
        self._resumed.set()
        self._resumed = asyncio.Event()

    def send(self, call: BatchCall, done: BatchDone) -> None:
        """Answer by `compute`, or fail as the script says; BackendError for an unknown model."""
        task = asyncio.get_running_loop().create_task(self._told(call, done))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _told(self, call: BatchCall, done: BatchDone) -> None:
        try:
            outcome: BatchReply | TritonschedError = await self._execute(call)
        except TritonschedError as error:
            outcome = error
        except Exception as error:
            outcome = TritonschedError(f"internal error: {error!r}")
        done(outcome)

    async def _execute(self, call: BatchCall) -> BatchReply:
        self.batches.append(call)
        step = await self._next_step()
        info = self._models.get(call.model)
        if info is None:
            text = f"Request for unknown model: '{call.model}' is not found"
            raise BackendError(text, grpc_code_name="NOT_FOUND")
        if step.end is _End.FAIL:
            raise BackendError(f"model '{call.model}' failed, as the script says")
        if step.end is _End.MALFORMED:
            raise MalformedAnswer(f"model '{call.model}' answered nonsense, as the script says")
        outputs = self._compute(call)
        self.unreleased += 1
        return BatchReply(call.model, call.version or "1", outputs, self._once_released())

    async def forward(self, call: InferCall) -> RawReply:
        """Answer by `reply`. Raises TritonUnavailable as the script says."""
        self.lone.append(call)
        step = await self._next_step()
        if call.model not in self._models:
            text = f"Request for unknown model: '{call.model}' is not found"
            return _error(call, text, status=404, code="NOT_FOUND")
        if step.end is _End.FAIL:
            text = f"model '{call.model}' failed, as the script says"
            return _error(call, text, status=500, code="INTERNAL")
        return self._reply(call)

    async def model_info(self, model: str, version: str) -> ModelInfo | None:
        """The model as given, under the version asked for."""
        self._require_up()
        info = self._models.get(model)
        return None if info is None else replace(info, version=version)

    async def ready(self) -> bool:
        """Whether `is_up` is on."""
        return self.is_up

    async def close(self) -> None:
        """Take note."""
        self.closed = True

    async def _next_step(self) -> Step:
        """Live through the next step, but for its end."""
        step = next(self._steps, self._afterwards)
        self._require_up()
        if step.hangs:
            await self._resumed.wait()
        if step.ns > 0:
            await self._sleeper(step.ns)
        self._require_up()
        if step.end is _End.LOSE:
            raise TritonUnavailable("the connection broke, as the script says")
        return step

    def _require_up(self) -> None:
        if not self.is_up:
            raise TritonUnavailable("Triton is away, as the script says")

    def _once_released(self) -> Callable[[], None]:
        is_out = True

        def release() -> None:
            nonlocal is_out
            assert is_out, "answer released twice"
            is_out = False
            self.unreleased -= 1

        return release
