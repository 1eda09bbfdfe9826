"""The live driver: it carries out what the scheduler decides. Rule: it never decides anything.

    inputs of one loop turn -> decide -> act -> re-arm the one timer if it changed

Per request: one entry in the pending table and the future its frontend awaits. Per batch: one task,
which is never cancelled, because Triton can crash when in-flight calls are (server issues 7368,
8034): a client that leaves is forgotten here and its share of the answer dropped.
A merged batch that Triton fails is taken apart: each member is submitted once more, alone, so that
one bad request never touches another and Triton itself words the error (DESIGN.md, "Merging").
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import assert_never

from tritonsched import errors
from tritonsched.backend.base import Backend
from tritonsched.backend.catalogue import ModelInfo
from tritonsched.core.batch import Batch, Completion, Decision, Dispatch, Expire, Reject
from tritonsched.core.request import RejectReason, Request
from tritonsched.core.scheduler import Scheduler
from tritonsched.core.tuning import Tuning
from tritonsched.core.variant import ServerState, Variant
from tritonsched.proxy.assembly import join, split
from tritonsched.proxy.timer import Timer
from tritonsched.tensors import Answer, Explain, GrpcReply, HttpReply, InferCall

Listener = Callable[[int, Sequence[Decision]], None]
_OK_BELOW = 400


@dataclass(frozen=True, slots=True)
class Job:
    """A call on its way through the scheduler.

    lone: why it goes alone, empty if it may be merged. clipped: its deadline was cut to its class'.
    """

    call: InferCall
    info: ModelInfo
    request: Request
    lone: str = ""
    clipped: bool = False


@dataclass(slots=True)
class _Pending:
    job: Job
    future: asyncio.Future[Answer]
    answered_ns: int = 0


class Driver:
    """The scheduler's hands on an asyncio loop.

    clock: monotonic nanoseconds. make_timer: builds the one timer around the pump.
    on_decisions: sees every non-empty list of decisions (decision log). on_reply: how long an
    answer waited between Triton and its frontend, in ns. on_send: how long after its due time a
    batch's message was made, in ns. on_lost: Triton did not answer a batch.
    on_taken_apart: a merged batch of this model failed and is sent one by one.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        backend: Backend,
        *,
        clock: Callable[[], int],
        make_timer: Callable[[Callable[[], None]], Timer],
        on_decisions: Listener | None = None,
        on_reply: Callable[[int], None] | None = None,
        on_send: Callable[[int], None] | None = None,
        on_lost: Callable[[], None] | None = None,
        on_taken_apart: Callable[[str, errors.BackendError], None] | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._backend = backend
        self._clock = clock
        self._timer = make_timer(self._timer_fired)
        self._armed: int | None = None
        self._late_ns = 0  # of the timer that started this pump
        self._on_decisions = on_decisions
        self._on_reply = on_reply
        self._on_send = on_send
        self._on_lost = on_lost
        self._on_taken_apart = on_taken_apart
        self._loop = asyncio.get_running_loop()
        self._pump_due = False
        self._pending: dict[int, _Pending] = {}
        self._batches: set[asyncio.Task[None]] = set()

    # -- inputs -------------------------------------------------------------------------------

    async def infer(self, job: Job) -> Answer:
        """Have the job scheduled and executed.

        Raises a leaf of TritonschedError for a refusal or a fault. If the caller is cancelled, a
        queued job is gone at once and a dispatched one's answer is dropped.
        """
        pending = _Pending(job, self._loop.create_future())
        self._pending[job.request.id] = pending
        self._scheduler.submit(job.request, self._clock())
        self._wake()
        try:
            answer = await pending.future
        except asyncio.CancelledError:
            self._scheduler.cancel(job.request.id, self._clock())
            self._wake()
            raise
        finally:
            del self._pending[job.request.id]
        if self._on_reply is not None:
            self._on_reply(self._clock() - pending.answered_ns)
        return answer

    def set_variant(self, variant: Variant) -> None:
        self._scheduler.set_variant(variant, self._clock())

    def set_server(self, state: ServerState) -> None:
        self._scheduler.set_server(state, self._clock())
        self._wake()

    def retune(self, tuning: Tuning) -> None:
        self._scheduler.retune(tuning, self._clock())
        self._wake()

    async def drained(self) -> None:
        """Wait until no batch is out, those of clients that left included."""
        while self._batches:
            await asyncio.wait(self._batches)

    def close(self) -> None:
        """Disarm the timer. Batches that are still out finish by themselves."""
        self._timer.close()

    # -- the pump -----------------------------------------------------------------------------

    def _wake(self) -> None:
        """Decide once at the end of this loop turn, whatever number of inputs it brings."""
        if not self._pump_due:
            self._pump_due = True
            self._loop.call_soon(self._pump)

    def _timer_fired(self) -> None:
        due_ns, self._armed = self._armed, None  # consumed, even if it came early
        self._late_ns = max(0, self._clock() - due_ns) if due_ns is not None else 0
        self._pump()
        self._late_ns = 0

    def _pump(self) -> None:
        self._pump_due = False
        now = self._clock()
        decisions = self._scheduler.decide(now)
        if decisions and self._on_decisions is not None:
            self._on_decisions(now, decisions)
        for decision in decisions:
            self._act(decision, now)
        wakeup = self._scheduler.next_wakeup()
        if wakeup != self._armed:
            self._armed = wakeup
            self._timer.arm(wakeup)

    def _act(self, decision: Decision, now: int) -> None:
        match decision:
            case Dispatch(batch):
                jobs = [self._pending[request.id].job for request in batch.requests]
                task = self._loop.create_task(self._execute(batch, jobs, self._late_ns))
                self._batches.add(task)
                task.add_done_callback(self._batches.discard)
            case Reject(request, reason, retry_after_ns):
                self._fail(request.id, refusal_error(request, reason, retry_after_ns, now))
            case Expire(request):
                text = f"model '{request.model}': the deadline passed while the request was queued"
                self._fail(request.id, errors.DeadlineExpired(text))
            case _:
                assert_never(decision)

    # -- one batch ----------------------------------------------------------------------------

    async def _execute(self, batch: Batch, jobs: list[Job], late_ns: int) -> None:
        """Send, and answer every member exactly once, whatever happens."""
        completion = Completion(batch.id, ok=False)
        try:
            merged = not (jobs[0].lone or batch.requests[0].alone)
            answers = await (self._merged(batch, jobs, late_ns) if merged else self._alone(jobs[0]))
            completion = Completion(batch.id, ok=all(map(_is_ok, answers)))
            for job, answer in zip(jobs, answers, strict=True):
                self._answer(batch, job, answer)
        except errors.TritonUnavailable as error:
            self._fail_all(jobs, error)
            if self._on_lost is not None:
                self._on_lost()
        except errors.BackendError as error:
            completion = Completion(batch.id, ok=False, retried=True)
            if self._on_taken_apart is not None:
                self._on_taken_apart(batch.model, error)
        except Exception as error:
            self._fail_all(jobs, errors.TritonschedError(f"internal error: {error!r}"))
            raise
        finally:
            self._scheduler.complete(completion, self._clock())
            if completion.retried:
                self._take_apart(batch)
            self._wake()

    async def _merged(self, batch: Batch, jobs: list[Job], late_ns: int) -> Sequence[Answer]:
        call = join(batch, jobs)
        if self._on_send is not None:
            self._on_send(self._clock() - batch.dispatch_ns + late_ns)
        reply = await self._backend.infer(call)
        try:
            return split(reply, jobs)
        finally:
            reply.release()

    async def _alone(self, job: Job) -> Sequence[Answer]:
        return [await self._backend.forward(job.call)]

    def _take_apart(self, batch: Batch) -> None:
        now = self._clock()
        for request in batch.requests:
            pending = self._pending.get(request.id)
            if pending is not None:  # if its client has just left, `infer` takes it back
                alone = replace(request, alone=True, retry=True)
                pending.job = replace(pending.job, request=alone, lone="merge-failed")
                self._scheduler.submit(alone, now)

    def _answer(self, batch: Batch, job: Job, answer: Answer) -> None:
        pending = self._pending.get(job.request.id)
        if pending is None or pending.future.done():
            return
        pending.answered_ns = self._clock()
        if job.call.explain:
            answer = replace(answer, explain=explain(batch, job, pending.answered_ns))
        pending.future.set_result(answer)

    def _fail_all(self, jobs: Sequence[Job], error: errors.TritonschedError) -> None:
        for job in jobs:
            self._fail(job.request.id, error)

    def _fail(self, request_id: int, error: errors.TritonschedError) -> None:
        pending = self._pending.get(request_id)
        if pending is not None and not pending.future.done():
            pending.future.set_exception(error)


