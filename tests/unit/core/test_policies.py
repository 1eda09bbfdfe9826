"""The rules, as tables of times; step A of `lite` against every order of the queues."""

import random
from collections.abc import Iterator, Sequence
from itertools import permutations

import pytest

from tests.helpers import (
    EXACT,
    MS,
    OneDevice,
    S,
    Table,
    dispatch,
    done,
    exact,
    reject,
    request,
    submit,
)
from tritonsched.core.policies import DEFAULT_POLICY, POLICIES
from tritonsched.core.policies.lite import STARVED_EVERY, _everything_fits
from tritonsched.core.queues import RequestQueue
from tritonsched.core.request import PATIENCE_NS, Request
from tritonsched.core.tuning import Tuning
from tritonsched.core.variant import Way

TWO = {"m": (8, ("gpu",)), "n": (8, ("gpu",))}
KEEPERS = [name for name in sorted(POLICIES) if POLICIES[name]().keeps_deadlines]
BATCHING = sorted(set(POLICIES) - {"cikm", "clipper", "sedf"})
"""All but those with the smallest batch that keeps up, with one that is felt out, and with none."""
EAGER = sorted(set(BATCHING) - {"symphony"})
"""All that let no device idle while a batch could grow."""


def test_a_rule_has_the_name_by_which_it_is_chosen() -> None:
    assert {name: make().name for name, make in POLICIES.items()} == {
        name: name for name in POLICIES
    }


@pytest.mark.parametrize("policy", POLICIES)
def test_an_idle_device_starts_at_once(policy: str) -> None:
    table = Table(policy)
    table.at(3 * MS, submit(request(1)))
    table.expect(3 * MS, dispatch(request(1)))


@pytest.mark.parametrize("policy", EAGER)
def test_what_waits_together_leaves_together(policy: str) -> None:
    table = Table(policy)
    made = [request(n, deadline=100 * MS) for n in range(1, 5)]
    table.at(0, submit(made[0]))
    table.expect(0, dispatch(made[0]))
    table.at(1 * MS, submit(*made[1:]))
    table.expect(6 * MS, dispatch(*made[1:]))


@pytest.mark.parametrize("policy", BATCHING)
def test_a_batch_ends_at_the_cap_and_the_rest_follows(policy: str) -> None:
    table = Table(policy)
    made = [request(n) for n in range(1, 12)]
    table.at(0, submit(*made))
    table.expect(0, dispatch(*made[:8]))
    table.at(13 * MS, done(1))
    table.expect(13 * MS, dispatch(*made[8:]))


@pytest.mark.parametrize("policy", POLICIES)
def test_the_lone_never_share_a_batch(policy: str) -> None:
    table = Table(policy)
    made = [request(1, alone=True), request(2, alone=True)]
    table.at(0, submit(*made))
    table.expect(0, dispatch(made[0]))
    table.at(6 * MS, done(1))
    table.expect(6 * MS, dispatch(made[1]))


@pytest.mark.parametrize("policy", BATCHING)
def test_signatures_do_not_mix(policy: str) -> None:
    table = Table(policy)
    made = [request(1, signature=1), request(2, signature=2), request(3, signature=1)]
    table.at(0, submit(*made))
    table.expect(0, dispatch(made[0], made[2]))


@pytest.mark.parametrize("policy", BATCHING)
def test_without_deadlines_no_queue_starves(policy: str) -> None:
    """Two models under twice the load they can bear: both keep being served, oldest first."""
    table = Table(policy, models=TWO)
    number, served = 0, {"m": 0, "n": 0}
    for batch_id in range(1, 200):
        made = []
        for model in ("m", "n"):
            for _ in range(8):
                number += 1
                made.append(request(number, model=model))
        steps = [submit(*made)] + ([done(batch_id - 1)] if batch_id > 1 else [])
        table.at(table.now + 13 * MS, *steps)
        served[table.batches[batch_id].model] += 1
        assert [r.id for r in table.batches[batch_id].requests] == sorted(
            r.id for r in table.batches[batch_id].requests
        )
    assert abs(served["m"] - served["n"]) <= 1


# -- fcfs and edf -----------------------------------------------------------------------------


