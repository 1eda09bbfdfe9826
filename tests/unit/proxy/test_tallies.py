"""What is counted beside Triton's counters, and when it is forgotten because they began anew."""

import pytest

from tests.unit.proxy.counters import ERROR
from tritonsched.core.batch import Batch
from tritonsched.core.request import Outcome, Request
from tritonsched.errors import BackendError, MalformedAnswer, RegionFault
from tritonsched.proxy import tallies as module
from tritonsched.proxy.tallies import LATE_MAX, Count, Key, Tallies, Tally

ONE, TWO, TEN = ("m", "1"), ("m", "2"), ("m", "10")
NEWEST = ("m", "")
OTHER = ("other", "1")


def batch(
    *,
    key: Key = ONE,
    members: int = 4,
    alone: bool = False,
    apart: bool = False,
    first_id: int = 1,
) -> Batch:
    """One row a member; they came at 0, 10, 20 … and left at 100."""
    model, version = key
    requests = tuple(
        Request(first_id + n, model, "c", 0, 1, 10 * n, alone=alone, apart=apart, version=version)
        for n in range(members)
    )
    return Batch(1, model, "gpu", requests, members, 100, 100, 1)


def answered(tallies: Tallies, *batches: Batch) -> None:
    for one in batches:
        tallies.on_dispatch(one, 100)
        tallies.on_complete(one, measured_ns=1, now=200)
        for request in one.requests:
            tallies.on_outcomes((request,), Outcome.SERVED, "", 200)


def many(tallies: Tallies, key: Key, calls: int) -> None:
    """So many merged calls of two."""
    answered(tallies, *(batch(key=key, members=2) for _ in range(calls)))


def tally_of(tallies: Tallies, key: Key) -> Tally:
    tally = tallies.of(*key)
    assert tally is not None
    return tally


def counts(**succeeded: int) -> dict[Key, Count]:
    """Of versions `m_1`, `m_2`, `m_10` and `other_1`."""
    return {(name.split("_")[0], name.split("_")[1]): (n, 0) for name, n in succeeded.items()}


def test_members_beyond_the_first_and_all_waits_are_counted() -> None:
    tallies = Tallies()
    answered(tallies, batch(members=4), batch(members=1), batch(members=1, alone=True))
    tally = tally_of(tallies, ONE)
    assert (tally.added, tally.ok, tally.calls) == ({4: 3}, 3, 2)
    assert tally.wait_ns == (100 + 90 + 80 + 70) + 100 + 100


def test_a_client_that_left_while_its_batch_ran_was_served_all_the_same() -> None:
    """Triton executed it; one that left the queue never came so far."""
    tallies = Tallies()
    one = batch(members=2)
    tallies.on_dispatch(one, 100)
    tallies.on_complete(one, measured_ns=1, now=200)
    for request in one.requests:
        tallies.on_outcomes((request,), Outcome.CANCELLED, "", 200)
    assert tally_of(tallies, ONE).refused == 0
    tallies.on_outcomes((batch(first_id=9).requests[0],), Outcome.CANCELLED, "", 150)
    assert (tally_of(tallies, ONE).refused, tally_of(tallies, ONE).refused_ns) == (1, 150)


def test_members_that_are_calls_of_their_own_are_counted_each() -> None:
    tallies = Tallies()
    one = batch(members=4, apart=True)
    tallies.on_dispatch(one, 100)
    tallies.on_complete(one, measured_ns=1, now=200)
    outcomes = (Outcome.SERVED, Outcome.LATE, Outcome.CANCELLED, Outcome.FAILED)
    for request, outcome in zip(one.requests, outcomes, strict=True):
        tallies.on_outcomes((request,), outcome, "", 200)
    tally = tally_of(tallies, ONE)
    assert (tally.ok, tally.calls, tally.added) == (3, 0, {})
    assert (tally.uncertain, tally.failed, tally.refused) == (1, {}, 0)


