"""How calls end: the table of those that are not answered yet, and what becomes of a batch.

Rule: every call is answered exactly once, whoever is first: who takes it out of the table.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import structlog

from tritonsched import errors
from tritonsched.core.batch import Batch, Completion
from tritonsched.core.scheduler import Scheduler
from tritonsched.proxy.again import Again
from tritonsched.proxy.assembly import placed
from tritonsched.proxy.explaining import explain
from tritonsched.proxy.held import Held
from tritonsched.proxy.job import Flight, Job, Pending
from tritonsched.tensors import Answer

_log = structlog.get_logger()
Worded = Callable[[Job, str], None]


class Endings:
    """The end of every call and of every batch. wake: something is to be decided. worded: has
    Triton say what became of a call whose answer does not fit into its client's region. The others
    are the driver's.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        clock: Callable[[], int],
        *,
        held: Held,
        wake: Callable[[], None],
        worded: Worded,
        on_reply: Callable[[int], None] | None,
        on_lost: Callable[[str], None] | None,
        on_taken_apart: Callable[[Batch, errors.BackendError], None] | None,
        resend_failed: bool,
        resend_lost: bool,
    ) -> None:
        self._scheduler = scheduler
        self._clock = clock
        self._held = held
        self._wake = wake
        self._worded = worded
        self._on_reply = on_reply
        self._on_lost = on_lost
        self._on_taken_apart = on_taken_apart
        self._resend_failed = resend_failed
        self._pending: dict[int, Pending] = {}
        self._again = Again(scheduler, self._pending, clock, resend_lost=resend_lost)
        self.batches = Held()  # that are out

    # -- the table ----------------------------------------------------------------------------

    def put(self, pending: Pending) -> None:
        """It is to be answered."""
        request = pending.job.request
        self._pending[request.id] = pending
        self._held.take(len(pending.job.call.raw), request.tenant)

    def take(self, request_id: int) -> Pending | None:
        """Out of the table: from here on nobody else answers it."""
        pending = self._pending.pop(request_id, None)
        if pending is not None:
            self._held.give_back(len(pending.job.call.raw), pending.job.request.tenant)
        return pending

    def job(self, request_id: int) -> Job:
        """Of a call that is not answered."""
        return self._pending[request_id].job

    def any_of(self, model: str) -> bool:
        """Does a call for the model wait for its answer?"""
        return any(pending.job.request.model == model for pending in self._pending.values())

    # -- batches ------------------------------------------------------------------------------

    def answer_all(self, flight: Flight, answers: Sequence[Answer], *, ok: bool) -> None:
        """They came back together."""
        returned_ns = self._clock()
        for job, answer in zip(flight.jobs, answers, strict=True):
            self.answer(flight.batch, job, answer, returned_ns)
        self.finish(
            Completion(flight.batch.id, ok=ok, sent_ns=flight.sent_ns, returned_ns=returned_ns)
        )

    def apart(self, batch: Batch) -> None:
        """It is not a batch any more: each member goes alone."""
        self.finish(Completion(batch.id, ok=False, retried=True))
        self._again.apart(batch)

    def failed(self, flight: Flight, error: errors.TritonschedError) -> None:
        """Triton failed it: it is taken apart. Its server is gone: others take what they can."""
        batch = flight.batch
        if isinstance(error, errors.BackendError) and self._resend_failed:
            if self._on_taken_apart is not None:
                self._on_taken_apart(batch, error)
            self.apart(batch)
            return
        moved = self._again.movable(flight, error)
        ended = Completion.lost(batch, moved)
        self._fail_all([job for job in flight.jobs if job.request.id in ended.ended], error)
        self.finish(ended)
        self._again.elsewhere(moved)
        self.heard_of(batch.server, error)

    def broke(self, flight: Flight, error: Exception) -> None:
        """Our own mistake: its members are told, the others go on."""
        self._fail_all(flight.jobs, internal(error))
        self.finish(Completion(flight.batch.id, ok=False))

    def finish(self, completion: Completion) -> None:
        """The batch is over, and its members are answered or submitted again."""
        self._scheduler.complete(completion, self._clock())
        self.batches.give_back(0)
        self._wake()

    def heard_of(self, server: str, error: errors.TritonschedError) -> None:
        """A call to it ended so."""
        if isinstance(error, errors.TritonUnavailable) and self._on_lost is not None:
            self._on_lost(server)

    # -- calls --------------------------------------------------------------------------------

    def answer(self, batch: Batch, job: Job, answer: Answer, returned_ns: int) -> None:
        """Triton's answer to one member, unless its client has left."""
        if job.request.id not in self._pending:
            return
        try:
            answer = placed(answer, job) if job.call.output_refs else answer
        except errors.RegionFault:
            self._worded(job, batch.model)
            return
        pending = self.take(job.request.id)
        assert pending is not None
        if job.call.explain:
            answer = replace(answer, explain=explain(batch, job, returned_ns))
        self._tell(pending, answer)
        if pending.writes and self._on_reply is not None:
            self._on_reply(self._clock() - returned_ns)

    def end(self, request_id: int, outcome: Answer | errors.TritonschedError) -> None:
        """It ends with this, if nobody ended it before."""
        pending = self.take(request_id)
        if pending is not None:
            self._tell(pending, outcome)

    def _fail_all(self, jobs: Sequence[Job], error: errors.TritonschedError) -> None:
        for job in jobs:
            self.end(job.request.id, error)

    def _tell(self, pending: Pending, outcome: Answer | errors.TritonschedError) -> None:
        """A frontend that fails to write one answer must not keep the others from theirs."""
        try:
            pending.done(outcome)
        except Exception as error:
            _log.error("an answer could not be written", exc_info=error)


def internal(error: Exception) -> errors.TritonschedError:
    """Our own mistake, as a client hears of it."""
    _log.error("internal error", exc_info=error)
    return errors.TritonschedError(f"internal error: {error!r}")
