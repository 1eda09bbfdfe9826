"""When a batch size has been measured often enough. Rule: its quantiles decide, within bounds.

A size is done when WINDOW more runs moved neither its p50 by more than P50_MOVES nor its p99 by
more than P99_MOVES, both relative; at the earliest after RUNS_MIN runs, at the latest after
RUNS_MAX, or after POINT_NS_MAX once RUNS_MIN are there. The first WARM_RUNS of a size count for
nothing: graphs are built and kernels chosen in them.
"""

from collections.abc import Sequence

from tritonsched.config.classes_section import MS_NS
from tritonsched.config.profile_file import Point

WARM_RUNS = 5
RUNS_MIN = 40
RUNS_MAX = 400
WINDOW = 20
P50_MOVES = 0.01
P99_MOVES = 0.05  # of few samples it is nearly their maximum
POINT_NS_MAX = 20_000_000_000
EXEC_NS_MIN = 1_000  # as in core/latency.py: shorter times are noise of the clock


def quantile(ordered: Sequence[int], share: float) -> int:
    """The smallest value that at least `share` of them do not exceed. ordered: not empty."""
    return ordered[max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1)]


class Samples:
    """The runs of one batch size, in ns."""

    def __init__(self) -> None:
        self._all: list[int] = []
        self._warm = 0
        self._spent_ns = 0
        self._before: tuple[int, int] | None = None
        self._settled = False

    def __len__(self) -> int:
        return len(self._all)

    def add(self, exec_ns: int) -> None:
        """One more run."""
        self._spent_ns += exec_ns
        if self._warm < WARM_RUNS:
            self._warm += 1
            return
        self._all.append(max(EXEC_NS_MIN, exec_ns))
        if len(self._all) % WINDOW == 0:
            ordered = sorted(self._all)
            now = (quantile(ordered, 0.5), quantile(ordered, 0.99))
            self._settled = self._before is not None and _near(self._before, now)
            self._before = now

    @property
    def is_done(self) -> bool:
        """No more runs are needed, or may be made."""
        if len(self._all) < RUNS_MIN:
            return False
        return self._settled or len(self._all) >= RUNS_MAX or self._spent_ns >= POINT_NS_MAX

    def point(self, rows: int) -> Point:
        """What the profile says of them. At least one must have been added after the warm ones."""
        ordered = sorted(self._all)
        return Point(
            rows=rows,
            p50_ms=_ms(quantile(ordered, 0.5)),
            p90_ms=_ms(quantile(ordered, 0.9)),
            p99_ms=_ms(quantile(ordered, 0.99)),
            max_ms=_ms(ordered[-1]),
            runs=len(ordered),
        )


def _near(before: tuple[int, int], now: tuple[int, int]) -> bool:
    moves = [abs(a - b) / b for a, b in zip(now, before, strict=True)]
    return moves[0] <= P50_MOVES and moves[1] <= P99_MOVES


def _ms(ns: int) -> float:
    return round(ns / MS_NS, 3)
