"""The fourteen workloads: each meets its load, and is what its title says."""

import pytest

from tests.helpers import S
from tritonsched.sim.studies import STUDIES
from tritonsched.sim.tables import cost_ns

NAMES = list(STUDIES)


@pytest.mark.parametrize("name", NAMES)
def test_a_workload_offers_the_work_of_its_load(name: str) -> None:
    study = STUDIES[name]
    cost = {service.name: service.cost_ns for service in study.services}
    made = list(study.workload(0.5).requests(duration_ns=6 * S, seed=3))
    assert sum(cost[r.model] for r in made) / (6 * S) == pytest.approx(0.5, rel=0.35)
    assert {r.model for r in made} == set(cost)


@pytest.mark.parametrize("name", NAMES)
def test_every_deadline_can_be_met_by_one_request_alone(name: str) -> None:
    for service in STUDIES[name].services:
        fastest = min(times(1) for times in service.on.values())
        assert fastest < service.slo_ms * 1e6


def test_cameras_are_periodic_between_five_and_thirty_frames_a_second_in_proportion() -> None:
    streams = STUDIES["W2"].workload().streams
    assert len(streams) == 38
    assert all(not stream.rows[1:] for stream in streams)


def test_devices_of_a_pool_add_their_rates() -> None:
    study = STUDIES["W13"]
    service = study.services[0]
    alone = [cost_ns(t, service.rows_max, round(service.slo_ms * 1e6)) for t in service.on.values()]
    assert 1 / service.cost_ns == pytest.approx(sum(1 / cost for cost in alone))
    assert len(study.workload().models[0].devices) == 4


def test_tenants_differ_in_what_they_are_worth() -> None:
    made = STUDIES["W6"].workload().requests(duration_ns=S, seed=1)
    assert {(r.slo, r.weight) for r in made} == {("bronze", 1.0), ("silver", 2.0), ("gold", 4.0)}
