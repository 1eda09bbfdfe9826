"""CIKM'17 in shape, on traces too short for its figures: who is better than whom, and by what."""

from itertools import pairwise

import pytest

from tests.bench.cikm import CASES, SINGLE, Result, serve
from tritonsched.sim.papers import CIKM_HARD_NS, cikm_exec_ns, cikm_queries

MS = 1_000_000


def result(name: str, *, rate: float) -> Result:
    (case,) = [case for case in CASES if case.name == name]
    return serve(case.rule(), rate, minutes=2, seed=1, gpus=SINGLE)


def test_beyond_what_the_full_model_can_do_backlog_counts_and_the_batch_alone_does_not() -> None:
    names = ("fixed, simple from 24", "cikm", "fixed, simple above 8", "cikm, as printed")
    found = [result(name, rate=33.0) for name in names]
    assert all(better.quality > worse.quality for better, worse in pairwise(found))
    assert found[-1].simple < found[0].simple < found[2].simple


def test_at_leisure_every_rule_is_the_same() -> None:
    """Paper-oracle P7: at very low load there is nothing to decide."""
    found = [serve(case.rule(), 2.0, minutes=2, seed=1, gpus=SINGLE) for case in CASES]
    assert {one.simple for one in found} == {0.0}
    assert min(one.quality for one in found) > 0.99


def test_delays_are_batches_by_throughput() -> None:
    assert cikm_exec_ns("p2", "full")(8) == pytest.approx(8 / 28.4 * 1e9, rel=1e-6)
    assert cikm_exec_ns("p2", "full")(1) < cikm_exec_ns("g2", "full")(1)


def test_queries_come_in_order_with_what_is_left_of_their_deadlines() -> None:
    found = list(cikm_queries(27.5, duration_ns=600_000 * MS, seed=1))
    assert found == list(cikm_queries(27.5, duration_ns=600_000 * MS, seed=1))
    assert all(a[0] <= b[0] for a, b in pairwise(found))
    requests = [request for _, request in found if request is not None]
    assert len(requests) == pytest.approx(27.5 * 600, rel=0.05)
    for request in requests:
        assert request.utility is not None
        left_ns = request.deadline_ns - request.arrival_ns
        assert 0 < left_ns < CIKM_HARD_NS
        worth = request.utility_at(request.arrival_ns)
        assert worth == pytest.approx(min(1.0, left_ns / (CIKM_HARD_NS / 2)))
