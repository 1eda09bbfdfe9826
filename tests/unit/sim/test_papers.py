"""The papers' own set-ups: what they state is there, and the ordering that Shepherd found."""

import random
import statistics

import pytest

from tests.helpers import MS, S
from tritonsched.sim.experiment import Trace, run
from tritonsched.sim.papers import (
    DEEPRT_FRAMES,
    DEEPRT_STREAMS,
    deeprt_models,
    deeprt_proposals,
    deeprt_workload,
    shepherd,
)


def test_shepherds_bursts_and_steady_stream_are_as_published() -> None:
    made = list(shepherd().requests(duration_ns=240 * MS, seed=1))
    bursts = [r.arrival_ns for r in made if r.model == "resnet18"]
    assert bursts == [0] * 1024 + [120 * MS] * 1024
    steady = [r.arrival_ns for r in made if r.model == "resnest269"]
    assert len(steady) == 239
    assert {r.deadline_ns - r.arrival_ns for r in made} == {250 * MS}


def test_under_overload_value_beats_deadline_order() -> None:
    """Row 14 of the published figures: at least 3x on 10 s; a short trace here."""
    trace = Trace("shepherd", 1.0, seed=1, length=14_000)
    lite, edf = (run(trace, rule).record.on_time_share for rule in ("lite", "edf"))
    assert lite > 2 * edf


def test_deeprts_streams_have_the_spread_of_the_paper() -> None:
    cameras = [c for seed in range(40) for c in deeprt_proposals(150.0, random.Random(seed))]
    assert len(cameras) == 40 * DEEPRT_STREAMS
    for found in ([c.period_ns for c in cameras], [c.relative_ns for c in cameras]):
        assert statistics.fmean(found) == pytest.approx(150 * MS, rel=0.1)
        assert statistics.pstdev(found) == pytest.approx(150 * MS / 2**0.5, rel=0.15)
    assert deeprt_models()["resnet152"](16) == pytest.approx(58 * MS, rel=0.05)


def test_an_admitted_stream_sends_its_frames_at_its_period() -> None:
    camera = deeprt_proposals(50.0, random.Random(1))[0]
    made = list(deeprt_workload([camera]).requests(duration_ns=600 * S, seed=1))
    assert len(made) == DEEPRT_FRAMES
    assert made[0].arrival_ns == camera.start_ns
    assert made[-1].arrival_ns == camera.start_ns + (DEEPRT_FRAMES - 1) * camera.period_ns
    assert {r.deadline_ns - r.arrival_ns for r in made} == {camera.relative_ns}
