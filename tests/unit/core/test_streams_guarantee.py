"""Invariant 9: with exact times an admitted stream never misses. Rule: a small share, with fixed
seeds, of `python -m tests.bench.streams`, which runs as many sets as it is told.
"""

import pytest

from tests.bench.streams import Setup, run

CASES = [
    Setup(0, seconds=1),
    Setup(1, seconds=1, early=True),
    Setup(2, seconds=1, early=True, best_effort=150),
    Setup(3, seconds=1, best_effort=150, rule="edf"),
    Setup(4, seconds=1, early=True, best_effort=100, rule="fcfs"),
]


@pytest.mark.parametrize("setup", CASES, ids=str)
def test_no_frame_of_an_admitted_stream_misses(setup: Setup) -> None:
    result = run(setup)
    assert result.missed == 0
    assert result.frames > 100
    assert result.others_in_time >= setup.best_effort / 2


def test_best_effort_gets_most_of_what_the_streams_leave() -> None:
    result = run(Setup(5, seconds=1, streams=8, best_effort=400))
    assert result.used_ns > 0.8 * result.left_ns
    assert result.missed == 0
