"""Several servers, one queue: what one of them loses, the others serve."""

from dataclasses import replace

import pytest

from tests.helpers import AFFINE, MS, Table, dispatch, done, exact, reject, request, server, submit
from tests.unit.core.test_streams import STREAM, TIMES, Desk, members
from tritonsched.core.batch import Completion, Dispatch
from tritonsched.core.request import NEVER_NS, Outcome, RejectReason, Request
from tritonsched.core.servers import Servers
from tritonsched.core.variant import ServerState, Variant

AWAY, READY, DRAINING = ServerState.AWAY, ServerState.READY, ServerState.DRAINING
GONE = RejectReason.TRITON_UNAVAILABLE


def two(rule: str = "fcfs") -> Table:
    """`m` on both servers, one row in 6 ms; `left` is the first."""
    table = Table(rule, models={})
    table.scheduler.set_variant(Variant("m", 8, ("l", "r"), servers=("left", "right")), 0)
    for device in ("l", "r"):
        table.scheduler.set_profile("m", device, exact(AFFINE))
    return table


def pinned(number: int, name: str, deadline: int = NEVER_NS) -> Request:
    return replace(request(number, deadline=deadline, alone=True), server=name)


# -- states ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "overall"),
    [
        ({}, READY),
        ({"a": AWAY}, AWAY),
        ({"a": AWAY, "b": READY}, READY),
        ({"a": AWAY, "b": AWAY}, AWAY),
        ({"a": AWAY, "b": DRAINING}, DRAINING),
    ],
)
def test_away_is_when_all_are_and_draining_when_one_is_told(
    said: dict[str, ServerState], overall: ServerState
) -> None:
    servers = Servers()
    for name, state in said.items():
        servers.put(name, state)
    assert servers.overall is overall
    assert servers.states() == said
    assert servers.is_up("unheard of")
    assert [servers.is_up(name) for name in said] == [s is not AWAY for s in said.values()]


# -- one queue ------------------------------------------------------------------------------------


def test_a_server_that_is_away_is_given_nothing() -> None:
    table = two()
    table.at(0, server(AWAY, "left"), submit(request(1, alone=True), request(2, alone=True)))
    table.expect(0, dispatch(request(1), device="r"))
    table.at(6 * MS, done(1))
    table.expect(6 * MS, dispatch(request(2), device="r"))


def test_what_waits_moves_by_itself_and_comes_back_with_the_server() -> None:
    table = two()
    table.at(0, submit(*(request(n, alone=True) for n in range(1, 5))))
    table.expect(0, dispatch(request(1), device="l"), dispatch(request(2), device="r"))
    table.at(MS, server(AWAY, "left"))
    table.at(6 * MS, done(2))
    table.expect(6 * MS, dispatch(request(3), device="r"))
    table.at(7 * MS, done(1, ok=False), server(READY, "left"))
    table.expect(7 * MS, dispatch(request(4), device="l"))


def test_a_model_is_refused_only_when_no_server_of_it_is_up() -> None:
    table = two()
    table.scheduler.set_variant(Variant("only", 8, ("l",), servers=("left",)), 0)
    table.scheduler.set_profile("only", "l", exact({1: MS}))
    table.at(0, server(AWAY, "left"), submit(request(1), request(2, model="only")))
    table.expect(0, dispatch(request(1), device="r"), reject(request(2), GONE))
    table.at(1, server(AWAY, "right"), submit(request(3)))
    table.expect(1, reject(request(3), GONE))
    assert table.scheduler.servers() == {"left": AWAY, "right": AWAY}


def test_what_waits_for_a_server_is_refused_when_it_goes_and_the_rest_stays() -> None:
    table = Table("fcfs", models={})
    for model, device, name in (("a", "l", "left"), ("b", "r", "right")):
        table.scheduler.set_variant(Variant(model, 1, (device,), servers=(name,)), 0)
        table.scheduler.set_profile(model, device, exact(AFFINE))
    table.at(0, submit(*(request(n, model="ab"[n % 2]) for n in range(4))))
    table.expect(0, dispatch(request(0), device="l"), dispatch(request(1), device="r"))
    table.at(1, server(AWAY, "left"))
    table.expect(1, reject(request(2), GONE))
    table.at(6 * MS, done(2))
    table.expect(6 * MS, dispatch(request(3), device="r"))


