"""The scheduler: what Triton runs next. Read this file first.

The contract with a driver (live: proxy/driver.py, simulated: sim/engine.py)

| call                            | meaning                                                       |
|---------------------------------|---------------------------------------------------------------|
| `submit(request, now)`          | a request arrived                                             |
| `refuse(request, now)`          | it begins to arrive: is it refused already?                   |
| `complete(completion, now)`     | a batch came back, well or not; frees the device, teaches     |
| `cancel(request_id, now)`       | the client left: queued → gone, dispatched → answer dropped   |
| `reserve` / `release`           | a stream wants a guarantee or ends; answer: Grant or Refuse   |
| `proposal` / `judge`            | the test of that, to be run beside the loop, and its verdict  |
| `set_variant` / `drop_model`    | Triton loaded, changed or unloaded a model                    |
| `set_family` / `drop_family`    | clients may ask for one model, and any of several will do     |
| `set_server(state, now)`        | a Triton went away or came back, or the sidecar drains        |
| `retune(tuning, now)`           | feedback changed a number                                     |
| `set_policy(policy, now)`       | the policy file names another rule; what waits stays          |
| `decide(now) -> list[Decision]` | **the only call that decides**; the driver carries it out     |
| `next_wakeup() -> int | None`   | the latest time to call `decide` again; None: only on an input|

Inputs return nothing and decide nothing, so a driver gathers all inputs of a moment before one
`decide`. At equal times: completions, then arrivals, then the timer.

Invariants, each a property test (tests/unit/core/test_scheduler_properties.py): (1) each submitted
request leaves exactly once: dispatched, rejected, expired or cancelled; (2) after `decide(now)`,
`next_wakeup()` is None or > now; (3) calling early or twice is harmless and returns []; (4) `now`
never decreases; (5) same inputs, same decisions; (6) a batch has one model, one signature, rows
within the cap; (7) queues never exceed their bound; (8) a dispatched batch is expected in time for
each member unless the policy declares otherwise or the batch is a probe.

Theory of operation. A device runs one batch; the next one is sent `tuning.lead_ns` before the
running one's predicted end, so that it reaches Triton just in time and is still chosen with the
latest knowledge (late binding is worth milliseconds: performance study C2). Requests that can no
longer be in time even alone and next are refused at once, not at their deadline.
"""

from collections.abc import Iterable, Sequence

from tritonsched.core.admission import refusal
from tritonsched.core.batch import Batch, Completion, Decision, Dispatch, Expire, Reject
from tritonsched.core.desk import Desk
from tritonsched.core.devices import DeviceState
from tritonsched.core.observers import Audience, Observer
from tritonsched.core.policy import Choice, Hold, Policy
from tritonsched.core.proposal import Proposal, Verdict
from tritonsched.core.request import NEVER_NS, Outcome, RejectReason, Request
from tritonsched.core.reservation import Reservation
from tritonsched.core.serving import turns_hopeless_ns
from tritonsched.core.state import State
from tritonsched.core.streams import Streams
from tritonsched.core.tuning import Tuning
from tritonsched.core.variant import ServerState