@pytest.mark.parametrize(("reason", "refused"), [("queue-full", 1), ("triton-unavailable", 0)])
def test_a_refusal_counts_if_there_was_a_triton_to_refuse(reason: str, refused: int) -> None:
    tallies = Tallies()
    answered(tallies, batch())
    tallies.on_outcomes((batch(first_id=9).requests[0],), Outcome.REJECTED, reason, 150)
    assert tally_of(tallies, ONE).refused == refused


@pytest.mark.parametrize(
    ("error", "added", "failed", "rows"),
    [(ERROR, {}, {4: -1}, (0, 4)), (MalformedAnswer("?"), {4: -1}, {}, (4, 0))],
)
def test_a_batch_taken_apart_is_one_call_that_no_client_sent(
    error: BackendError, added: dict[int, int], failed: dict[int, int], rows: tuple[int, int]
) -> None:
    """An answer that cannot be read is a success to Triton; an error may be either."""
    tallies = Tallies()
    tallies.taken_apart(batch(members=4), error)
    tally = tally_of(tallies, ONE)
    assert (tally.added, tally.failed) == (added, failed)
    assert (tally.twice, tally.failed_rows) == rows


def test_a_batch_that_never_went_out_is_not_counted() -> None:
    tallies = Tallies()
    tallies.taken_apart(batch(), RegionFault("too small"))
    assert tallies.is_empty


def test_what_was_counted_for_the_newest_goes_to_the_highest_number() -> None:
    """And stays there when a still newer one comes."""
    tallies = Tallies()
    answered(tallies, batch(key=NEWEST))
    assert tallies.is_open("m")
    tallies.compare(tallies.mark(), counts(m_2=9, m_10=9, m_1=9))
    assert not tallies.is_open("m")
    assert tallies.of(*TWO) is None
    answered(tallies, batch(key=NEWEST))
    tallies.compare(tallies.mark(), counts(m_2=9, m_10=9, m_11=9))
    assert [tally_of(tallies, key).added for key in (TEN, ("m", "11"))] == [{4: 3}, {4: 3}]


@pytest.mark.parametrize("key", [ONE, NEWEST])
def test_a_version_whose_count_fell_began_anew(key: Key) -> None:
    """Its own count only: the other model's goes on."""
    tallies = Tallies()
    many(tallies, key, 3)
    many(tallies, OTHER, 3)
    tallies.compare(tallies.mark(), counts(m_1=3, other_1=3))
    tallies.compare(tallies.mark(), counts(m_1=2, other_1=3))
    assert tallies.of(*ONE) is None
    assert tally_of(tallies, OTHER).added == {2: 3}


def test_a_count_below_our_own_calls_shows_it_too() -> None:
    """Nobody has asked before; some answers may not be counted yet."""
    tallies = Tallies()
    many(tallies, NEWEST, LATE_MAX + 5)
    tallies.compare(tallies.mark(), counts(m_1=5))
    assert tally_of(tallies, ONE).calls == LATE_MAX + 5
    many(tallies, ONE, LATE_MAX)
    tallies.compare(tallies.mark(), counts(m_1=LATE_MAX + 4))
    assert tallies.of(*ONE) is None


def test_a_late_reading_that_was_overtaken_forgets_nothing() -> None:
    """Two clients ask; the later answer comes first."""
    tallies = Tallies()
    many(tallies, ONE, 2)
    early = tallies.mark()
    tallies.compare(tallies.mark(), counts(m_1=2))
    tallies.compare(early, counts(m_1=1))
    assert tally_of(tallies, ONE).seen == 2