def test_a_deadline_is_judged_by_the_servers_that_are_up() -> None:
    table = two("lite")
    table.scheduler.set_profile("m", "r", exact({1: 60 * MS}))
    table.at(0, server(AWAY, "left"), submit(request(1)))
    table.expect(0, dispatch(request(1), device="r"))
    table.at(1, submit(request(2, deadline=20 * MS)))
    table.expect(1, reject(request(2)))
    table.at(2, server(READY, "left"), submit(request(3, deadline=20 * MS)))
    table.expect(2, dispatch(request(3), device="l"))


# -- a request that only one server can run -------------------------------------------------------


def test_a_request_of_one_server_waits_for_it_alone() -> None:
    table = two()
    table.at(0, submit(*(pinned(n, "left") for n in (1, 2)), request(3)))
    table.expect(0, dispatch(request(1), device="l"), dispatch(request(3), device="r"))
    table.at(3 * MS, done(2))
    table.expect_nothing(3 * MS)
    table.at(5 * MS, done(1))
    table.expect(5 * MS, dispatch(request(2), device="l"))


def test_a_request_of_one_server_is_refused_when_that_one_goes() -> None:
    table = two()
    table.at(0, submit(pinned(1, "left"), pinned(2, "left"), pinned(3, "right")))
    table.expect(0, dispatch(request(1), device="l"), dispatch(request(3), device="r"))
    table.at(1, server(AWAY, "left"), submit(pinned(4, "left"), pinned(5, "right")))
    table.expect(1, reject(request(4), GONE), reject(request(2), GONE))
    table.at(6 * MS, done(2))
    table.expect(6 * MS, dispatch(request(5), device="r"))


def test_a_request_of_one_server_is_judged_by_its_times() -> None:
    table = two("lite")
    table.scheduler.set_profile("m", "r", exact({1: 60 * MS}))
    table.at(0, submit(pinned(1, "right")))
    table.expect(0, dispatch(request(1), device="r"))
    table.at(1, submit(pinned(2, "left", deadline=20 * MS), pinned(3, "right", deadline=20 * MS)))
    table.expect(1, dispatch(request(2), device="l"), reject(request(3)))


# -- a batch that is lost -------------------------------------------------------------------------


def lost_at(table: Table, number: int) -> None:
    """Batch `number` is lost with its server, as a driver says it."""
    batch = table.batches[number]
    moved = table.scheduler.movable(batch)
    table.scheduler.complete(Completion.lost(batch, moved), table.now)
    table.scheduler.set_server(AWAY, table.now, batch.server)
    for made in moved:
        table.scheduler.submit(replace(made, retry=True), table.now)


def test_a_lost_batch_is_merged_again_elsewhere_once() -> None:
    table = two()
    table.at(0, server(AWAY, "right"), submit(request(1), request(2)))
    table.expect(0, dispatch(request(1), request(2), device="l"))
    table.at(MS, server(READY, "right"), lambda t: lost_at(t, 1))
    table.expect(MS, dispatch(request(1), request(2), device="r"))
    table.at(2 * MS, server(READY, "left"))
    assert table.scheduler.movable(table.batches[2]) == ()
    table.at(3 * MS, lambda t: lost_at(t, 2))
    table.expect_nothing(3 * MS)
    assert table.ledger.total(Outcome.FAILED) == 2


def test_a_lost_batch_has_failed_where_no_other_server_has_its_model() -> None:
    table = two()
    table.at(0, server(AWAY, "right"), submit(request(1)))
    table.expect(0, dispatch(request(1), device="l"))
    table.at(MS, lambda t: lost_at(t, 1))
    table.expect_nothing(MS)
    assert table.ledger.total(Outcome.FAILED) == 1


def test_what_only_the_lost_server_could_run_has_failed() -> None:
    table = two()
    table.at(0, submit(pinned(1, "left")))
    table.expect(0, dispatch(request(1), device="l"))
    table.at(MS, lambda t: lost_at(t, 1))
    table.expect_nothing(MS)
    assert table.ledger.total(Outcome.FAILED) == 1


