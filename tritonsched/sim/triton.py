"""Triton's dynamic batcher as a simulated server: the incumbent that a sidecar must beat.

Rule: it does what Triton's core does, no more. A queue a model, first in, first out; a payload is
ready when it is full or its oldest member has waited `delay_ns`; ready payloads run in the order of
their readiness and grow until they are taken; a request older than `timeout_ns` is rejected, but
only when a payload is formed (Triton looks for it at no other time while busy). Execution times are
unknown to it, deadlines too. Source: dynamic_batch_scheduler.cc of Triton's core.

slots: batches that share a device; together they run at `SPEED_UP` (assumed, scheduling study 1),
each at an equal part of it. aimd: Clipper's batch size instead of a fixed one: one more after a
batch in time, a tenth less after one that was not.
"""

import heapq
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

from tritonsched.core.batch import Batch
from tritonsched.core.observers import Observer
from tritonsched.core.request import NEVER_NS, Outcome, Request
from tritonsched.sim.engine import NOTHING_NS
from tritonsched.sim.world import World

SPEED_UP = (1.0, 1.0, 1.12, 1.18, 1.20)
"""Of a device with so many batches at once; more than four gain nothing."""
BACK_OFF = 0.9


@dataclass(frozen=True, slots=True)
class Batcher:
    """How Triton is told to batch one model. timeout_ns: None never rejects."""

    rows_max: int
    delay_ns: int = 0
    timeout_ns: int | None = None
    aimd: bool = False


@dataclass(slots=True)
class _Queue:
    """One model's queue, and the moment from which its payload is ready."""

    model: str
    batcher: Batcher
    cap: float
    waiting: deque[Request] = field(default_factory=deque)
    rows: int = 0
    ready: bool = False
    armed_ns: int = -1  # the last time it was to be looked at again


@dataclass(slots=True)
class _Running:
    batch: Batch
    left: float  # nanoseconds at full speed
    started_ns: int


