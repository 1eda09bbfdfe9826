"""The last minutes of a sidecar, remembered for the page and `top`. Rule: an Observer that keeps
and never decides; `now` comes in, plain values stay; whatever grows has a named bound.

Always kept, at about a microsecond a batch: when each of a device's last batches ran, and once a
second a copy of the ledger's counts. Kept only while somebody looks (`is_watched`): what each
request waited for, because that is work for every request.
"""

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

from tritonsched.core.batch import Batch
from tritonsched.core.fairness import Tenants
from tritonsched.core.ledger import Ledger
from tritonsched.core.observers import Observer
from tritonsched.core.request import Outcome, Request
from tritonsched.core.reservation import Reservation
from tritonsched.core.tuning import Tuning
from tritonsched.core.variant import ServerState

RUNS_MAX = 512  # batches remembered a device
DEVICES_MAX = 32
PREDICTED_MAX = 400  # batches whose predicted and measured times are remembered
HISTORY_S = 180
RECENT_S = 30
TIMES = ("window", "guard", "reply", "rtt")  # of a Tuning
AT_ONCE_NS = 1_000_000  # a wait that short is the event loop's and has no other reason

AT_ONCE = "at-once"
SAME_MODEL = "same-model"
OTHER_MODELS = "other-models"
HELD = "held"
RESENT = "resent"
"""What a request waited for: nothing; its device ran batches of its own model; of other models;
nobody used the device (a window, the plan of a stream, the lead of the batch, Triton away); its
merged batch had failed."""


class Watched(Protocol):
    """The part of a scheduler that is shown."""

    @property
    def tuning(self) -> Tuning: ...

    @property
    def server(self) -> ServerState: ...

    def queued(self) -> dict[str, int]: ...

    def running(self) -> tuple[Batch, ...]: ...

    def reservations(self) -> tuple[tuple[Reservation, str], ...]: ...

    def tenancy(self) -> tuple[Tenants, dict[str, int]]: ...


@dataclass(slots=True)
class Run:
    """A batch on its device. end_ns: 0 while it runs. failed: it ended and taught nothing."""

    id: int
    model: str
    rows: int
    requests: int
    start_ns: int
    expected_ns: int
    end_ns: int = 0
    failed: bool = False


@dataclass(slots=True)
class Work:
    """What a model's batches came to since the start. measured: those that came back with a time
    that had been predicted; expected_ns and measured_ns: their sums.
    """

    batches: int = 0
    requests: int = 0
    rows: int = 0
    measured: int = 0
    expected_ns: int = 0
    measured_ns: int = 0


@dataclass(slots=True)
class Wait:
    """Requests whose wait had mostly this reason, and all that anybody waited for it."""

    requests: int = 0
    ns: int = 0


class Sample(NamedTuple):
    """One look: counts since the start."""

    at_ns: int
    outcomes: Mapping[tuple[str, Outcome], int]
    reasons: Mapping[tuple[str, str], int]
    work: Mapping[str, Work]
    waits: Mapping[str, Wait]
    tenants: Mapping[tuple[str, Outcome], int]


Point = tuple[int, tuple[int, ...], Mapping[str, int], tuple[int, ...]]
"""A second of history: when (ns), requests by outcome since the start in the order of `Outcome`,
requests waiting by model, the tuning's TIMES (ns)."""


