"""The simulated driver: an event heap and virtual time around the scheduler that runs live.

    inputs of one instant -> decide -> act -> re-arm the one timer if it changed

the very rule of proxy/driver.py. At equal times: completions, then arrivals (with cancellations and
what is said of Triton), then the timer. A heap of (time, kind, counter, event): the counter makes
ties deterministic (after SimPy's core). O(log n) an event.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from enum import IntEnum
from functools import partial
from itertools import count
from typing import assert_never

from tritonsched.core.batch import (
    Batch,
    Completion,
    Decision,
    Dispatch,
    Expire,
    Reject,
    Summary,
    summary,
)
from tritonsched.core.request import Request
from tritonsched.core.scheduler import Scheduler
from tritonsched.core.tuning import Tuning
from tritonsched.core.variant import ServerState, Variant
from tritonsched.sim.world import World

Line = tuple[int, Summary]
"""(time in ns, summary of a decision): one line of the decision log."""


class Kind(IntEnum):
    """Order of events of one instant."""

    COMPLETION = 0
    INPUT = 1
    TIMER = 2


class Simulation:
    """One scheduler and one world. Memory: what is queued and running, and the log if kept.

    keep_log: remember each decision (to compare runs), at some 100 bytes each.
    """

    def __init__(self, scheduler: Scheduler, world: World, *, keep_log: bool = True) -> None:
        self.scheduler = scheduler
        self.world = world
        self.log: list[Line] = []
        self.now = 0
        self._keep_log = keep_log
        self._heap: list[tuple[int, Kind, int, Callable[[], None]]] = []
        self._counter = count()
        self._pump_due = False
        self._armed: int | None = None
        self._timer = 0  # number of the timer that counts; older ones in the heap are void
        self._waiting: set[int] = set()  # submitted and neither answered nor cancelled
        for model in world.models.values():
            scheduler.set_variant(Variant(model.name, model.rows_max, model.devices), 0)
        for gone_ns, back_ns in world.faults.away:
            self.tell_server(ServerState.AWAY, at_ns=gone_ns)
            self.tell_server(ServerState.READY, at_ns=back_ns)

    # -- inputs from outside ------------------------------------------------------------------

    def cancel(self, request_id: int, *, at_ns: int) -> None:
        """The request's client will leave at that time; harmless if it is answered by then."""
        self._push(at_ns, Kind.INPUT, partial(self._cancel, request_id))

    def tell_server(self, state: ServerState, *, at_ns: int) -> None:
        """News of Triton, or that the sidecar drains."""
        self._push(at_ns, Kind.INPUT, partial(self._tell_server, state))

    def retune(self, tuning: Tuning, *, at_ns: int) -> None:
        """Feedback changes a number at that time."""
        self._push(at_ns, Kind.INPUT, partial(self._retune, tuning))

    # -- running ------------------------------------------------------------------------------

    def run(self, requests: Iterable[Request] = (), *, until_ns: int | None = None) -> list[Line]:
        """Feed the requests, which must come in order of arrival, and run until nothing is left.

        until_ns: stop before the first event after it; another call goes on from there.
        Returns the decision log so far.
        """
        self._next_arrival(iter(requests))
        while self._heap and (until_ns is None or self._heap[0][0] <= until_ns):
            self.now = self._heap[0][0]
            while self._heap and self._heap[0][0] == self.now:
                heapq.heappop(self._heap)[3]()
            if self._pump_due:
                self._pump()
        return self.log

    def _push(self, at_ns: int, kind: Kind, event: Callable[[], None]) -> None:
        assert at_ns >= self.now, f"an event at {at_ns} ns, which is before {self.now}"
        heapq.heappush(self._heap, (at_ns, kind, next(self._counter), event))

    def _next_arrival(self, coming: Iterator[Request]) -> None:
        request = next(coming, None)
        if request is not None:
            self._push(request.arrival_ns, Kind.INPUT, partial(self._arrive, request, coming))

    def _pump(self) -> None:
        self._pump_due = False
        decisions = self.scheduler.decide(self.now)
        if self._keep_log:
            self.log += [(self.now, summary(decision)) for decision in decisions]
        for decision in decisions:
            self._act(decision)
        wakeup = self.scheduler.next_wakeup()
        if wakeup != self._armed:
            self._armed = wakeup
            self._timer += 1
            if wakeup is not None:
                self._push(wakeup, Kind.TIMER, partial(self._timer_fired, self._timer))

    def _act(self, decision: Decision) -> None:
        match decision:
            case Dispatch(batch):
                answer = self.world.send(batch, self.now)
                done = partial(self._complete, batch, answer.completion(batch))
                self._push(answer.at_ns, Kind.COMPLETION, done)
            case Reject(request) | Expire(request):
                self._waiting.discard(request.id)
            case _:
                assert_never(decision)

    # -- events -------------------------------------------------------------------------------

    def _arrive(self, request: Request, coming: Iterator[Request]) -> None:
        self._waiting.add(request.id)
        self.scheduler.submit(request, self.now)
        self._pump_due = True
        self._next_arrival(coming)

    def _complete(self, batch: Batch, completion: Completion) -> None:
        self.scheduler.complete(completion, self.now)
        for request in batch.requests:
            if not completion.retried:
                self._waiting.discard(request.id)
            elif request.id in self._waiting:
                self.scheduler.submit(replace(request, alone=True, retry=True), self.now)
        self._pump_due = True

    def _cancel(self, request_id: int) -> None:
        if request_id in self._waiting:
            self._waiting.remove(request_id)
            self.scheduler.cancel(request_id, self.now)
            self._pump_due = True

    def _tell_server(self, state: ServerState) -> None:
        self.scheduler.set_server(state, self.now)
        self._pump_due = True

    def _retune(self, tuning: Tuning) -> None:
        self.scheduler.retune(tuning, self.now)
        self._pump_due = True

    def _timer_fired(self, number: int) -> None:
        if number == self._timer:
            self._armed = None  # consumed
            self._pump_due = True
