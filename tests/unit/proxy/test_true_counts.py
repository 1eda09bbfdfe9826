"""Merged, refused and kept waiting, a model's statistics are those of its clients' requests."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.proxy.counters import (
    FAILURE_NS,
    OVERHEAD_NS,
    QUEUE_NS,
    WAIT_NS,
    Sidecar,
    Triton,
    compute_ns,
    totals,
)
from tritonsched.core.request import Outcome
from tritonsched.proxy.tallies import Tally
from tritonsched.proxy.true_counts import COMPUTE, NAMES, Counts, as_clients_count

GOOD, BAD = True, False
BATCHES = st.lists(
    st.tuples(
        st.lists(st.tuples(st.integers(1, 4), st.just(GOOD)), min_size=1, max_size=8), st.booleans()
    ),
    max_size=8,
)
HOW = st.sampled_from(["success", "fail", "not"])


@given(BATCHES)
def test_figures_are_those_of_a_triton_that_had_merged_the_requests_itself(
    batches: list[tuple[list[tuple[int, bool]], bool]],
) -> None:
    """Counts and times; the only other thing is what they waited in the sidecar."""
    sidecar = Sidecar(Triton(), Triton())
    merging = Triton()
    for members, lone in batches:
        group = members[:1] if lone else members
        sidecar.serve(group, lone=lone)
        merging.run([rows for rows, _ in group])
    requests = merging.stats["success"][0]
    shown = sidecar.shown()
    assert totals(shown) == merging.totals == sidecar.alone.totals
    assert {name: shown.stats[name] for name in COMPUTE} == {
        name: merging.stats[name] for name in COMPUTE
    }
    for name in ("success", "queue"):
        assert shown.stats[name][1] == merging.stats[name][1] + requests * WAIT_NS
    assert shown.batches == sidecar.triton.batches


@given(BATCHES, st.lists(st.integers(0, 7), min_size=8, max_size=8), HOW, st.booleans())
def test_whatever_a_model_fails_is_counted_once_as_triton_counts_it(
    batches: list[tuple[list[tuple[int, bool]], bool]],
    worst: list[int],
    how: str,
    resends: bool,
) -> None:
    """Sent again alone or told at once, under a model whose failures all count the same."""
    sidecar = Sidecar(Triton(how), Triton(how), resends=resends)
    for (members, _), bad in zip(batches, worst, strict=False):
        group = [
            (rows, not (number == bad or (bad < len(members) and not resends)))
            for number, (rows, _) in enumerate(members)
        ]
        sidecar.serve(group)
    mine, theirs = totals(sidecar.shown()), sidecar.alone.totals
    assert mine[1:] == theirs[1:]
    if resends:
        assert mine == theirs


def test_a_failure_that_no_client_saw_takes_its_time_with_it() -> None:
    sidecar = Sidecar(Triton("fail"), Triton("fail"))
    sidecar.serve([(1, GOOD), (1, BAD), (2, GOOD)])
    assert sidecar.triton.stats["fail"] == (2, 2 * FAILURE_NS)
    assert sidecar.shown().stats["fail"] == (1, FAILURE_NS)


def test_a_member_has_the_time_of_its_own_batch_size() -> None:
    """Not the mean of all: ten small batches do not make a large one quick."""
    sidecar = Sidecar(Triton(), Triton())
    for _ in range(10):
        sidecar.serve([(1, GOOD)])
    sidecar.serve([(8, GOOD)] * 3)
    expected = 10 * compute_ns(1)["compute_infer"] + 3 * compute_ns(24)["compute_infer"]
    assert sidecar.shown().stats["compute_infer"] == (13, expected)


def test_a_size_that_triton_never_ran_has_the_mean_of_all() -> None:
    """Its own batcher has joined ours to others."""
    triton = Triton()
    triton.run([2, 2])
    tally = Tally(ok=2, calls=2)
    tally.added[2] = 3
    shown = as_clients_count(triton.counts, tally)
    assert shown.stats["compute_input"] == (5, 5 * compute_ns(4)["compute_input"])
    spent = QUEUE_NS + OVERHEAD_NS + sum(compute_ns(4).values())
    assert shown.stats["success"] == (5, 5 * spent)


@pytest.mark.parametrize("outcome", [Outcome.REJECTED, Outcome.EXPIRED, Outcome.CANCELLED])
def test_what_is_refused_has_failed_after_its_wait(outcome: Outcome) -> None:
    sidecar = Sidecar(Triton(), Triton())
    sidecar.serve([(1, GOOD)])
    sidecar.refuse(outcome)
    assert sidecar.shown().stats["fail"] == (1, WAIT_NS)
    assert sidecar.shown().stats["success"][0] == 1


def test_a_triton_that_lost_its_counts_leads_to_nothing_below_zero() -> None:
    tally = Tally(uncertain=2, twice=8)
    tally.added[4] = -3
    tally.failed[4] = -2
    shown = as_clients_count(Counts(1, Triton().stats, {}), tally)
    assert shown.rows == 0
    assert all(figure == (0, 0) for figure in shown.stats.values())


def test_what_is_told_never_falls() -> None:
    """A mean that falls makes the estimate fall, and a client that subtracts would underflow."""
    tally = Tally(added=Counter({8: 70}))
    stats = dict.fromkeys(NAMES, (10, 1_000_000))
    slow = {8: dict.fromkeys(COMPUTE, (10, 1_000_000))}
    first = as_clients_count(Counts(80, stats, slow), tally)
    tally.told = first.stats
    fast = {8: dict.fromkeys(COMPUTE, (11, 1_000_001))}
    more = dict.fromkeys(NAMES, (11, 1_000_001))
    assert as_clients_count(Counts(88, more, fast), Tally(added=tally.added)).stats != first.stats
    second = as_clients_count(Counts(88, more, fast), tally)
    for name in NAMES:
        assert second.stats[name][0] >= first.stats[name][0]
        assert second.stats[name][1] >= first.stats[name][1]
    grown = {name: second.stats[name][1] - first.stats[name][1] for name in NAMES}
    assert grown["success"] >= grown["queue"] + sum(grown[name] for name in COMPUTE)
