"""From observations to a tuning: literal times, bounded rate, every change in words."""

from dataclasses import replace

import pytest

from tests.helpers import MS, S, request
from tritonsched.core.batch import Batch
from tritonsched.core.controllers import KNOBS, Bounds
from tritonsched.core.feedback import (
    DEFAULT_BOUNDS,
    LOG_MAX,
    PERIOD_NS,
    WINDOW_NS,
    WINDOW_NS_MAX,
    WINDOW_REQUESTS,
    Change,
    Feedback,
    Lags,
    Settings,
)
from tritonsched.core.policies import POLICIES
from tritonsched.core.request import Outcome
from tritonsched.core.scheduler import Scheduler
from tritonsched.core.tuning import GUARD_NS, Tuning
from tritonsched.sim.engine import Simulation
from tritonsched.sim.experiment import inform
from tritonsched.sim.record import Record
from tritonsched.sim.workload import tight
from tritonsched.sim.world import World

ALL = Settings(knobs=frozenset(KNOBS))
BASE = Tuning()


def batch(number: int, rows: int, *, expected_ns: int = 10 * MS) -> Batch:
    members = tuple(request(number * 100 + k) for k in range(rows))
    return Batch(number, "m", "gpu", members, rows, 0, 0, expected_ns)


def window(
    feedback: Feedback,
    now: int,
    *,
    served: int = 0,
    late: int = 0,
    slack_ns: int = 6 * MS,
    batches: int = 0,
    rows: int = 8,
    measured_ns: int = 10 * MS,
) -> None:
    """So many outcomes and batches, all at `now`."""
    for number in range(batches):
        feedback.on_dispatch(batch(number, rows), now)
        feedback.on_complete(batch(number, rows), measured_ns=measured_ns, now=now)
    for number in range(served):
        feedback.on_outcomes((request(number, deadline=now + slack_ns),), Outcome.SERVED, "", now)
    for number in range(late):
        feedback.on_outcomes((request(number, deadline=now - MS),), Outcome.LATE, "", now)


def test_misses_beyond_the_target_raise_safety_and_say_why() -> None:
    told: list[Change] = []
    feedback = Feedback(told=told.append)
    window(feedback, S, served=900, late=100, batches=9, measured_ns=20 * MS)
    assert feedback.step(BASE, S) == replace(BASE, safety=1.25)
    (change,) = told
    assert change.text == (
        "safety 1→1.25: missed 100 of 1000, slack p10 -1.0 ms, execution off by 50% at p99"
    )
    assert (change.at_ns, change.knob, change.direction) == (S, "safety", "up")
    assert feedback.log() == told


def test_a_window_grows_while_devices_are_busy_and_batches_unfilled() -> None:
    feedback = Feedback(ALL)
    tuning = replace(BASE, window_ns=800_000)
    for number in range(1, 4):
        now = number * S
        window(feedback, now, served=WINDOW_REQUESTS, batches=1, rows=32)
        window(feedback, now, batches=99, rows=8)
        tuning = feedback.step(tuning, now) or tuning
    assert tuning.window_ns == 960_000
    texts = [change.text for change in feedback.log() if change.knob == "window"]
    assert texts == ["window 800→960 µs: fill 0.26, busy 1.00, missed 0 of 1000, slack p10 6.0 ms"]


def test_rows_and_queue_are_tightened_from_what_was_seen() -> None:
    feedback = Feedback(ALL)
    window(feedback, S, served=900, late=100, batches=50, rows=32)
    tuned = feedback.step(BASE, S, queued=100)
    assert tuned is not None
    assert (tuned.rows_cap, tuned.queue_requests_max) == (24, 70)
    texts = [change.text for change in feedback.log()]
    seen = "missed 100 of 1000, slack p10 -1.0 ms"
    assert f"rows 65536→24 rows: fill 1.00, busy 0.50, {seen}" in texts
    assert f"queue 4096→70 requests: 100 wait, {seen}" in texts


def test_only_named_knobs_move() -> None:
    feedback = Feedback(Settings(knobs=frozenset({"queue"})))
    window(feedback, S, served=900, late=100, batches=50, rows=32)
    tuned = feedback.step(BASE, S, queued=100, lags=Lags(9 * MS, 9 * MS))
    assert tuned == replace(BASE, queue_requests_max=70)


def test_it_looks_ten_times_a_second_at_most() -> None:
    feedback = Feedback()
    lags = Lags(MS, MS)
    first = feedback.step(BASE, 0, lags=lags)
    assert first == replace(BASE, reply_ns=MS, guard_ns=GUARD_NS + MS)
    assert feedback.step(BASE, PERIOD_NS - 1, lags=lags) is None
    assert feedback.step(BASE, PERIOD_NS, lags=lags) == first


