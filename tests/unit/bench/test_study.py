"""The study's and the core benchmark's commands: tables of the right shape, on tiny traces."""

import random
from pathlib import Path

import pytest

from tests.bench import core, deeprt, study
from tritonsched.sim.papers import deeprt_proposals
from tritonsched.sim.studies import STUDIES
from tritonsched.sim.world import Faults


def test_the_study_writes_a_table_a_section(tmp_path: Path) -> None:
    title, lines = "t", [["rule", "value"], ["lite", "0.9"]]
    assert study.markdown(title, lines).splitlines() == [
        "## t", "", "| rule | value |", "| --- | --- |", "| lite | 0.9 |"
    ]  # fmt: skip


def test_every_workload_of_the_study_has_its_goal() -> None:
    assert set(study.GOALS) == set(STUDIES)


def test_the_core_benchmark_counts_every_event(capsys: pytest.CaptureFixture[str]) -> None:
    figures = core.measure("W14", "lite", 200)
    assert figures["max µs/event"] >= figures["p99 µs/event"] > 0
    assert figures["core µs/request"] * figures["requests/s"] < 1e6 * 3
    core.main(["--rules", "fcfs", "--workloads", "W14", "--requests", "200"])
    assert "W14" in capsys.readouterr().out


def test_misses_of_admitted_streams_are_in_the_papers_order() -> None:
    """DeepRT < BATCH-Delay < BATCH < AIMD in the paper; ours in its place. A few of the streams."""
    taken = deeprt.admitted(deeprt_proposals(50.0, random.Random(2))[:8], "lite")
    assert 2 < len(taken) <= 8
    assert deeprt.missed(deeprt.serve(taken, "lite", Faults(), 1)) == 0
    found = deeprt.compared(taken, "lite", 50.0, seed=1)
    assert list(found) == sorted(found, key=lambda name: found[name])
    assert found["lite"] < 0.01 * len(deeprt.frames(taken))
