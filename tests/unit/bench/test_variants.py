"""Fixed variants beside chosen ones."""

import pytest

from tests.bench import study, variants
from tritonsched.sim.experiment import Trace

TRACE = Trace("W9", 0.4, 1, 300)


def test_a_fixed_setting_has_one_variant_of_each_family_and_what_it_is_worth() -> None:
    cheapest, worth = variants.fixed(TRACE.workload, 0.0)
    assert cheapest.families == {
        "resnet": ("resnet18",),
        "yolo": ("yolov5n",),
        "bert": ("bert-base",),
    }
    assert {model.name for model in cheapest.models} == {"resnet18", "yolov5n", "bert-base"}
    assert all(0 < share < 1 for share in worth.values())
    assert set(variants.fixed(TRACE.workload, 1.0)[1].values()) == {1.0}


def test_in_the_calm_choosing_is_as_good_as_the_best_and_the_cheapest_loses_its_accuracy() -> None:
    lines = variants.table("lite", 1, 300, loads=(0.1,))
    chosen, cheapest, best = (float(lines[1][column]) for column in (1, 2, 6))
    assert chosen == pytest.approx(best, abs=0.01)
    assert cheapest < best
    assert "variants" in study.SECTIONS
