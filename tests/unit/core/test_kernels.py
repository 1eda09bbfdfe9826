"""The compiled roll-out chooses what the interpreted one does; without numba there is none."""

import math
import mmap
import random
import sys
from typing import Any

import pytest

from tritonsched.core.policies import kernels, rollout
from tritonsched.core.policies.forming import NEVER_NS, Scene
from tritonsched.core.policies.rollout import Terms

MS = 1_000_000


def random_scene(dice: random.Random) -> tuple[Scene, Terms]:
    """Up to five queues in up to three lanes, with up to two variants, on up to three devices; the
    worth of some falls before the deadline.
    """
    lines, devices = dice.randint(1, 5), dice.randint(1, 3)
    made: dict[str, list[Any]] = {name: [] for name in Scene._fields}
    made["line_lane"].append(0)
    for line in range(lines):
        for weight in sorted(dice.sample((0.5, 1.0, 2.0, 4.0), dice.randint(1, 3)), reverse=True):
            made["lane_low"].append(len(made["due"]))
            members = [dice.randint(1, 80) * MS for _ in range(dice.randint(1, 30))]
            patient = dice.random() < 0.1
            made["due"] += [NEVER_NS] * len(members) if patient else sorted(members)
            made["shape"] += [-1 if patient else dice.randint(-1, 1) for _ in members]
            made["lane_high"].append(len(made["due"]))
            made["lane_weight"].append(weight)
        made["line_lane"].append(len(made["lane_low"]))
        made["line_shaped"].append(dice.randint(0, 1))
        made["line_head"].append(dice.randint(0, 1))
        tops = [-1] * devices
        for worth in (1.0, 0.9)[: dice.randint(1, 2)]:
            made["way_line"].append(line)
            made["way_worth"].append(worth)
            for device in range(devices):
                runs = dice.random() < 0.8
                made["table"].append(len(made["times"]) if runs else -1)
                made["cap"].append(dice.randint(1, 16) if runs else -1)
                base, row = dice.randint(0, 10) * MS, dice.randint(1, 3000) * 1000
                made["times"] += [base + row * size for size in range(made["cap"][-1] + 1)]
                if runs and tops[device] < 0:
                    tops[device] = len(made["way_line"]) - 1
        made["top"] += tops
    made["born_ns"] = [0 if due == NEVER_NS else due - 50 * MS for due in made["due"]]
    made["shape_from"] = [0, 2, 3]
    made["point_share"], made["point_value"] = [0.5, 1.0, 0.7], [1.0, 0.1, 0.5]
    made["free_ns"] = [dice.randint(0, 20) * MS for _ in range(devices)]
    made["spots"], made["clock"] = [0] * len(made["lane_low"]), [0] * devices
    made["rates"] = [0.0] * len(made["times"])
    price = dice.choice((0.0, 0.1 / MS, 1.0 / MS))
    terms = Terms(dice.randrange(devices), dice.randint(0, 2) * MS, 60 * MS, price, 12)
    return Scene(**made), terms


def test_the_compiled_roll_out_chooses_what_the_interpreted_one_does() -> None:
    """Over random queues, weights, variants, devices and prices, to the last bit."""
    compiled = kernels.compiled()
    assert compiled is not None, "the tests' environment has the extra `fast`"
    dice = random.Random(4)
    chosen = 0
    for _ in range(400):
        scene, terms = random_scene(dice)
        expected = rollout.choose(scene, terms)
        assert compiled(scene, terms) == expected
        chosen += expected[0] >= 0
    assert 300 < chosen < 400  # and sometimes nobody can be in time


def test_what_is_not_looked_at_could_not_have_been_the_best(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A queue is passed over by a bound alone: looking at all of them chooses the same."""
    dice = random.Random(7)
    given = [random_scene(dice) for _ in range(300)]
    chosen = [rollout.choose(scene, terms) for scene, terms in given]
    monkeypatch.setattr(rollout, "most", lambda *_: math.inf)
    assert [rollout.choose(scene, terms) for scene, terms in given] == chosen


def test_without_numba_there_is_no_compiled_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    assert "numba is missing" in kernels.obstacle()
    assert kernels.compiled.__wrapped__() is None


def test_a_process_that_must_not_make_code_has_no_compiled_form(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError

    assert not kernels.obstacle()
    monkeypatch.setattr(mmap, "mmap", forbidden)
    assert "must not make code" in kernels.obstacle()
    assert kernels.compiled.__wrapped__() is None


def test_where_nothing_can_be_kept_it_is_compiled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[bool] = []

    def made(_: object, *, keep: bool) -> kernels.Choose:
        tried.append(keep)
        if keep:
            raise RuntimeError("no locator available")
        return rollout.choose

    monkeypatch.setattr(kernels, "_compiled", made)
    assert kernels.compiled.__wrapped__() is rollout.choose
    assert tried == [True, False]
