"""Requests, variants, tunings, decisions: values that check themselves."""

import pytest

from tests.helpers import MS, request
from tritonsched.core.batch import Batch, Dispatch, Expire, Reject, summary
from tritonsched.core.request import NEVER_NS, PATIENCE_NS, RejectReason, Request, SloClass
from tritonsched.core.tuning import Tuning
from tritonsched.core.variant import Variant


def test_a_request_is_due_at_its_deadline_or_a_patience_after_its_arrival() -> None:
    assert request(1, arrival=5, deadline=70).due_ns == 70
    assert request(1, arrival=5).due_ns == 5 + PATIENCE_NS
    assert not request(1).has_deadline


def test_a_request_is_worth_its_weight_until_its_deadline_and_nothing_after() -> None:
    made = request(1, deadline=70, weight=2.5)
    assert (made.utility_at(70), made.utility_at(71)) == (2.5, 0.0)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
def test_a_weight_is_positive(weight: float) -> None:
    with pytest.raises(ValueError, match="weight must be > 0"):
        request(1, weight=weight)
    with pytest.raises(ValueError, match="class 'gold': weight must be > 0"):
        SloClass("gold", weight=weight)


def test_a_request_has_rows() -> None:
    with pytest.raises(ValueError, match="0 rows; at least 1"):
        request(1, rows=0)


def test_a_class_has_a_deadline_after_its_arrival() -> None:
    with pytest.raises(ValueError, match="relative deadline must be > 0"):
        SloClass("gold", relative_deadline_ns=0)
    assert SloClass("gold").relative_deadline_ns == NEVER_NS


def test_a_second_try_is_alone() -> None:
    with pytest.raises(ValueError, match="a retry is to be alone"):
        Request(1, "m", "c", 0, 1, 0, retry=True)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"rows_max": 0}, "rows_max 0"),
        ({"devices": ()}, "no device"),
        ({"accuracy": 0.0}, "accuracy 0.0"),
        ({"accuracy": 1.1}, "accuracy 1.1"),
    ],
)
def test_a_variant_that_cannot_serve_is_refused(fields: dict[str, object], text: str) -> None:
    given: dict[str, object] = {"model": "m", "rows_max": 1, "devices": ("gpu",)}
    with pytest.raises(ValueError, match=text):
        Variant(**(given | fields))  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize("name", ["rtt_ns", "guard_ns", "reply_ns", "window_ns", "rows_cap"])
def test_a_tuning_is_not_negative(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be >= 0"):
        Tuning(**{name: -1})  # type: ignore[arg-type]  # which field it is, is the test's


def test_a_queue_has_room_for_one() -> None:
    with pytest.raises(ValueError, match="queue_requests_max must be >= 1"):
        Tuning(queue_requests_max=0)


def test_the_lead_is_the_round_trip_and_the_guard() -> None:
    assert Tuning(rtt_ns=3, guard_ns=4).lead_ns == 7


def test_a_summary_holds_what_a_decision_decided() -> None:
    first, second = request(1), request(2)
    batch = Batch(7, "m", "gpu", (first, second), 2, 0, 3 * MS, 4 * MS, probe=True)
    assert summary(Dispatch(batch)) == ("dispatch", 7, "m", "gpu", (1, 2), 7 * MS, True)
    assert summary(Reject(first, RejectReason.QUEUE_FULL, 9)) == ("reject", 1, "queue-full", 9)
    assert summary(Expire(second)) == ("expire", 2)
