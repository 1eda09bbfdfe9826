"""The look-ahead: what it sends where one step is not enough, and the bounds of its work."""

from collections.abc import Mapping, Sequence
from itertools import product

import pytest

from tests.helpers import EXACT, MS, OneDevice, Table, dispatch, request, submit
from tritonsched.core.gap import GapView
from tritonsched.core.policies import forming, lookahead, rollout
from tritonsched.core.policies.forming import NEVER_NS, Scene
from tritonsched.core.policies.lookahead import LINES_MAX, PICKS_MAX, Lookahead
from tritonsched.core.policies.rollout import Chosen, Terms
from tritonsched.core.policies.scene import MEMBERS_MAX, Line, scene_of
from tritonsched.core.policy import Choice
from tritonsched.core.queues import RequestQueue
from tritonsched.core.request import Request, Utility
from tritonsched.core.variant import Way

THREE = {"m": (8, ("gpu",)), "n": (8, ("gpu",)), "o": (8, ("gpu",))}


class View(OneDevice):
    """A policy's view with times of 5 ms + 1 ms a row, eight rows at most, on each device."""

    tuning = EXACT

    def __init__(
        self,
        *queues: RequestQueue,
        free_ns: dict[str, int] | None = None,
        ways: Mapping[str, tuple[Way, ...]] | None = None,
    ) -> None:
        self._queues = queues
        self._free_ns = {"gpu": 0, **(free_ns or {})}
        self._ways = ways or {}

    def devices(self) -> Sequence[str]:
        return list(self._free_ns)

    def free_ns(self, device: str) -> int:
        return self._free_ns[device]

    def queues(self, device: str) -> Sequence[RequestQueue]:
        return self._queues

    def variants(self, model: str, device: str) -> Sequence[Way]:
        return self._ways.get(f"{model} on {device}", (Way(model),))

    def safe_ns(self, model: str, device: str, rows: int) -> int:
        return (5 * MS + rows * MS) // (2 if model.endswith("small") else 1)

    def rows_cap(self, model: str, device: str) -> int:
        return 8


def queue_of(*members: Request, model: str = "m", alone: bool = False) -> RequestQueue:
    queue = RequestQueue(model, 0, alone=alone)
    for member in members:
        queue.push(member)
    return queue


def many(
    first: int, count: int, deadline: int, model: str = "m", weight: float = 1.0
) -> list[Request]:
    return [
        request(n, deadline=deadline, model=model, weight=weight)
        for n in range(first, first + count)
    ]


def chosen(view: View) -> Choice:
    choice = Lookahead(rollout.choose).choose(view, "gpu", start_ns=0, now=0)
    assert isinstance(choice, Choice)
    return choice


def scene(view: View) -> Scene:
    devices = list(view.devices())
    lines = [Line(queue, view, devices) for queue in view.queues("gpu")]
    return scene_of(lines, [view.free_ns(name) for name in devices])


def test_while_everything_fits_the_earliest_deadline_goes_first() -> None:
    table = Table("lookahead", models=THREE)
    later, sooner = request(1, deadline=90 * MS), request(2, deadline=40 * MS, model="n")
    table.at(0, submit(later, sooner))
    table.expect(0, dispatch(sooner))


def test_a_small_urgent_batch_goes_before_a_dense_one_that_can_wait() -> None:
    """One row due at once, and more than fits a batch due late: both are had in this order."""
    urgent = queue_of(request(1, deadline=7 * MS))
    dense = queue_of(*many(2, 12, 60 * MS, "n"), model="n")
    assert chosen(View(urgent, dense)).queue is urgent


def test_a_small_urgent_batch_is_given_up_if_it_costs_more_than_it_earns() -> None:
    urgent = queue_of(request(1, deadline=7 * MS))
    dense = queue_of(*many(2, 12, 14 * MS, "n"), model="n")
    assert chosen(View(urgent, dense)).queue is dense


def test_a_head_is_kept_by_a_smaller_batch_where_that_loses_nobody() -> None:
    """Eight rows would be denser and late for the two that are due first."""
    queue = queue_of(*many(1, 2, 8 * MS), *many(3, 8, 60 * MS))
    other = queue_of(*many(11, 9, 80 * MS, "n"), model="n")
    choice = chosen(View(queue, other))
    assert (choice.queue, [r.id for r in choice.requests]) == (queue, [1, 2, 3])


def test_a_head_of_a_wide_queue_is_kept_likewise() -> None:
    wide = [request(n, deadline=60 * MS, rows=2) for n in range(3, 7)]
    queue = queue_of(request(1, deadline=8 * MS, rows=2), *wide)
    other = queue_of(*many(11, 9, 80 * MS, "n"), model="n")
    choice = chosen(View(queue, other))
    assert (choice.queue, [r.id for r in choice.requests]) == (queue, [1])


def test_one_queue_sends_its_densest_batch() -> None:
    assert len(chosen(View(queue_of(*many(1, 11, 14 * MS)))).requests) == 8


