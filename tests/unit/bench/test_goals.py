"""The page of `make bench`: every figure stands there, whatever it says; both sides of a ratio come
from the same runs.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.bench import (
    datapath,
    datapath_stage,
    frontend,
    goals,
    goodput,
    overload,
    saturation,
    timers,
)
from tests.bench.meter import Figure, cpu_ns, quantile, table


def test_a_figure_that_is_missed_stays_with_its_value_and_reason() -> None:
    missed = Figure("G4", "ratio", 1.5, 1.0, reason="a copy too many")
    text = table([Figure("G1", "times", 6.0, 5.0, at_least=True), missed])
    assert "| G1 | times | 6 | ≥ 5 | reached |" in text
    assert "| G4 | ratio | 1.5 | ≤ 1 | missed |" in text
    assert text.endswith("G4, ratio: a copy too many")


def test_what_could_not_be_measured_is_said_and_not_reached() -> None:
    figure = Figure("G2", "ms", math.nan, 0.12)
    assert (figure.verdict, figure.is_reached) == ("not measured", False)
    assert figure.as_dict()["value"] is None


def test_quantiles_are_values_that_were_measured() -> None:
    assert [quantile([1.0, 2.0, 3.0, 9.0], share) for share in (0.0, 0.5, 1.0)] == [1.0, 2.0, 9.0]
    assert math.isnan(quantile([], 0.5))


def test_cpu_time_grows_with_work() -> None:
    import os

    before = cpu_ns(os.getpid())
    assert sum(number for number in range(300_000)) > 0
    assert cpu_ns(os.getpid()) > before


def run(
    target: str, load: str, *, size: str = datapath_stage.SMALL, rate: float = 1.0, **cpu: float
) -> datapath.Run:
    return datapath.Run(target, size, load, rate, 100.0, 200.0, cpu, 8.0)


def test_the_data_path_is_held_against_the_default_and_against_the_best() -> None:
    slow, fast = datapath_stage.BATCHERS[0], datapath_stage.BATCHERS[1]
    runs = [
        run(slow, datapath.MANY, rate=100.0, triton=50.0),
        run(fast, datapath.MANY, rate=200.0, triton=40.0),
        run(datapath_stage.SIDECAR, datapath.MANY, rate=150.0, sidecar=20.0, triton=10.0),
    ]
    made = datapath.figures(runs, {frontend.BARE: 100.0, frontend.NGH2: 10.0})
    assert [(f.goal, round(f.value, 3)) for f in made] == [
        ("G1", 10.0), ("G3", 0.2), ("G4", 0.6), ("G4", 0.75), ("G5", 1.5), ("G5", 0.75)
    ]  # fmt: skip


def test_loads_that_were_not_asked_for_leave_no_figure() -> None:
    assert datapath.figures([], {}) == []


def result(tight: int, loose: int, late: float | None = None) -> dict[str, Any]:
    classes = {"tight": {"served": tight, "sent": 100}, "loose": {"served": loose, "sent": 100}}
    return {
        "goodput_per_s": float(tight + loose), "late_by_ledger": late, "target_cpu_s": 1.0,
        "classes": classes,
        "config": {"duration_s": 1.0, "warmup_s": 0.0},
    }  # fmt: skip


def test_goodput_is_held_against_the_best_triton() -> None:
    rows = [
        {"load": load, "target": target, "result": result(*counts)}
        for load in (0.5, 0.8, 1.3)
        for target, counts in (
            (overload.SIDECAR.name, (90, 100, 0.005)),
            (overload.DEFAULT.name, (0, 10)),
            (overload.TUNED.name, (80, 100)),
        )
    ]
    found = {(f.goal, f.what): f.value for f in goodput.figures(goodput.Seen(rows), large=False)}
    assert found["G7", "load 1.3: goodput over the best queue policy's"] == pytest.approx(190 / 180)
    assert found["G7", "load 1.3: goodput over Triton's default"] == 19.0
    tight = found["G8", "load 0.8: misses of the tight class over the best Triton's"]
    assert tight == pytest.approx(0.1 / 0.2)
    assert found["G10", "load 1.3: late among answered (ledger)"] == 0.005


def test_large_requests_are_held_to_throughput_and_cpu() -> None:
    rows = [
        {"load": 1.3, "target": target.name, "result": result(50, 50, 0.0)}
        for target in (overload.SIDECAR, overload.TUNED)
    ]
    made = goodput.figures(goodput.Seen(rows), large=True)
    assert [(f.goal, f.value) for f in made] == [("G9", 1.0), ("G9", 1.0)]


def test_a_timer_that_fires_early_is_no_timer() -> None:
    late = {kind: {0.0: -1.0, 0.5: 50.0, 0.9: 60.0, 0.99: 70.0} for kind in timers.KINDS}
    first, second, *_ = timers.figures(late)
    assert (first.verdict, second.verdict) == ("missed", "missed")


async def test_timers_of_each_kind_are_told_one_after_the_other() -> None:
    lateness = timers.Lateness(timers.OURS, 2)
    lateness.begin()
    await lateness.done.wait()
    assert len(lateness.late_us) == 2


def test_idle_time_is_what_lies_between_batches() -> None:
    batches = [(number * 10.0, number * 10.0 + 8.0) for number in range(50)]
    assert saturation.idle_share(batches) == pytest.approx(2 / 8, rel=0.05)
    with pytest.raises(ValueError, match="too few"):
        saturation.idle_share(batches[:10])


def test_a_dispatch_at_a_thousand_queued_takes_a_full_batch() -> None:
    joining_us, dispatch_us = saturation.decision_us()
    assert joining_us > 0
    assert dispatch_us > 0


def test_the_history_is_a_line_a_run_and_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(goals, "HISTORY_LINES_MAX", 2)
    path = tmp_path / "history.jsonl"
    for number in range(3):
        goals.record(path, [Figure("G1", "times", float(number))], {"commit": str(number)})
    kept = [json.loads(text) for text in path.read_text().splitlines()]
    assert [each["commit"] for each in kept] == ["1", "2"]
    assert kept[1]["figures"] == {"G1 times": 2.0}


async def test_the_page_is_in_the_order_of_the_goals(monkeypatch: pytest.MonkeyPatch) -> None:
    async def part(_: argparse.Namespace) -> list[Figure]:
        return [Figure("G11", "late", 1.0), Figure("G2", "added", 2.0, 1.0)]

    monkeypatch.setitem(goals.PARTS, "timers", part)
    monkeypatch.setitem(goals.REASONS, ("G2", "added"), "two hops")
    made = await goals.everything(argparse.Namespace(only=["timers"]))
    assert [(f.goal, f.reason) for f in made] == [("G2", "two hops"), ("G11", "")]
