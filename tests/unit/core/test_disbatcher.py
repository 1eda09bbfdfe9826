"""DeepRT's DisBatcher as a policy: windows, joints, early release and its guard, simulated."""

import pytest

from tests.bench.deeprt_adaptation import Everybody
from tests.bench.streams import Frozen
from tests.helpers import EXACT, MS
from tritonsched.core.ledger import Ledger
from tritonsched.core.policies import disbatcher
from tritonsched.core.policies.disbatcher import Disbatcher, Windows
from tritonsched.core.request import PATIENCE_NS, Outcome, Request
from tritonsched.core.scheduler import Scheduler
from tritonsched.sim.engine import Simulation
from tritonsched.sim.world import SimModel, World, affine

Frame = tuple[int, str, int]
"""(arrival, model, relative deadline), in ms; below 0: no deadline, and this patience."""


def run(
    policy: Disbatcher, frames: list[Frame], *, kind: type[Scheduler] = Scheduler
) -> tuple[list[tuple[int, tuple[int, ...]]], Ledger]:
    """Model a takes 4 ms, b 50 ms, whatever the batch. Returns (ms, members' arrivals)."""
    costs = {"a": 4 * MS, "b": 50 * MS}
    ledger = Ledger()
    scheduler = kind(policy, tuning=EXACT, observers=(ledger,))
    models = [SimModel(name, 4, affine(ns, 0)) for name, ns in costs.items()]
    simulation = Simulation(scheduler, World(models, seed=0, rtt_ns=0))
    for name, ns in costs.items():
        scheduler.set_profile(name, "gpu0", Frozen(dict.fromkeys(range(1, 5), ns)))
    requests = [
        Request(number, model, model, 0, 1, at * MS, (at + due) * MS)
        if due > 0
        else Request(number, model, model, 0, 1, at * MS, patience_ns=-due * MS)
        for number, (at, model, due) in enumerate(sorted(frames))
    ]
    log = simulation.run(requests)
    arrivals = {request.id: request.arrival_ns // MS for request in requests}
    batches = []
    for at, line in log:
        if line[0] == "dispatch":
            assert isinstance(line[4], tuple)
            batches.append((at // MS, tuple(arrivals[number] for number in line[4])))
    return batches, ledger


def test_frames_of_a_window_are_one_job_at_its_joint() -> None:
    frames = [(0, "a", 40), (5, "a", 40), (19, "a", 40), (20, "a", 40), (45, "a", 40)]
    batches, ledger = run(Disbatcher(strict_guarantee=True), frames)
    assert batches == [(20, (0, 5, 19)), (40, (20,)), (60, (45,))]
    assert ledger.total(Outcome.SERVED) == 5


def test_a_job_larger_than_a_batch_is_cut_and_an_idle_device_releases_early() -> None:
    frames = [(0, "a", 40)] + [(1, "a", 40)] * 6
    assert run(Disbatcher(), frames)[0] == [(0, (0,)), (4, (1, 1, 1, 1)), (8, (1, 1))]
    strict = run(Disbatcher(strict_guarantee=True), frames)[0]
    assert strict == [(20, (0, 1, 1, 1)), (24, (1, 1, 1))]


def test_of_the_closed_jobs_the_earliest_due_goes_first() -> None:
    tied = [(0, "b", 80), (20, "a", 40)]
    assert run(Disbatcher(strict_guarantee=True), tied)[0][0] == (40, (20,))
    both = [(0, "b", 160), (60, "a", 40)]
    assert run(Disbatcher(strict_guarantee=True), both)[0] == [(80, (60,)), (84, (0,))]


SPARSE = [(0, "a", 20), *((95 + 100 * k, "a", 20) for k in range(50))]
LONG = [(20, "b", 200), *((85 + 100 * k, "b", 200) for k in range(50))]


@pytest.mark.parametrize(
    ("policy", "missed"),
    [(Disbatcher(strict_guarantee=True), 0), (Disbatcher(), 0), (Disbatcher(guarded=False), 49)],
    ids=["strict", "guarded", "as printed"],
)
def test_early_release_needs_the_guard(policy: Disbatcher, missed: int) -> None:
    """A sparse urgent stream and a long batch: released early, it makes every urgent frame late."""
    _, ledger = run(policy, SPARSE + LONG)
    served = ledger.outcomes["a", Outcome.SERVED] + ledger.outcomes["b", Outcome.SERVED]
    assert 102 - served >= missed
    assert missed or served == 102


def test_what_is_not_in_real_time_fills_idle_time_and_is_in_no_job_of_others() -> None:
    alone, _ = run(Disbatcher(strict_guarantee=True), [(0, "a", -1000), (300, "a", -1000)])
    assert alone == [(0, (0,)), (300, (300,))]
    frames = [(0, "b", 500), (1, "a", 100), (1, "a", -1000), (2, "a", -1000)]
    batches, ledger = run(Disbatcher(), frames)
    assert batches == [(0, (0,)), (50, (1,)), (54, (1, 2))]
    assert ledger.total(Outcome.SERVED) == 4


def test_what_is_not_in_real_time_waits_while_it_would_make_a_category_late() -> None:
    """Batches of 50 ms beside a stream with windows of 10: none until the stream is long over."""
    stream = [(at, "a", 20) for at in range(0, 400, 100)]
    batches, ledger = run(Disbatcher(), [*stream, (5, "b", -1000), (6, "b", -1000)])
    assert [members for _, members in batches] == [(0,), (100,), (200,), (300,), (5, 6)]
    assert ledger.outcomes["a", Outcome.SERVED] == len(stream)
    over_ms = 300 + PATIENCE_NS // MS
    assert over_ms < batches[-1][0] <= over_ms + 20


def test_of_what_is_not_in_real_time_the_least_patient_goes_first() -> None:
    frames = [(0, "a", -1000), (1, "b", -1000), (2, "a", -990)]
    assert run(Disbatcher(), frames)[0] == [(0, (0,)), (4, (2,)), (8, (1,))]
    assert run(Disbatcher(), [*frames[:2], (2, "a", -1000)])[0] == [
        (0, (0,)),
        (4, (1,)),
        (54, (2,)),
    ]


def test_of_the_open_windows_the_first_joint_is_waited_for() -> None:
    frames = [(0, "a", 40), (1, "b", 200)]
    assert run(Disbatcher(strict_guarantee=True), frames)[0] == [(20, (0,)), (101, (1,))]


def test_early_release_goes_on_where_others_can_still_follow() -> None:
    """b's 50 ms end after a's joint at 55, and a, due at 110, still has time."""
    frames = [(0, "a", 110), (10, "b", 300)]
    batches, _ = run(Disbatcher(), frames)
    assert batches == [(0, (0,)), (10, (10,))]


def test_a_tighter_request_moves_the_next_joint_forward_and_never_back() -> None:
    windows = Windows(joint_ns=0, window_ns=100)
    windows.tighten(100, now=30)
    assert windows.next_joint_ns(30) == 100
    windows.tighten(20, now=30)
    assert [windows.next_joint_ns(t) for t in (30, 50)] == [50, 70]
    late = Windows(joint_ns=0, window_ns=100)
    late.tighten(40, now=90)
    assert late.next_joint_ns(90) == 100


def test_the_categories_it_remembers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disbatcher, "CATEGORIES_MAX", 1)
    policy = Disbatcher()
    run(policy, [(0, "a", 40), (30, "b", 200), (90, "a", 40)])
    assert len(policy._windows["gpu0"]) == 1


def test_windows_that_are_late_share_a_job_unless_each_is_to_be_one() -> None:
    """While a batch of b runs, two windows of a close; everything is served, late or not."""
    frames = [(0, "b", 100), (51, "a", 40), (72, "a", 40)]
    batches, _ = run(Disbatcher(strict_guarantee=True), frames, kind=Everybody)
    assert batches == [(50, (0,)), (100, (51, 72))]
    apart, _ = run(Disbatcher(strict_guarantee=True, merges=False), frames, kind=Everybody)
    assert apart == [(50, (0,)), (100, (51,)), (104, (72,))]
