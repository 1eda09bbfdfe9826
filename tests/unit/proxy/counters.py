"""Triton's counters of one version, played by a test: each request of a batch that it has formed
is counted with the whole of the batch's execution (core: `infer_stats.cc`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tritonsched.core.batch import Batch
from tritonsched.core.request import Outcome, Request
from tritonsched.errors import BackendError
from tritonsched.proxy.tallies import Tallies
from tritonsched.proxy.true_counts import COMPUTE, NAMES, Counts, as_clients_count

MODEL, VERSION = "m", "1"
QUEUE_NS, OVERHEAD_NS, FAILURE_NS, WAIT_NS = 50, 30, 7, 1_000
ERROR = BackendError("no")


def compute_ns(rows: int) -> dict[str, int]:
    """Flat, then linear, as GPUs are; each part of another size."""
    return {name: (100 + 10 * max(4, rows)) * (n + 1) for n, name in enumerate(COMPUTE)}


@dataclass
class Triton:
    """how it counts a call that its model fails: `success`, `fail`, or not at all."""

    fails_as: str = "fail"
    rows: int = 0
    stats: dict[str, tuple[int, int]] = field(default_factory=lambda: dict.fromkeys(NAMES, (0, 0)))
    batches: dict[int, dict[str, tuple[int, int]]] = field(default_factory=dict)

    def run(self, requests: Sequence[int], *, ok: bool = True) -> None:
        """Execute a batch of requests with so many rows each."""
        if not ok and self.fails_as != "success":
            if self.fails_as == "fail":
                self._plus("fail", FAILURE_NS)
            return
        size = sum(requests)
        took = compute_ns(size)
        batch = self.batches.setdefault(size, dict.fromkeys(COMPUTE, (0, 0)))
        for name, ns in took.items():
            batch[name] = (batch[name][0] + 1, batch[name][1] + ns)
        for rows in requests:
            self.rows += rows
            self._plus("queue", QUEUE_NS)
            for name, ns in took.items():
                self._plus(name, ns)
            self._plus("success", QUEUE_NS + OVERHEAD_NS + sum(took.values()))

    def _plus(self, name: str, ns: int) -> None:
        count, total = self.stats[name]
        self.stats[name] = (count + 1, total + ns)

    @property
    def counts(self) -> Counts:
        return Counts(self.rows, self.stats, self.batches)

    @property
    def totals(self) -> tuple[int, ...]:
        return totals(self.counts)


def totals(counts: Counts) -> tuple[int, ...]:
    """Rows, and how often each figure was counted."""
    return counts.rows, *[counts.stats[name][0] for name in NAMES]


class Sidecar:
    """What happens in a sidecar in front of `triton`, as its scheduler and driver tell it; `alone`
    is a Triton that the same clients ask directly.
    """

    def __init__(self, triton: Triton, alone: Triton, *, resends: bool = True) -> None:
        self.triton = triton
        self.alone = alone
        self.tallies = Tallies()
        self._resends = resends
        self._id = 0

    def shown(self) -> Counts:
        """Triton's statistics as the sidecar shows them."""
        tally = self.tallies.of(MODEL, VERSION)
        return self.triton.counts if tally is None else as_clients_count(self.triton.counts, tally)

    def serve(self, members: Sequence[tuple[int, bool]], *, lone: bool = False) -> None:
        """One batch. members: rows, and whether the model can do it."""
        requests = [self._request(rows, alone=lone) for rows, _ in members]
        ok = all(good for _, good in members)
        for rows, good in members:
            self.alone.run([rows], ok=good)
        self._run(requests, ok=ok)
        if ok:
            return
        if lone or not self._resends:
            self._leave(requests, Outcome.FAILED)
            return
        self.tallies.taken_apart(self._batch(requests), ERROR)
        for request, (_, good) in zip(requests, members, strict=True):
            again = Request(
                request.id, MODEL, "c", 0, request.rows, 0, alone=True, retry=True, version=VERSION
            )
            self._run([again], ok=good)
            if not good:
                self._leave([again], Outcome.FAILED)

    def _run(self, requests: list[Request], *, ok: bool) -> None:
        batch = self._batch(requests)
        self.tallies.on_dispatch(batch, WAIT_NS)
        self.triton.run([batch.rows], ok=ok)
        if ok:
            self.tallies.on_complete(batch, measured_ns=1, now=WAIT_NS)
            self._leave(requests, Outcome.SERVED)

    def refuse(self, outcome: Outcome, reason: str = "") -> None:
        self.tallies.on_outcomes((self._request(1),), outcome, reason, WAIT_NS)

    def _leave(self, requests: Sequence[Request], outcome: Outcome) -> None:
        for request in requests:
            self.tallies.on_outcomes((request,), outcome, "", WAIT_NS)

    def _request(self, rows: int, *, alone: bool = False) -> Request:
        self._id += 1
        return Request(self._id, MODEL, "c", 0, rows, 0, alone=alone, version=VERSION)

    def _batch(self, requests: list[Request]) -> Batch:
        rows = sum(request.rows for request in requests)
        return Batch(1, MODEL, "gpu", tuple(requests), rows, WAIT_NS, WAIT_NS, 1)
