"""Each controller against a step, a ramp and noise: it settles, within bounds, without swinging.

The plant: a share of requests is missed that falls to `GOOD` where the knob is tight enough for the
load, and is `BAD` where it is not. All windows hold a thousand requests.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest

from tritonsched.core.controllers import (
    PATIENCE,
    PATIENCE_MAX,
    RULES,
    Bounds,
    Controller,
    Sample,
)

TARGET = 0.01
GOOD, BAD = 0.0005, 0.04
MANY = 1000
MS = 1_000_000
BUSY = Sample(MANY, 0, fill=0.5, busy=0.95, slack_p10_ns=100 * MS, queued=50, rows=8)


@dataclass(frozen=True)
class Case:
    """start: the knob's value. tight(value, load): is it tight enough?"""

    knob: str
    bounds: Bounds
    start: float
    tight: Callable[[float, float], bool]
    sample: Sample = BUSY


CASES = [
    Case("safety", Bounds(1.0, 3.0), 1.0, lambda value, load: value >= load),
    Case("window", Bounds(0, 20 * MS), 10 * MS, lambda value, load: value <= 10 * MS / load),
    Case(
        "rows",
        Bounds(1, 64),
        32,
        lambda value, load: value <= 32 / load,
        replace(BUSY, fill=0.9, rows=64),
    ),
    Case(
        "queue",
        Bounds(4, 400),
        200,
        lambda value, load: value <= 200 / load,
        replace(BUSY, queued=400),
    ),
]
each = pytest.mark.parametrize("case", CASES, ids=lambda case: case.knob)


def run(case: Case, loads: Sequence[float], seed: int = 1) -> list[float]:
    """The knob's values, window by window."""
    dice = random.Random(seed)
    controller = Controller(RULES[case.knob])
    values = [case.start]
    for load in loads:
        share = GOOD if case.tight(values[-1], load) else BAD
        missed = drawn(dice, share)
        sample = replace(case.sample, missed=missed)
        values.append(controller.moved(values[-1], case.bounds, sample, TARGET))
    return values


def drawn(dice: random.Random, share: float) -> int:
    """About a binomial draw."""
    return max(0, round(dice.gauss(share * MANY, math.sqrt(share * MANY))))


def reversals(values: Sequence[float]) -> int:
    """How often it turned round."""
    moves = [b - a for a, b in pairwise(values) if a != b]
    return sum(x * y < 0 for x, y in pairwise(moves))


def missed_windows(case: Case, values: Sequence[float], loads: Sequence[float]) -> int:
    return sum(not case.tight(value, load) for value, load in zip(values, loads, strict=False))


@each
def test_a_step_is_answered_within_a_few_windows_and_settles(case: Case) -> None:
    loads = [0.9] * 20 + [1.8] * 400
    values = run(case, loads)
    assert not all(case.tight(value, 1.8) for value in values[20:22])  # else nothing is shown
    assert any(case.tight(value, 1.8) for value in values[20:30])
    assert missed_windows(case, values[30:], loads[30:]) <= 0.04 * 400
    assert reversals(values[20:]) <= 16  # two a doubling of the patience, then every 96 windows
    assert all(case.bounds.low <= value <= case.bounds.high for value in values)


@each
def test_attempts_to_loosen_become_rare(case: Case) -> None:
    """At the edge of what works it tries the other side ever less often."""
    values = run(case, [1.8] * 800)
    assert reversals(values[:200]) > reversals(values[600:])
    assert reversals(values[600:]) <= 6


@each
def test_a_ramp_is_followed_to_its_end_and_stays_there(case: Case) -> None:
    loads = [1.0 + 0.01 * number for number in range(100)] + [2.0] * 200
    values = run(case, loads)
    assert missed_windows(case, values[:100], loads[:100]) <= 30
    assert missed_windows(case, values[100:], loads[100:]) <= 10


@each
def test_noise_between_good_and_bad_moves_nothing(case: Case) -> None:
    dice = random.Random(3)
    controller = Controller(RULES[case.knob])
    value = case.start
    for _ in range(500):
        missed = drawn(dice, 0.7 * TARGET)
        sample = replace(case.sample, missed=missed)
        moved = controller.moved(value, case.bounds, sample, TARGET)
        assert moved == value
        value = moved


@each
def test_when_the_load_is_gone_it_comes_all_the_way_back(case: Case) -> None:
    """And has its first patience again."""
    wide = replace(case.sample, queued=10_000, rows=10_000)
    values = run(replace(case, sample=wide), [2.0] * 30 + [0.1] * 3000)
    loosest = case.bounds.low if case.knob == "safety" else case.bounds.high
    assert values[-1] == loosest
    assert reversals(values[60:]) <= 1


@each
def test_misses_at_the_bound_change_nothing_and_cost_no_patience(case: Case) -> None:
    tightest = case.bounds.high if case.knob == "safety" else case.bounds.low
    controller = Controller(RULES[case.knob])
    sample = replace(case.sample, missed=500, queued=int(case.bounds.high))
    assert controller.moved(tightest, case.bounds, sample, TARGET) == tightest
    assert controller.patience == PATIENCE


def test_patience_has_a_bound() -> None:
    controller = Controller(RULES["safety"])
    for _ in range(50):
        controller.moved(1.0, Bounds(1.0, 9.0), Sample(MANY, 500), TARGET)
    assert controller.patience == PATIENCE_MAX


@pytest.mark.parametrize(
    ("sample", "wanted"),
    [
        (BUSY, 1),
        (replace(BUSY, busy=0.3), -1),  # nothing waits long: holding only delays
        (replace(BUSY, busy=0.7), 0),
        (replace(BUSY, fill=0.95), 0),
        (replace(BUSY, slack_p10_ns=MS), 0),  # no time to hold anybody
        (replace(BUSY, slack_p10_ns=None), 1),
        (replace(BUSY, missed=100), -1),
    ],
)
def test_a_window_grows_only_where_it_fills_batches_and_slack_allows(
    sample: Sample, wanted: int
) -> None:
    assert RULES["window"].wanted(sample, MS, TARGET) == wanted


def test_a_cap_that_binds_nobody_is_tightened_from_what_was_seen_and_never_loosened() -> None:
    rows = RULES["rows"]
    missed = Sample(MANY, 100, fill=1.0, rows=32, queued=9)
    assert Controller(rows).moved(65_536, Bounds(1, 65_536), missed, TARGET) == 24
    assert rows.wanted(Sample(MANY, 0, rows=8), 24, TARGET) == 0
    assert rows.wanted(Sample(MANY, 100, fill=0.5, rows=8), 24, TARGET) == 0
    assert RULES["queue"].wanted(Sample(MANY, 100, queued=0), 24, TARGET) == 0


@pytest.mark.parametrize(("low", "high"), [(2, 1), (-1, 1)])
def test_bounds_that_are_none_are_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="low must be >= 0 and <= high"):
        Bounds(low, high)


def test_the_words_say_misses_and_slack() -> None:
    assert Sample(100, 3, slack_p10_ns=6 * MS).misses() == "missed 3 of 100, slack p10 6.0 ms"
    assert Sample(100, 3).misses() == "missed 3 of 100"
