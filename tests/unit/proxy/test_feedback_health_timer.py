"""The loop around the scheduler: reply lag, Triton's health, the one timer."""

import asyncio
import time

import pytest

from tests.virtual_loop import VirtualLoop, run_virtual
from tritonsched.core.feedback import DEFAULT_BOUNDS, LAG_NS_MIN, Change, Settings
from tritonsched.core.policies import POLICIES
from tritonsched.core.scheduler import Scheduler
from tritonsched.core.tuning import GUARD_NS, Tuning
from tritonsched.core.variant import ServerState
from tritonsched.errors import StartupError, TritonschedError, TritonUnavailable
from tritonsched.proxy.feedback import LAG_NS_MAX, Lag, Tuner
from tritonsched.proxy.health import ASK_AWAY_S, Health, RepositoryWatch
from tritonsched.proxy.timer import LoopTimer, TimerFd


class _Tuned:
    """A scheduler whose driver is itself: takes what it is told."""

    def __init__(self) -> None:
        self.scheduler = Scheduler(POLICIES["lite"]())
        self.now = 0
        self.told: list[Change] = []
        self.tuner = Tuner(Settings(), clock=lambda: self.now, told=self.told.append)
        self.tuner.drive(self.scheduler, self)

    def retune(self, tuning: Tuning) -> None:
        self.scheduler.retune(tuning, self.now)

    def replies(self, count: int, lag_ns: int) -> Tuning:
        """One a millisecond."""
        for _ in range(count):
            self.now += 1_000_000
            self.tuner.replied([lag_ns])
        return self.scheduler.tuning


def test_the_reply_lag_follows_a_step_up_and_down() -> None:
    made = _Tuned()
    assert 3_000_000 <= made.replies(400, 4_000_000).reply_ns <= 5_000_000
    assert made.replies(5_000, 100_000).reply_ns < 200_000
    assert {change.knob for change in made.told} == {"reply"}


def test_the_send_lag_makes_the_guard_longer_and_is_bounded() -> None:
    made = _Tuned()
    for _ in range(200):
        made.tuner.send.observe(2_000_000)
    guard_ns = made.replies(1, 0).guard_ns
    assert GUARD_NS + 1_500_000 <= guard_ns <= GUARD_NS + 2_500_000
    for _ in range(1_000):
        made.tuner.send.observe(10**12)
    assert made.replies(101, 0).guard_ns == DEFAULT_BOUNDS["guard"].high


def test_small_moves_do_not_retune() -> None:
    made = _Tuned()
    made.retune(Tuning(reply_ns=LAG_NS_MIN, guard_ns=GUARD_NS + LAG_NS_MIN))
    before = made.scheduler.tuning
    assert made.replies(500, 0) is before
    assert made.told == []


def test_frozen_lags_are_measured_and_change_nothing() -> None:
    made = _Tuned()
    made.tuner.feedback.frozen = True
    assert made.replies(400, 4_000_000) == Tuning()
    made.tuner.feedback.frozen = False
    assert made.replies(101, 4_000_000).reply_ns > 3_000_000


def test_a_lag_stays_within_its_bounds() -> None:
    lag = Lag()
    for _ in range(1_000):
        lag.observe(10**12)
    assert lag.ns == LAG_NS_MAX


class _Triton:
    """Answers readiness from a script; the last word repeats."""

    def __init__(self, *words: bool) -> None:
        self.words = list(words)
        self.refuse_connects = 0
        self.told: list[ServerState] = []
        self.asked = 0

    async def ready(self) -> bool:
        self.asked += 1
        return self.words.pop(0) if len(self.words) > 1 else self.words[0]

    async def connect(self) -> None:
        if self.refuse_connects:
            self.refuse_connects -= 1
            raise TritonUnavailable("not yet")

    def health(self) -> Health:
        return Health(ready=self.ready, connect=self.connect, tell=self.told.append)


def test_service_resumes_by_itself() -> None:
    """Away at the start, up, lost under load, up again: each change is told once."""

    async def main(loop: VirtualLoop) -> list[ServerState]:
        triton = _Triton(False, False, True)
        health = triton.health()
        task = asyncio.create_task(health.run())
        await health.wait_up()
        health.lost()
        health.lost()
        assert not health.is_up
        await health.wait_up()
        health.stop()
        await task
        return triton.told

    assert run_virtual(main) == [ServerState.READY, ServerState.AWAY, ServerState.READY]