def test_a_version_that_is_gone_is_forgotten_with_what_was_open() -> None:
    tallies = Tallies()
    many(tallies, ONE, 1)
    many(tallies, OTHER, 1)
    tallies.compare(tallies.mark(), counts(m_1=1, other_1=1))
    many(tallies, NEWEST, 1)
    tallies.compare(tallies.mark(), counts(m_2=1, other_1=1))
    assert tallies.of(*ONE) is None
    assert tallies.of(*TWO) is None
    many(tallies, NEWEST, 1)
    tallies.compare(tallies.mark(), counts(other_1=1))
    assert not tallies.is_open("m")
    assert tally_of(tallies, OTHER).calls == 1


@pytest.mark.parametrize(
    ("version", "key"), [("01", ONE), ("1", ONE), ("-1", TEN), ("", TEN), ("--1", None)]
)
def test_a_version_is_the_same_however_clients_write_it(version: str, key: Key | None) -> None:
    """What is no number names none."""
    tallies = Tallies()
    many(tallies, TWO, 1)
    many(tallies, ("m", version), 1)
    tallies.compare(tallies.mark(), counts(m_1=9, m_2=9, m_10=9))
    assert tally_of(tallies, TWO).calls == 1
    assert [k for k in (ONE, TEN) if tallies.of(*k)] == ([key] if key else [])


def test_asked_of_one_model_the_others_stay_open() -> None:
    tallies = Tallies()
    many(tallies, NEWEST, 1)
    many(tallies, ("other", ""), 1)
    tallies.compare(tallies.mark(), counts(m_1=1), model="m")
    assert (tallies.is_open("m"), tallies.is_open("other")) == (False, True)


@pytest.mark.parametrize(("succeeded", "is_same"), [(3, True), (2, False), (0, False)])
def test_after_a_break_triton_is_the_same_one_if_it_has_counted_all(
    succeeded: int, *, is_same: bool
) -> None:
    tallies = Tallies()
    many(tallies, NEWEST, 3)
    tallies.reconnected(tallies.mark(late_max=0), counts(m_1=succeeded))
    assert (tallies.of(*ONE) is not None) == is_same
    assert tallies.is_empty != is_same


def test_nothing_shows_that_it_is_the_same_so_it_is_another() -> None:
    """Lone calls alone: only their waiting was counted."""
    tallies = Tallies()
    answered(tallies, batch(members=1, alone=True))
    tallies.reconnected(tallies.mark(late_max=0), counts(m_1=1))
    assert tallies.is_empty


@pytest.mark.parametrize("key", [ONE, NEWEST])
def test_what_triton_had_counted_before_the_sidecar_came_is_its_base(key: Key) -> None:
    """Until the version begins anew."""
    tallies = Tallies()
    tallies.reconnected(tallies.mark(late_max=0), {ONE: (7, 2), TWO: (0, 0)})
    many(tallies, key, 1)
    tallies.compare(tallies.mark(), counts(m_1=8))
    assert tally_of(tallies, ONE).base == (7, 2)
    many(tallies, key, 1)
    tallies.compare(tallies.mark(), counts(m_1=6))
    many(tallies, ONE, 1)
    assert tally_of(tallies, ONE).base == (0, 0)


def test_a_base_is_void_too_when_a_version_begins_anew_before_it_was_asked() -> None:
    tallies = Tallies()
    tallies.reconnected(tallies.mark(late_max=0), {ONE: (7, 2)})
    assert (tallies.is_empty, tallies.may_begin_anew) == (True, True)
    tallies.compare(tallies.mark(), counts(m_1=0))
    assert not tallies.may_begin_anew


def test_versions_and_batch_sizes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest version is forgotten; sizes beyond the bound share one entry."""
    monkeypatch.setattr(module, "VERSIONS_MAX", 2)
    monkeypatch.setattr(module, "SIZES_MAX", 2)
    tallies = Tallies()
    answered(tallies, batch(key=ONE), batch(key=TWO), batch(key=TEN))
    assert tallies.of(*ONE) is None
    answered(tallies, *(batch(key=TWO, members=members) for members in (2, 3, 5, 2)))
    assert tally_of(tallies, TWO).added == {4: 3, 2: 2, 0: 6}
