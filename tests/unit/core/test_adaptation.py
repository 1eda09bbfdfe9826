"""DeepRT's adaptation: penalties, the way down the ladder and back. Rule: a table of batches."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import MS, S
from tritonsched.core import adaptation
from tritonsched.core.adaptation import PENALTY_MAX_NS, Adaptation

KIND = ("classify", 1)
PROMISED = (10 * MS, 6 * MS, 3 * MS)
HOLD_NS = 100 * MS


class Ladder:
    """One category that always uses the rung it is told to."""

    def __init__(self, promised: tuple[int, ...] = PROMISED) -> None:
        self.adaptation = Adaptation()
        self.promised = promised

    @property
    def rung(self) -> int:
        return self.adaptation.rung(KIND, len(self.promised))

    @property
    def penalty_ms(self) -> float:
        debt = self.adaptation.debt(KIND)
        return debt.penalty_ns / MS if debt else 0.0

    def ran(self, measured_ms: float, *, at_ms: float, used: int | None = None) -> int:
        """A batch came back; returns the rung of the next one."""
        self.adaptation.observe(
            KIND,
            promised_ns=self.promised,
            used=self.rung if used is None else used,
            measured_ns=round(measured_ms * MS),
            hold_ns=HOLD_NS,
            now=round(at_ms * MS),
        )
        return self.rung


def test_who_keeps_his_promises_stays_where_he_is() -> None:
    ladder = Ladder()
    assert [ladder.ran(ms, at_ms=ms) for ms in (10, 9, 1)] == [0, 0, 0]
    assert ladder.adaptation.debt(KIND) is None


def test_an_overrun_goes_one_rung_down_until_what_was_saved_has_paid_for_it() -> None:
    ladder = Ladder()
    assert ladder.ran(20, at_ms=0) == 1
    assert ladder.penalty_ms == 10
    assert ladder.ran(6, at_ms=200) == 1
    assert ladder.penalty_ms == 6
    assert ladder.ran(5, at_ms=300) == 1
    assert ladder.penalty_ms == 1
    assert ladder.ran(6, at_ms=400) == 0
    assert ladder.penalty_ms == 0


def test_every_further_overrun_goes_one_more_down_to_the_last_and_adds_to_the_penalty() -> None:
    ladder = Ladder()
    assert [ladder.ran(20, at_ms=at) for at in (0, 200, 400)] == [1, 2, 2]
    assert ladder.penalty_ms == 10 + 14 + 17


def test_it_steps_once_a_window_whatever_was_under_way() -> None:
    ladder = Ladder()
    assert ladder.ran(20, at_ms=0) == 1
    assert ladder.ran(20, at_ms=50, used=0) == 1
    assert ladder.penalty_ms == 20
    assert ladder.ran(20, at_ms=100) == 2


def test_it_does_not_come_back_within_a_window() -> None:
    ladder = Ladder()
    assert ladder.ran(11, at_ms=0) == 1
    assert ladder.ran(6, at_ms=50) == 1
    assert ladder.penalty_ms == 0
    assert ladder.ran(6, at_ms=100) == 0


def test_a_batch_of_the_first_rung_pays_nothing_back() -> None:
    ladder = Ladder()
    ladder.ran(20, at_ms=0)
    ladder.ran(2, at_ms=300, used=0)
    assert ladder.penalty_ms == 10


@pytest.mark.parametrize("promised", [(10 * MS,), (10 * MS, 10 * MS), (10 * MS, 12 * MS)])
def test_where_nothing_is_cheaper_there_is_no_debt(promised: tuple[int, ...]) -> None:
    ladder = Ladder(promised)
    assert ladder.ran(20, at_ms=0) == 0
    assert ladder.adaptation.debt(KIND) is None


def test_a_rung_that_is_no_cheaper_is_passed_over() -> None:
    ladder = Ladder((10 * MS, 11 * MS, 5 * MS))
    assert ladder.ran(20, at_ms=0) == 2


def test_a_ladder_that_lost_its_end_is_used_to_its_last_rung() -> None:
    ladder = Ladder()
    for at in (0, 200):
        ladder.ran(20, at_ms=at)
    assert ladder.adaptation.rung(KIND, 2) == 1


def test_a_penalty_has_a_bound() -> None:
    ladder = Ladder()
    ladder.ran(60_000, at_ms=0)
    assert ladder.penalty_ms * MS == PENALTY_MAX_NS


def test_the_debts_it_remembers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptation, "CATEGORIES_MAX", 2)
    debts = Adaptation()
    for number in range(3):
        debts.observe(
            ("m", number), promised_ns=PROMISED, used=0, measured_ns=S, hold_ns=0, now=number
        )
    assert [debts.rung(("m", number), 3) for number in range(3)] == [0, 1, 1]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 60)), max_size=60))
def test_an_overrun_is_paid_back_in_full_and_no_more(batches: list[tuple[int, int]]) -> None:
    """What was saved while on a lower rung covers all excess but what is still owed, and the
    category is on the first rung again as soon as it owes nothing and a window has passed.
    """
    ladder = Ladder()
    at = excess = saved = 0
    for gap, measured in batches:
        at += gap * 60
        used = ladder.rung
        ladder.ran(measured, at_ms=at)
        over = measured - PROMISED[used] // MS
        excess += max(0, over)
        if over <= 0 and used:
            saved += PROMISED[0] // MS - measured
        assert excess - saved <= ladder.penalty_ms <= excess
    for _ in range(400):
        at += 200
        ladder.ran(PROMISED[ladder.rung] / MS, at_ms=at)
    assert (ladder.rung, ladder.penalty_ms) == (0, 0)