def test_of_a_lost_batch_those_that_were_sent_before_have_failed() -> None:
    table = two()
    again = replace(request(1), retry=True)
    table.at(0, server(AWAY, "right"), submit(again, request(2)))
    table.expect(0, dispatch(request(1), request(2), device="l"))
    table.at(MS, server(READY, "right"), lambda t: lost_at(t, 1))
    table.expect(MS, dispatch(request(2), device="r"))
    assert table.ledger.total(Outcome.FAILED) == 1


# -- guaranteed streams ---------------------------------------------------------------------------


def test_frames_of_a_device_that_is_away_are_served_elsewhere_as_best_effort() -> None:
    desk = Desk()
    both = Variant("m", 8, ("gpu0", "gpu1"), servers=("left", "right"))
    desk.scheduler.set_variant(both, 0)
    desk.scheduler.set_profile("m", "gpu1", exact(TIMES))
    desk.ask(STREAM)
    ((_, device),) = desk.scheduler.reservations()
    home = dict(both.places())[device]
    desk.frame(1, 1000)
    assert desk.decide(1000) == []  # it waits for its planned start
    desk.scheduler.set_server(AWAY, 1001 * MS, home)
    (sent,) = desk.decide(1001)
    assert isinstance(sent, Dispatch)
    assert (sent.batch.device == device, members([sent])) == (False, [(1,)])
    desk.done(1006)
    desk.frame(2, 1100)
    assert members(desk.decide(1100)) == [(2,)]
    desk.done(1105)
    desk.scheduler.set_server(READY, 1106 * MS, home)
    desk.frame(3, 1200)
    assert desk.decide(1200) == []  # guaranteed again
    assert len(desk.scheduler.reservations()) == 1


# -- which device first ---------------------------------------------------------------------------


@pytest.mark.parametrize("devices", [("fast", "slow"), ("slow", "fast")])
@pytest.mark.parametrize("alone", [True, False])
def test_of_free_devices_the_one_that_is_done_first_takes_the_work(
    devices: tuple[str, ...], *, alone: bool
) -> None:
    table = Table("lite", models={"m": (8, devices)}, points=None)
    table.scheduler.set_profile("m", "fast", exact(AFFINE))
    table.scheduler.set_profile("m", "slow", exact({n: 3 * ns for n, ns in AFFINE.items()}))
    table.at(0, submit(request(1, deadline=90 * MS, alone=alone)))
    table.expect(0, dispatch(request(1), device="fast"))


def test_a_device_with_nothing_to_do_does_not_stand_in_the_way() -> None:
    table = Table("fcfs", models={"m": (8, ("a",)), "n": (8, ("b",))})
    table.at(0, submit(request(1, model="n")))
    table.expect(0, dispatch(request(1), device="b"))


# -- how far each server is -----------------------------------------------------------------------


def test_a_batch_of_a_farther_server_is_expected_later_and_sent_earlier() -> None:
    """2 ms of round trip more: 8 ms instead of 6, and the next one leaves 2 ms before its end."""
    table = two()
    table.scheduler.set_distances({"left": 2 * MS}, 0)
    table.at(0, server(AWAY, "right"), submit(request(1, alone=True), request(2, alone=True)))
    table.expect(0, dispatch(request(1), device="l"))
    assert table.batches[1].expected_end_ns == 8 * MS
    table.expect(6 * MS, dispatch(request(2), device="l"))
    assert table.batches[2].expected_end_ns == 14 * MS
    table.at(8 * MS, done(1))  # the way is not what the model took
    table.at(14 * MS, done(2), submit(request(3, deadline=21 * MS)))
    table.expect(14 * MS, reject(request(3)))


def test_the_nearer_of_two_equal_servers_comes_first() -> None:
    table = two("lite")
    table.scheduler.set_distances({"left": MS}, 0)
    table.at(0, submit(request(1, deadline=90 * MS)))
    table.expect(0, dispatch(request(1), device="r"))
