"""CIKM'17's heuristic: how large a batch, in which order, by which model."""

from dataclasses import replace

import pytest

from tests.helpers import MS, S, Table, done, exact, request, submit
from tritonsched.core.policies import cikm
from tritonsched.core.policies.cikm import ARRIVALS_MAX, BIN_NS, Cikm, _Rate, binned
from tritonsched.core.queues import RequestQueue
from tritonsched.core.request import Request, Utility
from tritonsched.core.variant import Family, Variant

SECOND = dict.fromkeys((1, 64), S)


def table(rule: Cikm | None = None, devices: tuple[str, ...] = ("gpu",), rows: int = 64) -> Table:
    """`yolo` by `full` (1 s a batch, whatever its size) or `tiny` (0.1 s, worth half)."""
    made = Table(rule or Cikm(), models={"m": (rows, devices)})
    for name, ns, worth in (("full", S, 1.0), ("tiny", S // 10, 0.5)):
        made.scheduler.set_variant(Variant(name, rows, devices, worth), 0)
        for device in devices:
            made.scheduler.set_profile(name, device, exact({1: ns, rows: ns}))
    made.scheduler.set_family(Family("yolo", ("tiny", "full")), 0)
    return made


def queries(count: int, first: int = 1, *, model: str = "yolo", at: int = 0) -> list[Request]:
    return [
        request(n, model=model, arrival=at, deadline=at + 20 * S)
        for n in range(first, first + count)
    ]


def last(made: Table) -> tuple[str, int]:
    """Model and rows of the batch sent last."""
    batch = made.batches[max(made.batches)]
    return batch.model, batch.rows


@pytest.mark.parametrize(
    ("waiting", "model", "rows"),
    [(1, "full", 1), (4, "full", 2), (20, "full", 8), (28, "tiny", 16), (90, "tiny", 32)],
)
def test_the_smallest_size_that_keeps_up_runs_and_above_eight_the_simple_model(
    waiting: int, model: str, rows: int
) -> None:
    """All came within 5 s: B >= [0.5 x 1 s x waiting / 5 s + 0.5 x waiting] x 0.5."""
    made = table()
    made.at(0, submit(*queries(waiting)))
    assert last(made) == (model, rows)


def test_of_what_is_larger_than_the_largest_batch_the_largest_runs() -> None:
    made = table(rows=16)
    made.at(0, submit(*queries(200)))
    assert last(made) == ("tiny", 16)


def test_arrivals_count_once_and_for_five_seconds() -> None:
    queue = RequestQueue("m", 0, alone=False)
    rate = _Rate()
    early, late = request(1, arrival=0), request(2, arrival=3 * S)
    queue.push(early)
    assert [rate.of(queue, now) for now in (0, S)] == [0.2, 0.2]
    queue.push(late)
    assert rate.of(queue, 4 * S) == 0.4
    queue.remove((late,))
    assert [rate.of(queue, now) for now in (5 * S, 8 * S)] == [0.2, 0.0]


def test_a_device_takes_its_part_of_the_work() -> None:
    """Two alike: each needs half of the size that one would."""
    made = table(devices=("a", "b"))
    made.at(0, submit(*queries(1, model="m")), submit(*queries(1, 2, model="m", at=0)))
    made.at(3 * MS, submit(*queries(28, 3)))
    made.at(6 * MS, done(1), done(2))
    sizes = {batch.device: batch.rows for batch in made.batches.values() if batch.rows > 1}
    assert sizes == {"a": 16, "b": 4}  # `a` asks first and alone; for `b` B >= 2.2


def test_as_printed_the_better_model_runs_while_its_batch_is_worth_more() -> None:
    soft = [replace(one, utility=Utility.linear(0.5)) for one in queries(28)]
    made = table(Cikm(by_quality=True))
    made.at(0, submit(*soft))
    assert last(made) == ("full", 16)
    hurried = [replace(one, deadline_ns=1200 * MS) for one in soft]  # `full` ends at 1 s: 1/3
    made = table(Cikm(by_quality=True))
    made.at(0, submit(*hurried))
    assert last(made) == ("tiny", 16)
    made = table(Cikm(by_quality=True))
    made.at(0, submit(*hurried[:4]))
    assert last(made) == ("full", 2)  # below eight nobody asks


def test_bins_go_by_deadline_and_within_one_by_arrival() -> None:
    queue = RequestQueue("m", 0, alone=False)
    late = request(1, arrival=0, deadline=2 * BIN_NS)
    second = request(2, arrival=20, deadline=BIN_NS)
    first = request(3, arrival=10, deadline=2 * BIN_NS - 1)
    for one in (late, second, first):
        queue.push(one)
    assert binned(queue) == [first, second, late]


def test_without_variants_it_forms_batches_alone_and_what_is_alone_goes_alone() -> None:
    made = Table(Cikm(), models={"m": (8, ("gpu",))}, points={1: S, 8: S})
    made.at(0, submit(*queries(40, model="m")))
    assert last(made) == ("m", 8)
    made = Table(Cikm(), models={"m": (8, ("gpu",))}, points={1: S, 8: S})
    made.at(0, submit(*(replace(one, alone=True) for one in queries(4, model="m"))))
    assert last(made) == ("m", 1)


def test_what_it_remembers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cikm, "QUEUES_MAX", 2)
    rule = Cikm()
    queues = [RequestQueue(model, 0, alone=False) for model in "abc"]
    for queue in queues:
        rule._rate_of(queue)
    assert [key[0] for key in rule._rates] == ["b", "c"]
    assert _Rate()._times.maxlen == ARRIVALS_MAX