class Scheduler(State):
    """Requests in, decisions out. As a `SchedulerView` it is all that a policy sees."""

    def __init__(
        self, policy: Policy, *, tuning: Tuning | None = None, observers: Iterable[Observer] = ()
    ) -> None:
        super().__init__(tuning or Tuning())
        self._policy = policy
        self._audience = Audience((self.tenants, *observers))
        self._arrived: list[Request] = []
        self._streams = Streams()
        self._desk = Desk(self._streams, self._serving, self.rows_cap)
        self._running: dict[int, Batch] = {}
        self._abandoned: set[int] = set()
        self._held_until: dict[str, int] = {}
        self._hopeless_ns = NEVER_NS  # before that nobody turns hopeless just by waiting
        self._batch_id = 0

    def __repr__(self) -> str:
        return (
            f"<scheduler {self._policy.name} {self.server}: {len(self._queues)} queued, "
            f"{len(self._running)} batches running>"
        )

    # -- inputs -------------------------------------------------------------------------------

    def submit(self, request: Request, now: int) -> None:
        """A request arrived. Its model must have been announced by `set_variant`."""
        self._advance(now)
        if request.model not in self._serving:
            raise KeyError(f"model {request.model!r} has no variant; call set_variant first")
        request = self.tenants.weighed(request)
        self._arrived.append(request)
        if not request.retry:
            for hear in self._audience.submit:
                hear(request, now)

    def refuse(self, request: Request, now: int) -> Reject | None:
        """Refuse at once, and count, a request that `decide` would refuse for time if it were
        submitted now: nobody need wait for its tensors. None: submit it when they have come.
        """
        self._advance(now)
        reason = self._refusal(request, self._reach(request, now))
        if reason is not RejectReason.DEADLINE_UNREACHABLE:
            return None
        if self._serving.probed(request, self.tuning, now) is not None:
            return None
        for hear in self._audience.submit:
            hear(request, now)
        self._leave((request,), Outcome.REJECTED, now, reason.value)
        return Reject(request, reason)  # trying again is pointless

    def complete(self, completion: Completion, now: int) -> None:
        """A batch came back; its members' replies are written. An unknown id is the driver's
        error.
        """
        self._advance(now)
        self._moved = True
        batch = self._running.pop(completion.batch_id)
        device = self._devices[batch.device]
        has_device = batch in device.batches
        measured_ns = device.finish(batch, completion, now, self.tuning.rtt_ns) if has_device else 0
        if completion.ok and has_device:
            self._adapt(batch, measured_ns, now)
            profile = self._profiles.get((batch.model, batch.device))
            if profile is not None and (self.tuning.learning or not profile.knows(batch.rows)):
                profile.observe(rows=batch.rows, exec_ns=measured_ns, now=now)
            for hear in self._audience.complete:
                hear(batch, measured_ns=measured_ns, now=now)
        device.predict(self._exec_ns, now)
        for outcome, requests in completion.outcomes(batch, self._abandoned, now).items():
            self._leave(requests, outcome, now)
        if self._abandoned:
            self._abandoned.difference_update(request.id for request in batch.requests)

    def let_go(self, batch_id: int, now: int) -> None:
        """The batch goes on without its device, and will teach nothing: what it waits for in
        Triton is another batch, which could not be sent otherwise (a sequence that wants a slot).
        """
        self._advance(now)
        self._moved = True
        batch = self._running[batch_id]
        device = self._devices[batch.device]
        device.finish(batch, Completion(batch_id, ok=False), now, self.tuning.rtt_ns)
        device.predict(self._exec_ns, now)

    def cancel(self, request_id: int, now: int) -> None:
        """The client left. Harmless for an id that is not known (any more)."""
        self._advance(now)
        queued = self._queues.pop(request_id) or self._streams.pop(request_id)
        for request in [r for r in self._arrived if r.id == request_id]:
            self._arrived.remove(request)
            queued = request
        if queued is not None:
            self._leave((queued,), Outcome.CANCELLED, now)
        elif any(r.id == request_id for b in self._running.values() for r in b.requests):
            self._abandoned.add(request_id)

    def reserve(self, reservation: Reservation, now: int) -> None:
        """A periodic stream asks for a guarantee. Raises ValueError for an id that is known."""
        self._advance(now)
        self._desk.ask(reservation)

    def release(self, reservation_id: int, now: int) -> None:
        """The stream ends; frames of it that wait are best effort. Harmless for an unknown id."""
        self._advance(now)
        for request in self._desk.release(reservation_id):
            self._arrived.append(request)

    def proposal(self, now: int) -> Proposal | None:
        """A test to run beside the loop; its verdict is due at `judge`, and then a `decide`."""
        self._advance(now)
        return self._desk.proposal(self.tuning, now)

    def judge(self, verdict: Verdict, now: int) -> None:
        """The test's verdict, to be committed by the next `decide`."""
        self._advance(now)
        self._desk.judge(verdict)

    def set_server(self, state: ServerState, now: int, server: str = "") -> None:
        """A Triton went away or came back, or the sidecar drains (then the queue is still served).

        server: which of several; what waits for it alone is refused, the rest goes to others.
        """
        self._advance(now)
        self._moved = True
        self._arrived += self._streams.away(self._hear_of(server, state))

    def retune(self, tuning: Tuning, now: int) -> None:
        """Feedback changed a number."""
        self._advance(now)
        self._moved = True
        self.tuning = tuning
        for device in self._devices.values():
            device.speed.set_safety(tuning.safety)

    def set_policy(self, policy: Policy, now: int) -> None:
        """Another rule from the next decision on; what waits and what runs stays as it is."""
        self._advance(now)
        self._moved = True
        self._policy = policy

    # -- what an operator may see -------------------------------------------------------------

    def running(self) -> tuple[Batch, ...]:
        """Batches sent and not back, in the order they were sent."""
        return tuple(self._running.values())

    def reservations(self) -> tuple[tuple[Reservation, str], ...]:
        """Granted streams, oldest first, with their devices."""
        return self._streams.placed()

    # -- the decision -------------------------------------------------------------------------

    def decide(self, now: int) -> list[Decision]:
        """Everything to be done now, in order: send first, the device must not wait for refusals
        to be written; then refuse what cannot be taken, or became hopeless.
        """
        self._advance(now)
        if self._moved:
            self._desk.recheck()
        decisions = self._desk.commit(self.tuning, now)
        self._held_until.clear()
        sent = self._batch_id
        self._admit(now, decisions)
        if self._moved or now >= self._hopeless_ns:
            self._prune(now, decisions)
        for device in self._soonest_first(now):
            self._fill(device, now, decisions)
        if self._streams.lost or self._batch_id != sent:
            self._prune(now, decisions)
            decisions.sort(key=lambda decision: not isinstance(decision, Dispatch))
        return decisions

    def next_wakeup(self) -> int | None:
        """When something changes by itself: a batch nears its end, a member turns hopeless, a hold
        ends.
        """
        now, first = self._now, NEVER_NS
        for time in (self._hopeless_ns, *self._held_until.values()):
            if now < time < first:
                first = time
        for device in self._devices.values():
            if len(device.batches) != 1 or not device.is_up:
                continue
            time = device.predicted_end_ns - self.tuning.lead_ns - device.far_ns
            if now < time < first and (
                self._queues.any_of(device.models) or self._streams.waiting(device.name)
            ):
                first = time
        return first if first < NEVER_NS else None

    def _admit(self, now: int, decisions: list[Decision]) -> None:
        arrived, self._arrived = self._arrived, []
        known: dict[tuple[str, int, str], tuple[int, int]] = {}  # alike requests, alike answers
        for request in arrived:
            if request.reservation and self._is_open(request.model) and self._streams.take(request):
                continue
            alike = (request.model, request.rows, request.server)
            reach = known.get(alike)
            if reach is None:
                reach = known[alike] = self._reach(request, now)
            reason = self._refusal(request, reach)
            if reason is RejectReason.DEADLINE_UNREACHABLE:
                place = self._serving.probed(request, self.tuning, now)
                if place is not None:
                    self._send(place.variant, (request,), place.device, now, decisions)
                    known.clear()
                    continue
            if reason is not None:
                self._reject(request, reason, now, decisions)
                continue
            for gone in self.tenants.make_room(request, self._queues, self.tuning):
                self._reject(gone, RejectReason.TENANT_OVER_SHARE, now, decisions)
            self._queues.push(request)
            turns_ns = turns_hopeless_ns(request.deadline_ns, reach[1])
            self._hopeless_ns = min(self._hopeless_ns, turns_ns)

    def _reach(self, request: Request, now: int) -> tuple[int, int]:
        return self._serving.reach(request.model, request.rows, self.tuning, now, request.server)

    def _refusal(self, request: Request, reach: tuple[int, int]) -> RejectReason | None:
        if reach[0] == NEVER_NS:
            return RejectReason.TRITON_UNAVAILABLE
        return refusal(
            request,
            full=self.tenants.refusal(request, self._queues, self.tuning),
            earliest_finish_ns=reach[0],
            server=self.server,
        )

    def _prune(self, now: int, decisions: list[Decision]) -> None:
        """Refuse who can no longer be in time; all of a queue if nothing serves it."""
        self._moved = False
        self._hopeless_ns = NEVER_NS
        if self._streams.has_frames:
            self._prune_frames(now, decisions)
        for queue in self._queues:
            doomed, turns_ns = self._serving.prospects(queue, self.tuning, now)
            self._hopeless_ns = min(self._hopeless_ns, turns_ns)
            self._queues.pop_all(doomed)
            for request in doomed:
                if request.deadline_ns < now:
                    decisions.append(Expire(request))
                    self._leave((request,), Outcome.EXPIRED, now)
                elif self._serving.places(queue.model, queue.server):
                    self._reject(request, RejectReason.DEADLINE_UNREACHABLE, now, decisions)
                else:
                    self._reject(request, RejectReason.TRITON_UNAVAILABLE, now, decisions)

    def _prune_frames(self, now: int, decisions: list[Decision]) -> None:
        """Guaranteed frames that an overrun left no time for, or that nothing serves."""
        lost, self._streams.lost = self._streams.lost, []
        for request in lost:
            self._reject(request, RejectReason.DEADLINE_UNREACHABLE, now, decisions)
        for request in self._streams.pop_all(lambda model: not self._serving.places(model)):
            self._reject(request, RejectReason.TRITON_UNAVAILABLE, now, decisions)

    def _soonest_first(self, now: int) -> list[DeviceState]:
        """Of several free devices the one first that would have done its most urgent work soonest;
        else an idle one before one that is only about to be, and in order of announcement.
        """
        free = [d for d in self._devices.values() if d.has_room(now, self.tuning.lead_ns)]
        if len(free) < 2:  # nothing to sort
            return free
        return sorted(free, key=lambda device: (self._done_ns(device, now), len(device.batches)))

    def _done_ns(self, device: DeviceState, now: int) -> int:
        start_ns = device.available_ns(now, self.tuning.rtt_ns)
        queues = self.queues(device.name)
        if not queues:
            return start_ns
        first = min(queues, key=lambda queue: queue.head.due_ns)
        rows = first.head.rows
        if not first.alone:
            rows = min(first.rows, self.rows_cap(first.model, device.name))
        return start_ns + self.safe_ns(first.model, device.name, rows)

    def _fill(self, device: DeviceState, now: int, decisions: list[Decision]) -> None:
        """Give the device its next batch, if it has room: idle, or one batch that is nearly
        done.
        """
        lead_ns = self.tuning.lead_ns
        while (self._queues or self._streams.has_plans) and device.has_room(now, lead_ns):
            start_ns = device.available_ns(now, self.tuning.rtt_ns)
            choice = self._streams.choose(
                self._policy, self, device.name, start_ns=start_ns, now=now
            )
            if isinstance(choice, Hold):
                self._held_until[device.name] = choice.until_ns
            if not isinstance(choice, Choice):
                return
            self._queues.pop_all(choice.requests)
            self._send(self._runs(choice, device.name), choice.requests, device, now, decisions)

    def _send(
        self,
        model: str,
        requests: tuple[Request, ...],
        device: DeviceState,
        now: int,
        decisions: list[Decision],
    ) -> None:
        rows = sum([request.rows for request in requests])
        way = self._way(requests[0].model, model, device.name)
        profile = self._profiles[way.model, device.name]
        start_ns = device.available_ns(now, self.tuning.rtt_ns)
        finish_ns = start_ns + profile.safe_ns(rows) + self.tuning.reply_ns
        late = finish_ns > min([request.deadline_ns for request in requests])
        self._batch_id += 1
        is_probe = not profile.is_proven or (late and self._policy.keeps_deadlines)
        batch = Batch(  # by position, as requests are made
            self._batch_id,
            way.model,
            device.name,
            requests,
            rows,
            now,
            start_ns,
            profile.exec_ns(rows),
            is_probe,
            way.worth,
            device.server,
        )
        self._running[batch.id] = batch
        device.start(batch, proven=profile.is_proven)
        decisions.append(Dispatch(batch))
        for hear in self._audience.dispatch:
            hear(batch, now)

    # -- leaves -------------------------------------------------------------------------------

    def _reject(
        self, request: Request, reason: RejectReason, now: int, decisions: list[Decision]
    ) -> None:
        decisions.append(Reject(request, reason, self._retry_after_ns(request.model, reason)))
        self._leave((request,), Outcome.REJECTED, now, reason.value)

    def _leave(
        self, requests: Sequence[Request], outcome: Outcome, now: int, reason: str = ""
    ) -> None:
        for hear in self._audience.outcomes:
            hear(requests, outcome, reason, now)
