"""Execution times: each has a source, and the costs that loads are counted in."""

import json
from importlib.resources import files

import pytest

from tests.helpers import MS
from tritonsched.sim.tables import accuracy, cost_ns, exec_ns, ratio, scaled
from tritonsched.sim.world import affine

DATA = json.loads(files("tritonsched.sim").joinpath("latency.json").read_text())


def test_every_figure_names_its_source() -> None:
    assert all(entry["source"] for group in DATA.values() for entry in group.values())


@pytest.mark.parametrize("name", DATA["tables_ms"])
def test_a_table_is_read_as_it_stands(name: str) -> None:
    for rows, ms in DATA["tables_ms"][name]["ms"].items():
        assert exec_ns(name)(int(rows)) == pytest.approx(ms * MS, abs=1)


def test_a_curve_is_affine_and_can_be_scaled() -> None:
    curve = exec_ns("resnet50-1080ti")
    assert curve(2) - curve(1) == pytest.approx(1.053 * MS, abs=1)
    assert scaled(curve, ratio("xavier-of-t4"))(8) == pytest.approx(2.6 * curve(8), rel=1e-6)
    assert 0 < accuracy("resnet18") < accuracy("resnet152") < 1


def test_the_cost_of_a_row_is_that_of_the_best_batch_that_fits() -> None:
    times = affine(5 * MS, MS)
    assert cost_ns(times, 64, 15 * MS) == pytest.approx(1.5 * MS)  # ten rows in 15 ms
    assert cost_ns(times, 4, 15 * MS) == pytest.approx(2.25 * MS)
    assert cost_ns(times, 64, 5 * MS) == float("inf")
