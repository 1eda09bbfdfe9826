"""The loop around the scheduler: what the live driver measures becomes tuning. Rule: few, bounded
steps.

Two lags of the event loop are part of every plan, and both are tracked quantiles:
- reply: between Triton's answer and the written reply. When a batch of 32 comes back, 32 handlers
  run one after the other; the last reply leaves milliseconds after the batch did, and "in time"
  means written.
- send: between the moment a batch is due and the moment its message is made. The next batch is
  sent that much earlier, else the device idles between two batches (at 1.3x load on two slow
  cores: 2-3 % of goodput).
"""

from dataclasses import replace

from tritonsched.core.tuning import GUARD_NS, Tuning

QUANTILE = 0.95
STEP = 0.05  # of the current value, a sample: follows within ~50 samples
LAG_NS_MIN = 20_000
LAG_NS_MAX = 50_000_000  # a stall is not a reason to refuse everything
GUARD_NS_MAX = 5_000_000  # earlier than this, late binding is lost
CHANGE_MIN = 0.2  # smaller moves are not worth telling the scheduler


class Lag:
    """A stochastic quantile of a lag: up by p, down by 1 - p, in steps relative to itself."""

    def __init__(self) -> None:
        self._ns = float(LAG_NS_MIN)

    @property
    def ns(self) -> int:
        return int(self._ns)

    def observe(self, lag_ns: int) -> None:
        """One sample."""
        up = lag_ns > self._ns
        factor = 1.0 + STEP * (QUANTILE if up else QUANTILE - 1.0)
        self._ns = min(LAG_NS_MAX, max(LAG_NS_MIN, self._ns * factor))


class LoopLags:
    """Both lags, and what they make of the tuning."""

    def __init__(self) -> None:
        self.reply = Lag()
        self.send = Lag()

    def tuned(self, tuning: Tuning) -> Tuning | None:
        """The tuning with the lags as they are now; None if they moved too little to matter."""
        reply_ns = self.reply.ns
        guard_ns = min(GUARD_NS_MAX, GUARD_NS + self.send.ns)
        if not (_moved(tuning.reply_ns, reply_ns) or _moved(tuning.guard_ns, guard_ns)):
            return None
        return replace(tuning, reply_ns=reply_ns, guard_ns=guard_ns)


def _moved(old_ns: int, new_ns: int) -> bool:
    return abs(new_ns - old_ns) > CHANGE_MIN * max(old_ns, LAG_NS_MIN)
