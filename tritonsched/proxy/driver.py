"""The live driver: it carries out what the scheduler decides. Rule: it never decides anything.

    inputs of one loop turn -> decide -> act -> re-arm the one timer if it changed

Per request: one entry in the pending table and the `done` that its frontend gave; no task and no
future, which cost more than scheduling does. A batch is joined and sent within the pump that
decided it: a task of its own would start only after everything else that is due in this loop turn,
and the device idles meanwhile (1-2.5 ms at 1.3x load). A batch is never cancelled, because Triton
can crash when in-flight calls are (server issues 7368, 8034): a client that leaves is forgotten
here and its share of the answer dropped.
A merged batch that Triton fails is taken apart: each member is submitted once more, alone, so that
one bad request never touches another and Triton itself words the error (DESIGN.md, "Merging").
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, assert_never

from tritonsched import errors
from tritonsched.backend.base import Backend
from tritonsched.backend.batch_call import BatchReply
from tritonsched.backend.catalogue import ModelInfo
from tritonsched.core.batch import (
    Batch,
    Completion,
    Decision,
    Dispatch,
    Expire,
    Grant,
    Refuse,
    Reject,
)
from tritonsched.core.proposal import Proposal
from tritonsched.core.request import Request
from tritonsched.core.scheduler import Scheduler
from tritonsched.proxy.answered import answered
from tritonsched.proxy.assembly import join, split
from tritonsched.proxy.client_regions import Regions
from tritonsched.proxy.endings import Endings, internal
from tritonsched.proxy.explaining import is_ok
from tritonsched.proxy.families import addressed, told
from tritonsched.proxy.held import Held
from tritonsched.proxy.inputs import Inputs
from tritonsched.proxy.job import Flight, Job
from tritonsched.proxy.judging import judged
from tritonsched.proxy.refusal import refusal_error
from tritonsched.proxy.streaming import Holds
from tritonsched.proxy.timer import Timer
from tritonsched.tensors import Answer, Cancel, Done

Listener = Callable[[int, Sequence[Decision]], None]


class Driver(Inputs):
    """The scheduler's hands on an asyncio loop.

    clock: monotonic nanoseconds. make_timer: builds the one timer around the pump. held: counts
    what is pending here.
    on_decisions: sees every non-empty list of decisions (decision log). on_reply: how long the
    answers of a batch waited between Triton and their frontends, in ns. on_send: how long after its
    due time a batch's message was written, in ns. on_lost: this server did not answer a batch.
    on_reserved: a reservation was granted or refused.
    on_taken_apart: this merged batch failed and is sent one by one; with resend_failed
    False its members hear its error. is_current: Triton still serves the model so; otherwise its
    queued calls are not merged. require_harmless: raises Shielded if regions would end Triton.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        backend: Backend,
        *,
        clock: Callable[[], int],
        make_timer: Callable[[Callable[[], None]], Timer],
        held: Held | None = None,
        on_decisions: Listener | None = None,
        on_reply: Callable[[Sequence[int]], None] | None = None,
        on_send: Callable[[int], None] | None = None,
        on_lost: Callable[[str], None] | None = None,
        on_taken_apart: Callable[[Batch, errors.BackendError], None] | None = None,
        on_reserved: Callable[[Grant | Refuse], None] | None = None,
        is_current: Callable[[ModelInfo], bool] = lambda _: True,
        resend_failed: bool = True,
        resend_lost: bool = True,
    ) -> None:
        super().__init__(scheduler, clock)
        self._backend = backend
        self._timer = make_timer(self._timer_fired)
        self._wakeup_ns: int | None = None
        self._is_armed = False
        self._on_decisions = on_decisions
        self._on_reply = on_reply
        self._on_send = on_send
        self._on_reserved = on_reserved
        self.is_current = is_current
        self.require_harmless: Callable[[Regions], None] = lambda _: None
        self._loop = asyncio.get_running_loop()
        self._pump_due = False
        self._endings = Endings(
            scheduler,
            clock,
            held=held or Held(),
            wake=self._wake,
            worded=lambda job, variant: self._spawn(self._worded(job, variant)),
            on_reply=on_reply,
            on_lost=on_lost,
            on_taken_apart=on_taken_apart,
            resend_failed=resend_failed,
            resend_lost=resend_lost,
        )
        self._lone: set[asyncio.Task[None]] = set()
        self._holds = Holds(self._let_go)

    # -- inputs -------------------------------------------------------------------------------

    def submit(self, job: Job, done: Done) -> Cancel:
        """Have the job scheduled and executed; `done` hears how it ended and writes the reply.

        Cancelled, a queued job is gone at once and a dispatched one's answer is dropped.
        """
        job.done = done
        request = job.request
        self._endings.put(job)
        self._scheduler.submit(request, self._clock())
        self._wake()
        return partial(self._cancel, request.id)

    async def infer(self, job: Job) -> Answer:
        """The same for a caller that waits in a task. Raises a leaf of TritonschedError."""
        replied_ns = 0

        def noting(done: Done) -> Cancel:
            def noted(outcome: Answer | errors.TritonschedError) -> None:
                nonlocal replied_ns
                replied_ns = self._clock()
                done(outcome)

            job.writes = False
            return self.submit(job, noted)

        answer = await answered(noting)
        if self._on_reply is not None:
            self._on_reply([self._clock() - replied_ns])
        return answer

    def refuse(self, request: Request) -> errors.TritonschedError | None:
        """Why a request whose tensors have not come yet is refused already, which is counted; None:
        submit it when they have.
        """
        now = self._clock()
        refused = self._scheduler.refuse(request, now)
        if refused is None:
            return None
        if self._on_decisions is not None:
            self._on_decisions(now, [refused])
        return refusal_error(request, refused.reason, refused.retry_after_ns, now)

    def _cancel(self, request_id: int) -> None:
        if self._endings.take(request_id) is not None:
            self._scheduler.cancel(request_id, self._clock())
            self._wake()

    def drop_model(self, model: str) -> None:
        """Triton does not serve it. What is left of its calls is still Triton's to word."""
        if not self._endings.any_of(model):
            self._scheduler.drop_model(model, self._clock())

    async def drained(self) -> None:
        """Wait until no batch is out, those of clients that left included."""
        await self._endings.batches.none_left()

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
        self._is_armed = False  # consumed, even if it came early
        self._pump()

    def _pump(self) -> None:
        self._pump_due = False
        now = self._clock()
        decisions = self._scheduler.decide(now)
        if decisions and self._on_decisions is not None:
            self._on_decisions(now, decisions)
        due_ns = now if self._wakeup_ns is None else min(now, self._wakeup_ns)
        for decision in decisions:
            self._act(decision, now, due_ns)
        if decisions:  # acting told the scheduler of later
            now = self._clock()
        proposal = self._scheduler.proposal(now)
        if proposal is not None:
            self._spawn(self._judge(proposal))
        wakeup = self._scheduler.next_wakeup()
        if wakeup != self._wakeup_ns or (wakeup is not None and not self._is_armed):
            self._wakeup_ns = wakeup
            self._is_armed = wakeup is not None
            self._timer.arm(wakeup)

    async def _judge(self, proposal: Proposal) -> None:
        """Beside the decision loop: a proposal may take a tenth of a second."""
        self._scheduler.judge(await judged(proposal), self._clock())
        self._wake()

    def _act(self, decision: Decision, now: int, due_ns: int) -> None:
        match decision:
            case Dispatch(batch):
                self._dispatch(batch, due_ns)
            case Reject(request, reason, retry_after_ns):
                self._endings.end(request.id, refusal_error(request, reason, retry_after_ns, now))
            case Expire(request):
                text = f"model '{request.model}': the deadline passed while the request was queued"
                self._endings.end(request.id, errors.DeadlineExpired(text))
            case Grant() | Refuse():
                if self._on_reserved is not None:
                    self._on_reserved(decision)
            case _:
                assert_never(decision)

    # -- one batch ----------------------------------------------------------------------------

    def _dispatch(self, batch: Batch, due_ns: int) -> None:
        """Send; every member is answered exactly once, whatever happens. due_ns: when the pump
        should have run.
        """
        jobs = self._endings.jobs(batch.requests)
        stale = self._is_stale(jobs)
        flight = Flight(batch, jobs, batch.dispatch_ns)
        self._endings.batches.take(0)
        if stale and len(jobs) > 1 and not batch.requests[0].apart:
            self._endings.apart(batch)
            return
        if stale or jobs[0].lone or batch.requests[0].alone:
            self._spawn(self._as_it_came(flight))
            return
        try:
            self._backend.send(join(batch, jobs), partial(self._came_back, flight))
        except errors.RegionFault as error:
            self._endings.failed(flight, error)
            return
        except Exception as error:
            self._endings.broke(flight, error)
            return
        flight.sent_ns = self._clock()
        if self._on_send is not None:
            self._on_send(flight.sent_ns - due_ns)

    def _is_stale(self, jobs: Sequence[Job]) -> bool:
        """Triton serves the model of one of them otherwise than it did. They mostly share one."""
        info = None
        for job in jobs:
            if job.info is not info:
                info = job.info
                if not self.is_current(info):
                    return True
        return False

    async def _as_it_came(self, flight: Flight) -> None:
        """Each member by a call of its own; mostly there is one."""
        first = flight.jobs[0]
        end_hold = None
        if first.in_sequence:
            end_hold = self._holds.begin(flight.batch, first.call, first.info.idle_ns)
        for job in flight.jobs:
            job.call.server = flight.batch.server
        try:
            if len(flight.jobs) == 1:
                await self._alone(flight, first)
            else:
                await self._beside(flight)
        finally:
            if end_hold is not None:
                end_hold()

    async def _alone(self, flight: Flight, job: Job) -> None:
        try:
            if job.send is None:
                answer = await self._forward(job, flight.batch.model)
            else:
                answer = await job.send(flight.batch.expected_ns)
        except errors.TritonschedError as error:
            self._endings.failed(flight, error)
        except Exception as error:
            self._endings.broke(flight, error)
        else:
            self._endings.answer_all(flight, [answer], ok=is_ok(answer))

    async def _beside(self, flight: Flight) -> None:
        """Calls of several sequences, which Triton itself may merge: each is answered when its own
        answer is there, and the device is theirs until the last one is.
        """
        went_well = await asyncio.gather(*(self._member(flight, job) for job in flight.jobs))
        members = zip(flight.jobs, went_well, strict=True)
        failed = frozenset(job.request.id for job, ok in members if not ok)
        self._endings.finish(
            Completion(flight.batch.id, ok=any(went_well), failed=failed, sent_ns=flight.sent_ns)
        )

    async def _member(self, flight: Flight, job: Job) -> bool:
        """Whether it was executed."""
        try:
            answer = await self._forward(job, flight.batch.model)
        except errors.TritonschedError as error:
            self._endings.end(job.request.id, error)
            self._endings.heard_of(flight.batch.server, error)
            return False
        except Exception as error:
            self._endings.end(job.request.id, internal(error))
            return False
        returned_ns = self._clock()
        is_written = self._endings.answer(flight.batch, job, answer, returned_ns)
        if is_written and self._on_reply is not None:
            self._on_reply([self._clock() - returned_ns])
        return is_ok(answer)

    def _let_go(self, batch: Batch) -> None:
        self._scheduler.let_go(batch.id, self._clock())
        self._wake()

    async def _forward(self, job: Job, variant: str) -> Answer:
        self.require_harmless(job.regions)  # now: a client may shrink them while it waits
        if not job.info.variants:
            return await self._backend.forward(job.call)
        answer = await self._backend.forward(addressed(job.call, variant))
        return told(answer, job.call.model, variant)

    async def _worded(self, job: Job, variant: str) -> None:
        """It was executed and does not fit into its client's region: Triton has to say so."""
        try:
            outcome: Answer | errors.TritonschedError = await self._forward(job, variant)
        except errors.TritonschedError as error:
            outcome = error
        self._endings.end(job.request.id, outcome)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._lone.add(task)
        task.add_done_callback(self._lone.discard)

    def _came_back(self, flight: Flight, outcome: BatchReply | errors.TritonschedError) -> None:
        if isinstance(outcome, errors.TritonschedError):
            self._endings.failed(flight, outcome)
            return
        try:
            answers = split(outcome, flight.jobs)
        except errors.TritonschedError as error:
            self._endings.failed(flight, error)
        except Exception as error:
            self._endings.broke(flight, error)
        else:
            self._endings.answer_all(flight, answers, ok=True)
        finally:
            outcome.release()
