"""How calls end: the table of those that are not answered yet, and what becomes of a batch.

Rule: every call is answered exactly once, whoever is first: who takes it out of the table.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import structlog

from tritonsched import errors
from tritonsched.core.batch import Batch, Completion
from tritonsched.core.request import Request
from tritonsched.core.scheduler import Scheduler
from tritonsched.proxy.again import Again
from tritonsched.proxy.assembly import placed
from tritonsched.proxy.explaining import explain
from tritonsched.proxy.held import Held
from tritonsched.proxy.job import Flight, Job
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
        on_reply: Callable[[Sequence[int]], None] | None,
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
        self._pending: dict[int, Job] = {}
        self._again = Again(scheduler, self._pending, clock, resend_lost=resend_lost)
        self.batches = Held()  # that are out

    # -- the table ----------------------------------------------------------------------------

    def put(self, job: Job) -> None:
        """It is to be answered."""
        request = job.request
        self._pending[request.id] = job
        self._held.take(len(job.call.raw), request.tenant)

    def take(self, request_id: int) -> Job | None:
        """Out of the table: from here on nobody else answers it."""
        job = self._pending.pop(request_id, None)
        if job is not None:
            self._held.give_back(len(job.call.raw), job.request.tenant)
        return job

    def jobs(self, requests: Iterable[Request]) -> list[Job]:
        """Of calls that are not answered."""
        pending = self._pending
        return [pending[request.id] for request in requests]

    def any_of(self, model: str) -> bool:
        """Does a call for the model wait for its answer?"""
        return any(job.request.model == model for job in self._pending.values())

    # -- batches ------------------------------------------------------------------------------

    def answer_all(self, flight: Flight, answers: Sequence[Answer], *, ok: bool) -> None:
        """They came back together."""
        returned_ns = self._clock()
        lags_ns: list[int] = []
        assert len(answers) == len(flight.jobs)
        for job, answer in zip(flight.jobs, answers):  # noqa: B905  # strict is slow, compiled
            if self.answer(flight.batch, job, answer, returned_ns):
                lags_ns.append(self._clock() - returned_ns)
        if lags_ns and self._on_reply is not None:
            self._on_reply(lags_ns)
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

    def answer(self, batch: Batch, job: Job, answer: Answer, returned_ns: int) -> bool:
        """Triton's answer to one member, unless its client has left. Whether it was written."""
        call = job.call
        if call.output_refs:
            if job.request.id not in self._pending:
                return False
            try:
                answer = placed(answer, job)
            except errors.RegionFault:
                self._worded(job, batch.model)
                return False
        waiting = self.take(job.request.id)
        if waiting is None:
            return False
        if call.explain:
            answer = replace(answer, explain=explain(batch, job, returned_ns))
        self._tell(waiting, answer)
        return waiting.writes

    def end(self, request_id: int, outcome: Answer | errors.TritonschedError) -> None:
        """It ends with this, if nobody ended it before."""
        job = self.take(request_id)
        if job is not None:
            self._tell(job, outcome)

    def _fail_all(self, jobs: Sequence[Job], error: errors.TritonschedError) -> None:
        for job in jobs:
            self.end(job.request.id, error)

    def _tell(self, job: Job, outcome: Answer | errors.TritonschedError) -> None:
        """A frontend that fails to write one answer must not keep the others from theirs."""
        try:
            assert job.done is not None
            job.done(outcome)
        except Exception as error:
            _log.error("an answer could not be written", exc_info=error)


def internal(error: Exception) -> errors.TritonschedError:
    """Our own mistake, as a client hears of it."""
    _log.error("internal error", exc_info=error)
    return errors.TritonschedError(f"internal error: {error!r}")
