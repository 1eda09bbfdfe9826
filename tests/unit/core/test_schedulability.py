"""DeepRT's test of a set of streams. Rule: its verdict is checked by a replay frame by frame."""

import random

from tests.helpers import MS
from tritonsched.core.reservation import Reservation, window_ns
from tritonsched.core.schedulability import (
    Job,
    admits,
    categories,
    is_schedulable,
    pseudo_jobs,
    utilisation,
)

CAP = {"m": 8, "n": 4}


def cost(model: str, rows: int) -> int:
    return (2 + rows) * MS if model == "m" else (5 + 2 * rows) * MS


def stream(number: int, model: str = "m", **ms: int) -> Reservation:
    times = {f"{name}_ns": value * MS for name, value in ms.items() if name != "frames"}
    frames = ms.get("frames", 50)
    return Reservation(id=number, model=model, frames=frames, **times)  # type: ignore[arg-type]


def test_a_job_released_when_another_ends_competes_with_those_that_wait() -> None:
    jobs = [Job(0, 100, 10), Job(0, 101, 20), Job(10, 15, 4)]
    assert is_schedulable(jobs)
    assert not is_schedulable(jobs, strict_release=True)


def test_the_running_batch_is_charged_first() -> None:
    assert is_schedulable([Job(0, 10, 10)])
    assert not is_schedulable([Job(0, 10, 10)], free_ns=1)
    assert is_schedulable([Job(5, 15, 10)], free_ns=5)


def test_all_frames_of_a_window_are_one_job_created_at_the_joint() -> None:
    pair = [stream(1, period=10, relative_deadline=40, frames=4), stream(
        2, period=20, relative_deadline=80, frames=2, start=5)]  # fmt: skip
    jobs = pseudo_jobs(pair, cost, rows_max=CAP, anchors={})
    assert jobs == [
        Job(20 * MS, 40 * MS, cost("m", 3)),
        Job(40 * MS, 60 * MS, cost("m", 3)),
    ]


def test_a_window_with_more_frames_than_a_batch_takes_makes_further_jobs() -> None:
    crowd = [stream(n, "n", period=100, relative_deadline=80, frames=1) for n in range(1, 7)]
    jobs = pseudo_jobs(crowd, cost, rows_max=CAP, anchors={("n", 0): -10 * MS})
    assert [(j.release_ns, j.cost_ns) for j in jobs] == [
        (30 * MS, cost("n", 2)), (30 * MS, cost("n", 4)),
    ]  # fmt: skip


def test_what_repeats_is_tested_twice_and_no_longer() -> None:
    endless = [stream(1, period=10, relative_deadline=20, frames=10_000)]
    assert len(pseudo_jobs(endless, cost, rows_max=CAP, anchors={})) == 2
    assert pseudo_jobs([], cost, rows_max=CAP, anchors={}) == []


def test_the_first_phase_can_be_switched_off() -> None:
    """A finite burst: too much for ever, but not for as long as it lasts."""
    burst = [stream(1, "n", period=6, relative_deadline=12, frames=1)]
    assert utilisation(burst, cost) > 1.0
    assert not admits(burst, cost, rows_max=CAP)
    assert not admits(burst, cost, rows_max=CAP, use_utilisation=False)
    patient = [stream(1, "n", period=1, relative_deadline=70, frames=2)]
    assert not admits(patient, cost, rows_max=CAP)
    assert admits(patient, cost, rows_max=CAP, use_utilisation=False)


def test_no_frame_of_an_admitted_set_misses_in_a_replay_frame_by_frame() -> None:
    dice = random.Random(9)
    admitted = frames = 0
    for _ in range(300):
        streams = [
            stream(number, dice.choice("mn"), period=dice.randint(20, 90), frames=20,
                   relative_deadline=dice.randint(20, 150), start=dice.randint(0, 60))
            for number in range(1, dice.randint(2, 8))
        ]  # fmt: skip
        if admits(streams, cost, rows_max=CAP, use_utilisation=False):
            admitted += 1
            frames += _replay(streams)
    assert 60 < admitted < 290
    assert frames > 4000


def _replay(streams: list[Reservation]) -> int:
    """Windows, joints and the deadline-ordered worker, one millisecond at a time."""
    waiting: list[tuple[int, int, int, list[int]]] = []  # (due, order, cost, frames' deadlines)
    for members in categories(streams).values():
        window, anchor = window_ns(members), min(member.start_ns for member in members)
        windows: dict[int, list[int]] = {}
        for member in members:
            for k in range(member.frames):
                at = member.arrival_ns(k)
                due = at + member.relative_deadline_ns
                windows.setdefault((at - anchor) // window, []).append(due)
        cap = CAP[members[0].model]
        for number, dues in windows.items():
            joint = anchor + (number + 1) * window
            for first in range(0, len(dues), cap):
                part = dues[first : first + cap]
                waiting.append((joint, joint + window, cost(members[0].model, len(part)), part))
    t = served = 0
    while waiting:
        ready = [job for job in waiting if job[0] <= t]
        if not ready:
            t = min(job[0] for job in waiting)
            continue
        job = min(ready, key=lambda j: j[1])
        waiting.remove(job)
        t += job[2]
        assert all(t <= due for due in job[3])
        served += len(job[3])
    return served
