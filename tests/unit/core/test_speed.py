"""The speed of a device: changes are seen within a few batches, noise and overruns are not."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tritonsched.core.latency import LatencyProfile
from tritonsched.core.speed import DOUBT_BATCHES, LOG_MAX, DeviceSpeed

MS = 1_000_000
NOISE = 0.03
AGREED_BATCHES = 15  # goal G6 of the scheduling study


def noisy(dice: random.Random, factor: float = 1.0) -> float:
    """Log of measured over the table, 3 % of jitter."""
    return math.log(factor) + dice.gauss(0.0, NOISE)


def steady(speed: DeviceSpeed, dice: random.Random, models: str = "abc", count: int = 300) -> None:
    for number in range(count):
        speed.observe(noisy(dice), models[number % len(models)])


def batches_until(speed: DeviceSpeed, dice: random.Random, factor: float, models: str) -> int:
    """Until the factor is within 5 % of what it has become."""
    for number in range(200):
        if abs(speed.factor / factor - 1.0) <= 0.05:
            return number
        speed.observe(noisy(dice, factor), models[number % len(models)])
    return 200


@pytest.mark.parametrize("models", ["a", "abcdefgh"])
@pytest.mark.parametrize("factor", [1 / 0.6, 0.6, 1.2, 5.0, 0.2])
def test_a_change_is_known_within_fifteen_batches_whatever_models_run(
    factor: float, models: str
) -> None:
    for seed in range(20):
        dice = random.Random(seed)
        speed = DeviceSpeed()
        steady(speed, dice, models)
        assert batches_until(speed, dice, factor, models) <= AGREED_BATCHES
        steady_again = batches_until(speed, dice, 1.0, models)
        assert steady_again <= AGREED_BATCHES


def test_a_large_change_is_known_with_its_third_batch_and_all_models_get_it() -> None:
    speed = DeviceSpeed()
    profiles = {model: LatencyProfile({1: 6 * MS, 8: 13 * MS}) for model in "ab"}
    for profile in profiles.values():
        profile.join(speed)
    for _ in range(3):
        profiles["a"].observe(rows=8, exec_ns=26 * MS, now=0)
    assert profiles["b"].exec_ns(1) == pytest.approx(12 * MS, rel=0.03)
    assert profiles["b"].safe_ns(1) > profiles["b"].exec_ns(1)


def test_a_slow_ramp_is_followed_without_a_change_being_called() -> None:
    dice = random.Random(5)
    speed = DeviceSpeed()
    steady(speed, dice)
    for number in range(2000):
        factor = 1.0 + number / 4000
        speed.observe(noisy(dice, factor), "a")
        assert abs(speed.factor / factor - 1.0) < 0.06, number


@given(st.integers(0, 2**32), st.floats(0.0, 0.003))
def test_noise_and_overruns_move_next_to_nothing(seed: int, overruns: float) -> None:
    """No cost without drift: 3 % of jitter and an overrun now and then stay within 6 %."""
    dice = random.Random(seed)
    speed = DeviceSpeed()
    steady(speed, dice, count=50)
    last_overrun = -10
    for number in range(200):
        ratio = noisy(dice)
        if dice.random() < overruns and number - last_overrun > 5:  # alone, as overruns are
            ratio += math.log(dice.uniform(1.5, 3.0))
            last_overrun = number
        speed.observe(ratio, "abc"[number % 3])
        assert abs(speed.factor - 1.0) < 0.06
    assert speed.changes == 0


def test_one_model_that_slows_down_is_not_the_device() -> None:
    """Its own table is rescaled; the other's times stay."""
    dice = random.Random(2)
    speed = DeviceSpeed()
    table = {rows: 5 * MS + rows * MS for rows in range(1, 9)}
    slow, same = LatencyProfile(table), LatencyProfile(table)
    for profile in (slow, same):
        profile.join(speed)

    def runs(profile: LatencyProfile, factor: float) -> None:
        measured = table[4] * factor * math.exp(dice.gauss(0.0, NOISE))
        profile.observe(rows=4, exec_ns=round(measured), now=0)

    for _ in range(100):
        runs(slow, 1.0)
        runs(same, 1.0)
    for _ in range(AGREED_BATCHES):
        runs(slow, 2.0)
        runs(same, 1.0)
    assert speed.changes == 0
    assert slow.exec_ns(8) == pytest.approx(2 * table[8], rel=0.06)
    assert same.exec_ns(8) == pytest.approx(table[8], rel=0.06)


def test_doubt_follows_a_change_and_ends() -> None:
    speed = DeviceSpeed()
    assert speed.doubt == 0
    assert [speed.observe(1.0, "a") for _ in range(3)] == [False, False, True]
    doubts = []
    while speed.doubt:
        doubts.append(speed.doubt)
        speed.observe(1.0, "a")
    assert doubts == sorted(doubts, reverse=True)
    assert len(doubts) == DOUBT_BATCHES


def test_noise_just_before_a_change_does_not_hide_it() -> None:
    """Another model's sample a little above the mean begins the sum; the change is later."""
    speed = DeviceSpeed()
    speed.observe(1.2 * speed.spread, "x")
    speed.observe(0.9 * speed.spread, "x")
    assert [speed.observe(0.5, "a") for _ in range(3)] == [False, False, True]
    assert speed.factor == pytest.approx(math.exp(0.5))


@given(st.lists(st.floats(-50, 50), max_size=60))
def test_the_factor_is_bounded_whatever_is_measured(ratios: list[float]) -> None:
    speed = DeviceSpeed()
    for number, ratio in enumerate(ratios):
        speed.observe(ratio, number % 2)
        assert math.exp(-LOG_MAX) <= speed.factor * 1.000001
        assert speed.factor <= math.exp(LOG_MAX) * 1.000001
        assert 0 <= speed.doubt <= 1
