"""What is remembered of the last minutes, and what a frame makes of it."""

import json
from dataclasses import replace
from typing import Any

import orjson
import pytest

from tests.unit.proxy.panorama import MS, Panorama, S
from tritonsched.core.batch import Batch
from tritonsched.core.fairness import Fairness
from tritonsched.core.ledger import Ledger
from tritonsched.core.policies import POLICIES
from tritonsched.core.request import Outcome, RejectReason, Request, Tenant
from tritonsched.core.reservation import Reservation
from tritonsched.core.scheduler import Scheduler
from tritonsched.core.tuning import Tuning
from tritonsched.core.variant import Variant
from tritonsched.proxy import frame as frames
from tritonsched.proxy import overview as overviews
from tritonsched.proxy.frame import RUNS_SHOWN_MAX, Facts, frame
from tritonsched.proxy.overview import (
    AT_ONCE,
    DEVICES_MAX,
    HELD,
    HISTORY_S,
    OTHER_MODELS,
    PREDICTED_MAX,
    RECENT_S,
    RESENT,
    RUNS_MAX,
    SAME_MODEL,
    Overview,
    Wait,
)

FACTS = Facts(at_ms=0, uptime_s=0.0, version="1", rule="lite")


def request(number: int, arrival: int, **fields: Any) -> Request:
    return replace(Request(number, "m", "c", 0, 1, arrival), **fields)


def batch(
    number: int, *requests: Request, at: int, model: str = "m", device: str = "gpu0"
) -> Batch:
    """Dispatched and started at `at`, expected to take 10 ms."""
    rows = sum(member.rows for member in requests)
    return Batch(number, model, device, requests, max(1, rows), at, at, 10 * MS)


def idle() -> Scheduler:
    made = Scheduler(POLICIES["lite"]())
    made.set_variant(Variant("m", 8, ("gpu0",)), 0)
    return made


def ran(overview: Overview, made: Batch, *, until: int) -> None:
    """The batch from its dispatch to its measured end."""
    overview.on_dispatch(made, made.dispatch_ns)
    overview.on_complete(made, measured_ns=until - made.dispatch_ns, now=until)


def waits(*members: Request, at: int) -> dict[str, Wait]:
    """What they waited for: the device ran m from 0 to 10 ms, n from 10 to 30 ms, and was idle."""
    overview = Overview(is_watched=True)
    ran(overview, batch(1, request(90, 0), at=0), until=10 * MS)
    ran(overview, batch(2, request(91, 10 * MS), at=10 * MS, model="n"), until=30 * MS)
    overview._waits.clear()
    overview.on_dispatch(batch(3, *members, at=at), at)
    return dict(overview._waits)


def test_a_wait_is_told_apart_by_what_the_device_did_and_counted_once() -> None:
    assert waits(request(1, 2 * MS), at=35 * MS) == {
        SAME_MODEL: Wait(0, 8 * MS),
        OTHER_MODELS: Wait(1, 20 * MS),
        HELD: Wait(0, 5 * MS),
    }
    assert waits(request(1, 2 * MS), at=12 * MS) == {
        SAME_MODEL: Wait(1, 8 * MS),
        OTHER_MODELS: Wait(0, 2 * MS),
    }
    assert waits(request(1, 31 * MS), at=33 * MS) == {HELD: Wait(1, 2 * MS)}


def test_who_is_sent_at_once_waited_for_nothing_and_who_is_sent_again_for_its_failed_batch() -> (
    None
):
    assert waits(request(1, 9 * MS), at=9 * MS + 1) == {AT_ONCE: Wait(1, 1)}
    again = request(1, 0, alone=True, retry=True)
    assert waits(again, at=20 * MS) == {RESENT: Wait(1, 20 * MS)}


def test_a_running_batch_counts_until_now_and_one_sent_ahead_not_at_all() -> None:
    overview = Overview(is_watched=True)
    overview.on_dispatch(batch(1, request(1, 0), at=0, model="n"), 0)
    overview.on_dispatch(replace(batch(2, request(2, 0), at=8 * MS), expected_start_ns=S), 8 * MS)
    overview._waits.clear()
    overview.on_dispatch(batch(3, request(3, 2 * MS), at=9 * MS), 9 * MS)
    assert overview._waits == {OTHER_MODELS: Wait(1, 7 * MS)}


def test_nobody_looks_then_no_request_is_looked_at() -> None:
    overview = Overview()
    overview.on_dispatch(batch(1, request(1, 0), at=5 * MS), 5 * MS)
    assert overview._waits == {}
    assert len(overview.runs["gpu0"]) == 1