def _is_ok(answer: Answer) -> bool:
    """Whether the model was executed, so that its time teaches the profile."""
    match answer:
        case HttpReply():
            return answer.status < _OK_BELOW
        case GrpcReply():
            return answer.code == "OK"
        case _:
            return True


def explain(batch: Batch, job: Job, now: int) -> Explain:
    """Why this answer came when it did."""
    request = job.request
    return Explain(
        queue_ns=batch.dispatch_ns - request.arrival_ns,
        batch_rows=batch.rows,
        batch_requests=len(batch.requests),
        variant=batch.model,
        slack_ns=request.deadline_ns - now if request.has_deadline else None,
        lone=job.lone,
        clipped=job.clipped,
    )


def refusal_error(
    request: Request, reason: RejectReason, retry_after_ns: int | None, now: int
) -> errors.TritonschedError:
    """The error a refusal becomes; its text says what, which, what to do."""
    model = f"model '{request.model}'"
    match reason:
        case RejectReason.DEADLINE_UNREACHABLE:
            left_ms = (request.deadline_ns - now) / 1e6
            text = f"{model}: cannot be answered in the {left_ms:.1f} ms left; allow more time"
            return errors.DeadlineUnreachable(text)
        case RejectReason.QUEUE_FULL:
            text = f"{model}: its queue is full; try again later"
            return errors.QueueFull(text, retry_after_ns=retry_after_ns)
        case RejectReason.DRAINING:
            text = "the sidecar is shutting down; use another instance or try again later"
            return errors.Draining(text, retry_after_ns=retry_after_ns)
        case RejectReason.TRITON_UNAVAILABLE:
            text = "Triton is not answering; try again later"
            return errors.TritonUnavailable(text, retry_after_ns=retry_after_ns)
        case _:
            assert_never(reason)