def test_why_a_triton_that_answers_cannot_be_used_is_said_once() -> None:
    """It is tried ten times a second; that it is not there yet is no news."""

    async def main(loop: VirtualLoop) -> list[str]:
        errors: list[TritonschedError] = [
            TritonUnavailable("not yet"),
            *[StartupError("no GPU")] * 3,
            StartupError("no memory"),
        ]
        said: list[str] = []

        async def ready() -> bool:
            return True

        async def connect() -> None:
            if errors:
                raise errors.pop(0)

        health = Health(ready=ready, connect=connect, tell=lambda _: None, say=said.append)
        task = asyncio.create_task(health.run())
        await health.wait_up()
        health.stop()
        await task
        return said

    said = run_virtual(main)
    assert [line.rpartition(": ")[2] for line in said] == ["no GPU", "no memory"]


def test_a_connect_that_fails_is_tried_again() -> None:
    async def main(loop: VirtualLoop) -> int:
        triton = _Triton(True)
        triton.refuse_connects = 3
        health = triton.health()
        task = asyncio.create_task(health.run())
        await health.wait_up()
        health.stop()
        await task
        assert loop.now_ns() == pytest.approx(3 * ASK_AWAY_S * 1e9, rel=0.01)
        return triton.asked

    assert run_virtual(main) == 4


def test_a_silent_death_is_noticed() -> None:
    async def main(loop: VirtualLoop) -> list[ServerState]:
        triton = _Triton(True, True, False)
        health = triton.health()
        task = asyncio.create_task(health.run())
        while ServerState.AWAY not in triton.told:
            await loop.pause(100_000_000)
        health.stop()
        await task
        return triton.told

    assert run_virtual(main) == [ServerState.READY, ServerState.AWAY]


def test_while_triton_is_up_it_is_looked_at_and_a_change_is_told() -> None:
    """Not the first sight, not what is as before, not a Triton that does not tell."""

    async def main(loop: VirtualLoop) -> list[int]:
        changes: list[int] = []
        indexes = [frozenset({1}), None, frozenset({1}), frozenset({1, 2})]

        async def index() -> frozenset[int] | None:
            return indexes.pop(0) if len(indexes) > 1 else indexes[0]

        watch = RepositoryWatch(index, lambda: changes.append(len(indexes)))
        triton = _Triton(False, True)
        health = Health(
            ready=triton.ready, connect=triton.connect, tell=triton.told.append, look=watch.look
        )
        task = asyncio.create_task(health.run())
        await loop.pause(10_000_000_000)
        health.stop()
        await task
        return changes

    assert run_virtual(main) == [1]


def test_what_triton_says_after_a_stop_is_told_to_nobody() -> None:
    """Asked before the stop, answered after it: the driver may be gone."""

    async def main(loop: VirtualLoop) -> list[ServerState]:
        told: list[ServerState] = []
        answer: asyncio.Future[bool] = loop.create_future()

        async def connect() -> None: ...

        health = Health(ready=lambda: answer, connect=connect, tell=told.append)
        task = asyncio.create_task(health.run())
        await loop.pause(1)
        health.stop()
        answer.set_result(True)
        await task
        return told

    assert run_virtual(main) == []


def test_the_loop_timer_fires_once_at_its_time_and_can_be_moved() -> None:
    async def main(loop: VirtualLoop) -> list[int]:
        fired: list[int] = []
        timer = LoopTimer(loop, lambda: fired.append(loop.now_ns()))
        timer.arm(5_000)
        timer.arm(3_000)
        await loop.until(10_000)
        timer.arm(20_000)
        timer.arm(None)
        await loop.until(30_000)
        timer.close()
        return fired

    assert run_virtual(main) == [3_000]


async def test_the_timerfd_fires_after_its_time_on_the_monotonic_clock() -> None:
    """A past time fires at once; a disarmed one never; it is never early."""
    fired = asyncio.Event()
    timer = TimerFd(asyncio.get_running_loop(), fired.set)
    at_ns = time.monotonic_ns() + 2_000_000
    timer.arm(at_ns)
    await fired.wait()
    assert time.monotonic_ns() >= at_ns
    fired.clear()
    timer.arm(1)
    await fired.wait()
    timer.arm(None)
    timer.close()


async def test_a_wake_up_that_was_meant_for_an_earlier_arming_is_none() -> None:
    """Armed again between the kernel's wake-up and our reading it."""
    fired: list[bool] = []
    timer = TimerFd(asyncio.get_running_loop(), lambda: fired.append(True))
    timer.arm(time.monotonic_ns() + 3_600_000_000_000)
    timer._fired()
    assert fired == []
    timer.close()


async def test_a_timerfd_that_the_kernel_refuses_is_an_error_in_words() -> None:
    timer = TimerFd(asyncio.get_running_loop(), lambda: None)
    timer.close()
    with pytest.raises(OSError, match="timerfd: "):
        timer.arm(1)
