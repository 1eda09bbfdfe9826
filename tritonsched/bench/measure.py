"""Counting answers by class. Rule: every request of the schedule is in exactly one count."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tritonsched.bench.clients import GAVE_UP, OK, TRITON_REFUSALS
from tritonsched.bench.plan import LoadClass

QUANTILES = (0.5, 0.9, 0.99)
# What a status that is no answer means; everything else that is not `ok` is a failure.
REFUSALS = frozenset(
    {
        "deadline-unreachable", "deadline-expired", "queue-full", "memory-full", "draining",
        "tenant-queue-full", "tenant-over-share", "triton-unavailable", *TRITON_REFUSALS.values(),
    }
)  # fmt: skip


@dataclass(slots=True)
class ClassCount:
    """One class. served: answered by the deadline; late: answered after it, or given up at it;
    unsent: over the bound of requests in flight; unanswered: still out when the drain ended.
    latencies_ns: of answers.
    """

    load_class: LoadClass
    sent: int = 0
    served: int = 0
    late: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    unsent: int = 0
    unanswered: int = 0
    latencies_ns: list[int] = field(default_factory=list)

    def answered(self, status: str, latency_ns: int) -> None:
        """One request ended. latency_ns: from its scheduled time."""
        self.unanswered -= 1
        if status == OK:
            self.latencies_ns.append(latency_ns)
            deadline_ns = self.load_class.deadline_ns
            if deadline_ns is None or latency_ns <= deadline_ns:
                self.served += 1
            else:
                self.late += 1
        elif status == GAVE_UP:
            self.late += 1
        elif status in REFUSALS:
            self.refused[status] += 1
        else:
            self.failed[status] += 1

    def as_dict(self, duration_s: float) -> dict[str, Any]:
        ordered = sorted(self.latencies_ns)
        return {
            "deadline_ms": self.load_class.deadline_ms,
            "sent": self.sent,
            "served": self.served,
            "late": self.late,
            "refused": dict(sorted(self.refused.items())),
            "failed": dict(sorted(self.failed.items())),
            "unsent": self.unsent,
            "unanswered": self.unanswered,
            "goodput_per_s": round(self.served / duration_s, 2),
            "latency_ms": {f"p{q * 100:g}": quantile_ms(ordered, q) for q in QUANTILES},
        }


def quantile_ms(ordered_ns: list[int], q: float) -> float | None:
    """Nearest-rank quantile in ms; None of nothing."""
    if not ordered_ns:
        return None
    index = min(len(ordered_ns) - 1, max(0, round(q * len(ordered_ns)) - 1))
    return round(ordered_ns[index] / 1e6, 3)
