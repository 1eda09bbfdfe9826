"""The simulated driver: order of events, one timer, determinism, and its rule."""

import pytest

from tests.helpers import MS, request
from tritonsched.core.batch import Completion, Decision
from tritonsched.core.latency import LatencyProfile
from tritonsched.core.ledger import Ledger
from tritonsched.core.policies import POLICIES
from tritonsched.core.request import Outcome, Request
from tritonsched.core.scheduler import Scheduler
from tritonsched.core.tuning import Tuning
from tritonsched.core.variant import ServerState
from tritonsched.sim.engine import Line, Simulation
from tritonsched.sim.workload import tight
from tritonsched.sim.world import Faults, SimModel, World, affine

MODEL = SimModel("m", 8, affine(5 * MS, MS))
TUNING = Tuning(rtt_ns=MS, guard_ns=MS)


class Bench:
    """A simulation of one model, with its ledger."""

    def __init__(self, faults: Faults | None = None) -> None:
        self.ledger = Ledger()
        self.scheduler = Scheduler(POLICIES["lite"](), tuning=TUNING, observers=(self.ledger,))
        self.scheduler.set_profile("m", "gpu0", LatencyProfile({1: 6 * MS, 8: 13 * MS}))
        self.sim = Simulation(self.scheduler, World([MODEL], seed=1, rtt_ns=MS, faults=faults))


def kinds(log: list[Line]) -> list[tuple[float, object, object]]:
    """(time in ms, decision, member ids or id)."""
    return [(at / MS, line[0], line[4] if line[0] == "dispatch" else line[1]) for at, line in log]


class Spy(Scheduler):
    """Writes down what it is told, in order."""

    heard: list[str]

    def submit(self, request: Request, now: int) -> None:
        self.heard.append(f"submit {request.id}")
        super().submit(request, now)

    def complete(self, completion: Completion, now: int) -> None:
        self.heard.append(f"complete {completion.batch_id}")
        super().complete(completion, now)

    def cancel(self, request_id: int, now: int) -> None:
        self.heard.append(f"cancel {request_id}")
        super().cancel(request_id, now)

    def decide(self, now: int) -> list[Decision]:
        self.heard.append(f"decide {now // MS}")
        return super().decide(now)


def test_events_of_one_moment_come_as_completions_then_inputs_then_one_decision() -> None:
    scheduler = Spy(POLICIES["lite"](), tuning=TUNING)
    scheduler.heard = []
    scheduler.set_profile("m", "gpu0", LatencyProfile({1: 6 * MS, 8: 13 * MS}))
    sim = Simulation(scheduler, World([MODEL], seed=1, rtt_ns=MS))
    sim.cancel(2, at_ns=7 * MS)  # 7 ms: the first batch is back, and the second request comes
    sim.run([request(1), request(2, arrival=7 * MS)])
    moment = scheduler.heard[scheduler.heard.index("complete 1") :]
    assert moment == ["complete 1", "submit 2", "cancel 2", "decide 7"]


def test_the_next_batch_is_sent_just_in_time_and_its_members_are_those_there_by_then() -> None:
    bench = Bench()
    log = bench.sim.run(request(n, arrival=at * MS) for n, at in ((1, 0), (2, 2), (3, 4), (4, 6)))
    assert kinds(log)[:2] == [(0, "dispatch", (1,)), (5, "dispatch", (2, 3))]
    assert bench.ledger.total(Outcome.SERVED) == 4


def test_requests_of_one_moment_are_decided_together() -> None:
    log = Bench().sim.run(request(n) for n in (1, 2, 3))
    assert kinds(log) == [(0, "dispatch", (1, 2, 3))]


def test_a_failed_merge_is_taken_apart_and_each_member_answered_once() -> None:
    bench = Bench(Faults(failure_rate=1.0))
    log = bench.sim.run(request(n) for n in (1, 2))
    assert [members for _, _, members in kinds(log)] == [(1, 2), (1,), (2,)]
    assert bench.ledger.total(Outcome.SERVED) == 2
    assert bench.ledger.submitted["c"] == 2


def test_a_client_that_left_is_not_tried_again() -> None:
    bench = Bench(Faults(failure_rate=1.0))
    bench.sim.cancel(1, at_ns=2 * MS)
    bench.sim.cancel(99, at_ns=2 * MS)
    log = bench.sim.run(request(n) for n in (1, 2))
    assert [members for _, _, members in kinds(log)] == [(1, 2), (2,)]
    assert bench.ledger.total(Outcome.CANCELLED) == 1


def test_leaving_after_the_answer_changes_nothing() -> None:
    bench = Bench()
    bench.sim.cancel(1, at_ns=50 * MS)
    bench.sim.run([request(1)])
    assert bench.ledger.total(Outcome.SERVED) == 1


def test_a_refused_request_is_no_longer_waiting() -> None:
    bench = Bench()
    bench.sim.cancel(1, at_ns=2 * MS)
    bench.sim.run([request(2), request(1, arrival=MS, deadline=3 * MS)])
    assert bench.ledger.total(Outcome.REJECTED) == 1
    assert bench.ledger.total(Outcome.CANCELLED) == 0


def test_while_triton_is_away_requests_are_refused_and_afterwards_served() -> None:
    bench = Bench(Faults(away=((3 * MS, 20 * MS),)))
    log = bench.sim.run(request(n, arrival=at * MS) for n, at in ((1, 0), (2, 10), (3, 30)))
    assert kinds(log) == [(0, "dispatch", (1,)), (10, "reject", 2), (30, "dispatch", (3,))]
    assert bench.ledger.total(Outcome.FAILED) == 1


def test_numbers_and_news_come_at_their_time() -> None:
    bench = Bench()
    bench.sim.retune(Tuning(queue_requests_max=1), at_ns=MS)
    bench.sim.tell_server(ServerState.DRAINING, at_ns=3 * MS)
    bench.sim.run(request(n, arrival=n * MS) for n in (0, 1, 2, 4))
    assert bench.ledger.reasons == {("c", "queue-full"): 1, ("c", "draining"): 1}


def test_a_run_can_be_interrupted_and_goes_on() -> None:
    whole, parts = Bench(), Bench()
    made = [request(n, arrival=n * MS) for n in range(1, 30)]
    expected = whole.sim.run(made)
    parts.sim.run(made, until_ns=11 * MS)
    assert parts.sim.now <= 11 * MS
    assert 0 < len(parts.sim.log) < len(expected)
    assert parts.sim.run() == expected


def test_a_past_event_is_our_own_mistake() -> None:
    bench = Bench()
    bench.sim.run([request(1, arrival=5 * MS)])
    with pytest.raises(AssertionError, match="before"):
        bench.sim.cancel(1, at_ns=MS)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_seed_gives_the_same_log_ten_times(policy: str) -> None:
    """After trio's test_scheduler_determinism: no set, no clock, no chance decides."""
    faults = Faults(jitter=0.05, overrun_rate=0.02, failure_rate=0.05)

    def run(seed: int) -> list[Line]:
        workload = tight(1.3)
        scheduler = Scheduler(POLICIES[policy]())
        simulation = Simulation(scheduler, World(workload.models, seed=seed, faults=faults))
        return simulation.run(workload.requests(duration_ns=150 * MS, seed=seed))

    first = run(7)
    assert len(first) > 20
    assert all(run(7) == first for _ in range(9))
    assert run(8) != first


def test_a_log_need_not_be_kept() -> None:
    scheduler = Scheduler(POLICIES["lite"]())
    simulation = Simulation(scheduler, World([MODEL], seed=1), keep_log=False)
    assert simulation.run([request(1)]) == []
