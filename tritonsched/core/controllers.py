"""One controller a knob: from what a window of time showed to a new value. Rule: pure, bounded, and
slow to trust.

A knob is made tighter at once when misses are above the target beyond chance, and looser only after
some good windows (one that is neither good nor bad takes one back); every time it has to be made
tighter again, it waits for twice as many before the next attempt (PATIENCE_MAX at most). So a knob
at the edge of what works tries the other side less and less often instead of swinging.

| knob   | tighter is       | made tighter by                   | made looser by good windows and |
|--------|------------------|-----------------------------------|---------------------------------|
| safety | a longer promise | misses                            | -                               |
| window | a shorter hold   | misses; devices that mostly idle  | busy, unfilled batches; slack   |
| rows   | smaller batches  | misses while batches are full     | batches as large as that        |
| queue  | fewer that wait  | misses while requests wait        | queues as long as that          |
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

PATIENCE = 3  # good windows before a knob is made looser
PATIENCE_MAX = 96
BAD_SIGMAS = 3.0  # beyond chance: that many standard deviations of the count of misses
GOOD_SIGMAS = 1.0
BUSY, IDLE = 0.8, 0.5  # of the devices' time
FILLED = 0.8  # of the rows that batches could have
MS = 1_000_000
US = 1_000


@dataclass(frozen=True, slots=True)
class Bounds:
    """Closed interval of a knob's values, in its unit."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise ValueError(f"bounds {self.low} to {self.high}: low must be >= 0 and <= high")

    def clamp(self, value: float) -> float:
        return max(self.low, min(self.high, value))


@dataclass(frozen=True, slots=True)
class Sample:
    """What a window of time showed.

    admitted: requests that left and were neither refused nor cancelled; missed: late or expired.
    fill: rows of batches over the rows they could have had. busy: mean share of
    the devices' time. slack_p10_ns: the 10 % quantile of deadline less answer; None without
    deadlines. error_p99: of |measured - expected| / measured of batches. queued: most requests
    that waited for one model. rows: of the largest batch.
    """

    admitted: int = 0
    missed: int = 0
    fill: float = 0.0
    busy: float = 0.0
    slack_p10_ns: int | None = None
    error_p99: float = 0.0
    queued: int = 0
    rows: int = 0

    def is_bad(self, target: float) -> bool:
        """More misses than the target, beyond chance."""
        return self.missed - BAD_SIGMAS * math.sqrt(self.missed) > target * self.admitted

    def is_good(self, target: float) -> bool:
        """Less than half of the target, and not by chance alone."""
        most = self.missed + GOOD_SIGMAS * math.sqrt(self.missed + 1)
        return most < target / 2 * self.admitted

    def misses(self) -> str:
        """For people."""
        text = f"missed {self.missed} of {self.admitted}"
        if self.slack_p10_ns is not None:
            text += f", slack p10 {self.slack_p10_ns / MS:.1f} ms"
        return text


Wanted = Callable[[Sample, float, float], int]
"""(sample, value, target of the miss ratio) → -1 tighter, 1 looser, 0 stay."""


def _by_misses(sample: Sample, _value: float, target: float) -> int:
    return int(sample.is_good(target)) - int(sample.is_bad(target))


def _window(sample: Sample, value: float, target: float) -> int:
    if sample.is_bad(target) or sample.busy < IDLE:
        return -1
    slack_ns = math.inf if sample.slack_p10_ns is None else sample.slack_p10_ns
    is_useful = sample.busy > BUSY and sample.fill < FILLED and slack_ns > 2 * value
    return int(is_useful and sample.is_good(target))


def _rows(sample: Sample, value: float, target: float) -> int:
    if sample.is_bad(target):
        return -int(sample.fill > FILLED)
    return int(sample.is_good(target) and sample.rows > value / 2)


def _queue(sample: Sample, value: float, target: float) -> int:
    if sample.is_bad(target):
        return -int(sample.queued > 0)
    return int(sample.is_good(target) and sample.queued > value / 2)


@dataclass(frozen=True, slots=True)
class Rule:
    """How one knob moves. tighter, looser: factors; step: the least move, in the knob's unit; from
    0 it is the first value. seen: the field of a sample above which the value binds nobody, so that
    it is made tighter from there. divisor, unit: for people.
    """

    wanted: Wanted
    tighter: float
    looser: float
    step: float
    divisor: float = 1
    unit: str = ""
    seen: str = ""

    def shown(self, value: float) -> str:
        return number(value / self.divisor)


def number(value: float) -> str:
    """For people: four digits, no exponent."""
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:.0f}"


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "safety": Rule(_by_misses, 1.25, 0.9, 0.01),
        "window": Rule(_window, 0.7, 1.2, 100 * US, US, " µs"),
        "rows": Rule(_rows, 0.75, 1.25, 1, 1, " rows", seen="rows"),
        "queue": Rule(_queue, 0.7, 1.25, 1, 1, " requests", seen="queued"),
    }
)
MEASURED: Mapping[str, tuple[float, str]] = MappingProxyType(
    {"guard": (US, " µs"), "reply": (US, " µs")}
)
"""Knobs that follow what is measured: divisor and unit for people."""
KNOBS = (*RULES, *MEASURED)


@dataclass(slots=True)
class Controller:
    """The state of one knob: good windows so far, and how many it takes."""

    rule: Rule
    patience: int = PATIENCE
    good: int = field(default=0)

    def moved(self, value: float, bounds: Bounds, sample: Sample, target: float) -> float:
        """The value for the next window; within bounds."""
        wanted = self.rule.wanted(sample, value, target)
        if wanted < 0:
            binding = getattr(sample, self.rule.seen) if self.rule.seen else value
            return self._tightened(value, min(value, binding), bounds)
        self.good = self.good + 1 if wanted > 0 else max(0, self.good - 1)
        if self.good < self.patience:
            return bounds.clamp(value)
        self.good = 0
        return self._loosened(value, bounds)

    def _tightened(self, value: float, binding: float, bounds: Bounds) -> float:
        new = bounds.clamp(self._towards(binding, self.rule.tighter))
        if new != value:
            self.patience = min(PATIENCE_MAX, 2 * self.patience)
        self.good = 0
        return new

    def _loosened(self, value: float, bounds: Bounds) -> float:
        new = bounds.clamp(self._towards(value, self.rule.looser))
        if new == value:  # all the way back: what made it tight is over
            self.patience = PATIENCE
        return new

    def _towards(self, value: float, factor: float) -> float:
        step = max(self.rule.step, abs(value * factor - value))
        return value + step if factor > 1 else max(0.0, value - step)