def test_nobody_in_time_is_no_batch() -> None:
    late = queue_of(*many(1, 2, 5 * MS)), queue_of(*many(3, 2, 5 * MS, "n"), model="n")
    for queues in (late[:1], late):
        rule = Lookahead(rollout.choose)
        assert rule.choose(View(*queues), "gpu", start_ns=0, now=0) is None


def test_what_another_device_can_still_serve_is_left_to_it() -> None:
    """The urgent one has a device of its own soon, so this one takes the many."""
    urgent = queue_of(request(1, deadline=12 * MS))
    dense = queue_of(*many(2, 12, 14 * MS, "n"), model="n")
    ways: dict[str, tuple[Way, ...]] = {"n on other": ()}
    alone = View(urgent, dense)
    shared = View(urgent, dense, free_ns={"other": 3 * MS}, ways=ways)
    assert rollout.score(scene(shared), terms(), dense_of(shared, 1)) == pytest.approx(9.0)
    assert rollout.score(scene(alone), terms(), dense_of(alone, 1)) == pytest.approx(8.0)


def terms(price: float = 0.0, horizon: int = 60 * MS) -> Terms:
    return Terms(device=0, reply_ns=0, horizon_ns=horizon, price=price, steps=12)


def dense_of(view: View, way: int) -> rollout.Found:
    found = rollout.candidates(scene(view), terms())
    return next(one for one in found if one[0] == way and not one[1])


def test_a_score_is_all_that_the_queues_still_give_less_the_price_of_the_time() -> None:
    first, second = many(1, 8, 90 * MS), many(9, 8, 90 * MS, "n")
    view = View(queue_of(*first), queue_of(*second, model="n"))
    assert rollout.score(scene(view), terms(), dense_of(view, 0)) == 16.0
    priced = rollout.score(scene(view), terms(price=0.5 / MS), dense_of(view, 0))
    assert priced == pytest.approx(16.0 - 26 * 0.5)