def test_lags_are_followed_within_bounds_and_small_moves_are_not_told() -> None:
    bounds = {**DEFAULT_BOUNDS, "guard": Bounds(GUARD_NS, 2 * MS)}
    feedback = Feedback(Settings(bounds=bounds))
    tuning = feedback.step(BASE, 0, lags=Lags(MS, 30 * MS))
    assert tuning is not None
    assert (tuning.reply_ns, tuning.guard_ns) == (MS, 2 * MS)
    assert feedback.step(tuning, S, lags=Lags(MS * 11 // 10, 30 * MS)) is None
    assert [change.text for change in feedback.log()] == [
        "guard 300→2000 µs: messages leave 30000 µs late at p95",
        "reply 0→1000 µs: replies are written 1000 µs late at p95",
    ]


def test_a_window_ends_when_it_says_enough() -> None:
    feedback = Feedback()
    window(feedback, 0, served=WINDOW_REQUESTS, late=100)
    assert feedback.step(BASE, WINDOW_NS - PERIOD_NS) is None  # too short
    assert feedback.step(BASE, WINDOW_NS) is not None
    window(feedback, WINDOW_NS, served=50)
    assert feedback.step(BASE, 3 * S) is None  # too few to say anything
    window(feedback, 3 * S, late=20)
    assert feedback.step(BASE, 3 * S + PERIOD_NS) is not None  # but misses are not waited with
    window(feedback, 4 * S, late=3)  # by chance, maybe; the next window does not have them
    assert feedback.step(BASE, 3 * S + PERIOD_NS + WINDOW_NS_MAX) is None
    window(feedback, 20 * S, served=WINDOW_REQUESTS, late=8)
    assert feedback.step(BASE, 20 * S) is None


def test_a_window_without_deadlines_has_no_slack() -> None:
    feedback = Feedback(ALL)
    feedback.on_outcomes((request(1),), Outcome.SERVED, "", 0)
    window(feedback, S, late=100, slack_ns=0)
    tuned = feedback.step(BASE, S)
    assert tuned is not None
    assert tuned.safety == 1.25


def test_refused_and_cancelled_requests_are_no_misses() -> None:
    feedback = Feedback()
    for outcome in (Outcome.REJECTED, Outcome.CANCELLED):
        for number in range(500):
            feedback.on_submit(request(number), 0)
            feedback.on_outcomes((request(number),), outcome, "", 0)
    assert feedback.step(BASE, WINDOW_NS_MAX) is None
    assert feedback.log() == []


def test_frozen_nothing_moves_and_afterwards_it_does() -> None:
    feedback = Feedback(replace(ALL, frozen=True))
    window(feedback, S, served=900, late=100)
    assert feedback.step(BASE, S, queued=9, lags=Lags(MS, MS)) is None
    assert feedback.log() == []
    feedback.frozen = False
    window(feedback, 2 * S, served=900, late=100)
    assert feedback.step(BASE, 2 * S, queued=9) is not None


def test_the_log_remembers_the_last_changes_of_each_knob_in_order() -> None:
    feedback = Feedback()
    for number in range(3 * LOG_MAX):
        lag_ns = MS if number % 2 else 2 * MS
        tuning = replace(BASE, reply_ns=3 * MS - lag_ns)
        assert feedback.step(tuning, number * S, lags=Lags(lag_ns, 0)) is not None
    log = feedback.log()
    assert len(log) == LOG_MAX
    assert [change.at_ns // S for change in log] == list(range(2 * LOG_MAX, 3 * LOG_MAX))


def test_a_new_policy_file_brings_new_bounds_and_a_fresh_start() -> None:
    feedback = Feedback()
    window(feedback, S, served=900, late=100)
    assert feedback.step(BASE, S) is not None
    bounds = {**DEFAULT_BOUNDS, "safety": Bounds(1.0, 1.1)}
    feedback.adopt(Settings(bounds=bounds))
    window(feedback, 2 * S, served=900, late=100)
    assert feedback.step(BASE, 2 * S) == replace(BASE, safety=1.1)


def test_the_simulator_drives_the_same_controllers() -> None:
    """A rule that takes everybody is saved from its own queue: from the first window on."""

    def misses(settings: Settings) -> float:
        record, feedback = Record(), Feedback(settings)
        workload = tight(1.3)
        scheduler = Scheduler(POLICIES["disbatcher"](), observers=(record, feedback))
        inform(scheduler, workload.models)
        world = World(workload.models, seed=1)
        simulation = Simulation(scheduler, world, keep_log=False, feedback=feedback)
        simulation.run(workload.requests(duration_ns=5 * S // 2, seed=1))
        return record.miss_ratio

    assert misses(ALL) < misses(Settings(knobs=frozenset())) * 0.8


def test_safety_makes_promises_longer_at_once() -> None:
    workload = tight(1.0)
    scheduler = Scheduler(POLICIES["lite"]())
    inform(scheduler, workload.models)
    Simulation(scheduler, World(workload.models, seed=1))
    before = scheduler.safe_ns("gpu", "gpu0", 8)
    expected = before / 1.05  # the margin of a profile that has measured nothing yet
    scheduler.retune(replace(scheduler.tuning, safety=2.0), 0)
    assert scheduler.safe_ns("gpu", "gpu0", 8) == pytest.approx(1.1 * expected, rel=1e-3)