def test_fcfs_is_in_order_of_arrival_whatever_the_deadlines() -> None:
    table = Table("fcfs", models=TWO, points={1: 6 * MS, 8: 6 * MS})
    urgent = request(4, deadline=50 * MS, model="n")
    table.at(0, submit(request(1)))
    table.expect(0, dispatch(request(1)))
    table.at(1 * MS, submit(request(2, deadline=90 * MS)))
    table.at(2 * MS, submit(request(3), urgent))
    table.expect(6 * MS, dispatch(request(2), request(3)))
    table.at(6 * MS, done(1))
    table.expect(12 * MS, dispatch(urgent))


@pytest.mark.parametrize("policy", ["fcfs", "edf"])
def test_a_window_holds_a_batch_until_it_closes(policy: str) -> None:
    table = Table(policy, tuning=Tuning(rtt_ns=0, guard_ns=0, window_ns=4 * MS))
    table.at(0, submit(request(1)))
    table.at(3 * MS, submit(request(2)))
    table.expect(4 * MS, dispatch(request(1), request(2)))


@pytest.mark.parametrize("policy", ["fcfs", "edf"])
def test_a_full_batch_leaves_at_once_whatever_the_window(policy: str) -> None:
    table = Table(policy, tuning=Tuning(rtt_ns=0, guard_ns=0, window_ns=4 * MS))
    made = [request(n) for n in range(1, 9)]
    table.at(1 * MS, submit(*made))
    table.expect(1 * MS, dispatch(*made))


@pytest.mark.parametrize("policy", ["fcfs", "edf"])
def test_an_open_window_does_not_hold_up_a_closed_one(policy: str) -> None:
    table = Table(policy, models=TWO, tuning=Tuning(rtt_ns=0, guard_ns=0, window_ns=4 * MS))
    full = [request(n, model="n") for n in range(1, 9)]
    table.at(0, submit(request(9), *full))
    table.expect(0, dispatch(*full))


def test_edf_takes_the_queue_due_first_and_as_many_as_its_head_allows() -> None:
    table = Table("edf", models=TWO)
    urgent = [request(n, deadline=7 * MS, model="n") for n in (1, 2, 3)]
    table.at(0, submit(request(4, deadline=90 * MS), *urgent))
    table.expect(0, dispatch(urgent[0], urgent[1]), reject(urgent[2]))


def test_edf_passes_over_a_queue_whose_head_this_device_cannot_serve_in_time() -> None:
    """The head waits for the fast device; the slow one takes other work."""
    table = Table("edf", models={"m": (8, ("fast", "slow")), "n": (8, ("slow",))}, points=None)
    for model, device, exec_ns in (("m", "fast", 5), ("m", "slow", 50), ("n", "slow", 50)):
        profile = {1: exec_ns * MS, 8: exec_ns * MS}
        table.scheduler.set_profile(model, device, exact(profile))
    tight, tight2 = request(1, deadline=12 * MS), request(2, deadline=12 * MS, signature=1)
    other = request(3, model="n", deadline=90 * MS)
    table.at(0, submit(tight, tight2, other))
    table.expect(0, dispatch(tight, device="fast"), dispatch(other, device="slow"))
    table.expect(5 * MS, dispatch(tight2, device="fast"))


@pytest.mark.parametrize("policy", KEEPERS)
def test_a_device_too_slow_for_all_deadlines_stays_idle(policy: str) -> None:
    table = Table(policy, models={"m": (1, ("fast", "slow"))}, points=None)
    for device, exec_ns in (("fast", 5), ("slow", 50)):
        table.scheduler.set_profile("m", device, exact({1: exec_ns * MS}))
    made = [request(1, deadline=11 * MS), request(2, deadline=11 * MS)]
    table.at(0, submit(*made))
    table.expect(0, dispatch(made[0], device="fast"))
    table.expect(5 * MS, dispatch(made[1], device="fast"))


# -- lite -------------------------------------------------------------------------------------


def test_the_look_ahead_is_the_default() -> None:
    assert DEFAULT_POLICY == "lookahead"


