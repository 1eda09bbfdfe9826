"""The clairvoyant bound: never below what can be reached, exact where that can be said."""

import random
from itertools import combinations, pairwise, permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import MS, request
from tritonsched.core.request import Request
from tritonsched.sim.bound import (
    JITTER,
    Option,
    Piece,
    bound,
    edf_work,
    hull,
    options_of,
    polymatroid,
)
from tritonsched.sim.world import SimModel, affine

MODEL = SimModel("m", 4, affine(4 * MS, MS))


def jobs(*windows: tuple[int, int], weight: float = 1.0) -> list[Request]:
    return [
        request(n, model="m", arrival=a * MS, deadline=d * MS, weight=weight)
        for n, (a, d) in enumerate(windows)
    ]


def best_by_hand(requests: list[Request], exec_ns: dict[int, float]) -> float:
    """The true optimum of a few requests of one model on one device, by trying everything."""
    best = 0.0
    many = len(requests)
    for size in range(many + 1):
        for chosen in permutations(range(many), size):
            for cuts in (c for k in range(size) for c in combinations(range(1, size), k)):
                now = 0.0
                for low, high in zip((0, *cuts), (*cuts, size), strict=True):
                    members = [requests[index] for index in chosen[low:high]]
                    now = max(now, *(float(r.arrival_ns) for r in members))
                    now += exec_ns.get(len(members), float("inf"))
                    if any(now > r.deadline_ns for r in members):
                        break
                else:
                    best = max(best, sum(requests[index].weight for index in chosen))
    return best


@pytest.mark.parametrize("seed", range(12))
def test_the_bound_is_never_below_the_true_optimum(seed: int) -> None:
    dice = random.Random(seed)
    alike = dice.random() < 0.5
    made = []
    for n in range(4):
        arrival = dice.randint(0, 12) * MS
        relative = (9 if alike else dice.randint(5, 14)) * MS
        made.append(
            request(
                n,
                model="m",
                arrival=arrival,
                deadline=arrival + relative,
                weight=dice.choice([1.0, 1.0, 3.0]),
            )
        )
    made.sort(key=lambda r: r.arrival_ns)
    exec_ns = {rows: MODEL.exec_ns(rows) * JITTER for rows in range(1, 5)}
    found = bound(made, options_of([MODEL]))
    assert found >= best_by_hand(made, exec_ns) - 1e-6
    assert found <= sum(r.weight for r in made) + 1e-6


def test_what_fits_one_by_one_is_bounded_by_all_of_it() -> None:
    assert bound(jobs((0, 20), (50, 70)), options_of([MODEL])) == pytest.approx(2.0)


def test_what_cannot_be_in_time_even_alone_earns_nothing() -> None:
    assert bound(jobs((0, 4)), options_of([MODEL])) == 0.0


def test_requests_too_far_apart_for_a_batch_pay_the_price_of_being_alone() -> None:
    """At 10 ms deadlines, 4.85 ms each: three at once are a batch of three, one by one two fit."""
    together = bound(jobs((0, 10), (0, 10), (0, 10)), options_of([MODEL]))
    apart = bound(jobs((0, 6), (1, 7), (2, 8)), options_of([MODEL]))
    assert together == pytest.approx(3.0)
    assert apart < 2.0


def test_a_second_device_adds_its_part() -> None:
    fast, slow = affine(0, 4 * MS), affine(0, 8 * MS)
    pool = SimModel("m", 1, fast, ("fast", "slow"), {"fast": fast, "slow": slow})
    many = jobs(*[(0, 39)] * 40)
    one = bound(many, options_of([SimModel("m", 1, fast)]))
    both = bound(many, options_of([pool]))
    assert both == pytest.approx(1.5 * one, rel=0.01)


def test_mixed_deadlines_are_compared_in_pairs() -> None:
    options = options_of([MODEL])
    loose = bound(jobs((0, 10), (0, 30)), options)
    assert loose == pytest.approx(2.0)
    assert bound(jobs((0, 5), (0, 5), (30, 60)), options) < 2.05


def test_wide_requests_cost_their_rows() -> None:
    wide = [request(1, model="m", rows=3, arrival=0, deadline=7 * MS)]
    assert bound(wide, options_of([MODEL])) == pytest.approx(1.0)
    assert bound([request(1, model="m", rows=5, deadline=90 * MS)], options_of([MODEL])) == 0.0


def test_cheaper_variants_enter_in_part() -> None:
    """4 ms at accuracy 1 or 1 ms at 0.6: in 4 ms one of the first kind, or four of the second."""
    both = [
        Option(1.0, 1, {"g": lambda rows: rows * 4 * MS}),
        Option(0.6, 1, {"g": lambda rows: rows * MS}),
    ]
    many = jobs(*[(0, 4)] * 10)
    assert bound(many, {"m": both}) == pytest.approx(4 * 0.6 / JITTER, rel=0.01)
    assert bound(many[:1], {"m": both}) == pytest.approx(1.0)


def test_the_hull_keeps_what_no_mix_beats() -> None:
    assert hull([(1.0, 1.0), (2.0, 1.2), (3.0, 2.5), (4.0, 2.0)]) == [(1.0, 1.0), (2.0, 1.5)]
    assert hull([]) == []


PIECES = st.lists(
    st.tuples(st.integers(0, 20), st.integers(1, 10), st.integers(1, 8), st.integers(1, 5)),
    max_size=12,
)


@given(PIECES)
def test_the_greedy_is_within_its_gap_of_the_plain_sum(
    raw: list[tuple[int, int, int, int]],
) -> None:
    pieces = sorted((Piece(a, a + d, float(w), float(u)) for a, d, w, u in raw), key=_arrival)
    levels = [*sorted({p.density for p in pieces}, reverse=True), 0.0]
    exact = sum(
        (high - low) * edf_work([p for p in pieces if p.density >= high], 1.0)
        for high, low in pairwise(levels)
    )
    found = polymatroid(pieces)
    assert exact - 1e-9 <= found <= exact * 1.002 + 1e-9
    assert found <= sum(p.utility for p in pieces) + 1e-9


def _arrival(piece: Piece) -> int:
    return piece.arrival_ns


def test_work_is_what_preemption_can_do_before_the_deadlines() -> None:
    pieces = [Piece(0, 10, 8.0, 1.0), Piece(2, 5, 3.0, 1.0), Piece(3, 6, 4.0, 1.0)]
    assert edf_work(pieces, 1.0) == pytest.approx(10.0)
    assert edf_work(pieces, 2.0) == pytest.approx(15.0)