def test_what_ends_beyond_the_horizon_counts_for_its_part() -> None:
    view = View(queue_of(*many(1, 8, 90 * MS)))
    half = rollout.score(scene(view), terms(horizon=13 * MS // 2), dense_of(view, 0))
    assert half == pytest.approx(4.0)


def test_under_load_a_cheaper_variant_serves_more() -> None:
    ways = {"m on gpu": (Way("m"), Way("m-small", 0.8))}
    rush = View(queue_of(*many(1, 16, 14 * MS)), ways=ways)
    assert chosen(rush).variant == "m-small"
    calm = View(queue_of(*many(1, 9, 60 * MS)), ways=ways)
    assert chosen(calm).variant == ""


def test_a_cheaper_variant_is_followed_by_another_of_its_kind() -> None:
    """Sixteen in 13 ms: eight of the best are worth 8 and leave nobody time, twice eight of the
    cheaper 12.8; after a cheaper one, the best would still serve one.
    """
    ways = {"m on gpu": (Way("m"), Way("m-small", 0.8))}
    view = View(queue_of(*many(1, 16, 13 * MS)), ways=ways)
    assert rollout.score(scene(view), terms(), dense_of(view, 0)) == 8.0
    assert rollout.score(scene(view), terms(), dense_of(view, 1)) == pytest.approx(12.8)
    assert chosen(view).variant == "m-small"


def test_alone_a_model_pays_for_time_that_those_to_come_would_use() -> None:
    """Of nine, eight in 13 ms are worth 8, and all nine in 9.5 ms 7.2; it depends on what time
    usually earns. Where another model waits, that one stands for what comes next: a low price.
    """
    ways = {"m on gpu": (Way("m"), Way("m-small", 0.8))}
    queue = queue_of(*many(1, 9, 14 * MS))
    other = queue_of(*many(60, 1, 2 * MS, "n"), model="n")
    usual = 12 / (13 * MS)
    for queues, earned, variant in (
        ((queue,), 0.0, ""),
        ((queue,), usual, "m-small"),
        ((queue, other), usual, ""),
    ):
        rule = Lookahead(rollout.choose)
        rule._usual["gpu"] = earned
        choice = rule.choose(View(*queues, ways=ways), "gpu", start_ns=0, now=0)
        assert isinstance(choice, Choice)
        assert choice.variant == variant


def test_worth_that_falls_before_the_deadline_makes_batches_smaller() -> None:
    def falling(number: int) -> Request:
        return Request(number, "m", "c", 0, 1, 0, 14 * MS, utility=Utility.linear(0.5))

    late = queue_of(*many(50, 9, 2 * MS, "n"), model="n")
    step, shaped = many(1, 9, 14 * MS), [falling(n) for n in range(1, 10)]
    assert len(chosen(View(queue_of(*step), late)).requests) == 8
    assert len(chosen(View(queue_of(*shaped, request(20, deadline=14 * MS)), late)).requests) < 8


def test_rows_of_many_widths_are_formed_exactly() -> None:
    late = queue_of(*many(50, 9, 2 * MS, "n"), model="n")
    wide = [request(n, deadline=12 * MS, rows=1 + n % 3) for n in range(1, 9)]
    choice = chosen(View(queue_of(*wide), late))
    assert 0 < sum(one.rows for one in choice.requests) <= 7


def test_what_only_the_mean_width_lets_in_is_no_batch() -> None:
    """One row due at 3 ms and seven due at 10: four would be in time, and there are no four."""
    late = queue_of(*many(50, 9, 2 * MS, "n"), model="n")
    uneven = queue_of(request(1, deadline=3 * MS), request(2, deadline=10 * MS, rows=7))
    rule = Lookahead(rollout.choose)
    assert rule.choose(View(uneven, late), "gpu", start_ns=0, now=0) is None


def test_the_lone_go_one_by_one_and_those_without_a_deadline_are_never_late() -> None:
    late = queue_of(*many(50, 9, 2 * MS, "n"), model="n")
    lone = queue_of(*(request(n, deadline=60 * MS, alone=True) for n in range(1, 20)), alone=True)
    assert len(chosen(View(lone, late)).requests) == 1
    patient = queue_of(*(request(n) for n in range(1, 3)), request(3, deadline=MS))
    assert sorted(scene(View(patient)).due) == [MS, NEVER_NS, NEVER_NS]
    assert {r.id for r in chosen(View(patient, late)).requests} == {1, 2}


def test_without_the_compiled_form_or_with_too_many_queues_one_step_chooses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    urgent = queue_of(request(1, deadline=7 * MS))
    dense = queue_of(*many(2, 12, 14 * MS, "n"), model="n")
    monkeypatch.setattr(lookahead, "compiled", lambda: None)
    choice = Lookahead().choose(View(urgent, dense), "gpu", start_ns=0, now=0)
    assert isinstance(choice, Choice)
    assert choice.queue is dense
    looked: list[Scene] = []

    def choose(scene: Scene, terms: Terms) -> Chosen:
        looked.append(scene)
        return rollout.choose(scene, terms)

    for count in (LINES_MAX, LINES_MAX + 1):
        queues = [queue_of(*many(99 * k, 9, 40 * MS, f"m{k}"), model=f"m{k}") for k in range(count)]
        Lookahead(choose).choose(View(*queues), "gpu", start_ns=0, now=0)
    assert len(looked) == 1


class ColdView(View):
    """Model `new` was never measured."""

    def safe_ns(self, model: str, device: str, rows: int) -> int:
        return 0 if model == "new" else super().safe_ns(model, device, rows)


def test_a_model_that_is_not_measured_does_not_wait_for_those_that_are() -> None:
    """Its time is nothing, so to a roll-out it could go last; and what it earns in no time must not
    become what is usual, or time would be too dear for all batches but the smallest.
    """
    busy = queue_of(*many(2, 12, 14 * MS))
    new = queue_of(*many(20, 3, 60 * MS, "new"), model="new")
    rule = Lookahead(rollout.choose)
    choice = rule.choose(ColdView(busy, new), "gpu", start_ns=0, now=0)
    assert isinstance(choice, Choice)
    assert choice.queue is new
    assert rule._usual == {}


def test_a_long_queue_is_looked_at_up_to_a_bound() -> None:
    view = View(queue_of(*many(1, MEMBERS_MAX + 5, 60 * MS)))
    assert len(scene(view).due) == MEMBERS_MAX


def test_the_work_of_a_decision_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0
    densest = forming.densest

    def counted(*args: object) -> object:
        nonlocal looks
        looks += 1
        return densest(*args)  # type: ignore[arg-type]  # passed on as they came

    monkeypatch.setattr(rollout, "densest", counted)
    for models, ways in product((2, 5, 16, LINES_MAX), (1, 5)):
        looks = 0
        ladders = {
            f"m{k} on gpu": tuple(Way(f"m{k}-{rung}", 1 - rung / 10) for rung in range(ways))
            for k in range(models)
        }
        queues = [
            queue_of(*many(100 * k, 40, 2000 * MS, f"m{k}"), model=f"m{k}") for k in range(models)
        ]
        chosen(View(*queues, ways=ladders))
        assert models < looks <= PICKS_MAX + models * ways


def test_in_a_gap_of_a_plan_the_look_ahead_chooses_a_batch_that_fits_it() -> None:
    first, second = queue_of(*many(1, 9, 40 * MS)), queue_of(*many(20, 9, 40 * MS, "n"), model="n")
    view = View(first, second, free_ns={"other": 0})
    gap = GapView(view, room_ns=9 * MS, guard=1.0)
    choice = Lookahead(rollout.choose).choose(gap, "gpu", start_ns=0, now=0)
    assert isinstance(choice, Choice)
    assert len(choice.requests) == 4
    assert gap.has_room(choice, "gpu")
