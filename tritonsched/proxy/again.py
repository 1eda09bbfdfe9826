"""What is sent once more when its batch did not come back well. Rule: each request at most once for
its server's sake, and never one that Triton keeps a state for or answers any number of times.

A merged batch that Triton failed is taken apart: its members go alone. A batch that was lost with
its server goes back into the queue, if another server can take it: Triton may have executed it, so
`transport.resend_lost` can forbid that.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

from tritonsched.core.batch import Batch
from tritonsched.core.request import Request
from tritonsched.core.scheduler import Scheduler
from tritonsched.errors import TritonschedError, TritonUnavailable
from tritonsched.proxy.job import Flight, Job


class Again:
    """pending: what has not been answered, by request id. resend_lost: see above."""

    def __init__(
        self,
        scheduler: Scheduler,
        pending: dict[int, Job],
        clock: Callable[[], int],
        *,
        resend_lost: bool,
    ) -> None:
        self._scheduler = scheduler
        self._pending = pending
        self._clock = clock
        self._resend_lost = resend_lost

    def apart(self, batch: Batch) -> None:
        """Each member alone."""
        now = self._clock()
        for request in batch.requests:
            self._submit(replace(request, alone=True, retry=True), "merge-failed", now)

    def movable(self, flight: Flight, error: TritonschedError) -> tuple[Request, ...]:
        """Members of a lost batch that go to another server; none if `error` says anything else."""
        if not (self._resend_lost and isinstance(error, TritonUnavailable)):
            return ()
        harmless = {job.request.id for job in flight.jobs if _is_harmless(job)}
        return tuple(r for r in self._scheduler.movable(flight.batch) if r.id in harmless)

    def elsewhere(self, requests: Iterable[Request]) -> None:
        """These are what `movable` said."""
        now = self._clock()
        for request in requests:
            self._submit(replace(request, retry=True), "", now)

    def _submit(self, request: Request, lone: str, now: int) -> None:
        job = self._pending.get(request.id)
        if job is not None:  # if its client has just left, nobody waits for it
            self._pending[request.id] = job.again(request, lone)
            self._scheduler.submit(request, now)


def _is_harmless(job: Job) -> bool:
    """Executing it twice is no more than work done twice."""
    return job.send is None and not job.in_sequence and not job.info.is_decoupled
