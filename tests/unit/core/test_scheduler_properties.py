"""The invariants of scheduler.py, whatever a driver says and in whatever order.

A Hypothesis state machine plays the driver: several models, devices, signatures, rows, weights,
with and without deadlines, lone requests, failures and second tries, clients that leave, Triton
that comes and goes, one of two servers too, models that change and vanish, numbers that are
retuned, time that jumps.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from tests.helpers import MS, exact
from tritonsched.core.batch import Batch, Completion, Decision, Dispatch, Expire, Reject
from tritonsched.core.fairness import Fairness
from tritonsched.core.observers import Observer
from tritonsched.core.policies import POLICIES
from tritonsched.core.request import NEVER_NS, Outcome, Request, Tenant, Utility
from tritonsched.core.scheduler import Scheduler
from tritonsched.core.tuning import Tuning
from tritonsched.core.variant import Family, ServerState, Variant

MODELS = ("a", "b", "c")
FAMILY = Family("f", ("b", "c"))
DEVICES = {"gpu0": "left", "gpu1": "right"}
SERVERS = ("left", "right")
QUEUE_MAX = 12
TUNINGS = [
    Tuning(rtt_ns=rtt * MS, guard_ns=guard, window_ns=window * MS, rows_cap=cap, reply_ns=reply,
           queue_requests_max=QUEUE_MAX)
    for rtt, guard, window, cap, reply in (
        (0, 0, 0, 0, 0), (1, MS // 2, 0, 0, MS), (1, 0, 5, 0, 0), (0, MS, 0, 3, 0),
    )
]  # fmt: skip
PROFILES: list[dict[int, int]] = [
    {},
    {1: 2 * MS, 8: 9 * MS},
    {1: 10 * MS, 4: 10 * MS, 8: 20 * MS},
    {1: 100, 8: 800},
]
TENANTS = {
    "a": Tenant("a", share=0.5), "b": Tenant("b", share=0.25, queue_requests_max=3)
}  # fmt: skip
numbers = st.integers(min_value=0, max_value=10_000)


class Exits(Observer):
    """An observer that counts how often each request left, and how."""

    def __init__(self) -> None:
        self.left: Counter[int] = Counter()
        self.submitted: Counter[int] = Counter()
        self.outcomes: dict[int, Outcome] = {}

    def on_submit(self, request: Request, now: int) -> None:
        self.submitted[request.id] += 1

    def on_complete(self, batch: Batch, *, measured_ns: int, now: int) -> None:
        assert measured_ns >= 0

    def on_outcomes(
        self, requests: Sequence[Request], outcome: Outcome, reason: str, now: int
    ) -> None:
        for request in requests:
            self.left[request.id] += 1
            self.outcomes[request.id] = outcome
            assert bool(reason) == (outcome is Outcome.REJECTED)


class Machine(RuleBasedStateMachine):
    """The driver. `queued` and `running` are what it believes; the scheduler must agree."""

    policy = "lite"

    @initialize(profile=st.sampled_from(PROFILES), tuning=st.sampled_from(TUNINGS))
    def start(self, profile: dict[int, int], tuning: Tuning) -> None:
        self.exits = Exits()
        rule = POLICIES[self.policy]()
        self.keeps_deadlines = rule.keeps_deadlines
        self.scheduler = Scheduler(rule, tuning=tuning, observers=(self.exits,))
        strength = 4.0 if self.policy == "lite" else 0.0  # a look-ahead walks every weight
        self.scheduler.tenants.adopt(TENANTS, Fairness(target=0.9, strength=strength))
        self.now = 0
        self.ids = 0
        self.queued: dict[int, Request] = {}
        self.running: dict[int, Batch] = {}
        self.cancelled: set[int] = set()
        self.served: set[str] = set()
        self.places: dict[str, set[str]] = {}
        self.away: set[str] = set()
        self.scheduler.set_family(FAMILY, self.now)
        for index in range(len(MODELS)):
            self.vary(index, index + 1, profile)

    # -- inputs -------------------------------------------------------------------------------

    @rule(
        made=st.builds(
            Request,
            id=st.just(0),
            model=st.sampled_from([*MODELS, FAMILY.model]),
            slo=st.just("s"),
            signature=st.integers(0, 1),
            rows=st.integers(1, 10),
            arrival_ns=st.just(0),
            weight=st.sampled_from([1.0, 1.0, 3.0]),
            alone=st.sampled_from([False, False, True]),
            tenant=st.sampled_from(["a", "b", ""]),
            server=st.sampled_from(["", "", "", *SERVERS]),
            utility=st.sampled_from([None, None, Utility.linear(0.5)]),
        ),
        deadline=st.none() | st.integers(-1, 60),
        count=st.integers(1, 6),
    )
    def submit(self, made: Request, deadline: int | None, count: int) -> None:
        """A burst of requests that are alike."""
        due = NEVER_NS if deadline is None else self.now + deadline * MS
        made = replace(made, arrival_ns=self.now, deadline_ns=due)
        if not self._is_served(made.model):
            with pytest.raises(KeyError):
                self.scheduler.submit(made, self.now)
            return
        for _ in range(count):
            self.ids += 1
            one = self.queued[self.ids] = replace(made, id=self.ids)
            self.scheduler.submit(one, self.now)

    @rule(pick=numbers, fate=st.sampled_from(["ok", "ok", "ok", "failed", "apart", "lost"]))
    def complete(self, pick: int, fate: str) -> None:
        """Any running batch, first or not."""
        if not self.running:
            return
        batch = self.running.pop(sorted(self.running)[pick % len(self.running)])
        apart = fate == "apart" and not batch.requests[0].alone
        completion = Completion(batch.id, ok=fate == "ok", retried=apart)
        if fate == "lost":
            self._lost(batch)
            return
        self.scheduler.complete(completion, self.now)
        for request in batch.requests if apart else ():
            if request.id not in self.cancelled and self._is_served(request.model):
                again = replace(request, alone=True, retry=True)
                self.queued[again.id] = again
                self.scheduler.submit(again, self.now)
            elif request.id not in self.cancelled:
                self.exits.left[request.id] += 1  # nobody serves it: the driver answers

    def _lost(self, batch: Batch) -> None:
        """Its server is away, and other servers take what they can."""
        moved = self.scheduler.movable(batch)
        assert not any(request.retry or request.server for request in moved)
        self.scheduler.complete(Completion.lost(batch, moved), self.now)
        for request in moved:
            if request.id not in self.cancelled:
                again = self.queued[request.id] = replace(request, retry=True)
                self.scheduler.submit(again, self.now)
        self.tell_server(ServerState.AWAY, batch.server)

    @rule(pick=numbers)
    def cancel(self, pick: int) -> None:
        """Any request ever seen, or one nobody knows."""
        number = pick % (self.ids + 2)
        running = {r.id for batch in self.running.values() for r in batch.requests}
        if number in running or number in self.queued:
            self.cancelled.add(number)
        self.queued.pop(number, None)
        self.scheduler.cancel(number, self.now)

    @rule(
        state=st.sampled_from([*ServerState, ServerState.READY, ServerState.READY]),
        server=st.sampled_from(SERVERS),
    )
    def tell_server(self, state: ServerState, server: str) -> None:
        self.scheduler.set_server(state, self.now, server)
        (self.away.add if state is ServerState.AWAY else self.away.discard)(server)

    @rule(tuning=st.sampled_from(TUNINGS))
    def retune(self, tuning: Tuning) -> None:
        self.scheduler.retune(tuning, self.now)
        self.scheduler.set_distances({"left": tuning.reply_ns}, self.now)

    @rule(model=st.integers(0, 2), devices=st.integers(1, 3), profile=st.sampled_from(PROFILES))
    def vary(self, model: int, devices: int, profile: dict[int, int]) -> None:
        """The model is served by gpu0, gpu1 or both; maybe with times known beforehand."""
        names = tuple(name for bit, name in enumerate(DEVICES) if devices >> bit & 1)
        servers = tuple(DEVICES[name] for name in names)
        variant = Variant(
            MODELS[model], 4 + model * 2, names, accuracy=1.0 - model / 4, servers=servers
        )
        self.places[variant.model] = set(servers)
        self.scheduler.set_variant(variant, self.now)
        self.served.add(variant.model)
        for name in names if profile else ():
            self.scheduler.set_profile(variant.model, name, exact(profile))

    @rule(model=st.sampled_from(MODELS))
    def drop(self, model: str) -> None:
        self.scheduler.drop_model(model, self.now)
        self.served.discard(model)

    @rule(step=st.sampled_from([0, 1, 1000, MS, 5 * MS, 30 * MS, 2_000 * MS]))
    def wait(self, step: int) -> None:
        """A driver that is late: it looks again only now."""
        self.now += step

    @rule()
    def wait_for_the_timer(self) -> None:
        self.decide()
        wakeup = self.scheduler.next_wakeup()
        if wakeup is not None:
            self.now = wakeup

    # -- the decision -------------------------------------------------------------------------

    @rule()
    def decide(self) -> None:
        decisions = self.scheduler.decide(self.now)
        for decision in decisions:
            self._take(decision)
        wakeup = self.scheduler.next_wakeup()
        assert wakeup is None or wakeup > self.now  # invariant 2
        assert self.scheduler.decide(self.now) == []  # invariant 3: twice
        if wakeup is None or wakeup > self.now + 1:
            self.now += 1
            assert self.scheduler.decide(self.now) == []  # invariant 3: early
        for count in self.scheduler.queued().values():
            assert count <= QUEUE_MAX  # invariant 7
        for request in self.queued.values():
            assert request.deadline_ns >= self.now - 1, "it should have been refused"
            assert self._is_served(request.model)
            up = self._servers_of(request.model) - self.away
            assert request.server in up if request.server else up, "nobody can take it"
        assert sum(self.scheduler.queued().values()) == len(self.queued)

    def _take(self, decision: Decision) -> None:
        if isinstance(decision, Reject | Expire):
            self.queued.pop(decision.request.id)
            return
        assert isinstance(decision, Dispatch)
        batch = decision.batch
        for request in batch.requests:
            mine = self.queued.pop(request.id)  # invariant 1: never twice
            assert replace(request, weight=mine.weight, boost=mine.boost) == mine
        self._check_batch(batch)
        self.running[batch.id] = batch
        on_device = [b for b in self.running.values() if b.device == batch.device]
        assert len(on_device) <= 2

    def _check_batch(self, batch: Batch) -> None:
        """Invariants 6 and 8."""
        assert batch.requests
        assert batch.server == DEVICES[batch.device]
        assert batch.server not in self.away
        assert {r.server for r in batch.requests} <= {"", batch.server}
        (asked,) = {r.model for r in batch.requests}
        assert batch.model in (FAMILY.variants if asked == FAMILY.model else (asked,))
        assert len({r.signature for r in batch.requests}) == 1
        assert batch.rows == sum(r.rows for r in batch.requests)
        if len(batch.requests) > 1:
            assert not any(r.alone for r in batch.requests)
            assert batch.rows <= self.scheduler._variants[batch.model].rows_max
        first_ns = min(r.deadline_ns for r in batch.requests)
        if self.keeps_deadlines and not batch.probe:
            assert batch.expected_end_ns + self.scheduler.tuning.reply_ns <= first_ns
        if self.keeps_deadlines and batch.probe and self._is_proven(batch):
            assert len(batch.requests) == 1  # sent to look again, not because it fits

    def _is_proven(self, batch: Batch) -> bool:
        return self.scheduler._profiles[batch.model, batch.device].is_proven

    def _is_served(self, model: str) -> bool:
        names = FAMILY.variants if model == FAMILY.model else (model,)
        return not self.served.isdisjoint(names)

    def _servers_of(self, model: str) -> set[str]:
        names = FAMILY.variants if model == FAMILY.model else (model,)
        return {server for name in names if name in self.served for server in self.places[name]}

    @invariant()
    def each_request_leaves_at_most_once(self) -> None:
        assert all(count == 1 for count in self.exits.left.values())
        assert all(count == 1 for count in self.exits.submitted.values())

    def teardown(self) -> None:
        """Invariant 1: let everything finish; then every request has left exactly once."""
        if not hasattr(self, "exits"):
            return
        for server in SERVERS:
            self.tell_server(ServerState.READY, server)
        for _ in range(4 * (self.ids + 2)):
            self.decide()
            if self.running:
                self.now += MS
                self.complete(0, "ok")
                continue
            wakeup = self.scheduler.next_wakeup()
            if wakeup is None:
                break
            self.now = wakeup
        assert not self.queued
        assert set(self.exits.left) == set(range(1, self.ids + 1))
        self.each_request_leaves_at_most_once()


# The gate asks the same questions each time; a longer search with other seeds raises max_examples.
SETTINGS = settings(stateful_step_count=60, derandomize=True, database=None)
EXAMPLES = {"edf": 30, "fcfs": 30, "lite": 80}
"""Most of the default rule; the scheduler is the same under all of them."""


@pytest.mark.parametrize("policy", POLICIES)
def test_the_invariants_hold_under_every_rule(policy: str) -> None:
    chosen = type("Chosen", (Machine,), {"policy": policy})
    run_state_machine_as_test(
        chosen, settings=settings(SETTINGS, max_examples=EXAMPLES.get(policy, 10))
    )
