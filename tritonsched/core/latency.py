"""Execution times: the only model of the device. Rule: learn from every answer, promise the safe
end.

Real curves are flat, then linear, so the profile is a table by rows, not a fit (scheduling study
2). Three parts, all learnt online:
- a table of mean times by rows, linear between measured sizes, proportional beyond the largest one
  (conservative: a batch never costs more than its rows one by one);
- the speed of the device (core/speed.py), common to all models on it: throttling, co-tenants and
  recovery show on whatever runs, and hold for the rest; a change that one model alone shows
  rescales its table;
- a tracked quantile of measured minus expected, the margin of every promise. A difference, not a
  ratio: jitter is a matter of the host (a late wake-up, a busy loop) and about the same for every
  size, so a ratio learnt on small batches would promise far too little for large ones.
What a first sample says is doubted, because a model's first calls, often the first of each batch
size, are many times slower (graph building, autotuning, page faults) and would otherwise refuse
everything that follows: of a size's first samples the least counts, until then it is taken for at
most proportional to the next smaller size, and no size for slower than a larger one. One batch that
is far off moves little (an overrun); three in a row are a new speed.
O(1) a read (memoised), O(sizes) an observation.
"""

import math
from array import array
from bisect import bisect_left, insort
from collections import deque
from statistics import median

from tritonsched.core.speed import CLIP, RUN_MAX, DeviceSpeed, Sums, clipped

PROVEN_SAMPLES = 8  # batches before the profile may be a reason to refuse
WARM_SAMPLES = 3  # first samples of a size, of which the least counts
CELL_RATE = 0.05  # a size's mean follows its last ~20 samples
YOUNG_SAMPLES = PROVEN_SAMPLES  # until then a size follows faster, and the clip is wider
YOUNG_CLIP = 0.5  # of the log of measured / expected
QUANTILE = (
    0.99  # of batches, at most 1 % should outlast the promise; 0.98 earns no more (simulated)
)
QUANTILE_STEP = 0.04  # of the expected time: how far one late batch moves the margin
MARGIN_START = 0.05  # of the expected time, before anything is known
MARGIN_MAX = 2.0  # of the expected time: no promise is longer than three times that
STALE_NS = 1_000_000_000  # unmeasured this long, a profile is no reason to refuse an idle device
FINE_ROWS = 64  # sizes up to here have a cell each; above, 16 cells an octave keep the table small
EXEC_NS_MIN = 1_000  # shorter times are noise of the clock


