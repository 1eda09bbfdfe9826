"""What reservations rest on moves: they are tested again, and who no longer fits is told. Rule: a
table of times, as in test_streams.py.
"""

from dataclasses import replace

import pytest

from tests.helpers import EXACT, MS, exact
from tests.unit.core.test_streams import STREAM, TIMES, Desk, reasons
from tritonsched.core.batch import Grant, Refuse, Reject
from tritonsched.core.proposal import Proposal, Verdict
from tritonsched.core.request import RejectReason
from tritonsched.core.reservation import RefusalReason
from tritonsched.core.variant import Family, Variant


def _slower(desk: Desk, factor: float) -> None:
    table = {rows: round(ns * factor) for rows, ns in TIMES.items()}
    desk.scheduler.set_profile("m", "gpu0", exact(table))


def test_a_speed_that_moves_is_tested_again_and_the_least_valuable_gives_way() -> None:
    desk = Desk()
    many = [
        replace(STREAM, id=number, relative_deadline_ns=20 * MS, weight=float(number % 3 + 1),
                start_ns=(1000 + 6 * number) * MS)
        for number in range(1, 7)
    ]  # fmt: skip
    assert all(isinstance(answer, Grant) for answer in desk.ask(*many))
    _slower(desk, 1.04)
    assert desk.decide(0) == []
    assert desk.scheduler.proposal(0) is None
    _slower(desk, 1.5)
    assert desk.judged(1) == []
    _slower(desk, 3.0)
    dropped = reasons(desk.judged(2))
    assert dropped
    assert {reason for _, reason in dropped} == {RefusalReason.NO_LONGER_FITS}
    assert dropped[0] == (6, RefusalReason.NO_LONGER_FITS)
    assert len(desk.scheduler._streams) == 6 - len(dropped)


def test_a_second_test_that_comes_too_late_is_repeated_with_a_later_cut() -> None:
    desk = Desk()
    desk.ask(STREAM)
    _slower(desk, 1.5)
    assert desk.decide(0) == []
    proposal = desk.scheduler.proposal(0)
    assert proposal is not None
    late_ns = proposal.cut_ns + 1
    desk.scheduler.judge(proposal.run(), late_ns)
    desk.scheduler.decide(late_ns)
    again = desk.scheduler.proposal(late_ns)
    assert isinstance(again, Proposal)
    assert again.attempt == 2
    assert isinstance(again.run(), Verdict)


def test_a_reloaded_number_is_tested_at_once_and_who_no_longer_fits_is_told() -> None:
    """Batches of one row at most: six streams that shared batches no longer fit."""
    desk = Desk()
    crowd = [replace(STREAM, id=n, relative_deadline_ns=20 * MS, jitter_ns=0) for n in range(1, 7)]
    assert all(isinstance(answer, Grant) for answer in desk.ask(*crowd))
    desk.scheduler.retune(replace(EXACT, rows_cap=1), 1 * MS)
    dropped = reasons(desk.judged(1))
    assert dropped
    assert {reason for _, reason in dropped} == {RefusalReason.NO_LONGER_FITS}
    assert len(desk.scheduler.reservations()) == 6 - len(dropped) > 0
    assert desk.judged(2) == []


def test_a_model_that_a_second_device_has_no_more_is_tested_again_and_kept() -> None:
    desk = Desk()
    desk.scheduler.set_variant(Variant("m", 8, ("gpu0", "gpu1")), 0)
    desk.scheduler.set_profile("m", "gpu1", exact(TIMES))
    assert isinstance(desk.ask(STREAM)[0], Grant)
    desk.scheduler.set_variant(Variant("m", 8, ("gpu0",)), 1 * MS)
    assert desk.decide(1) == []
    assert desk.scheduler.proposal(1 * MS) is not None


def test_of_a_model_with_variants_the_best_that_would_be_kept_is_told() -> None:
    """What was never measured promises nothing."""
    desk = Desk()
    for name, worth, factor in (("s", 0.7, 0.2), ("t", 0.8, 0.3), ("u", 0.9, 0.9), ("v", 0.95, 0)):
        desk.scheduler.set_variant(Variant(name, 8, ("gpu0",), worth), 0)
        times = {rows: round(ns * factor) for rows, ns in TIMES.items()} if factor else {}
        desk.scheduler.set_profile(name, "gpu0", exact(times))
    desk.scheduler.set_family(Family("look", ("m", "s", "t", "u", "v")), 0)
    tight = replace(STREAM, model="look", relative_deadline_ns=4 * MS)
    (refused,) = desk.ask(tight)
    assert isinstance(refused, Refuse)
    assert refused.nearest is not None
    assert refused.nearest.model == "t"
    assert isinstance(desk.ask(replace(tight, id=2, model="t"))[0], Grant)


@pytest.mark.parametrize("rows_max", [0, 1])
def test_a_stream_whose_model_is_gone_or_takes_its_frames_no_more_is_told(rows_max: int) -> None:
    desk = Desk()
    assert isinstance(desk.ask(replace(STREAM, rows=2))[0], Grant)
    if rows_max:
        desk.scheduler.set_variant(Variant("m", rows_max, ("gpu0",)), 1 * MS)
    else:
        desk.scheduler.drop_model("m", 1 * MS)
    assert reasons(desk.judged(1)) == [(STREAM.id, RefusalReason.NO_LONGER_FITS)]
    assert desk.scheduler.reservations() == ()
    assert desk.judged(2) == []


def test_a_frame_that_waits_for_a_model_that_is_gone_is_refused() -> None:
    desk = Desk()
    desk.ask(STREAM)
    desk.frame(1, 1000)
    assert desk.decide(1000) == []
    desk.scheduler.drop_model("m", 1001 * MS)
    (refused,) = desk.decide(1001)
    assert isinstance(refused, Reject)
    assert refused.reason is RejectReason.TRITON_UNAVAILABLE
