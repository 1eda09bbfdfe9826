"""The lines of a recording are JSON, whatever stands in names."""

import json

from hypothesis import given
from hypothesis import strategies as st

from tritonsched.config import recording
from tritonsched.core.batch import Batch, Grant, Refuse
from tritonsched.core.request import NEVER_NS, Outcome, Request
from tritonsched.core.reservation import RefusalReason, Reservation


@given(
    model=st.text(min_size=1),
    slo=st.text(),
    weight=st.floats(min_value=1e-9, max_value=1e6),
    deadline_ns=st.sampled_from([0, 7, NEVER_NS]),
    alone=st.booleans(),
)
def test_every_line_is_one_line_and_holds_what_it_was_given(
    model: str, slo: str, weight: float, deadline_ns: int, alone: bool
) -> None:
    request = Request(
        3, model, slo, 1, 2, 5, deadline_ns, 4 * weight, alone, tenant=model, boost=4.0
    )
    batch = Batch(9, model, slo, (request,), 2, 10, 11, 12)
    lines = [
        recording.arrive_line(request, 6),
        recording.dispatch_line(batch, 10),
        recording.complete_line(batch, 13, 25),
        recording.leave_line(request, Outcome.REJECTED, "queue-full", 26),
    ]
    assert all(line.count("\n") == 1 and line.endswith("\n") for line in lines)
    arrive, dispatch, complete, leave = map(json.loads, lines)
    assert (arrive["model"], arrive["class"], arrive["weight"]) == (model, slo, weight)
    assert arrive["tenant"] == model
    assert arrive["deadline_ns"] == (None if deadline_ns == NEVER_NS else deadline_ns)
    assert arrive["alone"] is alone
    assert (dispatch["device"], dispatch["requests"], dispatch["expected_ns"]) == (slo, [3], 12)
    assert (complete["model"], complete["rows"], complete["exec_ns"]) == (model, 2, 13)
    assert (leave["id"], leave["outcome"], leave["reason"]) == (3, "rejected", "queue-full")


@given(model=st.text(), tenant=st.text())
def test_a_streams_lines_hold_what_was_asked_and_what_came_of_it(model: str, tenant: str) -> None:
    wanted = Reservation(4, model, 9, 8, 7, 6, 5, 3, 2, tenant, 1.5)
    lines = [
        recording.reserve_line(wanted, 1),
        recording.reserved_line(Grant(wanted, model, ()), 2),
        recording.reserved_line(Refuse(wanted, RefusalReason.BUSY), 3),
        recording.release_line(4, 4),
    ]
    assert all(line.count("\n") == 1 and line.endswith("\n") for line in lines)
    reserve, grant, refuse, release = map(json.loads, lines)
    assert Reservation(**{k: reserve[k] for k in reserve if k not in ("what", "at_ns")}) == wanted
    assert (grant["what"], grant["id"], grant["device"]) == ("grant", 4, model)
    assert (refuse["what"], refuse["id"], refuse["reason"]) == ("refuse", 4, "busy")
    assert (release["what"], release["id"], release["at_ns"]) == ("release", 4, 4)


def test_only_a_frame_names_a_stream() -> None:
    frame, other = (Request(1, "m", "c", 1, 1, 0, reservation=number) for number in (7, 0))
    assert json.loads(recording.arrive_line(frame, 1))["reservation"] == 7
    assert "reservation" not in json.loads(recording.arrive_line(other, 1))
