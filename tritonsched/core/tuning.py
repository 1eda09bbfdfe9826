"""The numbers that feedback may change while the scheduler runs. Rule: each has a unit and a
bound.
"""

from dataclasses import dataclass

from tritonsched.core.request import NEVER_NS

RTT_NS = 500_000  # gRPC round trip of a small message on loopback, before it has been measured
GUARD_NS = 300_000  # lets a batch reach Triton before the device idles (scheduling study 4.10)


@dataclass(frozen=True, slots=True)
class Tuning:
    """What the loop around the scheduler may retune.

    rtt_ns: from sending an empty batch to having its answer; it is not execution time.
    guard_ns: how much earlier than `rtt_ns` before the predicted end the next batch is sent.
    reply_ns: from a batch's answer to the last member's written reply; part of "in time".
    window_ns: how long `fcfs` and `edf` hold an unfilled batch; 0 sends at once.
    rows_cap: upper bound of rows a batch beside the model's own; 0 means none.
    queue_requests_max: requests waiting for one model; more are refused.
    safety: times that the tracked margin of an execution time counts in a promise.
    learning: execution times follow what is measured; else they stay as they were when proven.
    ahead: a batch is sent before the running one ends; else it waits for its answer.
    """

    rtt_ns: int = RTT_NS
    guard_ns: int = GUARD_NS
    reply_ns: int = 0
    window_ns: int = 0
    rows_cap: int = 0
    queue_requests_max: int = 4096
    safety: float = 1.0
    learning: bool = True
    ahead: bool = True

    def __post_init__(self) -> None:
        for name in ("rtt_ns", "guard_ns", "reply_ns", "window_ns", "rows_cap", "safety"):
            if getattr(self, name) < 0:
                raise ValueError(f"tuning: {name} must be >= 0")
        if self.queue_requests_max < 1:
            raise ValueError("tuning: queue_requests_max must be >= 1")

    @property
    def lead_ns(self) -> int:
        """How long before the predicted end of the running batch the next one is sent."""
        return self.rtt_ns + self.guard_ns if self.ahead else -NEVER_NS
