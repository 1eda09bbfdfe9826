"""Execution times: the only model of the device. Rule: learn from every answer, promise the safe
end.

Real curves are flat, then linear, so the profile is a table by rows, not a fit (scheduling study
2). Three parts, all learnt online:
- a table of mean times by rows, linear between measured sizes, proportional beyond the largest one
  (conservative: a batch never costs more than its rows one by one);
- a scale that follows drift of the whole table within a few batches (EWMA of log
  measured/expected);
- a tracked quantile of measured/expected, the margin of every promise.
A size's first samples count by their minimum: a model's first calls are often ten times slower
(graph building, page faults) and would otherwise refuse everything that follows.
O(1) a read (memoised), O(sizes) an observation.
"""

import math
from bisect import bisect_left, insort

PROVEN_SAMPLES = 8  # batches before the profile may be a reason to refuse
WARM_SAMPLES = 3  # first samples of a size, of which the least counts
CELL_RATE = 0.1  # a cell's mean follows the last ~10 samples
SCALE_RATE = 0.2  # the scale follows drift within ~15 batches (goal G6)
RESIDUAL_MAX = 0.5  # one batch, however late, moves the scale by at most 10 %
QUANTILE = 0.98  # of batches, at most 2 % should outlast the promise
QUANTILE_STEP = 0.04
MARGIN_START = 0.05  # log ratio before anything is known: 5 %
MARGIN_MAX = math.log(3.0)
STALE_NS = 1_000_000_000  # unmeasured this long, a profile is no reason to refuse an idle device
FINE_ROWS = 64  # sizes up to here have a cell each; above, 16 cells an octave keep the table small


def cell_of(rows: int) -> int:
    """The table's cell for a batch size: exact up to FINE_ROWS, then rounded up to 1/16 octave."""
    if rows <= FINE_ROWS:
        return rows
    grain = 1 << (rows.bit_length() - 5)
    return -(-rows // grain) * grain


class LatencyProfile:
    """Expected and safe execution time of one model on one device, by rows.

    table: measured nanoseconds by rows to start from; empty means nothing is known.
    """

    __slots__ = ("_cells", "_counts", "_last_ns", "_margin", "_memo", "_scale", "_sizes", "samples")

    def __init__(self, table: dict[int, int] | None = None) -> None:
        self._cells: dict[int, float] = {cell_of(r): float(ns) for r, ns in (table or {}).items()}
        self._counts: dict[int, int] = dict.fromkeys(self._cells, PROVEN_SAMPLES)
        self._sizes = sorted(self._cells)
        self._scale = 0.0
        self._margin = MARGIN_START
        self._memo: dict[int, int] = {}
        self._last_ns = -STALE_NS
        self.samples = PROVEN_SAMPLES if self._cells else 0

    @property
    def is_proven(self) -> bool:
        """Enough is known to refuse on it."""
        return self.samples >= PROVEN_SAMPLES

    @property
    def margin(self) -> float:
        """Safe over expected time, >= 1."""
        return math.exp(self._margin)

    @property
    def rows_known(self) -> int:
        """The largest batch size measured so far; 0 if none."""
        return self._sizes[-1] if self._sizes else 0

    def is_stale(self, now: int) -> bool:
        """Nothing was measured for STALE_NS: time to let a request through and look again."""
        return now - self._last_ns >= STALE_NS

    def exec_ns(self, rows: int) -> int:
        """Expected execution time of a batch of `rows`; 0 if nothing was ever measured."""
        known = self._memo.get(rows)
        if known is None:
            known = self._memo[rows] = int(self._interpolate(rows) * math.exp(self._scale))
        return known

    def safe_ns(self, rows: int) -> int:
        """What may be promised: expected time at the tracked quantile; 0 while unproven."""
        if self.samples < PROVEN_SAMPLES:
            return 0
        return int(self.exec_ns(rows) * math.exp(self._margin))

    def observe(self, *, rows: int, exec_ns: int, now: int) -> None:
        """Learn that a batch of `rows` took `exec_ns`. Times under 1 µs count as 1 µs."""
        measured = float(max(exec_ns, 1_000))
        expected = float(self.exec_ns(rows))
        self._last_ns = now
        self.samples += 1
        if self.is_proven and rows <= self.rows_known:  # extrapolated times are no evidence
            self._follow(math.log(measured / expected))
        self._learn(cell_of(rows), measured / math.exp(self._scale))
        self._memo.clear()

    def _follow(self, residual: float) -> None:
        """Move scale and margin. The margin is a stochastic quantile: up by p, down by 1 - p."""
        self._scale += SCALE_RATE * max(-RESIDUAL_MAX, min(RESIDUAL_MAX, residual))
        step = QUANTILE if residual > self._margin else QUANTILE - 1.0
        self._margin = min(MARGIN_MAX, max(0.0, self._margin + QUANTILE_STEP * step))

    def _learn(self, cell: int, value: float) -> None:
        count = self._counts.get(cell, 0)
        self._counts[cell] = count + 1
        if count == 0:
            insort(self._sizes, cell)
            self._cells[cell] = value
        elif count < WARM_SAMPLES:
            self._cells[cell] = min(self._cells[cell], value)
        else:
            self._cells[cell] += CELL_RATE * (value - self._cells[cell])

    def _interpolate(self, rows: int) -> float:
        sizes = self._sizes
        if not sizes:
            return 0.0
        index = bisect_left(sizes, rows)
        if index == len(sizes):
            return self._cells[sizes[-1]] * rows / sizes[-1]
        high = sizes[index]
        if high == rows or index == 0:
            return self._cells[high]
        low = sizes[index - 1]
        share = (rows - low) / (high - low)
        return self._cells[low] + share * (self._cells[high] - self._cells[low])
