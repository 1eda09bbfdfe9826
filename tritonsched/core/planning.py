"""The plan of guaranteed streams on one device: which frames share a batch, in which order, when.

Rule: a plan is made by exact simulation of the rule that fills it, over all frames of all streams,
and what runs later follows it: same batches, same order, none before its planned start. Then no
batch ends later than planned when none takes longer than promised. (An eager schedule has no such
property: with early completions its order changes and sets that passed the test miss deadlines,
Graham's anomaly; scheduling study 4.6.)

Because order and members are fixed, each batch also has a *latest* start: the last one from which
it and everything behind it still is in time. `latest_starts` computes it backwards. Anything that
ends before the next batch's latest start harms nobody; that is the room for best effort.

The rule is deadline order with holding (study 4.6, "hold-EDF"): a category's batch closes when the
share `hold` of its first frame's slack is gone, or when it is full; of the closed ones the earliest
due goes first, as large as its head allows. Holding pays where curves are flat, eagerness where
they are steep, so `plan` tries HOLDS in turn.
"""

from bisect import insort
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tritonsched.core.request import NEVER_NS
from tritonsched.core.reservation import Category, Reservation

HOLDS = (0.5, 0.75, 0.25, 0.0)
"""Shares of the slack to hold, in the order tried (study 4.6: .5 first, eager last)."""

FrameKey = tuple[int, int]
"""(reservation id, frame number)."""
CostNs = Callable[[str, int], int]


class Frame(NamedTuple):
    """A frame as the plan sees it. release_ns: from when it surely is here; due_ns: until when its
    batch must be back, whatever its jitter.
    """

    due_ns: int
    key: FrameKey
    release_ns: int
    rows: int


class PlannedBatch(NamedTuple):
    """start_ns: not before. cost_ns: promised. due_ns: the first member's."""

    start_ns: int
    cost_ns: int
    due_ns: int
    category: Category
    rows: int
    frames: tuple[FrameKey, ...]


Arrivals = list[tuple[int, Category, Frame]]


@dataclass(slots=True)
class _Open:
    """The frames of one category that wait, earliest due first."""

    cap: int
    frames: list[Frame] = field(default_factory=list)
    rows: int = 0

    def push(self, frame: Frame) -> None:
        insort(self.frames, frame)
        self.rows += frame.rows

    def take(self, count: int) -> list[Frame]:
        taken = self.frames[:count]
        del self.frames[:count]
        self.rows -= sum(frame.rows for frame in taken)
        return taken


def arrivals(
    reservations: Iterable[Reservation],
    *,
    lead_ns: int,
    reply_ns: int,
    skip: frozenset[FrameKey] = frozenset(),
    from_ns: int = 0,
) -> Arrivals:
    """All frames that a plan from `from_ns` on must serve, by release.

    A frame counts as here `lead_ns` (a batch leaves that much before it starts) after the latest
    arrival that its jitter allows, and as due at its earliest deadline less `reply_ns`. Frames that
    arrived before `from_ns` are served only if they are due after it. skip: planned already.
    """
    found: Arrivals = []
    for reservation in reservations:
        jitter = reservation.jitter_ns
        for number in range(reservation.frames):
            at_ns = reservation.arrival_ns(number)
            due_ns = at_ns - jitter + reservation.relative_deadline_ns - reply_ns
            key = (reservation.id, number)
            if due_ns > from_ns and key not in skip:
                frame = Frame(due_ns, key, at_ns + jitter + lead_ns, reservation.rows)
                found.append((frame.release_ns, reservation.category, frame))
    found.sort()
    return found


def simulate(
    coming: Arrivals, cost_ns: CostNs, *, caps: dict[Category, int], free_ns: int, hold: float
) -> list[PlannedBatch] | None:
    """Deadline order with holding, to the last frame; None as soon as one would miss.

    caps: most rows of a batch by category. O(frames x categories).
    """
    waiting = {category: _Open(cap) for category, cap in caps.items()}
    batches: list[PlannedBatch] = []
    t, index, count = free_ns, 0, len(coming)
    while True:
        while index < count and coming[index][0] <= t:
            waiting[coming[index][1]].push(coming[index][2])
            index += 1
        next_ns = coming[index][0] if index < count else NEVER_NS
        best, closes_ns = _first_closed(waiting, cost_ns, t, hold)
        if best is not None:
            batch = _batch(best, waiting[best], cost_ns, t)
            if batch is None:
                return None
            batches.append(batch)
            t += batch.cost_ns
        elif min(next_ns, closes_ns) == NEVER_NS:
            return batches
        else:
            t = min(next_ns, closes_ns)


def _first_closed(
    waiting: dict[Category, _Open], cost_ns: CostNs, t: int, hold: float
) -> tuple[Category | None, int]:
    """The closed category that is due first; if there is none, when the next one closes."""
    best: tuple[Frame, Category] | None = None
    closes_ns = NEVER_NS
    for category, opened in waiting.items():
        if not opened.frames:
            continue
        head = opened.frames[0]
        closes = t
        if hold and opened.rows < opened.cap:
            slack_ns = head.due_ns - head.release_ns - cost_ns(category[0], opened.rows)
            closes = head.release_ns + int(hold * slack_ns)
        if closes > t:
            closes_ns = min(closes_ns, closes)
        elif best is None or head < best[0]:
            best = (head, category)
    return (best[1] if best else None), closes_ns


def _batch(category: Category, opened: _Open, cost_ns: CostNs, t: int) -> PlannedBatch | None:
    """The largest batch of the first frames that keeps the head's deadline; None if none does."""
    rows = size = 0
    for frame in opened.frames:
        if size and rows + frame.rows > opened.cap:
            break
        rows += frame.rows
        size += 1
    due_ns = opened.frames[0].due_ns
    while t + cost_ns(category[0], rows) > due_ns:
        size -= 1
        rows -= opened.frames[size].rows
        if not size:
            return None
    keys = tuple(frame.key for frame in opened.take(size))
    return PlannedBatch(t, cost_ns(category[0], rows), due_ns, category, rows, keys)


def plan(
    coming: Arrivals,
    cost_ns: CostNs,
    *,
    caps: dict[Category, int],
    free_ns: int,
    holds: Sequence[float] = HOLDS,
) -> list[PlannedBatch] | None:
    """The first plan that keeps every deadline, trying `holds` in turn; None if none does."""
    for hold in holds:
        found = simulate(coming, cost_ns, caps=caps, free_ns=free_ns, hold=hold)
        if found is not None:
            return found
    return None


def latest_starts(batches: Sequence[PlannedBatch]) -> list[int]:
    """For each batch the last start from which it and all behind it are in time, order fixed."""
    found = [0] * len(batches)
    limit_ns = NEVER_NS
    for index in range(len(batches) - 1, -1, -1):
        batch = batches[index]
        limit_ns = min(limit_ns, batch.due_ns) - batch.cost_ns
        found[index] = limit_ns
    return found
