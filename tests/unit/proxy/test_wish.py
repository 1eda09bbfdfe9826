"""What is asked to be reserved: read, checked, and each fault named with its place."""

from dataclasses import replace
from typing import Any

import pytest

from tests.helpers import MS, S
from tests.unit.proxy.calls import ECHO
from tritonsched.backend.catalogue import TensorInfo
from tritonsched.errors import BadReservation
from tritonsched.proxy.wish import Wish, frame_of, from_json, reservation_of

PLAIN: dict[str, Any] = {"period_ms": 33, "relative_deadline_ms": 50.5, "frames": 10}


def reserved(**given: Any) -> Any:
    wish = from_json("echo", "", PLAIN | given)
    return reservation_of(wish, rows=1, signature=3, now=S)


def test_times_are_milliseconds_from_now() -> None:
    made = reserved(start_in_ms=100, jitter_ms=1.5, tenant="camera 7", weight=2)
    assert (made.period_ns, made.relative_deadline_ns) == (33 * MS, 50_500_000)
    assert (made.start_ns, made.jitter_ns, made.frames) == (S + 100 * MS, 1_500_000, 10)
    assert (made.tenant, made.weight, made.signature) == ("camera 7", 2.0, 3)


def test_a_duration_is_so_many_frames() -> None:
    given = {"period_ms": 20, "relative_deadline_ms": 50, "duration_s": 3.0}
    made = reservation_of(from_json("echo", "", given), rows=1, signature=1, now=0)
    assert made.frames == 150


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"period": 5}, "'period' is unknown; use duration_s, frames"),
        ({"period_ms": "5"}, "'period_ms' is not a number"),
        ({"period_ms": True}, "'period_ms' is not a number"),
        ({"period_ms": 0}, "period_ns must be > 0"),
        ({"period_ms": -1}, "'period_ms' must be a number of milliseconds from 0 to a day"),
        ({"period_ms": float("nan")}, "'period_ms' must be a number"),
        ({"frames": 1.5}, "'frames' is not a whole number"),
        ({"frames": 0}, "frames must be 1 to 100000"),
        ({"duration_s": 5}, "say either 'frames' or 'duration_s'"),
        ({"jitter_ms": 30}, "jitter_ns must be >= 0 and less than half"),
        ({"weight": 0}, "weight must be > 0"),
        ({"weight": float("inf")}, "weight must be > 0"),
        ({"tenant": "x" * 129}, "'tenant' is longer than 128 characters"),
        ({"tenant": 5}, "'tenant' is not a text"),
        ({"outputs": "OUT"}, "'outputs' is not a list of names"),
        ({"outputs": [1]}, r"'outputs\[0\]' is not a text"),
        ({"inputs": {}}, "'inputs' is not a list of inputs"),
        ({"inputs": [{"name": "A"}]}, r"'inputs\[0\]' needs name, datatype and shape"),
        (
            {"inputs": [{"name": "A", "datatype": "FP32", "shape": 3}]},
            r"'inputs\[0\].shape' is not a list",
        ),
    ],
)
def test_a_fault_is_named(change: dict[str, Any], text: str) -> None:
    with pytest.raises(BadReservation, match=text):
        reserved(**change)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"frames": 5, "relative_deadline_ms": 5}, "'period_ms' is missing"),
        ({"period_ms": 5, "relative_deadline_ms": 5}, "say either"),
        ({"period_ms": 0, "relative_deadline_ms": 5, "duration_s": 5}, "'period_ms' must be > 0"),
        ({"period_ms": 5, "relative_deadline_ms": 5, "duration_s": 0}, "'duration_s' must be > 0"),
        ({"period_ms": 0.5, "relative_deadline_ms": 5, "duration_s": 80_000}, "reserve a shorter"),
    ],
)
def test_what_is_missing_or_too_much_is_named(given: dict[str, Any], text: str) -> None:
    with pytest.raises(BadReservation, match=text):
        reservation_of(from_json("m", "", given), rows=1, signature=1, now=0)


def test_a_frame_looks_as_told_or_as_the_model_declares() -> None:
    told = Wish(model="echo", inputs=(("INPUT", "UINT8", (3, 2)),), outputs=("OUTPUT",))
    frame = frame_of(told, ECHO)
    (tensor,) = frame.inputs
    assert (tensor.name, tensor.datatype, tensor.shape) == ("INPUT", "UINT8", (3, 2))
    assert frame.outputs == ("OUTPUT",)
    assert frame_of(Wish(model="echo"), ECHO).inputs[0].shape[0] == 1


def test_a_model_that_leaves_a_dimension_open_needs_to_be_told() -> None:
    loose = replace(ECHO, inputs={"A": TensorInfo("A", "FP32", (-1,))})
    with pytest.raises(BadReservation, match="input 'A' of model 'echo' has dimensions of any"):
        frame_of(Wish(model="echo"), loose)
