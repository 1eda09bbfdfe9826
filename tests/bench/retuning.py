"""What retuning is worth in the simulator, by rule and workload.

    python -m tests.bench.retuning

One trace each at the workload's own load, 1 ms round trip, default noise: utility as a share of the
clairvoyant bound, misses among admitted; with no knob, with those
that are active by default, and with all.
"""

import argparse
import sys

from tritonsched.core.controllers import KNOBS
from tritonsched.core.feedback import DEFAULT_KNOBS, Settings
from tritonsched.core.policies import POLICIES
from tritonsched.sim.experiment import (
    Trace,
    bound_of,
    default_load,
    run,
    tuning_for,
    workload_names,
)

SETTINGS = {"none": frozenset[str](), "default": DEFAULT_KNOBS, "all": frozenset(KNOBS)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workloads", default="tight,W1,W2,W4,W7,W10")
    parser.add_argument("--rules", default="lite,fcfs,disbatcher", help=", ".join(POLICIES))
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--load", type=float, help="default: each workload's own")
    options = parser.parse_args()
    sys.stdout.write(f"workload | rule | {' | '.join(SETTINGS)}: value, missed\n")
    for name in options.workloads.split(","):
        if name not in workload_names():
            parser.error(f"{name} is unknown; use {', '.join(workload_names())}")
        trace = Trace(name, options.load or default_load(name), 1, options.requests)
        for rule in options.rules.split(","):
            cells = []
            for knobs in SETTINGS.values():
                done = run(
                    trace, rule, tuning=tuning_for(1_000_000), feedback=Settings(knobs=knobs)
                )
                value = done.record.utility / bound_of(trace)
                cells.append(f"{value:.3f}, {done.record.miss_ratio:.2%}")
            sys.stdout.write(f"{name} | {rule} | {' | '.join(cells)}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
