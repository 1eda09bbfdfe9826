"""What the live benches compute of what they see. Rule: no process is started here."""

import pytest

from tests.bench import cameras_live, ranking_live
from tests.bench.cameras_live import DUE_MS, JITTER_MS, Run
from tests.bench.live import Gpu, Outcome
from tests.bench.live_load import Shot, message, metadata
from tests.helpers import S
from tritonsched.frontend import grpc_codec


def frame(took: float | None, *, lag: float = 0.0, status: str = "ok") -> tuple[object, ...]:
    return (Shot(0, "cam-a", "stream", DUE_MS, "7"), status, took, lag)


def free(took: float | None) -> tuple[object, ...]:
    return (Shot(0, "free-a", "free", 300.0), "ok" if took else "resource_exhausted", took, 0.0)


def outcome(*shots: tuple[object, ...]) -> Outcome:
    return Outcome(*zip(*shots, strict=True))


def test_a_miss_is_told_from_the_hosts_jitter_and_from_a_frame_that_came_too_late() -> None:
    late_by_the_host = DUE_MS + JITTER_MS / 2
    seen = outcome(
        frame(50.0),
        frame(late_by_the_host, lag=JITTER_MS - 1),
        frame(DUE_MS + JITTER_MS),
        frame(None, status="deadline_exceeded"),
        frame(500.0),
        free(100.0),
        free(None),
    )
    run = Run(seen, 1, {"cam-a": 0.2, "free-a": 0.6})
    cells = cameras_live.line(run, beside=True).split(" | ")
    assert cells[2] == "5, 0"
    assert cells[3].startswith("4: 80")
    assert cells[4].startswith("3: 60")
    assert cells[6] == "50.0% of 2"
    assert cells[8] == "75.0%"


def test_a_frame_that_was_sent_too_late_is_no_frame_of_the_stream() -> None:
    run = Run(outcome(frame(50.0), frame(500.0, lag=JITTER_MS + 1)), 1, {})
    assert cameras_live.line(run, beside=False).split(" | ")[2:4] == ["1, 1", "0: 0.000%"]


def test_best_effort_is_more_than_the_device_can_take() -> None:
    shots = cameras_live.best_effort(0, 10 * S)
    costs = [cameras_live.COSTS_MS[name] for name in cameras_live.FREE]
    batch_ms = sum(a + b * cameras_live.ROWS_MAX for a, b in costs) / len(costs)
    capacity = 1000 * cameras_live.ROWS_MAX / batch_ms
    assert len(shots) / 10 == pytest.approx(1.3 * capacity, rel=0.05)
    assert [shot.at_ns for shot in shots] == sorted(shot.at_ns for shot in shots)


def test_every_size_is_warmed_up() -> None:
    assert {shot.model for shot in cameras_live.warmup()} == set(cameras_live.COSTS_MS)


def test_ranks_and_pairs_that_agree() -> None:
    sim, live = {"a": 90.0, "b": 80.0, "c": 79.0}, {"a": 70.0, "b": 75.0, "c": 60.0}
    assert ranking_live.ranks(live) == {"b": 1, "a": 2, "c": 3}
    assert ranking_live.pairs_agree(live, sim, apart=3.0) == (1, 2)


def test_a_scene_is_slowed_down_as_a_whole() -> None:
    scene = ranking_live.scene("W12", 1.0)
    factor = ranking_live.SLOWER["W12"]
    relative = {r.deadline_ns - r.arrival_ns for r in scene.requests}
    assert relative == {ms * factor * 1_000_000 for ms in (25, 50, 60)}
    assert 0 < ranking_live.simulated(scene, "lite", 600_000) <= 100
    shots = ranking_live.shots(scene)
    assert [shot.at_ns for shot in shots] == sorted(shot.at_ns for shot in shots)
    everything = Outcome(shots, ["ok"] * len(shots), [1.0] * len(shots), [0.0])
    assert ranking_live.value(scene, everything) == 100
    assert "policy: lite" in ranking_live.policy(scene, "lite")


def test_a_shot_is_a_request_that_names_its_class_deadline_and_stream() -> None:
    shot = Shot(0, "m", "gold", 40.0, "7")
    call = grpc_codec.decode(message("m"), metadata(shot), received_ns=0, remaining_ns=None)
    assert (call.model, call.slo, call.reservation) == ("m", "gold", "7")
    assert call.hints.header_ms == "40"
    assert call.lone_reason == ""
    assert metadata(Shot(0, "m", "gold")) == (("x-tritonsched-class", "gold"),)


def test_a_gpu_is_told_its_table() -> None:
    config = Gpu({1: 1000.0, 4: 2500.0}, params={"jitter_pct": 3}).config("m", 1)
    assert '"1:1000,4:2500"' in config
    assert "max_batch_size: 4" in config
