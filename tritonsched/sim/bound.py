"""What a clairvoyant scheduler could earn at most: the yardstick of the study.

Rule: every step only relaxes the real problem, so the figure is never below the true optimum.

1. A request needs at least its share of the best batch that the trace allows it: the least
   exec(b) / b over sizes b for which b requests (it among them) could be together and in time.
2. That work must be done between its arrival and its deadline; how it is cut up, and what else
   runs, does not matter. Device g of a pool works at most at the best ratio of its speed to the
   fastest.
3. Work that a set of requests can get is what preemptive earliest-deadline-first does on it; as a
   function of the set this is a polymatroid, so the greedy order by utility per work is optimal:
       bound = sum over levels k of (y_k - y_(k+1)) * F(requests of density >= y_k)
   The sum is taken from above on as many levels as keep it within GAP of its lower sum.
4. A choice of variants enters as the concave hull of (work, utility), cut into pieces.

Single-deadline models: b consecutive arrivals within SLO - exec(b); otherwise pairs are compared.
Source: the scheduling study, section 1 (B2); Edmonds 1970 for the greedy.
"""

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tritonsched.core.request import Request
from tritonsched.sim.world import ExecNs, SimModel

JITTER = 0.97  # batches may be that much shorter than nominal on the whole (sigma 3 %)
GAP = 0.001  # the upper sum is at most this share above the lower one
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Piece:
    """Work of a request that earns `utility` in proportion to what is done of it, in its window."""

    arrival_ns: int
    deadline_ns: int
    work_ns: float
    utility: float

    @property
    def density(self) -> float:
        return self.utility / self.work_ns


@dataclass(frozen=True, slots=True)
class Option:
    """One way to serve a model: accuracy relative to the best, and times by device."""

    accuracy: float
    rows_max: int
    on: Mapping[str, ExecNs]


def options_of(models: Iterable[SimModel]) -> dict[str, list[Option]]:
    """Each model as it is, without a choice of variants."""
    return {m.name: [Option(1.0, m.rows_max, {d: m.exec_on(d) for d in m.devices})] for m in models}


def bound(requests: Iterable[Request], options: Mapping[str, Sequence[Option]]) -> float:
    """An upper bound on the total utility of these requests, in the unit of their weights.

    Every request must have a deadline.
    """
    by_model: defaultdict[str, list[Request]] = defaultdict(list)
    for request in requests:
        by_model[request.model].append(request)
    pieces: list[Piece] = []
    ratios: defaultdict[str, float] = defaultdict(float)
    for model, members in by_model.items():
        costs = [_costs(members, option) for option in options[model]]
        for per_device in costs:
            _raise_ratios(ratios, per_device)
        best = [np.min(np.stack([*per_device.values()]), axis=0) for per_device in costs]
        pieces += _pieces(members, options[model], best)
    return polymatroid(pieces, capacity=sum(ratios.values()))


def _raise_ratios(ratios: defaultdict[str, float], per_device: Mapping[str, Array]) -> None:
    fastest = np.min(np.stack([*per_device.values()]), axis=0)
    for device, costs in per_device.items():
        served = np.isfinite(costs)
        if served.any():
            ratios[device] = max(ratios[device], float(np.max(fastest[served] / costs[served])))


def _costs(members: Sequence[Request], option: Option) -> dict[str, Array]:
    """Least work of each request on each device, in ns; inf where it cannot be in time."""
    alike = len({r.deadline_ns - r.arrival_ns for r in members}) == 1
    plain = alike and all(r.rows == 1 for r in members)
    arrival = np.array([r.arrival_ns for r in members], dtype=np.float64)
    deadline = np.array([r.deadline_ns for r in members], dtype=np.float64)
    rows = np.array([r.rows for r in members], dtype=np.float64)
    found: dict[str, Array] = {}
    for device, exec_ns in option.on.items():
        least = np.full(len(members), np.inf)
        for b in range(1, option.rows_max + 1):
            took = exec_ns(b) * JITTER
            if plain:
                fits = _consecutive(arrival, deadline, b, took)
            else:
                fits = _pairwise(arrival, deadline, rows, b, took) & (rows <= b)
            least = np.where(fits, np.minimum(least, took / b * rows), least)
        found[device] = least
    return found


def _consecutive(arrival: Array, deadline: Array, b: int, took: float) -> NDArray[np.bool_]:
    """Members of a run of `b` arrivals that the last one's wait leaves in time."""
    covered = np.zeros(len(arrival) + 1, dtype=np.int64)
    if len(arrival) < b:
        return covered[:-1] > 0
    whole = arrival[b - 1 :] + took <= deadline[: len(arrival) - b + 1]
    starts = np.flatnonzero(whole)
    np.add.at(covered, starts, 1)
    np.add.at(covered, starts + b, -1)
    return np.cumsum(covered)[:-1] > 0


