"""Campaigns: means, intervals, and the same figures however many processes make them."""

import pytest

from tritonsched.sim.campaign import FIGURES, Plan, execute, interval
from tritonsched.sim.experiment import Trace

PLAN = Plan(["W14"], ["lite", "fcfs"], loads=(0.2, 0.4), seeds=2, length=300)


def test_a_plan_is_every_workload_at_every_load_with_every_seed() -> None:
    assert [(t.name, t.load, t.seed) for t in PLAN.traces()] == [
        ("W14", 0.2, 1), ("W14", 0.2, 2), ("W14", 0.4, 1), ("W14", 0.4, 2)
    ]  # fmt: skip
    assert Plan(["W6"], ["lite"], seeds=1).traces()[0].load == 2.0


def test_rows_are_means_over_the_seeds_in_the_order_of_the_plan() -> None:
    done: list[Trace] = []
    rows = execute(PLAN, tick=done.append)
    assert done == PLAN.traces()
    assert [(row.load, row.contender) for row in rows] == [
        (0.2, "lite"), (0.2, "fcfs"), (0.4, "lite"), (0.4, "fcfs")
    ]  # fmt: skip
    assert set(rows[0].mean) == set(FIGURES)
    assert rows[2].mean["value"] > rows[3].mean["value"]
    assert all(0 <= row.mean["value"] <= 1 for row in rows)
    assert rows[0].sample.bars
    assert rows[0].sample.curve == sorted(rows[0].sample.curve)


def test_two_processes_make_the_same_figures() -> None:
    plan = Plan(["W14"], ["lite"], seeds=2, length=300)
    assert [row.mean for row in execute(plan, jobs=2)] == [row.mean for row in execute(plan)]


def test_an_interval_needs_two_values() -> None:
    assert interval([0.5]) is None
    assert interval([1.0, 1.0, 1.0]) == 0.0
    assert interval([0.0, 2.0]) == pytest.approx(1.96)