def cell_of(rows: int) -> int:
    """The table's cell for a batch size: exact up to FINE_ROWS, then rounded up to 1/16 octave."""
    if rows <= FINE_ROWS:
        return rows
    grain = 1 << (rows.bit_length() - 5)
    return -(-rows // grain) * grain


class LatencyProfile:
    """Expected and safe execution time of one model on one device, by rows.

    table: measured nanoseconds by rows to start from; empty means nothing is known. margin_ns: what
    a promise adds to them, if that was measured, too. Learning goes on from both.
    """

    __slots__ = (
        "_bases", "_cells", "_counts", "_doubtful", "_last_ns", "_line", "_margin_ns", "_memo",
        "_ratios", "_safe", "_seen", "_sizes", "_smooth", "_speed", "_sums", "_trusted", "_version",
        "samples",
    )  # fmt: skip

    def __init__(
        self, table: dict[int, int] | None = None, *, margin_ns: int | None = None
    ) -> None:
        self._cells = {cell_of(r): float(max(ns, EXEC_NS_MIN)) for r, ns in (table or {}).items()}
        self._counts = dict.fromkeys(self._cells, PROVEN_SAMPLES)
        self._sizes = sorted(self._cells)
        self._trusted = max(self._sizes, default=0)  # largest size with WARM_SAMPLES
        self._margin_ns = -1.0 if margin_ns is None else float(margin_ns)  # -1: not measured yet
        self._memo: dict[int, int] = {}
        self._safe: dict[int, int] = {}
        self._line = array("q")  # safe times of 0, 1, ... rows
        self._bases: list[float] = []  # of the table, likewise
        self._last_ns = -STALE_NS
        self._doubtful = 0  # sizes with fewer than WARM_SAMPLES
        self.samples = PROVEN_SAMPLES if self._cells else 0
        self._smooth: list[float] = []
        self._sums = Sums()
        self._ratios: deque[float] = deque(maxlen=RUN_MAX)
        self.join(DeviceSpeed())
        self._smoothen()

    def join(self, speed: DeviceSpeed) -> None:
        """Run at the speed of that device from now on; the table stays as it is."""
        self._speed = speed
        self._version = -1
        self._seen = speed.changes

    @property
    def is_proven(self) -> bool:
        """Enough is known to refuse on it."""
        return self.samples >= PROVEN_SAMPLES

    def margin_ns(self, rows: int) -> int:
        """What a promise adds to the expected time of a batch of `rows`."""
        return self._margin_at(self.exec_ns(rows))

    def _margin_at(self, expected: int) -> int:
        speed = self._speed
        doubt_ns = speed.doubt * expected
        if self._margin_ns < 0:
            return int(MARGIN_START * speed.safety * expected + doubt_ns)
        margin_ns, most_ns = self._margin_ns * speed.safety + doubt_ns, MARGIN_MAX * expected
        return int(margin_ns if margin_ns < most_ns else most_ns)

    @property
    def rows_known(self) -> int:
        """The largest batch size measured so far; 0 if none."""
        return self._sizes[-1] if self._sizes else 0

    def is_stale(self, now: int) -> bool:
        """Nothing was measured for STALE_NS: time to let a request through and look again."""
        return now - self._last_ns >= STALE_NS

    def exec_ns(self, rows: int) -> int:
        """Expected execution time of a batch of `rows`; 0 if nothing was ever measured."""
        if self._version != self._speed.version:
            self._forget()
        known = self._memo.get(rows)
        if known is None:
            bases = self._bases
            base = bases[rows] if rows < len(bases) else self._interpolate(rows)
            known = self._memo[rows] = int(base * self._speed.factor)
        return known

    def safe_ns(self, rows: int) -> int:
        """What may be promised: expected time at the tracked quantile; 0 while unproven."""
        if self.samples < PROVEN_SAMPLES:
            return 0
        if self._version != self._speed.version:
            self._forget()
        known = self._safe.get(rows)
        if known is None:
            known = self._safe[rows] = self.exec_ns(rows) + self.margin_ns(rows)
        return known

    def safe_times(self, rows: int) -> "array[int]":
        """`safe_ns` of 0 to `rows` rows, or more; one by one they cost several times as much."""
        if self.samples < PROVEN_SAMPLES:
            return array("q", bytes(8 * (rows + 1)))
        if self._version != self._speed.version:
            self._forget()
        known = self._line
        if len(known) <= rows:
            bases = self._bases
            if len(bases) <= rows:
                bases = self._bases = self._bases_to(rows)
            factor = self._speed.factor
            line = self._promised([int(base * factor) for base in bases])
            known = self._line = array("q", line)
        return known

    def _promised(self, line: list[int]) -> list[int]:
        """Ascending expected times with their margins: `_margin_at`, without a call for each."""
        margin_ns, doubt = self._margin_ns * self._speed.safety, self._speed.doubt
        if self._margin_ns < 0:
            return [ns + self._margin_at(ns) for ns in line]
        if doubt or margin_ns > MARGIN_MAX * line[0]:
            return [ns + int(min(margin_ns + doubt * ns, MARGIN_MAX * ns)) for ns in line]
        whole_ns = int(margin_ns)
        return [ns + whole_ns for ns in line]

    def knows(self, rows: int) -> bool:
        """That size was measured often enough to be left alone when learning is off."""
        return self.is_proven and self._counts.get(cell_of(rows), 0) >= WARM_SAMPLES

    def observe(self, *, rows: int, exec_ns: int, now: int) -> None:
        """Learn that a batch of `rows` took `exec_ns`."""
        measured = float(max(exec_ns, EXEC_NS_MIN))
        self._last_ns = now
        self.samples += 1
        if self.is_proven and rows <= self._trusted:  # extrapolated times are no evidence
            measured = self._follow(measured, rows)
        self._learn(cell_of(rows), measured / self._speed.factor)
        self._forget()

    def _forget(self) -> None:
        """The memos are of another speed or table."""
        self._memo.clear()
        self._safe.clear()
        self._line = array("q")
        self._version = self._speed.version

    def _follow(self, measured: float, rows: int) -> float:
        """Move speed and margin; returns the measured time as far as it is believed."""
        base, speed = max(1.0, self._interpolate(rows)), self._speed
        ratio = math.log(measured / base)
        expected = base * speed.factor
        if speed.observe(ratio, self):
            return base * speed.factor
        self._cover(measured - expected, expected)
        residual = speed.residual(ratio)
        if self._is_mine(ratio, residual):
            return base * speed.factor
        clip = CLIP * speed.spread
        if clip < YOUNG_CLIP and self._counts.get(cell_of(rows), 0) < YOUNG_SAMPLES:
            clip = YOUNG_CLIP
        return base * speed.factor * math.exp(clipped(residual, clip))

    def _cover(self, late_ns: float, expected: float) -> None:
        """The margin is a stochastic quantile: up by p, down by 1 - p."""
        if self._margin_ns < 0:
            self._margin_ns = MARGIN_START * expected
        step = QUANTILE if late_ns > self._margin_ns else QUANTILE - 1.0
        moved = self._margin_ns + QUANTILE_STEP * step * expected
        self._margin_ns = min(MARGIN_MAX * expected, max(0.0, moved))

    def _is_mine(self, ratio: float, residual: float) -> bool:
        """The device is as fast as before and this model alone is not: its table is rescaled."""
        if self._seen != self._speed.changes:
            self._seen = self._speed.changes
            self._sums.reset()
            self._ratios.clear()
        self._ratios.append(ratio)
        began = self._sums.observe(residual / self._speed.spread)
        if not began:
            return False
        shift = self._speed.residual(median(list(self._ratios)[-abs(began) :]))
        self._cells = {size: ns * math.exp(shift) for size, ns in self._cells.items()}
        self._smoothen()
        self._speed.not_the_device()
        self._sums.reset()
        self._ratios.clear()
        return True

    def _learn(self, cell: int, value: float) -> None:
        count = self._counts.get(cell, 0) + 1
        self._counts[cell] = count
        if count >= WARM_SAMPLES:
            self._trusted = max(self._trusted, cell)
        if count == 1:
            insort(self._sizes, cell)
            self._cells[cell] = value
        elif count <= WARM_SAMPLES:
            self._cells[cell] = min(self._cells[cell], value)
        else:
            rate = max(CELL_RATE, 1 / count)
            self._cells[cell] += rate * (value - self._cells[cell])
        if count <= WARM_SAMPLES:
            self._doubtful += (count == 1) - (count == WARM_SAMPLES)
        if self._doubtful or count <= WARM_SAMPLES:
            self._smoothen()
        else:
            self._smoothen_below(cell)

    def _smoothen(self) -> None:
        """The table as it is read: doubtful cells bounded from below, every cell from above."""
        smooth: list[float] = []
        for index, size in enumerate(self._sizes):
            value = self._cells[size]
            if index and self._counts[size] < WARM_SAMPLES:
                value = min(value, smooth[-1] * size / self._sizes[index - 1])
            smooth.append(value)
        for index in range(len(smooth) - 2, -1, -1):
            smooth[index] = min(smooth[index], smooth[index + 1])
        self._smooth = smooth
        self._bases = []

    def _smoothen_below(self, cell: int) -> None:
        """The same after one cell moved and none is doubtful: smaller ones move while it bounds
        them.
        """
        sizes, smooth = self._sizes, self._smooth
        index = bisect_left(sizes, cell)
        bound = smooth[index + 1] if index + 1 < len(smooth) else math.inf
        while index >= 0:
            value = min(self._cells[sizes[index]], bound)
            if value == smooth[index]:
                break
            smooth[index] = bound = value
            index -= 1
        self._bases = []

    def _bases_to(self, rows: int) -> list[float]:
        """`_interpolate` of 0 to `rows` rows, size by size instead of one by one."""
        if not self._sizes:
            return [0.0] * (rows + 1)
        smooth = self._smooth
        bases, low, below = [smooth[0]], 0, smooth[0]
        for size, value in zip(self._sizes, smooth, strict=True):
            if low > rows:
                break
            if size == low + 1:
                bases.append(value)
            elif low:
                step = size - low
                bases += [below + k / step * (value - below) for k in range(1, step)]
                bases.append(value)
            else:
                bases += [value] * size
            low, below = size, value
        bases += [below * many / low for many in range(low + 1, rows + 1)]
        return bases

    def _interpolate(self, rows: int) -> float:
        sizes, smooth = self._sizes, self._smooth
        if not sizes:
            return 0.0
        index = bisect_left(sizes, rows)
        if index == len(sizes):
            return smooth[-1] * rows / sizes[-1]
        high = sizes[index]
        if high == rows or index == 0:
            return smooth[index]
        low = sizes[index - 1]
        share = (rows - low) / (high - low)
        return smooth[index - 1] + share * (smooth[index] - smooth[index - 1])