def test_everything_that_is_remembered_has_its_bound() -> None:
    overview, scheduler, ledger = Overview(), idle(), Ledger()
    for number in range(RUNS_MAX + PREDICTED_MAX):
        ran(overview, batch(number, request(number, 0), at=number), until=number + 1)
    for number in range(DEVICES_MAX + 5):
        overview.on_dispatch(batch(-number, at=0, device=f"gpu{number}"), 0)
    for second in range(HISTORY_S + 5):
        overview.sample(scheduler, ledger, second * S)
    assert {len(runs) for runs in overview.runs.values()} == {RUNS_MAX, 1}
    assert len(overview.runs) == DEVICES_MAX
    assert (len(overview.predicted), len(overview.history)) == (PREDICTED_MAX, HISTORY_S)
    assert len(overview.recent) == RECENT_S + 1


def test_a_batch_that_is_neither_out_nor_measured_has_failed() -> None:
    overview = Overview()
    overview.on_dispatch(batch(1, request(1, 0), at=0), 0)
    overview.sample(idle(), Ledger(), S)
    (run,) = overview.runs["gpu0"]
    assert (run.failed, run.end_ns) == (True, 10 * MS)
    made = dict(frame(overview, idle(), Ledger(), FACTS, S))
    assert made["devices"]["rows"][0]["runs"] == [["m", -1000.0, -990.0, 1, 1, "failed"]]


def test_a_model_that_is_gone_is_forgotten_and_one_that_came_again_begins_anew() -> None:
    overview, scheduler, ledger = Overview(), idle(), Ledger()
    for number in range(3):
        ran(overview, batch(number, request(number, 0), at=0), until=10 * MS)
    overview.sample(scheduler, ledger, S)
    scheduler.drop_model("m", S)
    overview.sample(scheduler, ledger, 2 * S)
    assert dict(frame(overview, scheduler, ledger, FACTS, 2 * S))["models"]["rows"] == []
    scheduler.set_variant(Variant("m", 8, ("gpu0",)), 2 * S)
    ran(overview, batch(9, request(9, 0), at=2 * S), until=2 * S + 12 * MS)
    overview.sample(scheduler, ledger, 3 * S)
    (row,) = dict(frame(overview, scheduler, ledger, FACTS, 3 * S))["models"]["rows"]
    assert (row["requests"], row["expected_ms"], row["measured_ms"]) == (1, 10.0, 12.0)


def test_a_frame_before_anything_happened_is_whole() -> None:
    made = dict(frame(Overview(), idle(), Ledger(), FACTS, 0))
    assert made["totals"]["requests_per_s"] == 0
    assert made["totals"]["in_time_share"] is None
    assert made["prediction"] == {"points": [], "error_p50": None, "error_p99": None}
    assert [row["name"] for row in made["models"]["rows"]] == ["m"]
    assert made["history"]["points"] == made["waits"] == []


@pytest.fixture(scope="module")
def busy() -> Panorama:
    """16 models, 10 classes, 4 devices, under more load than they can carry."""
    made = Panorama([f"m{number}" for number in range(16)], [f"c{n}" for n in range(10)])
    made.seconds(3, per_s=300)
    made.scheduler.retune(Tuning(window_ns=2 * MS), made.now)
    made.seconds(1, per_s=1500)
    return made


def test_a_frame_shows_every_model_class_and_device_and_agrees_with_the_ledger(
    busy: Panorama,
) -> None:
    made = busy.frame()
    assert sorted(row["name"] for row in made["models"]["rows"]) == sorted(busy.models)
    assert sorted(row["name"] for row in made["classes"]["rows"]) == sorted(busy.classes)
    assert [row["name"] for row in made["devices"]["rows"]] == ["gpu0", "gpu1", "gpu2", "gpu3"]
    whole = {outcome.value: busy.ledger.total(outcome) for outcome in Outcome}
    assert made["totals"]["since_start"] == whole
    sums = dict.fromkeys(whole, 0)
    for row in made["classes"]["rows"]:
        for name, count in row["since_start"].items():
            sums[name] += count
    assert sums == whole
    assert sum(row["count"] for row in made["refusals"]["rows"]) == whole["rejected"] > 0
    assert sum(row["requests"] for row in made["waits"]) > 0
    assert made["tuning"]["window_ms"] == 2.0
    assert made["history"]["points"][-1][1] == tuple(whole.values())
    assert all(0 < row["busy_share"] <= 1 for row in made["devices"]["rows"])
    assert 0 < made["prediction"]["error_p50"] <= made["prediction"]["error_p99"] < 1


