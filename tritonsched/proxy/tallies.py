"""What Triton counts otherwise than clients do, by model and version. Rule: an Observer that counts
and never asks; Triton's own counters are the base, this is the difference.

To Triton a merged batch of eight is one request, a batch that is taken apart is one more, what was
refused here never was, and what waited here did not wait. `true_counts` adds the difference to an
answer. Triton's counters begin anew when a model is loaded, and with Triton; so do these: a version
that is gone, or whose count fell below what it must have reached, is forgotten (`compare`).
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tritonsched.core.batch import Batch
from tritonsched.core.observers import Observer
from tritonsched.core.request import Outcome, RejectReason, Request
from tritonsched.errors import BackendError, MalformedAnswer, RegionFault

VERSIONS_MAX = 4096  # (model, version) pairs counted; beyond, the oldest is forgotten
SIZES_MAX = 1024  # batch sizes told apart in a version; others get the mean of all
ANY_SIZE = 0
LATE_MAX = 16  # answers that Triton may have sent and not yet counted; it counts after answering

Key = tuple[str, str]
"""(model, version); an empty version is the newest, as clients say it."""
Count = tuple[int, int]
"""Triton's requests of a version: (succeeded, failed)."""
Mark = Mapping[Key, int]
_ANSWERED = (Outcome.SERVED, Outcome.LATE)  # nearly all: counted with their batch
_NUMBER = re.compile(r"-?[0-9]{1,19}")
_NONE: Count = (0, 0)
_GONE: Count = (-1, 0)


@dataclass(slots=True)
class Tally:
    """The difference for one version, since its counters began.

    calls: merged calls, of one request or more, that Triton answered. ok: all calls that it
    answered well. added: by rows of the batch, requests that it did not see (-1: one that no client
    sent). twice: rows that were executed for nobody. failed: as `added`, of calls that it failed,
    and failed_rows as `twice`; whether it counts such a call, and as what, depends on the model, so
    `true_counts` infers it. uncertain: calls that failed. wait_ns: what answered requests waited
    here. refused, refused_ns: what ended before Triton saw it. base: Triton's counts before we
    came. seen: its successes when last asked. told: what clients were told last, by member.
    """

    calls: int = 0
    ok: int = 0
    added: Counter[int] = field(default_factory=Counter)
    twice: int = 0
    uncertain: int = 0
    failed: Counter[int] = field(default_factory=Counter)
    failed_rows: int = 0
    wait_ns: int = 0
    refused: int = 0
    refused_ns: int = 0
    base: Count = (0, 0)
    seen: int = 0
    told: Mapping[str, Count] = field(default_factory=dict)

    def take(self, other: "Tally") -> None:
        """Add what was counted there."""
        self.calls += other.calls
        self.ok += other.ok
        self.added.update(other.added)
        self.twice += other.twice
        self.uncertain += other.uncertain
        self.failed.update(other.failed)
        self.failed_rows += other.failed_rows
        self.wait_ns += other.wait_ns
        self.refused += other.refused
        self.refused_ns += other.refused_ns