def test_lite_sends_the_earliest_deadline_first_while_everything_fits() -> None:
    table = Table(models=TWO)
    later, sooner = request(1, deadline=90 * MS), request(2, deadline=40 * MS, model="n")
    table.at(0, submit(later, sooner))
    table.expect(0, dispatch(sooner))
    table.expect(6 * MS, dispatch(later))


def test_lite_gives_up_the_head_when_not_everything_fits() -> None:
    table = Table()
    head = request(1, deadline=6 * MS)
    others = [request(n, deadline=30 * MS) for n in range(2, 12)]
    table.at(0, submit(head, *others))
    table.expect(0, dispatch(*others[:8]), reject(head))


def test_lite_takes_the_valuable_first_when_not_everything_fits() -> None:
    table = Table()
    cheap = [request(n, deadline=14 * MS) for n in range(1, 9)]
    dear = [request(n, deadline=14 * MS, weight=3.0) for n in range(9, 17)]
    table.at(0, submit(*cheap, *dear))
    table.expect(0, dispatch(*dear), *(reject(one) for one in cheap))


def test_lite_prefers_the_queue_whose_delay_would_cost_more() -> None:
    """Both cannot be in time together; the one with more to lose goes."""
    table = Table(models=TWO)
    few = [request(n, deadline=14 * MS) for n in range(1, 4)]
    many = [request(n, deadline=14 * MS, model="n") for n in range(4, 12)]
    table.at(0, submit(*few, *many))
    table.expect(0, dispatch(*many), *(reject(one) for one in few))


def test_lite_gives_the_overdue_their_turn_behind_an_endless_rush() -> None:
    """Requests without a deadline are worth less than the rush, and still do not wait for ever."""
    table = Table()
    patient = request(1, weight=0.01)
    rush = (request(n, weight=9.0, deadline=S * S) for n in range(2, S))
    table.at(0, submit(*(next(rush) for _ in range(16)), patient))
    turns = 0
    while patient not in table.batches[len(table.batches)].requests:
        last = len(table.batches)
        now = table.now + 13 * MS
        assert now < PATIENCE_NS + (STARVED_EVERY + 2) * 13 * MS
        made = [request(r.id, weight=9.0, deadline=now + 30 * MS) for r in _next(rush, 8)]
        table.at(now, done(last), submit(*made))
        turns += now > PATIENCE_NS
    assert 0 < turns <= STARVED_EVERY + 1


def _next(source: Iterator[Request], count: int) -> list[Request]:
    return [next(source) for _ in range(count)]


class _View(OneDevice):
    """Queues with a time each, whatever their rows."""

    tuning = EXACT

    def __init__(self, times: dict[str, int]) -> None:
        self._times = times

    def queues(self, device: str) -> Sequence[RequestQueue]:
        return []

    def variants(self, model: str, device: str) -> Sequence[Way]:
        return (Way(model),)

    def safe_ns(self, model: str, device: str, rows: int) -> int:
        return self._times[model]

    def rows_cap(self, model: str, device: str) -> int:
        return 8


@pytest.mark.parametrize("seed", range(400))
def test_step_a_finds_an_order_in_time_exactly_if_there_is_one(seed: int) -> None:
    """Up to six queues, every order of them tried (Jackson 1955)."""
    dice = random.Random(seed)
    times, queues = dict[str, int](), list[RequestQueue]()
    for number in range(dice.randint(1, 6)):
        queue = RequestQueue(f"m{number}", 0, alone=False)
        queue.push(request(number, deadline=dice.randint(1, 24), model=queue.model))
        times[queue.model] = dice.randint(1, 8)
        queues.append(queue)

    def is_in_time(order: Sequence[RequestQueue]) -> bool:
        now = 0
        for queue in order:
            now += times[queue.model]
            if now > queue.first_deadline_ns:
                return False
        return True

    found = _everything_fits(queues, _View(times), "gpu", 0)
    assert (found is not None) == any(map(is_in_time, permutations(queues)))


def test_step_a_sends_no_queue_in_part() -> None:
    queue = RequestQueue("m", 0, alone=True)
    for number in (1, 2):
        queue.push(request(number, deadline=S))
    assert _everything_fits([queue], _View({"m": 1}), "gpu", 0) is None
