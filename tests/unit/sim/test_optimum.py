"""The exact optimum of one model: what trying everything finds, and never above the bound."""

import random

import pytest

from tests.helpers import MS, request
from tests.unit.sim.test_bound import best_by_hand
from tritonsched.core.request import Request
from tritonsched.sim.bound import bound, options_of
from tritonsched.sim.experiment import Trace, run
from tritonsched.sim.optimum import most_in_time
from tritonsched.sim.world import Faults, SimModel, affine

MODEL = SimModel("m", 4, affine(4 * MS, MS))


def drawn(seed: int, many: int, span_ms: int) -> list[Request]:
    dice = random.Random(seed)
    times = sorted(dice.randint(0, span_ms) * MS for _ in range(many))
    return [request(n, model="m", arrival=at, deadline=at + 11 * MS) for n, at in enumerate(times)]


@pytest.mark.parametrize("seed", range(8))
def test_it_is_what_trying_everything_finds(seed: int) -> None:
    made = drawn(seed, 4, 9)
    exec_ns = {rows: float(MODEL.exec_ns(rows)) for rows in range(1, 5)}
    assert most_in_time(made, MODEL) == best_by_hand(made, exec_ns)


@pytest.mark.parametrize("seed", range(4))
def test_the_bound_is_not_below_it_on_longer_traces(seed: int) -> None:
    made = drawn(seed, 60, 150)
    best = most_in_time(made, MODEL)
    assert 20 < best < 60
    assert bound(made, options_of([MODEL])) >= best - 1e-6


def test_lite_is_near_the_optimum_it_cannot_see() -> None:
    """Without noise, one model: a floor on what the default rule leaves on the table."""
    trace = Trace("W1", 1.3, seed=1, length=900)
    requests = list(trace.requests())
    best = most_in_time(requests, trace.workload.models[0])
    served = run(trace, "lite", faults=Faults()).record.on_time_share * len(requests)
    assert 0.93 * best < served <= best


def test_mixed_requests_are_refused() -> None:
    made = [request(1, model="m", deadline=9 * MS), request(2, model="m", deadline=10 * MS)]
    with pytest.raises(ValueError, match="one deadline"):
        most_in_time(made, MODEL)