class TritonServer:
    """A simulated Triton with dynamic batching. Observers hear what the scheduler's would."""

    def __init__(
        self,
        world: World,
        batchers: Mapping[str, Batcher],
        *,
        slots: int = 1,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.now = 0
        self._world = world
        self._slots = slots
        self._observers = observers
        self._queues = {
            name: _Queue(
                name, batchers[name], 1.0 if batchers[name].aimd else batchers[name].rows_max
            )
            for name in world.models
        }
        self._ready: deque[_Queue] = deque()
        self._delays: list[tuple[int, int, _Queue]] = []
        self._running: dict[str, list[_Running]] = {device: [] for device in world.busy_ns}
        self._since = dict.fromkeys(self._running, 0)
        self._ends_ns = dict.fromkeys(self._running, NOTHING_NS)
        self._numbers = count(1)

    def run(self, requests: Iterable[Request]) -> None:
        """Serve all of them; what is still queued when nothing more can happen has expired."""
        coming = iter(requests)
        request = next(coming, None)
        while True:
            ends = min(self._ends_ns.values(), default=NOTHING_NS)
            delay = self._delays[0][0] if self._delays else NOTHING_NS
            arrival = request.arrival_ns if request else NOTHING_NS
            last, self.now = self.now, min(ends, delay, arrival)
            if self.now == NOTHING_NS:
                self.now = last
                break
            if ends == self.now:
                self._finish(self.now)
            while request is not None and request.arrival_ns == self.now:
                self._arrive(request)
                request = next(coming, None)
            while self._delays and self._delays[0][0] <= self.now:
                self._look(heapq.heappop(self._delays)[2])
            self._fill()
        self._give_up()

    # -- time on the devices ------------------------------------------------------------------

    def _speed(self, device: str) -> float:
        """Of each batch on the device."""
        many = len(self._running[device])
        return SPEED_UP[min(many, len(SPEED_UP) - 1)] / many

    def _end_ns(self, device: str) -> int:
        running = self._running[device]
        if not running:
            return NOTHING_NS
        left = min(one.left for one in running)
        return max(self._since[device] + 1, self._since[device] + round(left / self._speed(device)))

    def _progress(self, device: str) -> None:
        """Bring what is left of each batch up to now."""
        running = self._running[device]
        if running:
            done = (self.now - self._since[device]) * self._speed(device)
            for one in running:
                one.left -= done
            self._world.busy_ns[device] += self.now - self._since[device]
        self._since[device] = self.now

    def _finish(self, now: int) -> None:
        for device, running in self._running.items():
            if self._ends_ns[device] <= now:
                self._progress(device)
                done = [one for one in running if one.left < 1.0]
                self._running[device] = [one for one in running if one.left >= 1.0]
                self._ends_ns[device] = self._end_ns(device)
                for one in done:
                    self._answer(one)

    def _answer(self, one: _Running) -> None:
        for observer in self._observers:
            observer.on_complete(one.batch, measured_ns=self.now - one.started_ns, now=self.now)
        for request in one.batch.requests:
            in_time = self.now <= request.deadline_ns
            self._leave(request, Outcome.SERVED if in_time else Outcome.LATE)
        queue = self._queues[one.batch.model]
        if queue.batcher.aimd:
            in_time = all(self.now <= request.deadline_ns for request in one.batch.requests)
            cap = queue.cap + 1 if in_time else queue.cap * BACK_OFF
            queue.cap = min(max(1.0, cap), queue.batcher.rows_max)

    # -- queues -------------------------------------------------------------------------------

    def _arrive(self, request: Request) -> None:
        for observer in self._observers:
            observer.on_submit(request, self.now)
        queue = self._queues[request.model]
        queue.waiting.append(request)
        queue.rows += request.rows
        self._look(queue)

    def _look(self, queue: _Queue) -> None:
        """Is its payload ready? If not, look again when its oldest member has waited enough."""
        if queue.ready or not queue.waiting:
            return
        due_ns = min(queue.waiting[0].arrival_ns + queue.batcher.delay_ns, NEVER_NS)
        if queue.rows >= int(queue.cap) or due_ns <= self.now:
            queue.ready = True
            self._ready.append(queue)
        elif queue.armed_ns != due_ns < NEVER_NS:
            queue.armed_ns = due_ns
            heapq.heappush(self._delays, (due_ns, next(self._numbers), queue))

    def _fill(self) -> None:
        """Payloads in order of readiness to the first instances that are free."""
        for device in self._running if self._ready else ():
            while self._ready and len(self._running[device]) < self._slots:
                queue = next((q for q in self._ready if self._serves(device, q)), None)
                if queue is None:
                    break
                self._ready.remove(queue)
                queue.ready = False
                self._start(queue, device)
                self._look(queue)

    def _serves(self, device: str, queue: _Queue) -> bool:
        return device in self._world.models[queue.model].devices

    def _start(self, queue: _Queue, device: str) -> None:
        taken: list[Request] = []
        rows = 0
        while queue.waiting and (not taken or rows + queue.waiting[0].rows <= int(queue.cap)):
            request = queue.waiting.popleft()
            queue.rows -= request.rows
            timeout_ns = queue.batcher.timeout_ns
            if timeout_ns is not None and self.now - request.arrival_ns > timeout_ns:
                self._leave(request, Outcome.REJECTED, "timeout")
            else:
                taken.append(request)
                rows += request.rows
        if taken:
            self._run_batch(queue.model, device, tuple(taken), rows)

    def _run_batch(self, model: str, device: str, taken: tuple[Request, ...], rows: int) -> None:
        number = next(self._numbers)
        expected_ns = self._world.models[model].exec_on(device)(rows)
        batch = Batch(number, model, device, taken, rows, self.now, self.now, expected_ns)
        self._progress(device)
        exec_ns = self._world.exec_ns(batch, self.now)
        self._running[device].append(_Running(batch, float(exec_ns), self.now))
        self._ends_ns[device] = self._end_ns(device)
        for observer in self._observers:
            observer.on_dispatch(batch, self.now)

    def _give_up(self) -> None:
        for queue in self._queues.values():
            for request in queue.waiting:
                self._leave(request, Outcome.EXPIRED)
            queue.waiting.clear()

    def _leave(self, request: Request, outcome: Outcome, reason: str = "") -> None:
        for observer in self._observers:
            observer.on_outcomes((request,), outcome, reason, self.now)