def test_a_frame_shows_the_policy_files_tenants_and_how_each_fares() -> None:
    """Those that nothing came of, too; only real names, so one without a name is nobody."""
    rules = (Tenant("lab"), Tenant("shop", weight=2.0, share=0.5))
    made = Panorama(["m0", "m1"], ["c0"], devices=1, tenants=rules)
    made.seconds(2, per_s=900)
    made.scheduler.tenants.adopt(
        {rule.name: rule for rule in (*rules, Tenant("new"))}, Fairness(1.0, strength=4.0)
    )
    rows = {row["name"]: row for row in made.frame()["tenants"]["rows"]}
    assert list(rows) == ["lab", "new", "shop"]
    assert (rows["shop"]["weight"], rows["shop"]["share"]) == (2.0, 0.5)
    assert rows["new"]["requests"] == 0
    assert (rows["new"]["in_time_share"], rows["new"]["boost"]) == (None, 1.0)
    assert rows["lab"]["in_time_share"] < rows["shop"]["in_time_share"]
    assert rows["lab"]["boost"] > 1.0
    for name in ("lab", "shop"):
        left = {kind: made.ledger.tenants[name, kind] for kind in Outcome}
        assert rows[name]["since_start"] == {kind.value: many for kind, many in left.items()}
        assert rows[name]["requests"] == sum(left.values()) > 100
    waiting = sum(row["waiting"] for row in rows.values())
    assert waiting == made.frame()["totals"]["waiting"] > 0


def test_a_frame_is_json_and_its_numbers_are_finite(busy: Panorama) -> None:
    made = orjson.loads(orjson.dumps(busy.frame(notices=["n"], changes=["a", "b"])))
    json.dumps(made, allow_nan=False)
    assert (made["sidecar"]["notices"], made["changes"]) == (["n"], ["a", "b"])
    assert made["history"]["outcomes"] == [outcome.value for outcome in Outcome]


def test_lists_that_are_cut_say_by_how_much(
    busy: Panorama, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "ROWS_MAX", 4)
    monkeypatch.setattr(frames, "RUNS_SHOWN_MAX", 8)
    made = busy.frame(changes=[str(number) for number in range(9)])
    assert made["models"]["hidden"] == 12
    assert len(made["models"]["rows"]) == 4
    assert made["changes"] == ["5", "6", "7", "8"]
    assert sum(len(row["runs"]) for row in made["devices"]["rows"]) <= 8
    assert RUNS_SHOWN_MAX >= DEVICES_MAX


def test_what_happened_long_ago_is_not_recent(busy: Panorama) -> None:
    later = Panorama(["m"], ["c"], devices=1)
    later.seconds(1, per_s=50)
    assert later.overview.recent[-1].outcomes["c", Outcome.SERVED] > 0
    for _ in range(RECENT_S + 2):
        later.now += S
        later.overview.sample(later.scheduler, later.ledger, later.now)
    made = later.frame()
    assert made["totals"]["requests_per_s"] == 0
    assert made["totals"]["since_start"]["served"] > 0
    assert made["devices"]["rows"][0]["runs"] == []
    assert made["waits"] == []


def test_granted_streams_are_shown_with_device_and_end() -> None:
    made = Panorama(["m"], ["c"], devices=1)
    stream = Reservation(7, "m", 100 * MS, 60 * MS, 20, start_ns=S, tenant="north")
    made.scheduler.reserve(stream, 0)
    made.scheduler.decide(0)
    proposal = made.scheduler.proposal(0)
    assert proposal is not None
    made.scheduler.judge(proposal.run(), 0)
    made.scheduler.decide(0)
    ((row,), hidden) = (made.frame()["reservations"][key] for key in ("rows", "hidden"))
    assert (row["id"], row["tenant"], row["device"], hidden) == (7, "north", "gpu0", 0)
    assert (row["period_ms"], row["deadline_ms"]) == (100.0, 60.0)
    assert row["ends_in_s"] == pytest.approx(1 + 1.9 + 0.06, abs=0.1)


def test_the_page_has_words_for_every_reason_and_outcome() -> None:
    from importlib.resources import files

    words = (files("tritonsched.frontend") / "page" / "words.js").read_text()
    for reason in (AT_ONCE, SAME_MODEL, OTHER_MODELS, HELD, RESENT):
        assert f'"{reason}":' in words
    for refused in RejectReason:
        assert f'"{refused.value}":' in words
    for outcome in Outcome:
        assert f"{outcome.value}:" in words
    for name in overviews.TIMES:
        assert f"{name}:" in words