def _pairwise(
    arrival: Array, deadline: Array, rows: Array, b: int, took: float
) -> NDArray[np.bool_]:
    """Members that could be together with others of `b` rows in all, each pair by itself."""
    able = arrival + took <= deadline
    by_arrival, by_deadline = np.sort(arrival[able]), np.sort(deadline[able])
    rows_by_arrival = np.concatenate([[0], np.cumsum(rows[able][np.argsort(arrival[able])])])
    rows_by_deadline = np.concatenate([[0], np.cumsum(rows[able][np.argsort(deadline[able])])])
    early = rows_by_arrival[np.searchsorted(by_arrival, deadline - took, side="right")]
    over = rows_by_deadline[np.searchsorted(by_deadline, arrival + took, side="left")]
    together: NDArray[np.bool_] = able & (early - over >= b)
    return together


def _pieces(
    members: Sequence[Request], options: Sequence[Option], costs: Sequence[Array]
) -> Iterable[Piece]:
    for index, request in enumerate(members):
        points = [
            (float(cost[index]), option.accuracy * request.weight)
            for option, cost in zip(options, costs, strict=True)
            if np.isfinite(cost[index])
        ]
        for work, utility in hull(points):
            yield Piece(request.arrival_ns, request.deadline_ns, work, utility)


def hull(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The concave hull of (work, utility) from the origin, as steps of falling density."""
    kept = [(0.0, 0.0)]
    for work, utility in sorted(points):
        if utility <= kept[-1][1]:
            continue
        while len(kept) > 1 and _slope(kept[-2], kept[-1]) <= _slope(kept[-1], (work, utility)):
            kept.pop()
        kept.append((work, utility))
    return [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(kept)]


def _slope(a: tuple[float, float], b: tuple[float, float]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])


def polymatroid(pieces: Sequence[Piece], *, capacity: float = 1.0) -> float:
    """The greedy optimum over pieces; capacity: work a nanosecond. Within GAP, from above."""
    if not pieces:
        return 0.0
    in_order = sorted(pieces, key=lambda piece: piece.arrival_ns)
    levels = sorted({piece.density for piece in pieces}, reverse=True)

    def work(level: int) -> float:
        least = levels[level]
        return edf_work([p for p in in_order if p.density >= least], capacity)

    return min(_upper_sum([*levels, 0.0], work), sum(piece.utility for piece in pieces))


def edf_work(pieces: Iterable[Piece], capacity: float) -> float:
    """What preemptive earliest-deadline-first does of these, in order of arrival; O(n log n)."""
    waiting: list[tuple[int, float]] = []
    now, done = 0.0, 0.0
    for piece in pieces:
        done += _run(waiting, now, float(piece.arrival_ns), capacity)
        now = float(piece.arrival_ns)
        heapq.heappush(waiting, (piece.deadline_ns, piece.work_ns))
    return done + _run(waiting, now, float("inf"), capacity)


def _run(waiting: list[tuple[int, float]], now: float, until: float, capacity: float) -> float:
    done = 0.0
    while waiting and now < until:
        deadline, left = waiting[0]
        part = min(left, (min(until, deadline) - now) * capacity)
        if part < left and deadline > until:  # interrupted
            heapq.heapreplace(waiting, (deadline, left - part))
            return done + part
        heapq.heappop(waiting)
        if part > 0:
            done += part
            now += part / capacity
    return done


Span = tuple[float, int, int, float, float]
"""(minus what the span may be too high, its ends, the work known there)."""


def _upper_sum(levels: Sequence[float], work: Callable[[int], float]) -> float:
    """Sum of (y_k - y_(k+1)) * work(k), where work is known: else that of the next known level.

    Work rises with k, so this is from above; it is split where it may be most too high.
    """
    last = len(levels) - 2
    first_work, last_work = work(0), work(last)
    total = (levels[0] - levels[1]) * first_work + (levels[1] - levels[-1]) * last_work
    spans = [_span(levels, 0, last, first_work, last_work)]
    while -sum(span[0] for span in spans) > GAP * total:
        _, low, high, low_work, high_work = heapq.heappop(spans)
        middle = (low + high) // 2
        middle_work = work(middle)
        total -= (levels[low + 1] - levels[middle + 1]) * (high_work - middle_work)
        heapq.heappush(spans, _span(levels, low, middle, low_work, middle_work))
        heapq.heappush(spans, _span(levels, middle, high, middle_work, high_work))
    return total


def _span(levels: Sequence[float], low: int, high: int, low_work: float, high_work: float) -> Span:
    unknown = levels[low + 1] - levels[high] if high > low else 0.0
    return (-unknown * (high_work - low_work), low, high, low_work, high_work)
