"""Tenants: nobody below its share is refused for others, and who fares badly is worth more."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import MS, request
from tritonsched.core.batch import Decision, Dispatch, Reject
from tritonsched.core.fairness import GAIN, STEPS, Fairness, Tenants
from tritonsched.core.policies import POLICIES
from tritonsched.core.queues import QueueSet
from tritonsched.core.request import FULL, Outcome, RejectReason, Request, Tenant
from tritonsched.core.scheduler import Scheduler
from tritonsched.core.tuning import Tuning
from tritonsched.core.variant import Variant

PLACES = 8
TUNING = Tuning(queue_requests_max=PLACES)
NAMES = ("a", "b", "c", "guest")


def tenants(*rules: Tenant, fairness: Fairness | None = None) -> Tenants:
    made = Tenants()
    made.adopt({rule.name: rule for rule in rules}, fairness or Fairness())
    return made


def filled(*names: str) -> QueueSet:
    """A queue of model m with a request of each, numbered from 1."""
    queues = QueueSet()
    for number, name in enumerate(names, 1):
        queues.push(request(number, tenant=name))
    return queues


def heard(known: Tenants, name: str, *outcomes: Outcome, reason: str = "") -> None:
    for number, outcome in enumerate(outcomes):
        known.on_outcomes((request(number, tenant=name),), outcome, reason, 0)


# -- places ---------------------------------------------------------------------------------------


@st.composite
def part_lists(draw: st.DrawFn) -> tuple[float, ...]:
    """Shares in eighths that add up to the whole at most."""
    cuts = sorted(draw(st.lists(st.integers(0, 8), min_size=3, max_size=3)))
    return tuple((high - low) / 8 for low, high in zip([0, *cuts], cuts, strict=False))


@given(
    parts=part_lists(),
    own=st.sampled_from([0, 2]),
    arrivals=st.lists(st.sampled_from(NAMES), max_size=40),
    places=st.integers(1, PLACES),
)
def test_nobody_below_its_share_is_refused_while_another_above_holds_places(
    parts: tuple[float, ...], own: int, arrivals: list[str], places: int
) -> None:
    """Through the scheduler whose one device never gets free, bounds changed half-way."""
    scheduler = Scheduler(POLICIES["lite"](), tuning=TUNING)
    scheduler.set_variant(Variant("m", rows_max=1, devices=("gpu",)), 0)
    rules = {
        name: Tenant(name, share=part, queue_requests_max=own if name == "a" else 0)
        for name, part in zip(NAMES, parts, strict=False)
    }
    scheduler.tenants.adopt(rules, Fairness())
    scheduler.submit(request(1000), 0)
    assert isinstance(scheduler.decide(0)[0], Dispatch)
    for number, name in enumerate(arrivals):
        now = number + 1
        if number == len(arrivals) // 2:
            scheduler.retune(Tuning(queue_requests_max=places), now)
        bound = scheduler.tuning.queue_requests_max
        scheduler.submit(request(number, arrival=now, tenant=name), now)
        decided = scheduler.decide(now)
        held = {one: len(found) for one, found in scheduler._queues.tenants_of("m").items()}
        before = scheduler.queued()["m"]
        assert before <= PLACES
        for refused in (d for d in decided if isinstance(d, Reject) and d.reason in FULL):
            who = refused.request.tenant
            if refused.reason is RejectReason.TENANT_QUEUE_FULL:
                assert held[who] == own
                continue
            rule = rules.get(who)
            assert held.get(who, 0) >= (rule.part_of(bound) if rule else 0)
            assert sum(held.values()) >= bound  # nobody is refused where there is room


@given(arrivals=st.lists(st.sampled_from(NAMES), min_size=1, max_size=60))
def test_parts_that_fill_the_queue_are_all_there_whoever_came_first(arrivals: list[str]) -> None:
    """Guaranteed is what is guaranteed: each tenant has its part, or all that it asked for."""
    known = tenants(Tenant("a", share=0.5), Tenant("b", share=0.25), Tenant("c", share=0.25))
    queues = QueueSet()
    for number, name in enumerate(arrivals, 1):
        made = request(number, tenant=name)
        if known.refusal(made, queues, TUNING) is None:
            known.make_room(made, queues, TUNING)
            queues.push(made)
    held = queues.tenants_of("m")
    for name, part in (("a", 4), ("b", 2), ("c", 2)):
        assert len(held.get(name, ())) >= min(part, arrivals.count(name))


def test_the_newest_of_the_tenant_furthest_above_gives_way() -> None:
    known = tenants(Tenant("a", share=0.25), Tenant("b", share=0.25), Tenant("c", share=0.5))
    queues = filled("a", "a", "a", "b", "b", "b", "b", "b")
    late = request(9, tenant="c")
    assert known.refusal(late, queues, TUNING) is None
    (gone,) = known.make_room(late, queues, TUNING)
    assert (gone.id, gone.tenant) == (8, "b")
    assert queues.requests_of("m") == PLACES - 1


def test_a_queue_with_room_takes_from_nobody() -> None:
    known = tenants(Tenant("a", share=0.25), Tenant("c", share=0.5))
    queues = filled(*"aaaaaaa")
    assert known.refusal(request(8, tenant="a"), queues, TUNING) is None
    assert known.make_room(request(8, tenant="c"), queues, TUNING) == ()


def test_without_shares_a_full_queue_is_just_full() -> None:
    queues = filled(*["a"] * PLACES)
    assert tenants().refusal(request(9), queues, TUNING) is RejectReason.QUEUE_FULL
    known = tenants(Tenant("a", share=0.5))
    assert known.refusal(request(9), queues, TUNING) is RejectReason.TENANT_OVER_SHARE


def test_a_tenants_own_bound_holds_where_there_is_room() -> None:
    known = tenants(Tenant("a", share=1.0, queue_requests_max=2))
    queues = filled("a", "b")
    assert known.refusal(request(9, tenant="a"), queues, TUNING) is None
    queues.push(request(3, tenant="a"))
    assert known.refusal(request(9, tenant="a"), queues, TUNING) is RejectReason.TENANT_QUEUE_FULL
    assert known.refusal(request(9, tenant="b"), queues, TUNING) is None


def test_who_gave_way_is_told_when_to_come_back() -> None:
    scheduler = Scheduler(POLICIES["lite"](), tuning=Tuning(queue_requests_max=1))
    scheduler.set_variant(Variant("m", rows_max=1, devices=("gpu",)), 0)
    scheduler.tenants.adopt({"b": Tenant("b", share=1.0)}, Fairness())
    decided: list[Decision] = []
    for number, name in enumerate(("a", "a", "b"), 1):
        scheduler.submit(request(number, tenant=name), 0)
        decided = scheduler.decide(0)
    (refused,) = decided
    assert isinstance(refused, Reject)
    assert (refused.request.id, refused.reason) == (2, RejectReason.TENANT_OVER_SHARE)
    assert refused.retry_after_ns is not None
    assert refused.retry_after_ns < 1_000_000_000  # of the queue, not of a Triton that is away


@pytest.mark.parametrize(("share", "whole", "part"), [(0.29, 100, 29), (1 / 3, 8, 2), (1.0, 7, 7)])
def test_a_part_is_rounded_down_and_only_down(share: float, whole: int, part: int) -> None:
    assert Tenant("a", share=share).part_of(whole) == part


# -- weights --------------------------------------------------------------------------------------


def test_the_boost_is_the_rules_own_in_steps() -> None:
    """weight x (1 + strength x max(0, target - share) / target), scheduling study 4.12."""
    fairness = Fairness(target=0.5, strength=4.0)
    assert [fairness.boost(share) for share in (1.0, 0.5, 0.25, 0.0)] == [1.0, 1.0, 3.0, 5.0]
    made = {fairness.boost(n / 1000) for n in range(1001)}
    assert len(made) == STEPS + 1


@given(
    target=st.floats(0.01, 1.0), strength=st.floats(0.0, 100.0), share=st.floats(0.0, 1.0),
    more=st.floats(0.0, 1.0),
)  # fmt: skip
def test_who_fares_worse_is_never_worth_less(
    target: float, strength: float, share: float, more: float
) -> None:
    fairness = Fairness(target, strength)
    boost = fairness.boost(share)
    assert 1.0 <= fairness.boost(max(share, more)) <= boost <= 1.0 + strength
    assert boost == 1.0 or share < target


def test_the_share_is_a_moving_mean_of_what_the_load_did() -> None:
    known = tenants()
    assert known.on_time_share("a") == 1.0
    heard(known, "a", Outcome.LATE)
    assert known.on_time_share("a") == 0.0
    heard(known, "a", *[Outcome.SERVED] * 3)
    assert known.on_time_share("a") == pytest.approx(0.75)  # of few, their mean
    heard(known, "a", *[Outcome.SERVED] * 2000)
    assert known.on_time_share("a") == pytest.approx(1.0)
    heard(known, "a", Outcome.LATE)
    assert known.on_time_share("a") == pytest.approx(1 - GAIN)
    before = known.on_time_share("a")
    heard(known, "a", Outcome.FAILED, Outcome.CANCELLED)
    for own in ("tenant-over-share", "tenant-queue-full", "draining", "triton-unavailable"):
        heard(known, "a", Outcome.REJECTED, reason=own)
    assert known.on_time_share("a") == before
    heard(known, "a", Outcome.REJECTED, reason="queue-full")
    heard(known, "a", Outcome.EXPIRED)
    assert known.on_time_share("a") < before
    assert known.on_time_share("b") == 1.0


def test_only_the_choice_is_boosted_not_what_is_earned() -> None:
    known = tenants(fairness=Fairness(target=1.0, strength=3.0))
    heard(known, "a", *[Outcome.EXPIRED] * 2000)
    made = known.weighed(request(1, weight=2.0, deadline=10, tenant="a"))
    assert (made.weight, made.boost) == (8.0, 4.0)
    assert (made.utility_at(10), made.earned_at(10), made.earned_at(11)) == (8.0, 2.0, 0.0)


def test_a_request_that_needs_no_boost_is_left_as_it_is() -> None:
    known = tenants(fairness=Fairness(strength=3.0))
    heard(known, "a", *[Outcome.EXPIRED] * 2000)
    again = Request(1, "m", "c", 0, 1, 0, alone=True, retry=True, tenant="a")
    fine = request(2, tenant="b")
    assert known.weighed(again) is again
    assert known.weighed(fine) is fine
    known.adopt({}, Fairness())
    mine = request(3, tenant="a")
    assert known.weighed(mine) is mine


def test_who_starved_is_chosen_with_fairness_and_only_then() -> None:
    """Two models on one device, room for one batch: the one worth less goes first once it lacks."""
    chosen = [_first_of_two(Fairness(strength=strength)) for strength in (0.0, 9.0)]
    assert chosen == ["rich", "poor"]


def _first_of_two(fairness: Fairness) -> str:
    scheduler = Scheduler(POLICIES["lite"](), tuning=Tuning(rtt_ns=0, guard_ns=0))
    scheduler.tenants.adopt({}, fairness)
    for model in ("rich", "poor"):
        scheduler.set_variant(Variant(model, rows_max=1, devices=("gpu",)), 0)
        for _ in range(9):
            scheduler._profiles[model, "gpu"].observe(rows=1, exec_ns=10 * MS, now=0)
    heard(scheduler.tenants, "poor", *[Outcome.REJECTED] * 500, reason="deadline-unreachable")
    for number, (model, weight) in enumerate((("rich", 3.0), ("poor", 1.0)), 1):
        made = request(number, deadline=15 * MS, model=model, weight=weight, tenant=model)
        scheduler.submit(made, 0)
    first = scheduler.decide(0)[0]
    assert isinstance(first, Dispatch)
    return first.batch.model


def test_who_is_gone_from_the_policy_file_is_forgotten() -> None:
    known = tenants(Tenant("a"), Tenant("b"))
    heard(known, "a", Outcome.LATE)
    heard(known, "b", Outcome.LATE)
    known.adopt({"b": Tenant("b")}, Fairness())
    assert (known.on_time_share("a"), known.on_time_share("b")) == (1.0, 0.0)


# -- what cannot be -------------------------------------------------------------------------------


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="add up to more than 1"):
        tenants(Tenant("a", share=0.6), Tenant("b", share=0.5))
    with pytest.raises(ValueError, match="weight must be > 0"):
        Tenant("a", weight=0.0)
    with pytest.raises(ValueError, match="share must be from 0 to 1"):
        Tenant("a", share=1.5)
    with pytest.raises(ValueError, match="target"):
        Fairness(target=0.0)
    with pytest.raises(ValueError, match="strength"):
        Fairness(strength=-1.0)
