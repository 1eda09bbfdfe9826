"""The loop around the scheduler: what the live driver measures becomes tuning. Rule: it measures
and carries; what follows from it is core/feedback's.

Two lags of the event loop are part of every plan, and both are tracked quantiles:
- reply: between Triton's answer and the written reply. When a batch of 32 comes back, 32 handlers
  run one after the other; the last reply leaves milliseconds after the batch did, and "in time"
  means written.
- send: between the moment a batch is due and the moment its message is made. The next batch is
  sent that much earlier, else the device idles between two batches (at 1.3x load on two slow
  cores: 2-3 % of goodput).
"""

from collections.abc import Callable, Iterable
from typing import Protocol

from tritonsched.core.feedback import LAG_NS_MIN, Change, Feedback, Lags, Settings
from tritonsched.core.scheduler import Scheduler
from tritonsched.core.tuning import Tuning

QUANTILE = 0.95
STEP = 0.05  # of the current value, a sample: follows within ~50 samples
LAG_NS_MAX = 50_000_000  # a stall is not a reason to refuse everything
_UP, _DOWN = 1.0 + STEP * QUANTILE, 1.0 + STEP * (QUANTILE - 1.0)

Clock = Callable[[], int]


class Retuned(Protocol):
    """What takes a tuning: the driver."""

    def retune(self, tuning: Tuning) -> None: ...


class Lag:
    """A stochastic quantile of a lag: up by p, down by 1 - p, in steps relative to itself."""

    def __init__(self) -> None:
        self._ns = float(LAG_NS_MIN)

    @property
    def ns(self) -> int:
        return int(self._ns)

    def observe(self, lag_ns: int) -> None:
        """One sample."""
        self.follow((lag_ns,))

    def follow(self, lags_ns: Iterable[int]) -> None:
        """Samples, in their order."""
        ns = self._ns
        for lag_ns in lags_ns:
            ns *= _UP if lag_ns > ns else _DOWN
            if not LAG_NS_MIN <= ns <= LAG_NS_MAX:
                ns = float(LAG_NS_MIN if ns < LAG_NS_MIN else LAG_NS_MAX)
        self._ns = ns


class Tuner:
    """The live hand of core/feedback: carries what it says into the driver. told: hears of each
    change.
    """

    def __init__(self, settings: Settings, *, clock: Clock, told: Callable[[Change], None]) -> None:
        self.feedback = Feedback(settings, told=told)
        self.reply = Lag()
        self.send = Lag()
        self._clock = clock

    def drive(self, scheduler: Scheduler, driver: Retuned) -> None:
        """These are tuned."""
        self._scheduler = scheduler
        self._driver = driver

    def replied(self, lags_ns: Iterable[int]) -> None:
        """Replies were written, that long after their batch's answer came."""
        self.reply.follow(lags_ns)
        now = self._clock()
        if now < self.feedback.due_ns:
            return
        queued = max(self._scheduler.queued().values(), default=0)
        lags = Lags(self.reply.ns, self.send.ns)
        tuning = self.feedback.step(self._scheduler.tuning, now, queued=queued, lags=lags)
        if tuning is not None:
            self._driver.retune(tuning)
