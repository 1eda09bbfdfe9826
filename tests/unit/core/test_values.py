"""Requests, variants, tunings, decisions: values that check themselves."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import MS, request
from tritonsched.core.batch import Batch, Dispatch, Expire, Reject, summary
from tritonsched.core.request import NEVER_NS, PATIENCE_NS, RejectReason, SloClass, Utility
from tritonsched.core.tuning import Tuning
from tritonsched.core.variant import Family, Variant


def test_a_request_is_due_at_its_deadline_or_a_patience_after_its_arrival() -> None:
    assert request(1, arrival=5, deadline=70).due_ns == 70
    assert request(1, arrival=5).due_ns == 5 + PATIENCE_NS
    assert not request(1).has_deadline


def test_a_request_is_worth_its_weight_until_its_deadline_and_nothing_after() -> None:
    made = request(1, deadline=70, weight=2.5)
    assert (made.utility_at(70), made.utility_at(71)) == (2.5, 0.0)


def test_a_soft_deadline_takes_worth_away_until_the_hard_one() -> None:
    """CIKM'17: soft 1 s, hard 2 s; a tightened deadline tightens the shape."""
    made = replace(request(1, arrival=10, deadline=210, weight=2.0), utility=Utility.linear(0.5))
    assert [made.utility_at(at) for at in (0, 110, 160, 210, 211)] == [2.0, 2.0, 1.0, 0.0, 0.0]
    assert made.full_until_ns == 110
    assert replace(made, deadline_ns=NEVER_NS).utility_at(10**12) == 2.0
    assert replace(made, deadline_ns=NEVER_NS).full_until_ns == NEVER_NS


def test_a_shape_of_pieces_is_read_between_its_points() -> None:
    shape = Utility(((0.2, 1.0), (0.4, 1.0), (0.6, 0.5), (0.8, 0.2)))
    shares = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
    assert [round(shape.value_at(s), 9) for s in shares] == [1, 1, 1, 0.75, 0.5, 0.35, 0.2, 0.2]
    assert shape.full_share == 0.4


SHARES = st.lists(st.floats(0, 1), min_size=1, max_size=6, unique=True).map(sorted)


@given(SHARES, st.lists(st.floats(0, 1), min_size=6, max_size=6), st.floats(0, 1), st.floats(0, 1))
def test_worth_never_rises_and_stays_within_its_bounds(
    shares: list[float], values: list[float], one: float, other: float
) -> None:
    falling = [max(0.1, *values), *sorted(values, reverse=True)]
    shape = Utility(tuple(zip(shares, falling, strict=False)))
    early, late = sorted((one, other))
    assert 0 <= shape.value_at(late) <= shape.value_at(early) + 1e-12 <= 1 + 1e-9
    assert shape.value_at(shape.full_share) == shape.points[0][1]


@pytest.mark.parametrize(
    ("points", "text"),
    [
        ((), "at least one point"),
        (((0.5, 1.5),), "in \\[0, 1\\]"),
        (((0.5, 1.0), (0.5, 0.5)), "shares must rise"),
        (((0.1, 0.5), (0.5, 0.6)), "values must not"),
        (((0.1, 0.0),), "first value must be > 0"),
    ],
)
def test_a_shape_checks_itself(points: tuple[tuple[float, float], ...], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Utility(points)


def test_a_shape_needs_a_deadline() -> None:
    with pytest.raises(ValueError, match="class 'gold': a utility needs a deadline"):
        SloClass("gold", utility=Utility.linear(0.5))


def test_a_family_names_each_variant_once() -> None:
    for names in ((), ("a", "a")):
        with pytest.raises(ValueError, match="model 'm': variants must be named, each once"):
            Family("m", names)


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


def test_a_variant_names_the_server_of_each_device_or_of_none() -> None:
    assert Variant("m", 1, ("a", "b")).places() == (("a", ""), ("b", ""))
    assert Variant("m", 1, ("a", "b"), servers=("x", "y")).places() == (("a", "x"), ("b", "y"))
    with pytest.raises(ValueError, match="1 servers for 2 devices"):
        Variant("m", 1, ("a", "b"), servers=("x",))


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
