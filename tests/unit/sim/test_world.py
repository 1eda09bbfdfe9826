"""The simulated Triton: serial devices, round trips, and fates that only the seed decides."""

import pytest

from tests.helpers import MS, request
from tritonsched.core.batch import Batch
from tritonsched.sim.world import Answer, Fate, Faults, SimModel, World, affine, table

RTT = 2 * MS


def batch(
    number: int, *, rows: int = 1, model: str = "m", device: str = "gpu0", alone: bool = False
) -> Batch:
    members = (request(number, model=model, rows=rows, alone=alone),)
    return Batch(number, model, device, members, rows, 0, 0, 0)


def world(**faults: object) -> World:
    """Two models on one device, one of them on a second one too; 1 ms + 1 ms a row."""
    models = (
        SimModel("m", 8, affine(MS, MS), ("gpu0", "gpu1")),
        SimModel("n", 8, affine(5 * MS, 0), ("gpu0",)),
    )
    return World(models, seed=1, rtt_ns=RTT, faults=Faults(**faults))  # type: ignore[arg-type]


def test_an_answer_takes_the_round_trip_and_the_execution() -> None:
    assert world().send(batch(1, rows=3), 10 * MS) == Answer(16 * MS, Fate.OK)


def test_a_batch_sent_ahead_waits_its_turn_whatever_its_model() -> None:
    made = world()
    made.send(batch(1, rows=3), 0)  # on the device from 1 to 5 ms
    assert made.send(batch(2, model="n"), MS).at_ns == 11 * MS
    assert made.send(batch(3, device="gpu1"), MS).at_ns == 5 * MS
    assert made.busy_ns == {"gpu0": 9 * MS, "gpu1": 2 * MS}


def test_fates_and_times_are_the_same_in_any_order_and_differ_by_seed() -> None:
    noise = {"jitter": 0.1, "overrun_rate": 0.2}
    one, other = world(**noise), world(**noise)
    there = [one.exec_ns(batch(n), 0) for n in range(50)]
    back = [other.exec_ns(batch(n), 0) for n in reversed(range(50))]
    assert there == back[::-1]
    assert len(set(there)) == 50
    assert max(there) > 3 * MS  # an overrun: 1.5 to 3 times 2 ms


def test_a_throttled_device_is_slower_from_its_time_on() -> None:
    made = world(throttles=((10 * MS, 2.0), (20 * MS, 1.0)))
    times = [made.exec_ns(batch(n), at) // MS for n, at in enumerate((9 * MS, 10 * MS, 20 * MS))]
    assert times == [2, 4, 2]


def test_the_first_batch_of_a_model_on_a_device_is_slow() -> None:
    made = world(slow_first=10.0)
    times = [
        made.exec_ns(one, 0) // MS
        for one in (batch(1), batch(2), batch(3, model="n"), batch(4, device="gpu1"))
    ]
    assert times == [20, 2, 50, 20]


def test_no_batch_is_shorter_than_a_microsecond() -> None:
    made = World((SimModel("m", 8, affine(0, 0)),), seed=1)
    assert made.exec_ns(batch(1), 0) == 1_000


def test_merged_and_lone_batches_fail_at_their_own_rates() -> None:
    merged = world(failure_rate=1.0)
    assert merged.send(batch(1), 0).fate is Fate.FAILED
    assert merged.send(batch(2, alone=True), 0).fate is Fate.OK
    lone = world(alone_failure_rate=1.0)
    assert lone.send(batch(1), 0).fate is Fate.OK
    assert lone.send(batch(2, alone=True), 0).fate is Fate.FAILED


@pytest.mark.parametrize(
    ("fate", "alone", "ok", "retried"),
    [
        (Fate.OK, False, True, False),
        (Fate.FAILED, False, False, True),
        (Fate.FAILED, True, False, False),
        (Fate.LOST, False, False, False),
    ],
)
def test_only_a_failed_merge_is_tried_again(
    fate: Fate, alone: bool, ok: bool, retried: bool
) -> None:
    completion = Answer(5, fate).completion(batch(1, alone=alone))
    assert (completion.ok, completion.retried) == (ok, retried)


def test_what_triton_holds_when_it_goes_is_lost_half_a_round_trip_later() -> None:
    made = world(away=((10 * MS, 50 * MS),))
    assert made.send(batch(1), 0).fate is Fate.OK
    assert made.send(batch(2), 8 * MS) == Answer(11 * MS, Fate.LOST)
    assert made.send(batch(3), 20 * MS) == Answer(22 * MS, Fate.LOST)
    assert made.send(batch(4), 50 * MS) == Answer(54 * MS, Fate.OK)


def test_a_table_is_flat_then_linear_then_proportional() -> None:
    exec_ns = table({2: 10 * MS, 4: 14 * MS})
    assert [exec_ns(rows) // MS for rows in (1, 2, 3, 4, 8)] == [10, 10, 12, 14, 28]