@dataclass(slots=True)
class Overview(Observer):
    """What was seen, each oldest first. runs: by device. recent: the last looks, whole. history:
    the last looks, in short. predicted: (model, predicted ns, measured ns) of the last batches.
    """

    is_watched: bool = False
    runs: dict[str, deque[Run]] = field(default_factory=dict)
    recent: deque[Sample] = field(default_factory=lambda: deque(maxlen=RECENT_S + 1))
    history: deque[Point] = field(default_factory=lambda: deque(maxlen=HISTORY_S))
    predicted: deque[tuple[str, int, int]] = field(
        default_factory=lambda: deque(maxlen=PREDICTED_MAX)
    )
    _work: dict[str, Work] = field(default_factory=lambda: defaultdict(Work))
    _waits: dict[str, Wait] = field(default_factory=lambda: defaultdict(Wait))

    # -- Observer -----------------------------------------------------------------------------

    def on_dispatch(self, batch: Batch, now: int) -> None:
        size = len(batch.requests)
        work = self._work[batch.model]
        work.batches += 1
        work.requests += size
        work.rows += batch.rows
        runs = self.runs.get(batch.device)
        if runs is None:
            if len(self.runs) >= DEVICES_MAX:
                return
            runs = self.runs[batch.device] = deque(maxlen=RUNS_MAX)
        if self.is_watched:
            self._explain(batch.requests, batch.model, reversed(runs), now)
        start_ns, expected_ns = batch.expected_start_ns, batch.expected_ns
        runs.append(Run(batch.id, batch.model, batch.rows, size, start_ns, expected_ns))

    def on_complete(self, batch: Batch, *, measured_ns: int, now: int) -> None:
        for run in reversed(self.runs.get(batch.device, ())):
            if run.id == batch.id:
                run.start_ns, run.end_ns = now - measured_ns, now
                break
        if batch.expected_ns > 0:
            work = self._work[batch.model]
            work.measured += 1
            work.expected_ns += batch.expected_ns
            work.measured_ns += measured_ns
            self.predicted.append((batch.model, batch.expected_ns, measured_ns))

    # -- once a second ------------------------------------------------------------------------

    def sample(self, scheduler: Watched, ledger: Ledger, now: int) -> None:
        """Take a look. Models that Triton has no more are forgotten."""
        self._find_failed({batch.id for batch in scheduler.running()}, now)
        queued = scheduler.queued()
        for model in self._work.keys() - queued.keys():
            del self._work[model]
        work = {model: replace(done) for model, done in self._work.items()}
        waits = {reason: replace(wait) for reason, wait in self._waits.items()}
        outcomes, reasons = dict(ledger.outcomes), dict(ledger.reasons)
        self.recent.append(Sample(now, outcomes, reasons, work, waits, dict(ledger.tenants)))
        totals = tuple(ledger.total(outcome) for outcome in Outcome)
        times = tuple(getattr(scheduler.tuning, f"{name}_ns") for name in TIMES)
        self.history.append((now, totals, queued, times))

    def _find_failed(self, out: set[int], now: int) -> None:
        """A batch that is neither out nor measured has failed."""
        for runs in self.runs.values():
            for run in runs:
                if not run.end_ns and run.id not in out:
                    run.end_ns = min(now, run.start_ns + run.expected_ns)
                    run.failed = True

    def _explain(
        self, requests: tuple[Request, ...], model: str, runs: Iterable[Run], now: int
    ) -> None:
        spans = _spans(runs, model, min(request.arrival_ns for request in requests), now)
        for request in requests:
            parts = _waited(request, spans, now)
            for reason, spent_ns in parts:
                self._waits[reason].ns += spent_ns
            self._waits[max(parts, key=_time)[0]].requests += 1


Part = tuple[str, int]


def _time(part: Part) -> int:
    return part[1]


def _spans(runs: Iterable[Run], model: str, from_ns: int, now: int) -> list[tuple[int, int, bool]]:
    """(start, end, of this model) of what ran since then, newest first and without overlaps."""
    spans = []
    until_ns = now
    for run in runs:
        end_ns = min(run.end_ns or now, until_ns)
        if end_ns <= from_ns:
            break
        if run.start_ns < end_ns:
            spans.append((run.start_ns, end_ns, run.model == model))
            until_ns = run.start_ns
    return spans


def _waited(request: Request, spans: list[tuple[int, int, bool]], now: int) -> list[Part]:
    """Nanoseconds of the request's wait by reason; at least one."""
    from_ns = request.arrival_ns
    wait_ns = max(0, now - from_ns)
    if request.retry:
        return [(RESENT, wait_ns)]
    if wait_ns < AT_ONCE_NS:
        return [(AT_ONCE, wait_ns)]
    same_ns = other_ns = 0
    for start_ns, end_ns, is_same in spans:
        if end_ns <= from_ns:
            break
        spent_ns = end_ns - max(from_ns, start_ns)
        if is_same:
            same_ns += spent_ns
        else:
            other_ns += spent_ns
    parts = ((SAME_MODEL, same_ns), (OTHER_MODELS, other_ns), (HELD, wait_ns - same_ns - other_ns))
    return [part for part in parts if part[1]]
