"""Adaptation in the scheduler: a category that overran runs as a cheaper variant for a while. Rule:
a table of times, times without margin; the rule is DeepRT's, on one device.
"""

from tests.bench.streams import Frozen
from tests.helpers import EXACT, MS
from tritonsched.core.batch import Batch, Completion, Dispatch
from tritonsched.core.latency import LatencyProfile
from tritonsched.core.policies.disbatcher import Disbatcher
from tritonsched.core.policies.edf import Edf
from tritonsched.core.policy import Policy
from tritonsched.core.request import Request
from tritonsched.core.scheduler import Scheduler
from tritonsched.core.variant import Family, Variant

COSTS = {"large": 40, "middle": 30, "small": 10}
ACCURACY = {"large": 0.9, "middle": 0.8, "small": 0.5}


class Camera:
    """Frames for `look`, due 200 ms after they come, one batch at a time."""

    def __init__(
        self,
        variants: tuple[str, ...] = ("large", "small"),
        *,
        policy: Policy | None = None,
        rows_max: int = 8,
        known: tuple[str, ...] = ("large", "middle", "small"),
    ) -> None:
        self.scheduler = Scheduler(policy or Disbatcher(), tuning=EXACT)
        for name in variants:
            most = 8 if name != "small" else rows_max
            self.scheduler.set_variant(Variant(name, most, ("gpu0",), ACCURACY[name]), 0)
            table = dict.fromkeys(range(1, 9), COSTS[name] * MS)
            profile = Frozen(table) if name in known else LatencyProfile()
            self.scheduler.set_profile(name, "gpu0", profile)
        self.scheduler.set_family(Family("look", variants), 0)
        self.number = 0

    def frame(self, at_ms: int, took_ms: int, *, rows: int = 1) -> str:
        """One frame, run at once; the model that ran it."""
        self.number += 1
        at = at_ms * MS
        self.scheduler.submit(Request(self.number, "look", "c", 1, rows, at, at + 200 * MS), at)
        (batch,) = self._sent(at)
        self.scheduler.complete(Completion(batch.id), at + took_ms * MS)
        assert self._sent(at + took_ms * MS) == []
        return batch.model

    def _sent(self, now: int) -> list[Batch]:
        return [d.batch for d in self.scheduler.decide(now) if isinstance(d, Dispatch)]


def test_who_overran_runs_as_a_cheaper_variant_until_it_is_paid_back() -> None:
    camera = Camera()
    ran = [camera.frame(at, took) for at, took in ((0, 40), (200, 90), (400, 10), (600, 10))]
    assert ran == ["large", "large", "small", "small"]
    assert camera.frame(800, 40) == "large"


def test_further_overruns_go_further_down_the_ladder() -> None:
    camera = Camera(("middle", "large", "small"))
    ran = [camera.frame(at, took) for at, took in ((0, 90), (200, 90), (400, 10))]
    assert ran == ["large", "middle", "small"]


def test_the_ladder_begins_at_the_model_that_was_asked_for() -> None:
    """One of the variants may have the family's own name: nothing is stepped up to."""
    camera = Camera(("large", "middle", "small"))
    camera.scheduler.set_family(Family("middle", ("large", "middle", "small")), 0)
    camera.scheduler.submit(Request(9, "middle", "c", 1, 1, 0, 200 * MS), 0)
    (batch,) = camera._sent(0)
    assert batch.model == "middle"
    camera.scheduler.complete(Completion(batch.id), 100 * MS)
    camera.scheduler.submit(Request(10, "middle", "c", 1, 1, 200 * MS, 400 * MS), 200 * MS)
    assert [batch.model for batch in camera._sent(200 * MS)] == ["small"]


def test_a_batch_that_the_cheaper_variant_cannot_take_stays() -> None:
    camera = Camera(rows_max=2)
    assert camera.frame(0, 90) == "large"
    assert camera.frame(200, 40, rows=3) == "large"
    assert camera.frame(400, 10, rows=2) == "small"


def test_nothing_is_stepped_down_to_that_was_never_measured() -> None:
    camera = Camera(known=("large",))
    assert [camera.frame(at, 90) for at in (0, 200)] == ["large", "large"]


def test_a_rule_that_does_not_ask_for_it_is_left_alone() -> None:
    camera = Camera(policy=Edf())
    assert [camera.frame(at, 90) for at in (0, 200)] == ["large", "large"]
