"""What fairness costs and gives: utility of the bound, and the share on time of the worst tenant.

    python -m tests.bench.fairness

As table 4.12 of the scheduling study: a tenant is a model, on W6 a class. "fair K @F": worth up to
1 + K times as much while less than F of its requests are on time. Goal G9: worst >= 0.60 on W5, W6,
W7 at 3.5 points of utility at most. `--steps` shows that the steps of the boost cost nothing.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tritonsched.core.fairness import STEPS, Fairness
from tritonsched.core.policies import POLICIES
from tritonsched.core.scheduler import Scheduler
from tritonsched.sim.experiment import Trace, bound_of, default_load, run, workload_names

OPTIONS = ("0@0.5", "2@0.5", "5@0.5", "20@0.5", "5@0.8")


@dataclass(frozen=True, slots=True)
class Stepped(Fairness):
    """With steps of its own."""

    steps: int = STEPS

    def boost(self, on_time_share: float, steps: int = 0) -> float:
        return Fairness.boost(self, on_time_share, self.steps)


def option(text: str, steps: int) -> Fairness:
    """`K@F`: strength and target."""
    strength, target = map(float, text.split("@"))
    return Stepped(target, strength, steps)


def making(fairness: Fairness) -> Callable[..., Scheduler]:
    """Builds schedulers that have it."""

    def make(*args: Any, **fields: Any) -> Scheduler:
        scheduler = Scheduler(*args, **fields)
        scheduler.tenants.adopt({}, fairness)
        return scheduler

    return make


def measured(name: str, rule: str, fairness: Fairness, options: argparse.Namespace) -> str:
    """Mean over the seeds: value / worst."""
    values, worst = [], []
    for seed in range(1, options.seeds + 1):
        trace = Trace(name, default_load(name), seed, options.requests)
        record = run(trace, rule, make=making(fairness)).record
        values.append(record.utility / bound_of(trace))
        worst.append(record.worst_share)
    return f"{statistics.fmean(values):.3f} / {statistics.fmean(worst):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workloads", default="W2,W3,W5,W6,W7,W10,W12")
    parser.add_argument("--rule", default="lite", choices=sorted(POLICIES))
    parser.add_argument("--options", default=",".join(OPTIONS), help="K@F by comma")
    parser.add_argument("--requests", type=int, default=5_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS, help="of the boost")
    options = parser.parse_args()
    names = options.workloads.split(",")
    unknown = set(names) - set(workload_names())
    if unknown:
        parser.error(f"{', '.join(unknown)}: unknown; use {', '.join(workload_names())}")
    sys.stdout.write(f"{options.rule}, {options.steps} steps | {' | '.join(names)}\n")
    for text in options.options.split(","):
        cells = [
            measured(name, options.rule, option(text, options.steps), options) for name in names
        ]
        sys.stdout.write(f"fair {text} | {' | '.join(cells)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
