"""The loop around the scheduler: what the live driver measures becomes tuning. Rule: few, bounded
steps.

Now: the time between Triton's answer and the written reply. When a batch of 32 comes back, 32
handlers run one after the other on one loop; the last reply leaves milliseconds after the batch
did, and "in time" means written. The tracked quantile of that lag is part of every promise
(`Tuning.reply_ns`).
"""

from dataclasses import replace

from tritonsched.core.tuning import Tuning

QUANTILE = 0.95
STEP = 0.05  # of the current value, a sample: follows within ~50 replies
LAG_NS_MIN = 20_000
LAG_NS_MAX = 50_000_000  # a stall is not a reason to refuse everything
CHANGE_MIN = 0.2  # smaller moves are not worth telling the scheduler


class ReplyLag:
    """Tracks the lag and says when the tuning should follow."""

    def __init__(self) -> None:
        self._lag_ns = float(LAG_NS_MIN)

    def observe(self, lag_ns: int) -> None:
        """One reply left `lag_ns` after its batch was answered."""
        up = lag_ns > self._lag_ns
        factor = 1.0 + STEP * (QUANTILE if up else QUANTILE - 1.0)
        self._lag_ns = min(LAG_NS_MAX, max(LAG_NS_MIN, self._lag_ns * factor))

    def tuned(self, tuning: Tuning) -> Tuning | None:
        """The tuning with the lag as it is now; None if it moved too little to matter."""
        lag_ns = int(self._lag_ns)
        if abs(lag_ns - tuning.reply_ns) <= CHANGE_MIN * max(tuning.reply_ns, LAG_NS_MIN):
            return None
        return replace(tuning, reply_ns=lag_ns)
