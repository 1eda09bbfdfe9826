"""Triton's dynamic batcher: readiness, order, REJECT, shared devices, and AIMD."""

from collections.abc import Iterable, Sequence

import pytest

from tests.helpers import MS, request
from tritonsched.core.batch import Batch
from tritonsched.core.ledger import Ledger
from tritonsched.core.request import NEVER_NS, Outcome, Request
from tritonsched.sim.triton import SPEED_UP, Batcher, TritonServer
from tritonsched.sim.world import SimModel, World, affine

MODELS = (SimModel("m", 8, affine(5 * MS, MS)), SimModel("n", 8, affine(10 * MS, 0)))


class Log(Ledger):
    """Remembers what ran and when it was back, in ms."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[int, tuple[int, ...]]] = []
        self.back: list[int] = []
        self.left: dict[int, Outcome] = {}

    def on_dispatch(self, batch: Batch, now: int) -> None:
        super().on_dispatch(batch, now)
        self.sent.append((now // MS, tuple(r.id for r in batch.requests)))

    def on_complete(self, batch: Batch, *, measured_ns: int, now: int) -> None:
        self.back.append(now // MS)

    def on_outcomes(
        self, requests: Sequence[Request], outcome: Outcome, reason: str, now: int
    ) -> None:
        super().on_outcomes(requests, outcome, reason, now)
        self.left.update((one.id, outcome) for one in requests)


def serve(requests: Iterable[Request], batcher: Batcher, *, slots: int = 1) -> Log:
    log = Log()
    world = World(MODELS, seed=1, rtt_ns=0)
    server = TritonServer(world, {"m": batcher, "n": batcher}, slots=slots, observers=(log,))
    server.run(requests)
    assert sum(log.submitted.values()) == len(log.left)
    return log


def m(number: int, at_ms: int, deadline_ms: int = 1000) -> Request:
    return request(number, model="m", arrival=at_ms * MS, deadline=deadline_ms * MS)


def n(number: int, at_ms: int) -> Request:
    return request(number, model="n", arrival=at_ms * MS, deadline=1000 * MS)


def test_without_delay_an_idle_device_starts_at_once_and_a_payload_grows_until_it_is_taken() -> (
    None
):
    log = serve([m(1, 0), m(2, 1), m(3, 3)], Batcher(8))
    assert log.sent == [(0, (1,)), (6, (2, 3))]


def test_a_payload_waits_for_its_delay_or_until_it_is_full() -> None:
    batcher = Batcher(3, delay_ns=20 * MS)
    assert serve([m(1, 0), m(2, 10)], batcher).sent == [(20, (1, 2))]
    assert serve([m(1, 0), m(2, 4), m(3, 7)], batcher).sent == [(7, (1, 2, 3))]


def test_ready_payloads_run_in_the_order_of_their_readiness_whatever_their_deadlines() -> None:
    log = serve([n(1, 0), n(2, 2), m(3, 4, deadline_ms=12)], Batcher(8))
    assert log.sent == [(0, (1,)), (10, (2,)), (20, (3,))]
    assert log.left[3] is Outcome.LATE


def test_a_request_too_old_is_rejected_when_a_payload_is_formed_and_not_before() -> None:
    log = serve([n(1, 0), m(2, 1), m(3, 8)], Batcher(8, timeout_ns=5 * MS))
    assert log.sent == [(0, (1,)), (10, (3,))]
    assert log.left == {1: Outcome.SERVED, 2: Outcome.REJECTED, 3: Outcome.SERVED}
    assert log.reasons == {("c", "timeout"): 1}


def test_a_payload_of_nothing_but_old_requests_lets_the_next_one_run() -> None:
    log = serve([n(1, 0), m(2, 1), n(3, 9)], Batcher(8, timeout_ns=5 * MS))
    assert log.sent == [(0, (1,)), (10, (3,))]


def test_a_batch_that_is_never_full_is_never_served() -> None:
    log = serve([m(1, 0), m(2, 1)], Batcher(8, delay_ns=NEVER_NS))
    assert log.left == {1: Outcome.EXPIRED, 2: Outcome.EXPIRED}


def test_batches_that_share_a_device_slow_each_other_down() -> None:
    log = serve([n(1, 0), n(2, 0)], Batcher(1), slots=2)
    assert log.sent == [(0, (1,)), (0, (2,))]
    assert log.back == [pytest.approx(20 / SPEED_UP[2], abs=1)] * 2


def test_a_batch_gets_the_device_to_itself_when_its_neighbour_ends() -> None:
    log = serve([m(1, 0), n(2, 0)], Batcher(1), slots=2)
    assert log.back[0] == pytest.approx(12 / SPEED_UP[2], abs=1)  # 6 ms at 0.56
    assert log.back[1] == pytest.approx(12 / SPEED_UP[2] + 4, abs=1)


def test_clippers_batch_size_grows_by_one_and_falls_by_a_tenth() -> None:
    early = serve([m(k, 0) for k in range(1, 11)], Batcher(8, aimd=True))
    assert [len(members) for _, members in early.sent] == [1, 2, 3, 4]
    late = serve([m(k, 0, deadline_ms=14) for k in range(1, 11)], Batcher(8, aimd=True))
    assert [len(members) for _, members in late.sent] == [1, 2, 3, 2, 2]