class Tallies(Observer):
    """All of one sidecar; an `Observer` of the scheduler."""

    def __init__(self) -> None:
        self._tallies: dict[Key, Tally] = {}
        self._bases: dict[Key, Count] = {}
        self._sent: dict[int, tuple[int, str]] = {}  # request -> first one of its batch, its model

    # -- Observer -----------------------------------------------------------------------------

    def on_dispatch(self, batch: Batch, now: int) -> None:
        first, model = batch.requests[0].id, batch.model
        self._sent |= {r.id: (r.id if r.apart else first, model) for r in batch.requests}

    def on_complete(self, batch: Batch, *, measured_ns: int, now: int) -> None:
        first = batch.requests[0]
        tally = self._tally(batch.model, first.version)
        if not first.apart:
            tally.ok += 1
        if not (first.alone or first.apart):
            tally.calls += 1
            if len(batch.requests) > 1:
                _add(tally.added, batch.rows, len(batch.requests) - 1)
        came_ns = sum([request.arrival_ns for request in batch.requests])
        tally.wait_ns += max(0, len(batch.requests) * batch.dispatch_ns - came_ns)

    def on_outcomes(
        self, requests: Sequence[Request], outcome: Outcome, reason: str, now: int
    ) -> None:
        for request in requests:
            sent = self._sent.pop(request.id, None)
            if request.apart and sent is not None and outcome is not Outcome.FAILED:
                self._tally(sent[1], request.version).ok += 1  # whether its client is there or not
            if outcome is Outcome.FAILED:
                first, model = sent or (0, request.model)
                self._failed(model, request.version, is_first=first == request.id)
            elif outcome not in _ANSWERED and _is_refused(outcome, reason, was_sent=bool(sent)):
                tally = self._tally(request.model, request.version)
                tally.refused += 1
                tally.refused_ns += max(0, now - request.arrival_ns)

    def _failed(self, model: str, version: str, *, is_first: bool) -> None:
        """A call that Triton failed: its first request stands for what Triton may have counted."""
        tally = self._tally(model, version)
        if is_first:
            tally.uncertain += 1
        else:
            _add(tally.failed, ANY_SIZE, 1)

    def taken_apart(self, batch: Batch, error: BackendError) -> None:
        """A merged batch failed, and its members are sent once more."""
        if isinstance(error, RegionFault):  # it never went out
            return
        tally = self._tally(batch.model, batch.requests[0].version)
        if isinstance(error, MalformedAnswer):  # Triton knows nothing of that
            tally.ok += 1
            _add(tally.added, batch.rows, -1)
            tally.twice += batch.rows
        else:
            tally.uncertain += 1
            _add(tally.failed, batch.rows, -1)
            tally.failed_rows += batch.rows

    # -- what Triton says ---------------------------------------------------------------------

    def of(self, model: str, version: str) -> Tally | None:
        """The difference for a version as Triton names it; None if there is none."""
        return self._tallies.get((model, version))

    def is_open(self, model: str) -> bool:
        """Something was counted for the newest version, and `compare` has yet to say which."""
        return (model, "") in self._tallies

    @property
    def may_begin_anew(self) -> bool:
        """Something was counted, by us or by Triton before we came: a look is worth its call."""
        return bool(self._tallies or self._bases)

    @property
    def is_empty(self) -> bool:
        """Nothing was counted: Triton's answers are right as they are."""
        return not self._tallies

    def mark(self, *, late_max: int = LATE_MAX) -> Mark:
        """To be taken before Triton is asked: what its successes must have reached by then.

        late_max: 0 if nothing was answered for a while.
        """
        return {
            key: max(tally.seen, tally.base[0] + max(0, tally.calls - late_max))
            for key, tally in self._tallies.items()
        }

    def compare(self, mark: Mark, counts: Mapping[Key, Count], *, model: str = "") -> None:
        """Forget versions that began anew; give what was counted for the newest to its version.

        counts: what Triton has said since `mark`, of every version of `model`; of every model if
        that is empty.
        """
        concerned = {key for key in self._tallies if not model or key[0] == model}
        gone = {key[0] for key in concerned if key[1] and key not in counts}
        for key in concerned:
            if key[0] in gone and (not key[1] or key not in counts):
                self._forget(key)
        floors = self._settle(mark, counts)
        for key in {*self._tallies, *self._bases}:
            if not model or key[0] == model:
                self._check(key, floors.get(key, 0), counts.get(key, _GONE)[0])

    def reconnected(self, mark: Mark, counts: Mapping[Key, Count]) -> None:
        """Triton answers again, and it may be another process: keep what was counted only if its
        counts show that it is the same. counts: of every version.
        """
        floors = self._settle(mark, counts)
        is_same = any(floor > 0 for floor in floors.values()) and all(
            counts.get(key, _GONE)[0] >= floor for key, floor in floors.items()
        )
        if not is_same:
            self._tallies.clear()
            self._bases = {key: count for key, count in counts.items() if any(count)}

    def _settle(self, mark: Mark, counts: Mapping[Key, Count]) -> Mark:
        """Give the newest version what was counted for it; returns the mark by version."""
        floors = dict(mark)
        for model, version in _newest(counts).items():
            counted = self._tallies.pop((model, ""), None)
            if counted is not None:
                tally = self._tally(model, version)
                tally.take(counted)
                floor = floors.pop((model, ""), 0)
                floors[model, version] = floors.get((model, version), tally.base[0]) + floor
        return floors

    def _check(self, key: Key, floor: int, succeeded: int) -> None:
        tally = self._tallies.get(key)
        if succeeded < max(floor, self._bases.get(key, _NONE)[0]):
            self._forget(key)
        elif tally is not None:
            tally.seen = max(tally.seen, succeeded)

    def _forget(self, key: Key) -> None:
        self._tallies.pop(key, None)
        self._bases.pop(key, None)

    def _tally(self, model: str, version: str) -> Tally:
        key = (model, _as_triton_says(version) if version else "")
        tally = self._tallies.get(key)
        if tally is None:
            while len(self._tallies) >= VERSIONS_MAX:
                del self._tallies[next(iter(self._tallies))]
            tally = self._tallies[key] = Tally(base=self._bases.get(key, _NONE))
        return tally


def _as_triton_says(version: str) -> str:
    """A client's version as Triton names it: to Triton `01` is 1, and -1 the newest."""
    if not _NUMBER.fullmatch(version):
        return version
    return "" if version.startswith("-") else str(int(version))


def _newest(counts: Mapping[Key, Count]) -> dict[str, str]:
    """The highest version of each model: Triton's choice for a request that names none."""
    newest: dict[str, str] = {}
    for model, version in counts:
        newest[model] = max(newest.get(model, ""), version, key=lambda text: (len(text), text))
    return newest


def _add(sizes: Counter[int], rows: int, number: int) -> None:
    sizes[rows if rows in sizes or len(sizes) < SIZES_MAX else ANY_SIZE] += number


def _is_refused(outcome: Outcome, reason: str, *, was_sent: bool) -> bool:
    """It ended in our queue, where it would have failed in Triton's: Triton counts what it rejects,
    what is too late and what is cancelled. A Triton that is away counts nothing.
    """
    if outcome is Outcome.CANCELLED:
        return not was_sent
    if outcome is Outcome.REJECTED:
        return reason != RejectReason.TRITON_UNAVAILABLE
    return outcome is Outcome.EXPIRED
