"""The simulated driver: an event heap and virtual time around the scheduler that runs live.

    inputs of one instant -> decide -> act -> re-arm the one timer if it changed

the very rule of proxy/driver.py. At equal times: completions, then arrivals (with cancellations and
what is said of Triton), then the timer. A heap of (time, kind, counter, event): the counter makes
ties deterministic (after SimPy's core). The next arrival and the one timer stand beside the heap,
for they are most of the events. O(log n) an event.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from enum import IntEnum
from functools import partial
from itertools import chain, count
from typing import assert_never

from tritonsched.core.batch import (
    Batch,
    Decision,
    Dispatch,
    Expire,
    Grant,
    Refuse,
    Reject,
    Summary,
    summary,
)
from tritonsched.core.feedback import Feedback
from tritonsched.core.proposal import Proposal
from tritonsched.core.request import Request
from tritonsched.core.reservation import Reservation
from tritonsched.core.scheduler import Scheduler
from tritonsched.core.tuning import Tuning
from tritonsched.core.variant import Family, ServerState, Variant
from tritonsched.sim.world import Answer, Fate, World

Line = tuple[int, Summary]
"""(time in ns, summary of a decision): one line of the decision log."""


TEST_NS = 50_000_000  # how long the test of a reservation takes beside the loop
NOTHING_NS = 1 << 63  # later than any event


class Kind(IntEnum):
    """Order of events of one instant; arrivals come between the two, the timer last."""

    COMPLETION = 0
    INPUT = 1


class Simulation:
    """One scheduler and one world. Memory: what is queued and running, and the log if kept.

    keep_log: remember each decision (to compare runs), at some 100 bytes each. feedback: retunes,
    if it is also an observer of the scheduler. families: variants of models that are asked for.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        world: World,
        *,
        keep_log: bool = True,
        feedback: Feedback | None = None,
        families: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.world = world
        self.log: list[Line] = []
        self.answers: list[Grant | Refuse] = []  # to reservations, in order
        self.now = 0
        self._keep_log = keep_log
        self._feedback = feedback
        self._heap: list[tuple[int, Kind, int, Callable[[], None]]] = []
        self._counter = count()
        self._pump_due = False
        self._armed_ns = NOTHING_NS  # when the one timer fires
        self._coming: Iterator[Request] = iter(())
        self._next: Request | None = None  # the first of those to come
        self._waiting: set[int] = set()  # submitted and neither answered nor cancelled
        for model in world.models.values():
            variant = Variant(
                model.name, model.rows_max, model.devices, model.accuracy, model.servers
            )
            scheduler.set_variant(variant, 0)
        for name, variants in (families or {}).items():
            scheduler.set_family(Family(name, tuple(variants)), 0)
        models = world.models.values()
        for server in dict.fromkeys(name for model in models for name in model.servers or ("",)):
            for gone_ns, back_ns in (*world.faults.away, *world.faults.gone.get(server, ())):
                self.tell_server(ServerState.AWAY, at_ns=gone_ns, server=server)
                self.tell_server(ServerState.READY, at_ns=back_ns, server=server)

    # -- inputs from outside ------------------------------------------------------------------

    def cancel(self, request_id: int, *, at_ns: int) -> None:
        """The request's client will leave at that time; harmless if it is answered by then."""
        self._push(at_ns, Kind.INPUT, partial(self._cancel, request_id))

    def tell_server(self, state: ServerState, *, at_ns: int, server: str = "") -> None:
        """News of a Triton, or that the sidecar drains."""
        self._push(at_ns, Kind.INPUT, partial(self._tell_server, state, server))

    def retune(self, tuning: Tuning, *, at_ns: int) -> None:
        """Feedback changes a number at that time."""
        self._push(at_ns, Kind.INPUT, partial(self._retune, tuning))

    def reserve(self, reservation: Reservation, *, at_ns: int) -> None:
        """A stream asks for a guarantee at that time."""
        self._push(at_ns, Kind.INPUT, partial(self._reserve, reservation))

    def release(self, reservation_id: int, *, at_ns: int) -> None:
        """A stream ends at that time."""
        self._push(at_ns, Kind.INPUT, partial(self._release, reservation_id))

    # -- running ------------------------------------------------------------------------------

    def run(self, requests: Iterable[Request] = (), *, until_ns: int | None = None) -> list[Line]:
        """Feed the requests, which must come in order of arrival, and run until nothing is left.

        until_ns: stop before the first event after it; another call goes on from there.
        Returns the decision log so far.
        """
        self._coming = chain(self._coming, requests)
        if self._next is None:
            self._next = next(self._coming, None)
        while (now := self._next_ns()) < NOTHING_NS and (until_ns is None or now <= until_ns):
            self.now = now
            self._happen(now)
            if self._pump_due:
                self._pump()
        return self.log

    def _next_ns(self) -> int:
        """The time of the next event; NOTHING_NS when there is none."""
        first = self._armed_ns
        if self._heap:
            first = min(first, self._heap[0][0])
        if self._next is not None:
            first = min(first, self._next.arrival_ns)
        return first

    def _happen(self, now: int) -> None:
        """Everything of this instant, in order of kind."""
        heap = self._heap
        while heap and heap[0][0] == now and heap[0][1] is Kind.COMPLETION:
            heapq.heappop(heap)[3]()
        while self._next is not None and self._next.arrival_ns <= now:
            self._arrive(self._next)
        while heap and heap[0][0] == now:
            heapq.heappop(heap)[3]()
        if self._armed_ns <= now:
            self._armed_ns = NOTHING_NS  # consumed
            self._pump_due = True

    def _push(self, at_ns: int, kind: Kind, event: Callable[[], None]) -> None:
        assert at_ns >= self.now, f"an event at {at_ns} ns, which is before {self.now}"
        heapq.heappush(self._heap, (at_ns, kind, next(self._counter), event))

    def _pump(self) -> None:
        self._pump_due = False
        decisions = self.scheduler.decide(self.now)
        if self._keep_log:
            self.log += [(self.now, summary(decision)) for decision in decisions]
        for decision in decisions:
            self._act(decision)
        proposal = self.scheduler.proposal(self.now)
        if proposal is not None:
            judge = partial(self._judge, proposal)
            self._push(self.now + TEST_NS, Kind.INPUT, judge)
        wakeup = self.scheduler.next_wakeup()
        self._armed_ns = NOTHING_NS if wakeup is None else wakeup

    def _act(self, decision: Decision) -> None:
        match decision:
            case Dispatch(batch):
                answer = self.world.send(batch, self.now)
                done = partial(self._complete, batch, answer)
                self._push(answer.at_ns, Kind.COMPLETION, done)
            case Reject(request) | Expire(request):
                self._waiting.discard(request.id)
            case Grant() | Refuse():
                self.answers.append(decision)
            case _:
                assert_never(decision)

    # -- events -------------------------------------------------------------------------------

    def _arrive(self, request: Request) -> None:
        self._waiting.add(request.id)
        self.scheduler.submit(request, self.now)
        self._pump_due = True
        self._next = next(self._coming, None)

    def _complete(self, batch: Batch, answer: Answer) -> None:
        is_lost = answer.fate is Fate.LOST
        completion = answer.completion(batch, self.scheduler.movable(batch) if is_lost else ())
        self.scheduler.complete(completion, self.now)
        for request in batch.requests:
            if not completion.retried or request.id in completion.ended:
                self._waiting.discard(request.id)
            elif request.id in self._waiting:
                again = replace(request, alone=request.alone or not is_lost, retry=True)
                self.scheduler.submit(again, self.now)
        self._learn()
        self._pump_due = True

    def _learn(self) -> None:
        if self._feedback is not None:
            queued = max(self.scheduler.queued().values(), default=0)
            tuning = self._feedback.step(self.scheduler.tuning, self.now, queued=queued)
            if tuning is not None:
                self.scheduler.retune(tuning, self.now)

    def _cancel(self, request_id: int) -> None:
        if request_id in self._waiting:
            self._waiting.remove(request_id)
            self.scheduler.cancel(request_id, self.now)
            self._pump_due = True

    def _reserve(self, reservation: Reservation) -> None:
        self.scheduler.reserve(reservation, self.now)
        self._pump_due = True

    def _release(self, reservation_id: int) -> None:
        self.scheduler.release(reservation_id, self.now)
        self._pump_due = True

    def _judge(self, proposal: Proposal) -> None:
        self.scheduler.judge(proposal.run(), self.now)
        self._pump_due = True

    def _tell_server(self, state: ServerState, server: str) -> None:
        self.scheduler.set_server(state, self.now, server)
        self._pump_due = True

    def _retune(self, tuning: Tuning) -> None:
        self.scheduler.retune(tuning, self.now)
        self._pump_due = True
