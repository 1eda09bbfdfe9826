"""Replays: the old policy gives what happened, another one what it would have made of it."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.proxy.recordings import MODELS, MS, POLICY, S, arrivals, record
from tritonsched.config.recorded import Left, Recording, read_recording
from tritonsched.config.schema import PolicyFile
from tritonsched.core.request import Outcome, Request
from tritonsched.core.reservation import Reservation
from tritonsched.core.variant import ServerState
from tritonsched.sim.replay import (
    OLD,
    SLICES,
    UNKNOWN_CLASS,
    UNKNOWN_MODEL,
    Run,
    Traffic,
    agreement,
    recorded,
    replayed,
)
from tritonsched.sim.replay_command import of_streams
from tritonsched.sim.world import Faults, affine


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    path = tmp_path_factory.mktemp("exact") / "r.jsonl"
    record(path, arrivals(), cancel=[(50, 333 * MS), (51, 340 * MS)])
    return read_recording(path)


def other(**classes: dict[str, float]) -> PolicyFile:
    return PolicyFile.model_validate({"classes": classes, "default_class": next(iter(classes))})


def test_without_noise_the_old_policy_gives_every_request_the_end_it_had(exact: Recording) -> None:
    traffic = Traffic(exact)
    real, old = recorded(traffic), replayed(traffic, OLD, exact.policy, seed=1)
    assert agreement(real, old).same == 1.0
    assert old.account.outcomes == real.account.outcomes
    assert old.account.utility == real.account.utility
    assert real.account.total(Outcome.REJECTED) > 0  # else nothing was at stake


def test_with_noise_and_overruns_the_shares_agree(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    record(path, arrivals(), faults=Faults(jitter=0.03, overrun_rate=0.003))
    traffic = Traffic(read_recording(path))
    old = replayed(traffic, OLD, traffic.recording.policy, seed=1)
    found = agreement(recorded(traffic), old)
    assert found.off < 0.02
    assert found.same > 0.85


def test_a_device_that_was_slow_for_a_while_is_slow_then(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    record(path, arrivals(60), faults=Faults(throttles=[(S, 2.0), (2 * S, 1.0)]))
    traffic = Traffic(read_recording(path))
    runs = [recorded(traffic), replayed(traffic, OLD, traffic.recording.policy, seed=1)]
    quarter = SLICES // 4
    for run in runs:
        bad = run.account.not_in_time
        assert sum(bad[quarter : 2 * quarter]) > 3 * sum(bad[:quarter])


def test_the_same_seed_gives_the_same_replay(exact: Recording) -> None:
    traffic = Traffic(exact)
    new = other(gold={"deadline_ms": 60.0}, free={"deadline_ms": 60.0})
    first, second = (replayed(traffic, "n", new, seed=3).account for _ in range(2))
    assert first.ends == second.ends


def test_a_longer_deadline_of_a_class_refuses_less_of_it(exact: Recording) -> None:
    traffic = Traffic(exact)
    wide = replayed(
        traffic, "n", other(free={"deadline_ms": 90.0}, gold={"deadline_ms": 80.0}), seed=1
    )
    tight = replayed(
        traffic, "n", other(free={"deadline_ms": 90.0}, gold={"deadline_ms": 15.0}), seed=1
    )
    counts = [run.account.outcomes["gold", Outcome.REJECTED] for run in (wide, tight)]
    assert counts[0] < counts[1]


def test_a_client_s_own_shorter_deadline_stays(exact: Recording) -> None:
    """The class allowed 40 ms and the client gave 15; the new class allows 80."""
    short = {
        n: replace(r, deadline_ns=exact.received_ns[n] + 15 * MS) for n, r in exact.arrivals.items()
    }
    new = other(free={"deadline_ms": 80.0}, gold={"deadline_ms": 80.0})
    shortened = replace(exact, arrivals=short)
    strict = replayed(Traffic(shortened), "n", new, seed=1).account
    free = replayed(Traffic(exact), "n", new, seed=1).account
    assert strict.total(Outcome.SERVED) < free.total(Outcome.SERVED)


def test_requests_of_a_class_that_is_gone_are_refused_by_name(exact: Recording) -> None:
    traffic = Traffic(exact)
    account = replayed(traffic, "n", other(free={"deadline_ms": 90.0}), seed=1).account
    gold = sum(request.slo == "gold" for request in exact.arrivals.values())
    assert account.reasons["gold", UNKNOWN_CLASS] == gold
    assert account.outcomes["gold", Outcome.REJECTED] == gold


def test_requests_that_named_no_class_follow_the_new_default(exact: Recording) -> None:
    new = other(bulk={"deadline_ms": 500.0}, gold={"deadline_ms": 40.0})
    account = replayed(Traffic(exact), "n", new, seed=1).account
    assert set(account.submitted) == {"bulk", "gold"}


def test_tenants_have_what_the_new_policy_gives_them(exact: Recording) -> None:
    """As recorded they are named like the classes; who is not in the new file is its default."""
    tenants = {"tenants": {"gold": {"queue_requests_max": 1}}, "default_tenant": "default"}
    new = PolicyFile.model_validate(POLICY.model_dump() | tenants)
    account = replayed(Traffic(exact), "n", new, seed=1).account
    assert {name for name, _ in account.tenants} == {"gold", "default"}
    full = {slo for slo, reason in account.reasons if reason == "tenant-queue-full"}
    assert full == {"gold"}
    assert {request.tenant for request in exact.arrivals.values()} == {"gold", "free"}


def test_a_model_with_variants_is_replayed_by_what_its_variants_took(tmp_path: Path) -> None:
    """And with worth that falls, which no line holds: the policy does. Without the variants nobody
    serves it.
    """
    path = tmp_path / "r.jsonl"
    soft = {"gold": {"deadline_ms": 40.0, "soft_ms": 20.0}, "free": {"deadline_ms": 90.0}}
    varied = PolicyFile.model_validate(
        {"classes": soft, "default_class": "free", "models": {"see": {"variants": ["text", "cam"]}}}
    )
    quick = replace(MODELS[1], accuracy=0.6, exec_ns=affine(1 * MS, MS // 2))
    models = (replace(MODELS[0], accuracy=0.8), quick)
    shapes = varied.slo_classes()
    asked = [replace(r, model="see", utility=shapes[r.slo].utility) for r in arrivals(120)]
    record(path, asked, policy=varied, models=models)
    traffic = Traffic(read_recording(path))
    assert {batch.model for batch in traffic.recording.batches} == {"cam", "text"}
    assert (traffic.left_out, traffic.families(varied)) == ({}, {"see": ("text", "cam")})
    real, old = recorded(traffic), replayed(traffic, OLD, varied, seed=1)
    assert agreement(real, old).same == 1.0
    without = replayed(traffic, "n", other(gold={"deadline_ms": 40.0}, free={}), seed=1).account
    assert without.total(Outcome.REJECTED) == len(asked)
    assert {reason for _, reason in without.reasons} == {UNKNOWN_MODEL}


def test_a_tenants_weight_counts_in_what_is_earned(exact: Recording) -> None:
    tenants = {"tenants": {"gold": {"weight": 3.0}}}
    new = PolicyFile.model_validate(POLICY.model_dump() | tenants)
    account = replayed(Traffic(exact), "n", new, seed=1).account
    assert account.utility["gold"] == 12.0 * account.outcomes["gold", Outcome.SERVED]


def test_a_class_without_a_deadline_takes_it_away(exact: Recording) -> None:
    new = PolicyFile.model_validate({"classes": {"gold": {}, "free": {}}, "default_class": "free"})
    account = replayed(Traffic(exact), "n", new, seed=1).account
    assert account.miss_ratio == 0
    assert account.total(Outcome.REJECTED) == 0


def test_another_rule_and_bounds_are_taken_over(exact: Recording) -> None:
    data = POLICY.model_dump() | {
        "scheduler": {"policy": "fcfs"},
        "limits": {"queue_requests_max": 1},
    }
    run = replayed(Traffic(exact), "n", PolicyFile.model_validate(data), seed=1)
    assert run.rule == "fcfs"
    assert run.account.reasons["gold", "queue-full"] > 0


def test_while_triton_was_away_nothing_is_served(exact: Recording) -> None:
    gone = [(0, ServerState.READY), (S, ServerState.AWAY), (2 * S, ServerState.READY)]
    account = replayed(Traffic(replace(exact, server=gone)), OLD, exact.policy, seed=1).account
    quarter = SLICES // 4
    assert sum(account.in_time[quarter + 1 : 2 * quarter]) == 0
    assert account.reasons["gold", "triton-unavailable"] > 0


def test_models_that_were_never_measured_are_left_out_and_counted(exact: Recording) -> None:
    batches = [batch for batch in exact.batches if batch.model != "text"]
    traffic = Traffic(replace(exact, batches=batches))
    text = sum(request.model == "text" for request in exact.arrivals.values())
    assert traffic.left_out == {"text": text}
    assert {request.model for request in traffic.requests} == {"cam"}


def test_clients_that_left_leave_again(exact: Recording) -> None:
    first = next(iter(exact.arrivals.values()))
    left = exact.left | {first.id: Left(first.arrival_ns, Outcome.CANCELLED, "")}
    account = replayed(Traffic(replace(exact, left=left)), OLD, exact.policy, seed=1).account
    assert account.ends[first.id] is Outcome.CANCELLED


# -- streams that reserved ------------------------------------------------------------------------

CAMERA = Reservation(
    1, "cam", period_ns=50 * MS, relative_deadline_ns=40 * MS, frames=40, start_ns=1500 * MS
)


def crowded(stream: Reservation) -> list[Request]:
    """Its frames among more best effort than the device can take."""
    others = [r for r in arrivals(400, duration_ns=4 * S) if r.slo == "gold"]
    times = [stream.arrival_ns(k) for k in range(stream.frames)]
    frames = [
        Request(1, "cam", "free", 0, 1, at, at + 40 * MS, reservation=stream.id) for at in times
    ]
    found = sorted([*others, *frames], key=lambda request: request.arrival_ns)
    return [replace(request, id=number) for number, request in enumerate(found, 1)]


def frames_in_time(requests: list[Request], run: Run) -> int:
    ends = run.account.ends
    return sum(ends[r.id] is Outcome.SERVED for r in requests if r.reservation)


def test_a_recorded_stream_is_reserved_again_and_kept_under_any_policy(tmp_path: Path) -> None:
    requests = crowded(CAMERA)
    record(tmp_path / "r.jsonl", requests, streams=[CAMERA])
    traffic = Traffic(read_recording(tmp_path / "r.jsonl"))
    real, old = recorded(traffic), replayed(traffic, OLD, traffic.recording.policy, seed=1)
    assert (real.granted, old.granted) == (1, 1)
    assert agreement(real, old).same == 1.0
    assert frames_in_time(requests, old) == CAMERA.frames
    short = other(free={"deadline_ms": 20.0}, gold={"deadline_ms": 40.0})
    assert frames_in_time(requests, replayed(traffic, "short", short, seed=1)) == CAMERA.frames
    (note,) = of_streams(traffic.recording, [real, old])
    assert note == "of 1 streams that asked for a guarantee were granted: recorded 1, old 1"


def test_a_stream_that_ended_or_whose_model_is_not_measured_keeps_nothing(tmp_path: Path) -> None:
    requests = crowded(CAMERA)
    record(tmp_path / "r.jsonl", requests, streams=[CAMERA])
    recording = read_recording(tmp_path / "r.jsonl")
    recording.reserved[9] = (0, replace(CAMERA, id=9, model="unknown"))
    recording.released.append((CAMERA.start_ns, CAMERA.id))
    run = replayed(Traffic(recording), OLD, recording.policy, seed=1)
    assert run.granted == 1
    assert frames_in_time(requests, run) < CAMERA.frames
