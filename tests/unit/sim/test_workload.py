"""Workloads: mixes, order, and independence of the streams."""

from collections import Counter

import pytest

from tests.helpers import MS, S
from tritonsched.core.request import NEVER_NS, SloClass
from tritonsched.sim.arrivals import constant, poisson
from tritonsched.sim.workload import TIGHT_PEAK_RATE, WORKLOADS, Stream, Workload, tight
from tritonsched.sim.world import SimModel, affine

MODEL = SimModel("m", 8, affine(MS, MS))
GOLD = ((SloClass("gold", 30 * MS, weight=2.0), 1.0),)


def test_requests_come_in_order_numbered_from_one_and_end_in_time() -> None:
    streams = [Stream("m", poisson(500.0), GOLD), Stream("m", constant(300.0), GOLD)]
    made = list(Workload((MODEL,), streams).requests(duration_ns=S, seed=1))
    assert [r.id for r in made] == list(range(1, len(made) + 1))
    assert [r.arrival_ns for r in made] == sorted(r.arrival_ns for r in made)
    assert made[-1].arrival_ns < S
    assert all((r.deadline_ns, r.weight) == (r.arrival_ns + 30 * MS, 2.0) for r in made)


def test_a_request_is_drawn_from_its_streams_mix() -> None:
    stream = Stream(
        "m",
        constant(5000.0),
        classes=((SloClass("gold", 30 * MS), 1.0), (SloClass("free"), 3.0)),
        rows=((1, 1.0), (4, 1.0)),
        signatures=((0, 9.0), (1, 1.0)),
        alone_share=0.2,
    )
    made = list(Workload((MODEL,), (stream,)).requests(duration_ns=S, seed=1))
    shares = {
        "gold": sum(r.slo == "gold" for r in made),
        "wide": sum(r.rows == 4 for r in made),
        "other": sum(r.signature for r in made),
        "alone": sum(r.alone for r in made),
    }
    expected = {"gold": 0.25, "wide": 0.5, "other": 0.1, "alone": 0.2}
    for name, share in expected.items():
        assert shares[name] / len(made) == pytest.approx(share, abs=0.03), name
    assert all(r.deadline_ns == NEVER_NS for r in made if r.slo == "free")


def test_a_stream_does_not_change_with_its_neighbours() -> None:
    first, second = Stream("m", poisson(50.0), GOLD), Stream("m", poisson(70.0), GOLD)
    alone = Workload((MODEL,), (first,)).requests(duration_ns=S, seed=4)
    both = Workload((MODEL,), (first, second)).requests(duration_ns=S, seed=4)
    assert {r.arrival_ns for r in alone} < {r.arrival_ns for r in both}


def test_the_tight_workload_is_the_one_of_the_overload_comparison() -> None:
    workload = tight(1.0)
    assert round(TIGHT_PEAK_RATE) == 1322
    assert workload.models[0].exec_ns(32) == 24_200_000
    made = list(workload.requests(duration_ns=5 * S, seed=1))
    assert len(made) == pytest.approx(5 * TIGHT_PEAK_RATE, rel=0.05)
    counts = Counter((r.slo, r.deadline_ns - r.arrival_ns) for r in made)
    assert counts["tight", 30 * MS] / len(made) == pytest.approx(0.3, abs=0.03)
    assert counts["loose", 100 * MS] / len(made) == pytest.approx(0.7, abs=0.03)


@pytest.mark.parametrize("name", WORKLOADS)
def test_named_workloads_scale_with_their_load(name: str) -> None:
    few, many = (len(list(WORKLOADS[name](x).requests(duration_ns=S, seed=1))) for x in (0.5, 2.0))
    assert many == pytest.approx(4 * few, rel=0.2)
